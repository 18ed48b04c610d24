"""Recovery from failures: what failed, which trial is tried again and how, and what hangs."""
