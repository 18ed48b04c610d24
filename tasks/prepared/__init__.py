"""Prepared datasets: preparation, storage, and subsets for training and testing."""
