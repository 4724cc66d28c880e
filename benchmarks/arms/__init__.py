"""What a benchmark starts in a process of its own; nothing here is for users."""
