"""What the documents claim, measured: one claim a file."""
