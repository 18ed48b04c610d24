"""Answers in plain words: one module for each kind of table."""
