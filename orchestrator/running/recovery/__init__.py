"""Recovery from failures: classify each failure, plan retries, and end trials that hang."""
