"""Figures of a report: their style, what each shows, and the files they are written to."""
