"""What a network costs: kernels, memory and time of its passes, on the GPUs of a table."""
