"""Learning-rate search: cells and their studies, who is asked next, trials on Ray, the recipe that comes of it."""
