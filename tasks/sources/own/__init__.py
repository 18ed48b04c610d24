"""The rules for labels, groups and splits of a user's own images, however they are stored.

A *kind* is a way to store images: one folder per class, a table of paths, array files, Parquet
files or tars. The module of a kind finds the *rows*, one per image, and the text that the data give
as label, group and split of each row. The modules here turn the text into classes, groups and
splits. They refuse text that is not a plausible label, group or split, and name the rows. All kinds
have the same rules.
"""
