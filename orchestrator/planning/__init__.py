"""Sweep file to plan: what is to be done, where it lies, what it will cost."""
