"""What was found: typed records, their columns, the sealed store, tracking."""
