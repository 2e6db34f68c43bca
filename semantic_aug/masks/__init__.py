"""Masks for photos that have none: a model paints them, rules clean and judge them."""
