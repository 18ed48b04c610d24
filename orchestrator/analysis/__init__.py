"""Analysis of a results table: fits, predictions, figures and the report.

The package imports no Ray, torch or MLflow.
"""
