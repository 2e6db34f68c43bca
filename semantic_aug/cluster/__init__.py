"""The commands of an experiment on many machines: starting them as a chain, and their status."""
