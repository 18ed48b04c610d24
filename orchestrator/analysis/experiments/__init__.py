"""Experiments that move one property of a dataset: gates, effects, and what followed."""
