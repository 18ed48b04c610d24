"""Former names, until the modules that predict import the new ones."""

from orchestrator.analysis.chance_ceiling import why_constant as unvaried
from orchestrator.analysis.chance_ceiling import why_flattened as flattened
from orchestrator.analysis.limits import MIN_CONVINCING_DATASETS, few_of_domain
from orchestrator.analysis.results_tables.chance_level import is_at_chance_level as is_guessing

__all__ = ["MIN_CONVINCING_DATASETS", "few_of_domain", "flattened", "is_guessing", "unvaried"]
