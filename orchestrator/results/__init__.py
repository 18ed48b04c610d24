"""Results: typed records, the result store, columns of the results table, and MLflow."""

import os

# By default, MLflow sends usage data to its developers. This must be switched off before
# MLflow is imported: a machine in a hospital must not contact anybody.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
