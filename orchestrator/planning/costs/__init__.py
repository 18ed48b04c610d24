"""Costs of a network: kernels, memory and time of its passes, on the GPUs of a table."""
