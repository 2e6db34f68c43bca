"""The commands of an experiment on many machines: started as a chain, and followed."""
