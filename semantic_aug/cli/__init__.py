"""Flags, messages and exit statuses of commands."""
