"""Results: typed records, the store that keeps them, their columns, and MLflow."""

import os

# MLflow reports how it is used to its makers, unless it is told not to before it is imported. A
# hospital's machine must contact nobody.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
