"""Recovery from failures: what failed, which trial is tried again, with how much, and what hangs."""
