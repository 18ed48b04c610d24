"""Sweep files: the grid as people write it, before it becomes networks and measures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from search_spaces import specs
from search_spaces.interventions import (
    BASE,
    BaseDatasetSpec,
    ConditionSpec,
    ExperimentDataset,
    InterveneOn,
    MadeSpec,
    check_training_parameters,
)
from search_spaces.tuning import TuneSpec


def _class_choice(value: object) -> int | str:
    """Return a class of a sweep file: its index, or its name as text."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a class is its place, a number from 0, or its name as text")
    return value


ClassChoice = Annotated[int | str, PlainValidator(_class_choice)]
PairChoice = tuple[ClassChoice, ClassChoice]
"""A class pair of a sweep file: indices from 0, or names as text."""

MOST_IMAGES = 10**9
"""Largest train or test size. A larger one is a typing error, reported before anything is read."""
LEAST_SHARE = 0.0001
"""Smallest share of a core or GPU. Ray counts in ten-thousandths and starts no task with less."""


class _Choice(specs.Spec):
    """A built-in entry with changes. A text alone in a sweep file is its ``from``."""

    model_config = ConfigDict(populate_by_name=True, strict=False)

    from_: str = Field(alias="from")

    @model_validator(mode="before")
    @classmethod
    def _take_text(cls, value: object) -> object:
        if isinstance(value, str):
            return {"from": value}
        return value


