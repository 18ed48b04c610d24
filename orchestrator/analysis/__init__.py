"""Results table to fits with uncertainty, predictions, figures and a report; no Ray, torch or MLflow."""

from orchestrator.analysis.fits import ScalingFits, fit_scaling_laws
from orchestrator.analysis.power import Power, design_of, power
from orchestrator.analysis.prediction import Prediction, fit_growth, predict
from orchestrator.analysis.prediction_inputs import PilotPoint
from orchestrator.analysis.published import (
    PublishedReport,
    Score,
    SweepComparison,
    compare,
    published_report,
    published_table,
    scorecard,
)
from orchestrator.analysis.table import read_csv, write_csv

__all__ = [
    "PilotPoint",
    "Power",
    "Prediction",
    "PublishedReport",
    "ScalingFits",
    "Score",
    "SweepComparison",
    "compare",
    "design_of",
    "fit_growth",
    "fit_scaling_laws",
    "power",
    "predict",
    "published_report",
    "published_table",
    "read_csv",
    "scorecard",
    "write_csv",
]
