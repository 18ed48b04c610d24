"""Fits of the law to points: heights, the exponent, attacks and representations."""
