"""Answers in plain words. Each kind of table has one module."""
