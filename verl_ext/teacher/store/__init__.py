"""Scores that are kept, and the proof that they are this teacher's."""
