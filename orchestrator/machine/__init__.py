"""The machines that a sweep runs on: their GPUs, cluster nodes, processes, locks and problems."""
