"""The law fitted to points: heights, the exponent, attacks and representations."""
