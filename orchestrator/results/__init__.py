"""Results: typed records, the store that keeps them, their columns, and MLflow."""
