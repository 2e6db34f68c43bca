"""What the commands do, from their settings to the files that they write."""
