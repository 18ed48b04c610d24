"""Experiments that change one property of a dataset: checks of conditions, and effects."""
