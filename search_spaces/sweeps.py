"""Sweep files: the grid as people write it, before it becomes trials and measures."""

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
    GeneratedDatasetSpec,
    InterveneOn,
    check_training_parameters,
)
from search_spaces.tuning import TuneSpec


def _check_class(value: object) -> int | str:
    """Return a class of a sweep file, its index or its name, after checking it."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a class is given as its index, a number from 0, or as its name")
    return value


ClassChoice = Annotated[int | str, PlainValidator(_check_class)]
PairChoice = tuple[ClassChoice, ClassChoice]
"""A class pair of a sweep file: indices from 0, or names as text."""

MAX_SUBSET_SIZE = 10**9
"""Largest train or test size. A larger one is a typing error, reported before anything is read."""
MIN_SHARE = 0.0001
"""Smallest share of a core or GPU. Ray counts in ten-thousandths and starts no task with less."""


class _Choice(specs.Spec):
    """An entry of a table, with changes. Text stands for a mapping with ``from`` alone."""

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
        from_: name in the table of models, ``torchvision:NAME``, ``timm:NAME``, or a user's
            ``package.module:function``.
        arguments: keyword arguments of the constructor; in a sweep file a mapping.
        pretrained: True to start from the library's weights.
        name: name in results; None for one made of the other fields.
    """

    arguments: Annotated[specs.Arguments, BeforeValidator(specs.sorted_pairs)] = ()
    pretrained: bool = False
    name: specs.Name | None = None


