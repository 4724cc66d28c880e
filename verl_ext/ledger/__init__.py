"""What was spent: the formula of FLOPs, the file, and who measures what goes into it."""
