"""Former names, until the modules that predict import the new ones."""

from orchestrator.analysis.number_formats import listing, number
from orchestrator.analysis.results_tables.checks import (
    LARGEST_VALUE,
    check_values,
    finished_trials,
)
from orchestrator.analysis.results_tables.points import (
    ALL,
    CURVE,
    D_REFERENCE,
    INVERSE_D,
    LOG_LOSS,
    LOG_SHARPNESS,
    LOG_TRAIN_SIZE,
    POOLED,
    WORDS,
    fitted_points,
    select,
)
from orchestrator.analysis.results_tables.sharpness_scale import (
    UNRECORDED,
    SharpnessScale,
    spell_scale,
)
from search_spaces.errors import plural

__all__ = [
    "ALL",
    "CURVE",
    "D_REFERENCE",
    "INVERSE_D",
    "LARGEST_VALUE",
    "LOG_LOSS",
    "LOG_SHARPNESS",
    "LOG_TRAIN_SIZE",
    "POOLED",
    "UNRECORDED",
    "WORDS",
    "SharpnessScale",
    "check_values",
    "finished_trials",
    "fitted_points",
    "listing",
    "number",
    "plural",
    "select",
    "spell_scale",
]
