"""Learning-rate search: cells and their studies, who is asked next, trials on Ray, the recipe it
ends in.
"""
