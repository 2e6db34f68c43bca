"""Synthetic images of a trial: jobs, making, records, and the variants of each photo."""
