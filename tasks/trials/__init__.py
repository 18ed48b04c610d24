"""Run a trial: build a network, train it, measure it and attack it."""
