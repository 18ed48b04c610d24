"""Raw files to a prepared dataset: list, read, check, write, publish."""
