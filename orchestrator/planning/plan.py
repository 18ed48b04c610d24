"""Expand the choices of a sweep into the explicit list of its trials.

The grid is planned here, not by Ray Tune.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from search_spaces.datasets import dataset_spec, made_dataset_spec, own_dataset_spec
from search_spaces.errors import ConfigError, unknown_name
from search_spaces.models import model_spec
from search_spaces.recipes import recipe_grid, released_pairs
from search_spaces.specs import (
    ClassPair,
    DatasetSpec,
    FurtherTest,
    MeasureSpec,
    ModelSpec,
    NetworkSpec,
    PreparedSpec,
    RepresentationSpec,
    SubsetSpec,
    TrainingCondition,
    TrialSpec,
    pair_name,
)
from search_spaces.sweeps import ConditionChoice, DatasetChoice, PairChoice, SweepSpec

MAX_TRIALS = 100_000


class CellStatus(StrEnum):
    """Where a planned trial stands."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    STALE = "stale"
    """It has a result, made from other data than are prepared now or from other choices under the
    same id."""
    PENDING = "pending"


@dataclass(frozen=True)
class SweepPlan:
    """All cells of a sweep, in a fixed order; ids are unique."""

    sweep: SweepSpec
    trials: tuple[TrialSpec, ...]
    measures: tuple[MeasureSpec, ...]
    datasets: dict[str, DatasetSpec]

    @cached_property
    def trials_by_id(self) -> dict[str, TrialSpec]:
        """Trials by their id."""
        return {trial.trial_id: trial for trial in self.trials}

    @cached_property
    def further_tests(self) -> dict[str, tuple[FurtherTest, ...]]:
        """The further test sets of each dataset that has any."""
        return self.sweep.further_tests

    @cached_property
    def largest_size(self) -> int:
        """Largest train size of the sweep."""
        return max(self.sweep.train_sizes)

    def load_size(self, subset: SubsetSpec, train_size: int) -> int:
        """How many training images to load for a cell: all sizes share them unless a fault forbids
        it.
        """
        return train_size if subset.depends_on_size else self.largest_size

    def keeps_weights(self, trial: TrialSpec) -> bool:
        """Whether the weights of a trial's network are kept, by the sweep's policy."""
        policy = self.sweep.keep_weights
        return policy == "all" or (
            policy == "last" and trial.network.train_size == self.largest_size
        )

    def num_outputs(self, network: NetworkSpec) -> int:
        """How many logits a network has, as far as is known before its data are read."""
        subset = network.subset
        pair = 2 if subset.class_pair else len(self.datasets[subset.dataset].label_names)
        return network.recipe.num_outputs or max(2, pair)

    @cached_property
    def prepared(self) -> tuple[PreparedSpec, ...]:
        """The prepared datasets that the cells need, each once."""
        specs = (measure.subset.prepared for measure in self.measures)
        return tuple({spec.prepared_id: spec for spec in specs}.values())


def plan_sweep(sweep: SweepSpec) -> SweepPlan:
    """Expand the grid: models x (datasets x class pairs) x train sizes x recipes x seeds."""
    datasets = {choice.name: _dataset(choice) for choice in sweep.all_datasets}
    subsets = [
        subset
        for choice in sweep.all_datasets
        for subset in _subsets(sweep, choice, datasets[choice.name])
    ]
    num_recipes = math.prod(len(values) for values in sweep.recipe.changes.values())
    num_trials = (
        len(subsets) * len(sweep.models) * len(sweep.train_sizes) * num_recipes * len(sweep.seeds)
    )
    if num_trials > MAX_TRIALS:
        rule = f"A sweep may have at most {MAX_TRIALS:,} trials"
        raise ConfigError(rule, f"{num_trials:,}", "shorten a list")
    models, further_tests = _models(sweep), sweep.further_tests
    trials = tuple(
        TrialSpec(
            network=NetworkSpec(
                model=model,
                subset=_redrawn(subset, model.name, train_size, datasets[subset.dataset]),
                train_size=train_size,
                recipe=recipe,
                seed=seed,
            ),
            attacks=sweep.attacks,
            robustness=sweep.robustness,
            predictions=sweep.predictions,
            further_tests=further_tests.get(subset.dataset, ()),
            representation=RepresentationSpec(
                num_neighbors=sweep.num_neighbors, stages=sweep.d_repr_stages
            ),
        )
        for subset in subsets
        for model in models
        for train_size in sweep.train_sizes
        for recipe in recipe_grid(sweep.recipe, model.name, subset.dataset)
        for seed in sweep.seeds
    )
    return SweepPlan(sweep, trials, _measures(sweep, trials), datasets)


def plan_rows(plan: SweepPlan, statuses: Mapping[str, CellStatus]) -> list[dict[str, str | int]]:
    """Return the grid as plain rows, for tables and JSON; a trial without a status is
    ``pending``.
    """
    return [
        {
            "trial_id": trial_id,
            "model": trial.network.model.name,
            "dataset": trial.network.subset.dataset,
            "class_pair": pair_name(trial.network.subset.class_pair),
            "train_size": trial.network.train_size,
            "seed": trial.network.seed,
            "recipe": trial.network.recipe.name,
            "status": statuses.get(trial_id, CellStatus.PENDING),
        }
        for trial_id, trial in plan.trials_by_id.items()
    ]


