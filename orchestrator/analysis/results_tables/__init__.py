"""Reading and checking results tables, and averaging their trials to points."""
