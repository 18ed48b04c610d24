"""``isweep measure``: read one image set, and measure d_data and K_F."""
