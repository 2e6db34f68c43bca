"""Commands without a script of their own: `semantic-aug predict` and `semantic-aug export`."""