class RecipeChanges(specs.Spec):
    """Fields of a recipe that a sweep changes, each with one or several values.

    Several values of a field are an axis of the grid.
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
    def _as_tuple(cls, value: object) -> object:
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

    @property
    def axes(self) -> tuple[str, ...]:
        """The changed fields that have several values."""
        return tuple(name for name, values in self.changes.items() if len(values) > 1)


class RecipeOverride(RecipeChanges):
    """Other values of recipe fields for some models and datasets; no names mean all of them."""

    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_single(self) -> Self:
        if self.axes:
            raise ValueError(f"an override takes one value each; {', '.join(self.axes)} has more")
        if not self.changes:
            raise ValueError("an override must change something")
        return self


class RecipeChoice(RecipeChanges, _Choice):
    """The recipe of a sweep.

    Its fields replace those of the recipe for all models and datasets, even for those for which the
    recipe has exceptions. Overrides replace both, and later overrides earlier ones.
    """

    overrides: tuple[RecipeOverride, ...] = ()

    @model_validator(mode="after")
    def _check_axes(self) -> Self:
        for name, values in self.changes.items():
            specs.check_unique(values, field=name)
        return self


def _on_or_off(value: object) -> object:
    # YAML 1.1 and --set read on and off as true and false.
    names: dict[object, str] = {True: "on", False: "off"}
    return names[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)]


class ResourceSpec(specs.Spec):
    """Resources of one trial. They are never part of an identity.

    Attributes:
        num_cpus: cores, if the cluster has no GPUs; a trial has as many torch threads.
        num_gpus: GPUs, which may be a fraction; None for the need that is predicted for each trial.
        memory_bytes: main memory that Ray reserves; 0 for none.
        fast: ``on`` trains by captured graphs on a GPU. ``auto`` does so if a self-test showed that
            they give the numbers of eager training and are faster.
        micro_batches: ``on`` passes a batch in parts if a whole GPU's memory is short. ``auto``
            does so too, but not for networks with batch norm, whose numbers would change.
    """

    num_cpus: Annotated[float, Field(ge=MIN_SHARE)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    memory_bytes: Annotated[int, Field(ge=0)] = 0
    fast: Switch = "auto"
    micro_batches: Switch = "auto"

    @field_validator("num_gpus")
    @classmethod
    def _check_share(cls, share: float | None) -> float | None:
        if not share:
            return share
        if share < MIN_SHARE:
            raise ValueError(f"must be 0, or {MIN_SHARE} of a GPU or more")
        if share > 1 and share != int(share):
            raise ValueError("must be a fraction of one GPU or a whole number, e.g. 0.25, 1 or 2")
        return share


class UserSourceSpec(specs.Spec):
    """A user's own data: where they are and what they show. Not for datasets of the table.

    Attributes:
        kind: name of the source in :mod:`tasks.sources` that reads them.
        path: path of the folder or file.
        title: name of the dataset in text for people.
        domain: natural or medical; None only for data that are measured outside a sweep.
        modality: what the images show: ``chest X-ray``.
        channels: number of channels of the raw images.
        class_names: names of the classes by index. If class pairs are given by name and this is
            empty, the names are read from the data.
        label_map: class by label as written in the data, if a class has several spellings.
        label_columns: label column of a table, or one column of 0 and 1 per class. It is needed
            only if they do not have their usual names.
        layout: order of the folders for classes and patients. It is needed only if the folders do
            not show it.
        pixel_range: values of black and white in floating-point or signed images. It is needed
            only if the files do not have them.
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
        name: name in the table of datasets, or a new name for own or generated data.
        class_pairs: binary tasks; None for those of the table.
        own: the user's own data, if it is not a dataset of the table.
        made: kind and parameters of a generated or changed dataset.
    """

    name: specs.Name
    class_pairs: tuple[PairChoice, ...] | None = None
    own: UserSourceSpec | None = None
    made: GeneratedDatasetSpec | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.own is not None and self.made is not None:
            raise ValueError("a dataset is your own or made, not both")
        if self.own is not None and self.own.domain is None:
            raise ValueError("own data of a sweep need a domain, natural or medical")
        return self


class ConditionDataset(DatasetChoice):
    """A dataset with the prepared images of another one, whose training images a condition changes.

    Attributes:
        base: name of the dataset that is prepared.
        parameters: parameters of the condition, which changes the images after the split.
    """

    base: specs.Name
    parameters: specs.DatasetParameters


class SweepSpec(specs.Spec):
    """A preset or sweep file: the whole grid, and how its trials are trained and measured.

    Attributes:
        name: name of the sweep.
        description: text for people.
        asked_after_seeing: keys of questions that were put after these images had been looked at.
            Their answers show a relation in these data, and do not confirm it.
        models: networks of the grid.
        datasets: datasets of the grid.
        base_datasets: base datasets of an experiment, see :mod:`search_spaces.interventions`.
        conditions: conditions of the experiment. Each one of each base dataset is a further dataset
            of the grid, named ``<base dataset>_<condition>``.
        intervene_on: images that conditions change: ``all`` before the split, or the ``training``
            images after it, which leaves every test set as in the base dataset.
        further_test_sets: True to test networks on changed test images too: a base dataset's on
            those of every condition, and a condition's on those of its own.
        train_sizes: numbers of training images.
        test_size: number of test images.
        image_size: side of the square images, in pixels.
        channels: channels of every prepared image. None keeps those of each dataset; K_F can then
            not be compared between datasets.
        seeds: seeds of the networks, one network for each.
        split_seed: seed of the split into training and test images.
        recipe: training recipe of the networks.
        data_mode: ``as_released`` has all faults of the released code.
        faults: single faults of the released code, in ``corrected`` mode.
        attacks: adversarial attacks on the test images.
        robustness: how R is measured; None does not measure it.
        keep_weights: networks whose weights are stored; ``last`` for those of the largest train
            size. It is not part of an identity.
        d_repr_stages: True to measure d_repr after every stage of a network, and not only of its
            last hidden layer.
        predictions: True to store every network's logits of the test images.
        num_neighbors: number of nearest neighbors for intrinsic dimensions.
        estimators: estimators of d_data.
        sharpness_sample: number of images whose label sharpness is computed; None for all.
        calibrate: True to correct the bias of d_data also by simulation, for the report. It takes
            about a minute per subset.
        resources: resources of each trial.
        tune: settings of ``isweep tune``. They change nothing of the sweep itself.
    """

    name: specs.Name
    description: str = ""
    asked_after_seeing: tuple[specs.Name, ...] = ()
    models: Annotated[tuple[ModelChoice, ...], Field(min_length=1)]
    datasets: Annotated[tuple[DatasetChoice, ...], Field(min_length=1)] = ()
    base_datasets: tuple[BaseDatasetSpec, ...] = Field(default=(), alias="worlds")
    conditions: tuple[ConditionSpec, ...] = Field(default=(), alias="arms")
    intervene_on: InterveneOn = "all"
    further_test_sets: bool = False
    train_sizes: Annotated[
        tuple[Annotated[int, Field(ge=2, le=MAX_SUBSET_SIZE)], ...], Field(min_length=1)
    ]
    test_size: Annotated[int, Field(ge=2, le=MAX_SUBSET_SIZE)]
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
        """Check that base datasets and conditions fit together."""
        if not self.datasets and not self.base_datasets:
            raise ValueError("a sweep needs datasets or worlds")
        if self.conditions and not self.base_datasets:
            raise ValueError("arms are given, but no worlds. Add worlds")
        base_names = tuple(base.name for base in self.base_datasets)
        specs.check_unique(base_names, field="worlds")
        specs.check_unique(tuple(condition.name for condition in self.conditions), field="arms")
        named = {name for condition in self.conditions for name in condition.base_names}
        unknown = sorted(named - set(base_names))
        if unknown:
            raise ValueError(f"arms name unknown worlds: {', '.join(unknown[:20])}")
        if self.further_test_sets and self.intervene_on != "training":
            raise ValueError("further_test_sets needs intervene_on: training")
        if self.intervene_on == "training" and self.all_faults:
            raise ValueError("intervene_on: training needs data_mode corrected without faults")
        return self

    def experiment_datasets(self) -> tuple[ExperimentDataset, ...]:
        """Return the datasets of the experiment: each base dataset, followed by its conditions.

        Raises:
            ValueError: a base dataset does not have a parameter of a condition, or the value is out
                of range.
        """
        datasets: list[ExperimentDataset] = []
        for base_spec in self.base_datasets:
            base = ExperimentDataset(
                base_name=base_spec.name,
                condition_name=BASE,
                target="base",
                images=base_spec.images,
                intervene_on=self.intervene_on,
            )
            datasets.append(base)
            for condition in self.conditions:
                if not condition.base_names or base_spec.name in condition.base_names:
                    datasets.append(self._with_condition(base, condition))
        return tuple(datasets)

    def _with_condition(
        self, base: ExperimentDataset, condition: ConditionSpec
    ) -> ExperimentDataset:
        """Return a base dataset with a condition applied to it."""
        images = base.images
        training_parameters: specs.DatasetParameters = ()
        try:
            if self.intervene_on == "training":
                training_parameters = check_training_parameters(condition.parameters)
            else:
                images = images.with_parameters(condition.parameters)
        except ValueError as error:
            problem = str(error)
            if isinstance(error, ValidationError):
                problem = error.errors()[0]["msg"].removeprefix("Value error, ")
            place = f"arm {condition.name} in world {base.base_name}"
            raise ValueError(f"{place}: {problem}") from None
        return replace(
            base,
            condition_name=condition.name,
            target=condition.target,
            images=images,
            training_parameters=training_parameters,
        )

    @property
    def all_datasets(self) -> tuple[DatasetChoice, ...]:
        """The datasets of the grid, then those of the experiment."""
        choices = list(self.datasets)
        for dataset in self.experiment_datasets():
            name = dataset.prepared_name
            if dataset.training_parameters:
                condition_dataset = ConditionDataset(
                    name=name,
                    made=dataset.images,
                    base=dataset.base_prepared_name,
                    parameters=dataset.training_parameters,
                )
                choices.append(condition_dataset)
            else:
                choices.append(DatasetChoice(name=name, made=dataset.images))
        return tuple(choices)

    @property
    def further_tests(self) -> dict[str, tuple[specs.FurtherTest, ...]]:
        """The further test sets of each dataset, by its name.

        A base dataset has one of each condition; the dataset of a condition has its own.
        """
        tests: dict[str, tuple[specs.FurtherTest, ...]] = {}
        if not self.further_test_sets:
            return tests
        for dataset in self.experiment_datasets():
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
