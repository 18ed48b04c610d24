"""What was found: typed records, their columns, the sealed store, tracking."""

import os

# MLflow reports how it is used to its makers, unless it is told not to before it is imported. A
# hospital's machine must contact nobody.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
