"""Doing what a plan says, on Ray."""