def _models(sweep: SweepSpec) -> list[ModelSpec]:
    models = [model_spec(choice) for choice in sweep.models]
    counts = Counter(model.name for model in models)
    if twice := ", ".join(sorted(name for name, count in counts.items() if count > 1)):
        rule = "Every model of a sweep needs a name of its own"
        raise ConfigError(rule, twice, "give one of them a `name`")
    rows, datasets = sweep.recipe.overrides, {choice.name for choice in sweep.all_datasets}
    for kind, known, named in (
        ("model", {model.name for model in models}, {name for row in rows for name in row.models}),
        ("dataset", datasets, {name for row in rows for name in row.datasets}),
    ):
        if unknown := sorted(named - known):
            raise unknown_name(f"{kind} of this sweep", unknown[0], known)
    return models


def _dataset(choice: DatasetChoice) -> DatasetSpec:
    if choice.made is not None:
        condition = choice.condition if isinstance(choice, ConditionChoice) else ()
        return made_dataset_spec(choice.name, choice.made, condition)
    return (
        dataset_spec(choice.name)
        if choice.own is None
        else own_dataset_spec(choice.name, choice.own)
    )


def _subsets(sweep: SweepSpec, choice: DatasetChoice, dataset: DatasetSpec) -> list[SubsetSpec]:
    condition = None
    if isinstance(choice, ConditionChoice):
        condition = TrainingCondition(dataset=choice.name, parameters=choice.condition)
    prepared = PreparedSpec(
        dataset=choice.base if isinstance(choice, ConditionChoice) else choice.name,
        task=dataset.task,
        image_size=sweep.image_size,
        channels=sweep.channels or dataset.channels,
        data_mode=sweep.data_mode,
        faults=sweep.all_faults,
        max_images_per_class=dataset.max_images_per_class,
        dials=dataset.dials,
    )
    pairs: tuple[ClassPair | None, ...] = dataset.class_pairs or (None,)
    if choice.class_pairs is not None:
        pairs = tuple(_places(pair, dataset) for pair in choice.class_pairs) or (None,)
    elif "redrawn_class_pairs" in sweep.all_faults:
        # One pair per cell instead of the table's five; which one follows in _redrawn.
        pairs = pairs[:1]
    named, num_classes = [pair for pair in pairs if pair], len(dataset.label_names)
    where = f"datasets.{dataset.name}.class_pairs"
    for pair in named:
        if num_classes and max(pair) >= num_classes:
            raise ConfigError(
                f"{where} must name classes of the dataset",
                f"{list(pair)}, but classes are 0 to {num_classes - 1}",
                (
                    "classes: "
                    f"{', '.join(f'{i} {name}' for i, name in enumerate(dataset.label_names[:20]))}"
                ),
            )
        # Turned round it is the same question, and would count twice in every fit.
        if pair[0] == pair[1] or named.count(pair) + named.count(pair[::-1]) > 1:
            rule = f"{where} must name different classes, and each pair once, in one order"
            raise ConfigError(rule, str(list(pair)))
    return [
        SubsetSpec(
            prepared=prepared,
            class_pair=pair,
            test_size=sweep.test_size,
            split_seed=sweep.split_seed,
            condition=condition,
        )
        for pair in pairs
    ]


def _redrawn(subset: SubsetSpec, model: str, train_size: int, dataset: DatasetSpec) -> SubsetSpec:
    """Return the subset with the pair that the released script drew for this cell (F8), where it is
    on.

    ImageNet keeps the table's pair: whatever was drawn of its 1,000 classes, the same files were
    read (F4).
    """
    if "redrawn_class_pairs" not in subset.prepared.faults:
        return subset
    pair = released_pairs().get((model, dataset.name, train_size))
    if pair is None or max(pair) >= len(dataset.label_names):
        return subset
    return subset.model_copy(update={"class_pair": pair})


def _measures(sweep: SweepSpec, trials: Iterable[TrialSpec]) -> tuple[MeasureSpec, ...]:
    """Return one measure per subset for all its train sizes, or one per size where sizes share no
    images.
    """
    sizes: dict[tuple[str, int], tuple[SubsetSpec, set[int]]] = {}
    for network in (trial.network for trial in trials):
        subset, size = network.subset, network.train_size
        alone = size if subset.depends_on_size else 0
        sizes.setdefault((subset.subset_id, alone), (subset, set()))[1].add(size)
    return tuple(
        MeasureSpec(
            subset=subset,
            train_sizes=tuple(sorted(found)),
            num_neighbors=sweep.num_neighbors,
            estimators=sweep.estimators,
            sharpness_sample=sweep.sharpness_sample,
            calibrate=sweep.calibrate,
        )
        for subset, found in sizes.values()
    )


def _places(pair: PairChoice, dataset: DatasetSpec) -> ClassPair:
    """Return the places of a pair's classes; text is a name, a number a place."""
    unknown = [name for name in pair if isinstance(name, str) and name not in dataset.label_names]
    if unknown:
        raise unknown_name(f"class of {dataset.name}", unknown[0], dataset.label_names)
    first, second = (
        dataset.label_names.index(name) if isinstance(name, str) else name for name in pair
    )
    return first, second
