"""Slopes within and between the groups of any table: read it, fit it, say what it shows."""
