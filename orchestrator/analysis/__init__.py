"""Results table to fits with uncertainty, predictions, figures and a report; no Ray, torch or MLflow."""

from orchestrator.analysis.csvfile import read_csv, write_csv
from orchestrator.analysis.fit_records import ScalingFits
from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.prediction import Prediction, predict
from orchestrator.analysis.published import published_table
from orchestrator.analysis.report import write_report
from orchestrator.results.columns import COLUMNS, Column

__all__ = [
    "COLUMNS",
    "Column",
    "Prediction",
    "ScalingFits",
    "fit_scaling_laws",
    "predict",
    "published_table",
    "read_csv",
    "write_csv",
    "write_report",
]
