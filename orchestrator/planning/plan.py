"""Expand a sweep into the list of its trials.

This module builds the grid of trials. Ray Tune only runs the trials.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from search_spaces.datasets import dataset_spec, generated_dataset_spec, user_dataset_spec
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
from search_spaces.sweeps import ConditionDataset, DatasetChoice, PairChoice, SweepSpec

MAX_TRIALS = 100_000
"""Largest number of trials of a sweep. Planning this many trials takes a few seconds."""
MAX_CLASSES_IN_MESSAGE = 20
"""Largest number of classes that a message lists."""


class PlannedStatus(StrEnum):
    """Status of a planned trial or measure."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    WAITING = "waiting"
    """The last attempt failed, and the active run will try the trial again."""
    STALE = "stale"
    """The trial has a result, but the result was computed from other data or settings."""
    PENDING = "pending"


@dataclass(frozen=True)
class SweepPlan:
    """All trials and measures of a sweep, in a fixed order and with unique ids.

    Attributes:
        sweep: The sweep.
        trials: All trials of the grid.
        measures: Measures of all subsets that the trials use.
        datasets: Datasets of the sweep by name.
    """

    sweep: SweepSpec
    trials: tuple[TrialSpec, ...]
    measures: tuple[MeasureSpec, ...]
    datasets: dict[str, DatasetSpec]

    @cached_property
    def trials_by_id(self) -> dict[str, TrialSpec]:
        """Trials by their id."""
        return {trial.trial_id: trial for trial in self.trials}

    @cached_property
    def further_tests_by_dataset(self) -> dict[str, tuple[FurtherTest, ...]]:
        """Further test sets by the name of their dataset."""
        return self.sweep.further_tests_by_dataset

    @cached_property
    def own_paths(self) -> dict[str, str]:
        """Paths of the user's own data, by dataset."""
        choices = self.sweep.datasets
        return {choice.name: choice.user_source.path for choice in choices if choice.user_source}

    @cached_property
    def largest_size(self) -> int:
        """Largest train size of the sweep."""
        return max(self.sweep.train_sizes)

    def load_size(self, subset: SubsetSpec, train_size: int) -> int:
        """Return the number of training images to load for a trial.

        Trials of all train sizes share their images, so a trial loads the images of the
        largest size. Exception: if the sweep repeats a fault of the released code that makes
        the images depend on the train size, each train size has its own images.
        """
        if subset.depends_on_size:
            return train_size
        return self.largest_size

    def keeps_weights(self, trial: TrialSpec) -> bool:
        """Return whether the weights of a trial's network are stored."""
        policy = self.sweep.keep_weights
        if policy == "last":
            return trial.network.train_size == self.largest_size
        return policy == "all"

    def num_outputs(self, network: NetworkSpec) -> int:
        """Return the number of logits of a network.

        If the classes are not known yet, return 2.
        """
        if network.recipe.num_outputs:
            return network.recipe.num_outputs
        subset = network.subset
        if subset.class_pair:
            return 2
        return max(2, len(self.datasets[subset.dataset].label_names))

    @cached_property
    def prepared(self) -> tuple[PreparedSpec, ...]:
        """Prepared datasets that the trials need, without duplicates."""
        specs: dict[str, PreparedSpec] = {}
        for measure in self.measures:
            spec = measure.subset.prepared
            specs[spec.prepared_id] = spec
        return tuple(specs.values())


def plan_sweep(sweep: SweepSpec) -> SweepPlan:
    """Expand the grid: models x (datasets x class pairs) x train sizes x recipes x seeds.

    Raises:
        ConfigError: A name is unknown or is used twice, or the sweep has too many trials.
    """
    choices = sweep.list_datasets()
    datasets = {choice.name: _find_dataset(choice) for choice in choices}
    subsets: list[SubsetSpec] = []
    for choice in choices:
        subsets += _list_subsets(sweep, choice, datasets[choice.name])
    num_recipes = math.prod(map(len, sweep.recipe.changes.values()))
    num_networks = len(subsets) * len(sweep.models) * len(sweep.train_sizes) * len(sweep.seeds)
    num_trials = num_networks * num_recipes
    if num_trials > MAX_TRIALS:
        raise ConfigError(
            f"The sweep has {num_trials:,} trials, more than the limit of {MAX_TRIALS:,}",
            hint="Shorten a list of the sweep, for example `seeds` or `train_sizes`",
        )
    further_tests = sweep.further_tests_by_dataset
    trials = tuple(
        TrialSpec(
            network=network,
            attacks=sweep.attacks,
            robustness=sweep.robustness,
            predictions=sweep.predictions,
            further_tests=further_tests.get(network.subset.dataset, ()),
            representation=RepresentationSpec(
                num_neighbors=sweep.num_neighbors, stages=sweep.d_repr_stages
            ),
        )
        for network in _list_networks(sweep, subsets, datasets)
    )
    return SweepPlan(sweep, trials, _list_measures(sweep, trials), datasets)


