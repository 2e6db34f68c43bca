"""Learned words: their files, their rows in a frozen model, and their training."""
