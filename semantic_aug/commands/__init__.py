"""Commands without a script of their own: `semantic-aug fit`, `predict` and `export`."""