def _list_networks(
    sweep: SweepSpec, subsets: Iterable[SubsetSpec], datasets: Mapping[str, DatasetSpec]
) -> Iterator[NetworkSpec]:
    """Yield the networks of a grid, in the order of its trials."""
    models = _list_models(sweep)
    for subset in subsets:
        dataset = datasets[subset.dataset]
        for model in models:
            for train_size in sweep.train_sizes:
                redrawn = _redraw_subset(subset, model.name, train_size, dataset)
                for recipe in recipe_grid(sweep.recipe, model.name, subset.dataset):
                    for seed in sweep.seeds:
                        yield NetworkSpec(
                            model=model,
                            subset=redrawn,
                            train_size=train_size,
                            recipe=recipe,
                            seed=seed,
                        )


def _list_models(sweep: SweepSpec) -> list[ModelSpec]:
    """Return the models of a sweep. Raise an error if names are unknown or used twice."""
    models = [model_spec(choice) for choice in sweep.models]
    counts = Counter(model.name for model in models)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise ConfigError(
            f"The list `models` has these names more than once: {', '.join(twice)}",
            hint="Set a different `name` for each model",
        )
    dataset_names = [choice.name for choice in sweep.list_datasets()]
    for row in sweep.recipe.overrides:
        _check_names("model", row.models, counts)
        _check_names("dataset", row.datasets, dataset_names)
    return models


def _check_names(noun: str, names: Iterable[str], known_names: Collection[str]) -> None:
    """Raise an error if ``recipe.overrides`` names a model or dataset that is not in the sweep."""
    for name in sorted(names):
        if name not in known_names:
            raise unknown_name(noun, name, known_names, of="this sweep")


def _find_dataset(choice: DatasetChoice) -> DatasetSpec:
    """Return the chosen dataset: a generated dataset, the user's own data, or a known dataset."""
    if choice.generated is not None:
        parameters = choice.parameters if isinstance(choice, ConditionDataset) else ()
        return generated_dataset_spec(choice.name, choice.generated, parameters)
    if choice.user_source is not None:
        return user_dataset_spec(choice.name, choice.user_source)
    return dataset_spec(choice.name)


def _list_subsets(
    sweep: SweepSpec, choice: DatasetChoice, dataset: DatasetSpec
) -> list[SubsetSpec]:
    """Return the subsets of a dataset: one for each class pair, or one with all classes."""
    condition = None
    prepared_name = choice.name
    if isinstance(choice, ConditionDataset):
        condition = TrainingCondition(dataset=choice.name, parameters=choice.parameters)
        prepared_name = choice.base
    prepared = PreparedSpec(
        dataset=prepared_name,
        task=dataset.task,
        image_size=sweep.image_size,
        channels=sweep.channels or dataset.channels,
        data_mode=sweep.data_mode,
        faults=sweep.all_faults,
        max_images_per_class=dataset.max_images_per_class,
        dials=dataset.dials,
    )
    return [
        SubsetSpec(
            prepared=prepared,
            class_pair=pair,
            test_size=sweep.test_size,
            split_seed=sweep.split_seed,
            condition=condition,
        )
        for pair in _list_class_pairs(sweep, choice, dataset)
    ]


def _list_class_pairs(
    sweep: SweepSpec, choice: DatasetChoice, dataset: DatasetSpec
) -> tuple[ClassPair | None, ...]:
    """Return the class pairs of a dataset. The pair None means all classes at once."""
    pairs: tuple[ClassPair | None, ...] = dataset.class_pairs or (None,)
    if choice.class_pairs is not None:
        pairs = tuple(_find_class_indices(pair, dataset) for pair in choice.class_pairs) or (None,)
    elif "redrawn_class_pairs" in sweep.all_faults:
        # This pair is a placeholder. For each trial, _redraw_subset replaces it by the trial's
        # pair.
        pairs = pairs[:1]
    _check_pairs([pair for pair in pairs if pair], dataset)
    return pairs


