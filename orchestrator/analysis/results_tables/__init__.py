"""Reading and checking of results tables, and averaging of their trials to points."""
