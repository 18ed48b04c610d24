"""Experiments that change one property of a dataset: checks of the conditions, and effects."""
