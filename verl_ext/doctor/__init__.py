"""Checks that refuse a bad run before it starts; `recipe/doctor.py` runs them and prints one table."""
