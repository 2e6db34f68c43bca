"""An experiment on the disk: names, whole writes, shares of the work, processes and times."""
