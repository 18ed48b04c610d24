"""Predicted cost of a network: kernels, memory and time of its passes on each kind of GPU."""
