"""The rules for labels, groups and splits of a user's own images.

A *kind* is a way to store images: one folder per class, a table of paths, array files, Parquet
files or tars. The module of a kind, such as :mod:`tasks.sources.class_folders.listing`, reads
the *rows*. A row is one image with the text of its label, group and split. The rules for rows
are the same for all kinds:

- ``columns`` chooses the columns, JSON keys or arrays with the labels, groups and splits.
- ``rows`` defines the rows and how messages describe them.
- ``labels`` turns labels into classes, and ``class_names`` rejects implausible class names.
- ``similar_classes`` reports classes of which one may be a misspelling of the other.
- ``groups`` rejects implausible group ids, and groups that are in both training and test.
- ``hidden_groups`` finds unused columns and names of files that look like ids of patients.
- ``splits`` lists the words for splits, and ``words`` those for missing and unknown values.
- ``listing`` applies all rules and makes the items.
"""
