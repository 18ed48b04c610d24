"""The machines that a sweep runs on: their GPUs, nodes, processes, locks and faults."""
