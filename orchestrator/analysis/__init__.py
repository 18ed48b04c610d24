"""Results table to fits with uncertainty, predictions, figures and a report; no Ray, torch or MLflow."""

from orchestrator.analysis.comparison import SweepComparison, compare
from orchestrator.analysis.fit_records import ScalingFits
from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.power import Power, design_of, power
from orchestrator.analysis.prediction import PilotPoint, Prediction, predict
from orchestrator.analysis.published import (
    PublishedReport,
    Score,
    published_report,
    published_table,
    scorecard,
)
from orchestrator.analysis.table import read_csv, write_csv
from orchestrator.results.table import COLUMNS, Column

__all__ = [
    "COLUMNS",
    "Column",
    "PilotPoint",
    "Power",
    "Prediction",
    "PublishedReport",
    "ScalingFits",
    "Score",
    "SweepComparison",
    "compare",
    "design_of",
    "fit_scaling_laws",
    "power",
    "predict",
    "published_report",
    "published_table",
    "read_csv",
    "scorecard",
    "write_csv",
]
