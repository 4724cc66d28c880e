"""Tinker's own code as an oracle: what it would send to its service, beside what we do on our machine."""
