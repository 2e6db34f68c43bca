"""Models of diffusers: inspecting them, loading them, and adding weights to them."""
