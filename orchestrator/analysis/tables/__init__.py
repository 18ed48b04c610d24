"""Tables of a report, as plain cells: their layout and their content."""
