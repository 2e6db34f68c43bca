"""What the commands do, from their settings to what they leave."""
