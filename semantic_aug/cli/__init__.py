"""How commands read their flags, speak and end."""
