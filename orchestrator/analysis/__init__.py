"""Results table to fits with uncertainty, predictions, figures and a report; no Ray, torch or
MLflow.
"""
