"""``isweep measure``: one image set, read from wherever it is, and its two numbers."""
