"""From a sweep's choices to the explicit list of its cells: the grid is planned here, not by
Tune.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path
from types import NoneType

from orchestrator.planning.paths import RootPaths, SweepPaths, check_outlasts_ray
from orchestrator.planning.sweep_file import (
    SweepSource,
    find_modules_in,
    load_sweep,
    preset_names,
    sweep_text,
)
from search_spaces.datasets import dataset_spec, made_dataset_spec, own_dataset_spec
from search_spaces.errors import ConfigError, CorruptStoreError, unknown_name
from search_spaces.models import model_spec, source_texts
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
from tasks.atomic import write_atomic
from tasks.prepared.listings import Listings
from tasks.prepared.store import PreparedDataset

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


@dataclass
class Workspace:
    """A plan and the places that belong to it; results are kept below ``storage``, or else below
    the root.
    """

    plan: SweepPlan
    paths: RootPaths
    storage: str | None = None
    listings: Listings = field(default_factory=Listings)

    @classmethod
    def open(
        cls,
        source: SweepSource,
        root: str | None = None,
        storage: str | None = None,
        *,
        changes: Mapping[str, object] | None = None,
        as_run: bool = False,
    ) -> Workspace:
        """Read a sweep, see :func:`load_sweep`, or one that ran below ``root``, which is not made.

        A name of both a preset and such a sweep is the latter ``as_run``.
        """
        if not isinstance(source, (str, Path, Mapping, SweepSpec)):
            rule = "A sweep must be a name, a path, the content of a sweep file or a SweepSpec"
            raise ConfigError(rule, type(source).__name__, "e.g. 'demo' or './mine.yaml'")
        if not isinstance(changes, (Mapping, NoneType)):
            hint = "e.g. changes={'recipe.epochs': 3}"
            raise ConfigError("changes must be a mapping", type(changes).__name__, hint)
        if not isinstance(storage, (str, NoneType)):
            raise ConfigError("storage must be text: a folder or a URL", repr(storage))
        paths = RootPaths.at(root)
        if storage and re.fullmatch(r"\w*:(/*|/?[^/].*)", storage):
            # A sweep's name put behind it would be taken for the bucket, or for a folder here.
            raise ConfigError(
                "--storage must name a bucket or host", storage, "e.g. s3://bucket/results"
            )
        if storage and os.path.isfile(os.path.expanduser(storage)):
            raise ConfigError("--storage must be a folder", f"{storage} is a file", "name another")
        listings = Listings()
        load = partial(load_sweep, changes=changes, recipes=paths.recipes, listings=listings)
        sweep = _find(source, paths, load, has_changes=bool(changes), as_run=as_run)
        return cls(plan_sweep(sweep), paths, storage, listings)

    def make(self) -> None:
        """Make the root, see :meth:`RootPaths.make`; refuse a result store that would go with a
        cluster.
        """
        folder = re.sub(r"^(file|local)://", "", self.storage or "")
        if folder and "://" not in folder:
            check_outlasts_ray(Path(folder).expanduser().absolute(), "result store", "--storage")
        self.paths.make()

    def record(self) -> None:
        """Keep the sweep below the root, where its name is enough to find it again."""
        self.sweep_paths.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.sweep_paths.sweep_file, sweep_text(self.plan.sweep).encode())
        models = {trial.network.model for trial in self.plan.trials}
        for reference in sorted(model.architecture for model in models if model.library == "own"):
            for relative, text in source_texts(reference).items():
                path = self.sweep_paths.code / relative
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, text.encode())

    @contextmanager
    def recorded_while_checked(self) -> Iterator[None]:
        """Keep a new sweep at once, others when the block ends; one that is refused in it leaves no
        trace.
        """
        is_new = not os.path.lexists(self.sweep_paths.sweep_file)
        if is_new:
            self.record()
        try:
            yield
        except BaseException:
            if is_new:
                self.sweep_paths.sweep_file.unlink(missing_ok=True)
            raise
        self.record()

    @property
    def sweep_paths(self) -> SweepPaths:
        """Paths of this sweep."""
        return self.paths.sweep(self.plan.sweep.name)

    @property
    def results_url(self) -> str:
        """Where the sweep's results are kept: a folder or the URL of an object store."""
        if self.storage:
            return f"{self.storage.rstrip('/')}/{self.plan.sweep.name}"
        return str(self.sweep_paths.folder)

    @property
    def search_url(self) -> str:
        """Where the trials of the sweep's search are kept, likewise."""
        return f"{self.results_url}/search"

    @cached_property
    def prepared(self) -> dict[str, PreparedDataset]:
        """Prepared datasets that are whole, by prepared id; looked for once, see
        :meth:`look_again`.
        """
        found: dict[str, PreparedDataset] = {}
        for spec in self.plan.prepared:
            folder = self.paths.prepared(spec)
            with suppress(CorruptStoreError):
                found |= {spec.prepared_id: PreparedDataset.open(folder)} if folder.exists() else {}
        return found

    def look_again(self) -> None:
        """Forget which datasets are prepared: some were prepared since."""
        self.__dict__.pop("prepared", None)


def _find(
    source: SweepSource,
    paths: RootPaths,
    load: Callable[[SweepSource], SweepSpec],
    *,
    has_changes: bool,
    as_run: bool,
) -> SweepSpec:
    if not isinstance(source, str) or "/" in source:
        return load(source)
    path, known = paths.sweep(source).sweep_file, {*preset_names(), *paths.sweep_names()}
    if not os.path.lexists(path) or (source in preset_names() and not as_run):
        if (
            source not in known
            and not source.endswith((".yaml", ".yml"))
            and not os.path.exists(source)
        ):
            if os.path.isfile(f"{source}.yaml"):
                raise ConfigError("A sweep file has an ending", source, f"write ./{source}.yaml")
            raise unknown_name(f"preset or sweep of {paths.root}", source, known)
        return load(source if source in known else Path(source))
    find_modules_in(paths.sweep(source).code)
    try:
        return load(path)
    except ConfigError as error:
        if has_changes:
            raise
        raise ConfigError(
            f"The sweep {source!r} as it was last run must be whole in {path}",
            str(error).rstrip("."),
            "remove what is there and run the sweep file that it came from: all results stay",
        ) from None
