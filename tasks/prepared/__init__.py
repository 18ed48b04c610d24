"""A prepared dataset: its record, its shards, and the subsets that are taken of it."""
