"""Figures of a report: their style, their drawing, and writing them to files."""
