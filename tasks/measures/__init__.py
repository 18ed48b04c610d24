"""Intrinsic dimension and label sharpness of a training set, with their uncertainty."""
