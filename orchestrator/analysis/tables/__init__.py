"""Tables of a report as plain cells: how they are laid out, and what each shows."""
