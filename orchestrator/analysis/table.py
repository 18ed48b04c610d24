"""Names of the modules that this one was cut into, until all of their users import those."""

from orchestrator.analysis.number_formats import (
    interval as interval,
)
from orchestrator.analysis.number_formats import (
    listing as listing,
)
from orchestrator.analysis.number_formats import (
    number as number,
)
from orchestrator.analysis.number_formats import (
    p_value as p_value,
)
from orchestrator.analysis.results_tables.checks import (
    DIVERGED as DIVERGED,
)
from orchestrator.analysis.results_tables.checks import (
    LARGEST_VALUE as LARGEST_VALUE,
)
from orchestrator.analysis.results_tables.checks import (
    Exclusion as Exclusion,
)
from orchestrator.analysis.results_tables.checks import (
    check_values as check_values,
)
from orchestrator.analysis.results_tables.checks import (
    finished_trials as finished_trials,
)
from orchestrator.analysis.results_tables.checks import (
    normalise as normalise,
)
from orchestrator.analysis.results_tables.checks import (
    split_by_recipe as split_by_recipe,
)
from orchestrator.analysis.results_tables.csv_files import (
    csv_text as csv_text,
)
from orchestrator.analysis.results_tables.csv_files import (
    escape_cell as escape_cell,
)
from orchestrator.analysis.results_tables.csv_files import (
    read_csv as read_csv,
)
from orchestrator.analysis.results_tables.csv_files import (
    unescape_cell as unescape_cell,
)
from orchestrator.analysis.results_tables.csv_files import (
    write_csv as write_csv,
)
from orchestrator.analysis.results_tables.dataset_summaries import (
    DatasetSummary as DatasetSummary,
)
from orchestrator.analysis.results_tables.dataset_summaries import (
    summaries_of as summaries_of,
)
from orchestrator.analysis.results_tables.points import (
    ALL as ALL,
)
from orchestrator.analysis.results_tables.points import (
    CELL as CELL,
)
from orchestrator.analysis.results_tables.points import (
    CURVE as CURVE,
)
from orchestrator.analysis.results_tables.points import (
    D_REFERENCE as D_REFERENCE,
)
from orchestrator.analysis.results_tables.points import (
    INVERSE_D as INVERSE_D,
)
from orchestrator.analysis.results_tables.points import (
    IS_MEDICAL as IS_MEDICAL,
)
from orchestrator.analysis.results_tables.points import (
    LOG_ERROR as LOG_ERROR,
)
from orchestrator.analysis.results_tables.points import (
    LOG_LOSS as LOG_LOSS,
)
from orchestrator.analysis.results_tables.points import (
    LOG_SHARPNESS as LOG_SHARPNESS,
)
from orchestrator.analysis.results_tables.points import (
    LOG_TRAIN_SIZE as LOG_TRAIN_SIZE,
)
from orchestrator.analysis.results_tables.points import (
    OF_GUESSING as OF_GUESSING,
)
from orchestrator.analysis.results_tables.points import (
    POOLED as POOLED,
)
from orchestrator.analysis.results_tables.points import (
    SEED_STD as SEED_STD,
)
from orchestrator.analysis.results_tables.points import (
    SUBSET as SUBSET,
)
from orchestrator.analysis.results_tables.points import (
    WEIGHT as WEIGHT,
)
from orchestrator.analysis.results_tables.points import (
    WORDS as WORDS,
)
from orchestrator.analysis.results_tables.points import (
    at_largest_size as at_largest_size,
)
from orchestrator.analysis.results_tables.points import (
    fitted_points as fitted_points,
)
from orchestrator.analysis.results_tables.points import (
    given as given,
)
from orchestrator.analysis.results_tables.points import (
    select as select,
)
from orchestrator.analysis.results_tables.points import (
    sums_of as sums_of,
)
from orchestrator.analysis.results_tables.sharpness_scale import (
    SAME_SHARPNESS as SAME_SHARPNESS,
)
from orchestrator.analysis.results_tables.sharpness_scale import (
    UNEQUAL_SCALES as UNEQUAL_SCALES,
)
from orchestrator.analysis.results_tables.sharpness_scale import (
    UNRECORDED as UNRECORDED,
)
from orchestrator.analysis.results_tables.sharpness_scale import (
    Policy as Policy,
)
from orchestrator.analysis.results_tables.sharpness_scale import (
    SharpnessScale as SharpnessScale,
)
from orchestrator.analysis.results_tables.sharpness_scale import (
    sharpness_scale as sharpness_scale,
)
from orchestrator.analysis.results_tables.sharpness_scale import (
    spell_scale as spell_scale,
)
from orchestrator.analysis.verdicts import (
    decided as decided,
)
from orchestrator.analysis.verdicts import (
    established as established,
)
from search_spaces.errors import plural as plural
