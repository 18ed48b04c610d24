"""The points of a search with their results, and the sampler that proposes new points."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.tuning.combinations import Combination, Point
from search_spaces.fingerprint import derive_seed
from search_spaces.tuning import Sampler
from tasks.trials.records import SearchResult

STARTUP_TRIALS = 4
"""Number of points that the sampler needs before it uses a model of the loss. Until then, it
proposes random points."""
SEED_RANGE = 2**32
"""Upper limit of the seeds of Optuna's samplers."""


class CombinationStudy:
    """The points of one combination. From their results, the sampler proposes new points.

    For every proposal, isweep builds a new Optuna study from these points, see
    ``docs/decisions/0012-own-ask-and-tell.md``.

    Args:
        combination: The combination to search.
        sampler: The sampler that proposes points.
        seed: Seed of the whole search.
    """

    def __init__(self, combination: Combination, sampler: Sampler, seed: int = 0) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._combination = combination
        self._sampler = sampler
        self._seed = seed
        space = combination.space
        self._space: dict[str, BaseDistribution] = {
            "learning_rate": FloatDistribution(*space.learning_rate, log=True),
            "weight_decay": FloatDistribution(*space.weight_decay, log=True),
            "batch_size": CategoricalDistribution(space.batch_size),
        }
        self.trials: list[FrozenTrial] = []

    def propose(self, repeat: int = 0) -> Point:
        """Return the sampler's next point.

        The point depends only on the seed, on the known points in their order, and on
        ``repeat``. So if a search is killed and resumed, it proposes the same points.

        Args:
            repeat: Number of proposals since the last point or result was added.
        """
        key = list(self._combination.key)
        seed = derive_seed("sampler", self._seed, key, len(self.trials), repeat) % SEED_RANGE
        study = optuna.create_study(sampler=make_sampler(self._sampler, seed))
        study.add_trials(self.trials)
        proposed = study.ask(self._space).params
        # The values have four digits. So the values in a table are exactly the values of the
        # trainings.
        rounded = {name: type(value)(f"{value:.4g}") for name, value in proposed.items()}
        return self._combination.clip(Point.model_validate(rounded))

    def ask(self, point: Point) -> int:
        """Add a running point of the search space, and return its index."""
        self.trials.append(self._trial(point.model_dump(), TrialState.RUNNING))
        return len(self.trials) - 1

    def tell(self, index: int, result: SearchResult | None) -> None:
        """Add the result of a point. ``result`` is None if the trial failed."""
        params = self.trials[index].params
        if result is None:
            self.trials[index] = self._trial(params, TrialState.FAIL)
        else:
            self.trials[index] = self._trial(params, TrialState.COMPLETE, result.capped_loss)

    def add(self, point: Point, result: SearchResult) -> None:
        """Add a finished point that an earlier command requested."""
        trial = self._trial(point.model_dump(), TrialState.COMPLETE, result.capped_loss)
        self.trials.append(trial)

    def _trial(
        self, params: dict[str, Any], state: TrialState, value: float | None = None
    ) -> FrozenTrial:
        return optuna.create_trial(
            state=state, value=value, params=params, distributions=self._space
        )


def make_sampler(name: Sampler, seed: int) -> BaseSampler:
    """Return an Optuna sampler. ``benchmarks/search.py`` compares the samplers."""
    if name == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "gp":
            return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        return TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS
        )
