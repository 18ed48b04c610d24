"""Slopes within and between the groups of a user's table: reading, fits and sentences."""
