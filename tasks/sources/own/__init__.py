"""The rules for labels, groups and splits of a user's own images, however they are stored.

A *kind* is a way to store images: one folder per class, a table of paths, array files, Parquet
files or tars. The module of a kind, such as :mod:`tasks.sources.folder`, finds the *rows*, one per
image, and the text that the data give as label, group and split of each row. All kinds then have
the same rules, which are here:

- ``columns`` chooses which columns, JSON keys or arrays hold label, group and split.
- ``rows`` holds the text of all rows, and how messages name them.
- ``labels`` turns labels into classes, and ``class_names`` refuses names that are not plausible.
- ``groups`` refuses group ids that are not plausible, and groups in training and test.
- ``splits`` knows the words for splits, ``words`` those for missing and unknown values.
- ``listing`` applies all rules, and makes the items.
"""