class ModelChoice(_Choice):
    """A network of a sweep.

    Attributes:
        from_: its name in the table, ``torchvision:NAME``, ``timm:NAME``, or a user's
            ``package.module:function``.
        arguments: keyword arguments of the constructor.
        pretrained: start from the library's weights.
        name: its name in tables; None for one made of the other fields.
    """

    arguments: specs.Arguments = ()
    pretrained: bool = False
    name: specs.Name | None = None

    @field_validator("arguments", mode="before")
    @classmethod
    def _sort_arguments(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        pairs: list[tuple[object, object]] = []
        for key, argument in sorted(value.items()):
            if isinstance(argument, list):
                argument = tuple(argument)
            pairs.append((key, argument))
        return tuple(pairs)


class RecipeChanges(specs.Spec):
    """Fields of a recipe that a sweep changes. Several values of one field are an axis of the grid.

    A single value of a sweep file becomes a tuple of one.
    """

    model_config = ConfigDict(strict=False)

    optimizer: tuple[specs.Optimizer, ...] = ()
    learning_rate: tuple[specs.LearningRate, ...] = ()
    weight_decay: tuple[specs.WeightDecay, ...] = ()
    batch_size: tuple[specs.BatchSize, ...] = ()
    epochs: tuple[specs.Epochs, ...] = ()
    precision: tuple[specs.Precision, ...] = ()
    num_outputs: tuple[specs.NumOutputs, ...] = ()
    input_scale: tuple[specs.InputScale, ...] = ()
    dropout: tuple[specs.Dropout, ...] = ()
    test_loss: tuple[specs.TestLoss, ...] = ()

    @field_validator(*specs.RecipeSpec.model_fields.keys() - {"name"}, mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            if not value:
                raise ValueError("needs a value; leave the key out to keep the recipe's own")
            return tuple(value)
        return (value,)

    @property
    def changes(self) -> dict[str, tuple[object, ...]]:
        """The changed fields with their values, in the recipe's order."""
        changes: dict[str, tuple[object, ...]] = {}
        for name in specs.RecipeSpec.model_fields:
            values = getattr(self, name, ())
            if values:
                changes[name] = values
        return changes


class RecipeOverride(RecipeChanges):
    """Other values for some models and datasets. An empty list means all of them."""

    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_single(self) -> Self:
        lists = [name for name, values in self.changes.items() if len(values) > 1]
        if lists:
            raise ValueError(f"an override takes one value each; {', '.join(lists)} has more")
        if not self.changes:
            raise ValueError("an override must change something")
        return self


class RecipeChoice(RecipeChanges, _Choice):
    """The recipe of a sweep.

    Its fields hold for all models and datasets, even where the recipe has exceptions for some.
    ``overrides`` take precedence over both, and later overrides over earlier ones.
    """

    overrides: tuple[RecipeOverride, ...] = ()

    @model_validator(mode="after")
    def _check_axes(self) -> Self:
        for name, values in self.changes.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value more than once")
        return self

    @property
    def axes(self) -> tuple[str, ...]:
        """The fields with several values."""
        return tuple(name for name, values in self.changes.items() if len(values) > 1)


def _on_or_off(value: object) -> object:
    # YAML 1.1 and --set read on and off as true and false.
    names: dict[object, str] = {True: "on", False: "off"}
    return names[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)]


class ResourceSpec(specs.Spec):
    """Resources of one trial. They are never part of an identity.

    Attributes:
        num_cpus: cores, where the cluster has no GPUs; a trial has as many torch threads.
        num_gpus: GPUs, which may be a fraction; None for the need that is predicted for each trial.
        memory_bytes: main memory that Ray reserves; 0 for none.
        fast: whether a GPU trains by captured graphs. ``auto``: if a self-test found that they give
            the numbers of eager training and are faster; ``on``: without the self-test.
        micro_batches: whether batches pass in parts if a whole GPU's memory is short. ``auto``
            excepts networks with batch norm, whose numbers it would change.
    """

    num_cpus: Annotated[float, Field(ge=LEAST_SHARE)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    memory_bytes: Annotated[int, Field(ge=0)] = 0
    fast: Switch = "auto"
    micro_batches: Switch = "auto"

    @field_validator("num_gpus")
    @classmethod
    def _check_share(cls, share: float | None) -> float | None:
        if not share:
            return share
        if share < LEAST_SHARE:
            raise ValueError(f"must be 0, or {LEAST_SHARE} of a GPU or more")
        if share > 1 and share != int(share):
            raise ValueError("must be a fraction of one GPU or a whole number, e.g. 0.25, 1 or 2")
        return share


class OwnSourceSpec(specs.Spec):
    """A user's own data: where they are and what they are. Not for datasets of the table.

    Attributes:
        kind: how they are stored: the name of a source in :mod:`tasks.sources`.
        path: of the folder or file.
        title: for people.
        domain: None for data that are measured without one; a sweep needs one.
        modality: what the images show.
        channels: of the raw images.
        class_names: names of the classes by index; read from the data if class pairs are named.
        label_map: label as written in the data -> class, if a class has several spellings.
        label_columns: of a table, its column of labels, or one column of 0 and 1 per class; only
            if they have no usual name.
        layout: of class folders with patients, which of the two is on top; only if it is not clear.
        pixel_range: values of black and white in floating-point or signed images; only if the data
            do not have them.
    """

    kind: specs.Name
    path: str
    title: str = ""
    domain: specs.Domain | None
    modality: str = "unspecified"
    channels: Literal[1, 3] = 1
    class_names: tuple[str, ...] = ()
    label_map: dict[str, str] = Field(default_factory=dict)
    label_columns: tuple[str, ...] = ()
    layout: specs.Layout | None = None
    pixel_range: Annotated[tuple[float, float], BeforeValidator(specs.check_range)] | None = None


class DatasetChoice(specs.Spec):
    """A dataset of a sweep.

    Attributes:
        name: in the table of datasets, or a new name for own or generated data.
        class_pairs: binary tasks; None for those of the table.
        own: where a user's own data are.
        made: what a generated or changed dataset is made of.
    """

    name: specs.Name
    class_pairs: tuple[PairChoice, ...] | None = None
    own: OwnSourceSpec | None = None
    made: MadeSpec | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.own is not None and self.made is not None:
            raise ValueError("a dataset is your own or made, not both")
        if self.own is not None and self.own.domain is None:
            raise ValueError("own data of a sweep need a domain, natural or medical")
        return self


class ConditionChoice(DatasetChoice):
    """A condition that changes the training images of the dataset ``base`` after the split."""

    base: specs.Name
    condition: specs.Dials


class SweepSpec(specs.Spec):
    """A preset or sweep file: the whole grid, and how its trials are trained and measured.

    Attributes:
        name: of the sweep.
        description: for people.
        models: networks of the grid.
        datasets: datasets of the grid.
        worlds: base datasets of an experiment, see :mod:`search_spaces.interventions`.
        arms: conditions of the experiment. Each one in each world is a dataset of its own, named
            ``<world>_<arm>``, beside ``datasets``.
        intervene_on: images that arms change: ``all`` before the split, or the ``training`` images
            after it. Every test set is then that of the base dataset.
        further_test_sets: also test every network on its base dataset's test images, changed by
            the arms.
        train_sizes: numbers of training images.
        test_size: test images.
        image_size: side of the square images, in pixels.
        channels: of every prepared image. None keeps each dataset's own; K_F can then not be
            compared between datasets.
        seeds: one network for each.
        split_seed: of training and test images.
        recipe: how networks are trained.
        data_mode: ``as_released`` has all faults of the released code.
        faults: single faults of the released code, in ``corrected`` mode.
        attacks: on the test images.
        robustness: how R is measured; None does not measure it.
        keep_weights: which networks' weights are stored; ``last`` for those of the largest train
            size. It is not part of an identity.
        d_repr_stages: measure d_repr after every stage of a network, and not only of its last
            hidden layer.
        predictions: store every network's logits of the test images.
        num_neighbors: nearest neighbors for intrinsic dimensions.
        estimators: of d_data.
        sharpness_sample: images of which label sharpness is computed; None takes all.
        calibrate: also correct the bias of d_data by simulation, for the report. It takes about a
            minute per subset.
        resources: of each trial.
        tune: how ``isweep tune`` searches. It changes nothing of the sweep itself.
    """

    name: specs.Name
    description: str = ""
    models: Annotated[tuple[ModelChoice, ...], Field(min_length=1)]
    datasets: Annotated[tuple[DatasetChoice, ...], Field(min_length=1)] = ()
    worlds: tuple[BaseDatasetSpec, ...] = ()
    arms: tuple[ConditionSpec, ...] = ()
    intervene_on: InterveneOn = "all"
    further_test_sets: bool = False
    train_sizes: Annotated[
        tuple[Annotated[int, Field(ge=2, le=MOST_IMAGES)], ...], Field(min_length=1)
    ]
    test_size: Annotated[int, Field(ge=2, le=MOST_IMAGES)]
    image_size: Annotated[int, Field(ge=4, le=1024)]
    channels: Literal[1, 3] | None = 1
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = (0,)
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = specs.RELEASED_SEED
    recipe: RecipeChoice
    data_mode: specs.DataMode = "corrected"
    faults: tuple[specs.Fault, ...] = ()
    attacks: specs.AttackSpec = specs.AttackSpec()
    robustness: specs.RobustnessSpec | None = None
    keep_weights: specs.KeepWeights = "all"
    d_repr_stages: bool = False
    predictions: bool = False
    num_neighbors: Annotated[int, Field(ge=3)] = 20
    estimators: specs.Estimators = specs.DEFAULT_ESTIMATORS
    sharpness_sample: Annotated[int, Field(ge=2)] | None = 1000
    calibrate: bool = False
    resources: ResourceSpec = ResourceSpec()
    tune: TuneSpec = TuneSpec()

    @model_validator(mode="after")
    def _check_repeats(self) -> Self:
        """Check that no model, size, seed, fault or dataset is repeated."""
        counts = Counter(self.models)
        repeated = sorted(choice.from_ for choice, count in counts.items() if count > 1)
        if repeated:
            raise ValueError(f"models names {', '.join(repeated[:20])} more than once")
        for field in ("train_sizes", "seeds", "faults"):
            specs.check_unique(getattr(self, field), field=field)
        datasets = self.all_datasets
        if len({choice.name for choice in datasets}) < len(datasets):
            raise ValueError(
                "datasets names a dataset more than once; list its class pairs in one entry"
            )
        return self

    @model_validator(mode="after")
    def _check_experiment(self) -> Self:
        """Check that conditions (arms) and base datasets (worlds) fit together."""
        if not self.datasets and not self.worlds:
            raise ValueError("a sweep needs datasets, or worlds")
        if self.arms and not self.worlds:
            raise ValueError("arms need worlds to be arms of")
        world_names = tuple(world.name for world in self.worlds)
        specs.check_unique(world_names, field="worlds")
        specs.check_unique(tuple(arm.name for arm in self.arms), field="arms")
        unknown = sorted({name for arm in self.arms for name in arm.worlds} - set(world_names))
        if unknown:
            raise ValueError(f"arms name worlds that there are not: {', '.join(unknown[:20])}")
        if self.further_test_sets and self.intervene_on != "training":
            raise ValueError("further_test_sets needs intervene_on: training")
        if self.intervene_on == "training" and self.all_faults:
            raise ValueError("intervene_on: training needs data_mode corrected without faults")
        return self

    @property
    def experiment(self) -> tuple[ExperimentDataset, ...]:
        """The datasets of the experiment: each world's base, then its arms.

        Raises:
            ValueError: an arm sets a parameter that its world does not have, or out of range.
        """
        datasets: list[ExperimentDataset] = []
        for world in self.worlds:
            base = ExperimentDataset(
                base_name=world.name,
                condition_name=BASE,
                moves="base",
                images=world.with_dials(()),
                intervene_on=self.intervene_on,
            )
            datasets.append(base)
            for arm in self.arms:
                if not arm.worlds or world.name in arm.worlds:
                    datasets.append(self._condition(base, arm))
        return tuple(datasets)

    def _condition(self, base: ExperimentDataset, arm: ConditionSpec) -> ExperimentDataset:
        """Return the dataset of an arm in the world of ``base``."""
        images = base.images
        training_parameters: specs.Dials = ()
        try:
            if self.intervene_on == "training":
                training_parameters = check_training_parameters(arm.dials)
            else:
                images = images.with_dials(arm.dials)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"arm {arm.name} in world {base.base_name}: {problem}") from None
        except ValueError as error:
            raise ValueError(f"arm {arm.name} in world {base.base_name}: {error}") from None
        return replace(
            base,
            condition_name=arm.name,
            moves=arm.moves,
            images=images,
            training_parameters=training_parameters,
        )

    @property
    def all_datasets(self) -> tuple[DatasetChoice, ...]:
        """The named datasets, then those of the experiment."""
        choices = list(self.datasets)
        for dataset in self.experiment:
            choice = DatasetChoice(name=dataset.prepared_name, made=dataset.images)
            if dataset.training_parameters:
                choice = ConditionChoice(
                    name=dataset.prepared_name,
                    made=dataset.images,
                    base=dataset.base_prepared_name,
                    condition=dataset.training_parameters,
                )
            choices.append(choice)
        return tuple(choices)

    @property
    def further_tests(self) -> dict[str, tuple[specs.FurtherTest, ...]]:
        """The further test sets by dataset: of all arms for a base dataset, its own for an arm."""
        if not self.further_test_sets:
            return {}
        tests: dict[str, tuple[specs.FurtherTest, ...]] = {}
        for dataset in self.experiment:
            if dataset.training_parameters:
                test = specs.FurtherTest(
                    name=dataset.condition_name, parameters=dataset.training_parameters
                )
                tests[dataset.prepared_name] = (test,)
                base_name = dataset.base_prepared_name
                tests[base_name] = (*tests.get(base_name, ()), test)
        return tests

    @property
    def all_faults(self) -> tuple[specs.Fault, ...]:
        """The faults of the released code that are in force."""
        if self.data_mode == "as_released":
            return specs.RELEASED_FAULTS
        return tuple(sorted(self.faults))
