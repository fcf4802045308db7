"""Scores -> the kept windows. `reference.py` is the whole of it on one table: read it first."""
