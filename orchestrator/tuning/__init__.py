"""``isweep tune``: search learning rate, weight decay and batch size of every combination of model
and dataset on a validation split, and write the recipe that was found.
"""
