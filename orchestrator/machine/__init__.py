"""The machines on which a sweep runs: GPUs, cluster nodes, processes and locks."""
