"""One trial: a network built, trained, measured and attacked."""
