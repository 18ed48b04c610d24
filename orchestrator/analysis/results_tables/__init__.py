"""A results table: read, checked, and reduced to the points that are fitted."""