def _check_pairs(pairs: list[ClassPair], dataset: DatasetSpec) -> None:
    """Raise an error if a class pair is listed twice or has a class that does not exist."""
    names = dataset.label_names
    key = f"`datasets.{dataset.name}.class_pairs`"
    for pair in pairs:
        if names and max(pair) >= len(names):
            numbered = map("{0[0]} ({0[1]})".format, enumerate(names[:MAX_CLASSES_IN_MESSAGE]))
            raise ConfigError(
                f"{key} lists the pair {list(pair)}, but the classes are 0 to {len(names) - 1}",
                hint=f"Choose from these classes: {', '.join(numbered)}",
            )
        if pair[0] == pair[1]:
            raise ConfigError(
                f"{key} lists the pair {list(pair)}, which contains the same class twice",
                hint="Write two different classes",
            )
        # The pair in reverse order is the same task, so it would count twice in every fit.
        if pairs.count(pair) + pairs.count(pair[::-1]) > 1:
            raise ConfigError(
                f"{key} lists the pair {list(pair)} twice (the order of the classes is ignored)",
                hint="Remove one of the two pairs",
            )


def _find_class_indices(pair: PairChoice, dataset: DatasetSpec) -> ClassPair:
    """Return the indices of a pair's classes.

    Text is a class name, and a number is an index.
    """
    names = dataset.label_names
    indices: list[int] = []
    for label in pair:
        if isinstance(label, str) and label not in names:
            raise unknown_name("class", label, names, of=dataset.name)
        indices.append(names.index(label) if isinstance(label, str) else label)
    return indices[0], indices[1]


def _redraw_subset(
    subset: SubsetSpec, model: str, train_size: int, dataset: DatasetSpec
) -> SubsetSpec:
    """Return a trial's subset with the class pair that the study's released script drew for it.

    If the sweep does not repeat this fault (F8 in ``docs/faults.md``), return the subset
    unchanged. ImageNet's pair is also unchanged, because the script read the same files for
    every pair of ImageNet's 1,000 classes (F4).
    """
    if "redrawn_class_pairs" not in subset.prepared.faults:
        return subset
    pair = released_pairs().get((model, dataset.name, train_size))
    if pair is None or max(pair) >= len(dataset.label_names):
        return subset
    return subset.model_copy(update={"class_pair": pair})


@dataclass
class _SubsetToMeasure:
    """A subset to measure.

    Attributes:
        subset: The subset.
        train_sizes: All train sizes that share the images of the subset.
    """

    subset: SubsetSpec
    train_sizes: set[int] = field(default_factory=set)


def _list_measures(sweep: SweepSpec, trials: Iterable[TrialSpec]) -> tuple[MeasureSpec, ...]:
    """Return one measure for each subset.

    If the images depend on the train size, return one measure for each train size.
    """
    measures: dict[tuple[str, int], _SubsetToMeasure] = {}
    for trial in trials:
        subset = trial.network.subset
        train_size = trial.network.train_size
        key = (subset.subset_id, train_size if subset.depends_on_size else 0)
        measures.setdefault(key, _SubsetToMeasure(subset)).train_sizes.add(train_size)
    return tuple(
        MeasureSpec(
            subset=measure.subset,
            train_sizes=tuple(sorted(measure.train_sizes)),
            num_neighbors=sweep.num_neighbors,
            estimators=sweep.estimators,
            sharpness_sample=sweep.sharpness_sample,
            calibrate=sweep.calibrate,
        )
        for measure in measures.values()
    )


def plan_rows(plan: SweepPlan, statuses: Mapping[str, PlannedStatus]) -> list[dict[str, str | int]]:
    """Return one row of plain values per trial, for tables and JSON.

    Args:
        plan: The plan.
        statuses: Status of trials by id. A trial without a status is ``pending``.
    """
    rows: list[dict[str, str | int]] = []
    for trial_id, trial in plan.trials_by_id.items():
        network = trial.network
        rows.append(
            {
                "trial_id": trial_id,
                "model": network.model.name,
                "dataset": network.subset.dataset,
                "class_pair": pair_name(network.subset.class_pair),
                "train_size": network.train_size,
                "seed": network.seed,
                "recipe": network.recipe.name,
                "status": statuses.get(trial_id, PlannedStatus.PENDING),
            }
        )
    return rows
