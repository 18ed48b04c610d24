"""``isweep tune``: search learning rate, weight decay and batch size for every combination.

A search uses a validation split, and writes the chosen values as a recipe.
"""
