"""Prepare datasets, store them, and choose subsets for training and testing."""
