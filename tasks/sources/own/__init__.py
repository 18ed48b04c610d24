"""The rules for labels, groups and splits of a user's images.

A *kind* is a way to store images: one folder per class, a table of paths, array files, Parquet
files or tars. For each kind, a module such as :mod:`tasks.sources.class_folders.listing` reads
the *rows*. A row is one image with the text of its label, group and split. The rules for rows
are the same for all kinds:

- ``columns`` chooses the columns, JSON keys or arrays with the labels, groups and splits.
- ``rows`` defines the rows, and the texts with which messages describe them.
- ``labels`` turns labels into classes, and ``class_names`` rejects implausible class names.
- ``similar_classes`` reports pairs of class names that may be two spellings of one class.
- ``groups`` rejects implausible group ids. It also rejects groups with images in both the training
  split and the test split.
- ``hidden_groups`` searches unused columns and file names for patient ids.
- ``splits`` lists the words that name a training, test or validation split.
- ``words`` lists the words that mean a missing or unknown value.
- ``listing`` applies all rules and creates the items.
"""
