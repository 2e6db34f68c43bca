"""Models of diffusers: what they are, loading them, and weights that are added to them."""
