"""Intrinsic dimension and label sharpness of a training set, with all that is needed to judge
them.
"""
