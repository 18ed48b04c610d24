"""The format of a sweep file. :mod:`orchestrator.planning` makes trials and measures from it.

These keys of the file become specs of :mod:`search_spaces.specs`:

============  ======================  =======================================================
Key           Class of an entry       The planner makes from it
============  ======================  =======================================================
``models``    :class:`ModelChoice`    one ``ModelSpec``
``recipe``    :class:`RecipeChoice`   one or more ``RecipeSpec``
``datasets``  :class:`DatasetChoice`  one ``DatasetSpec``, from the table of datasets or from
                                      user data
============  ======================  =======================================================

An experiment lists its datasets in another way. The key ``worlds`` (in code ``base_datasets``)
lists its base datasets. The key ``arms`` (in code ``conditions``) lists the conditions that
are applied to them. :meth:`SweepSpec.list_datasets` converts these datasets to
:class:`DatasetChoice` entries too. If a condition changes only training images, its entries
are of the class :class:`ConditionDataset`.

If a key of the file and its field have different names, the key is the alias of the field.
"""

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
from search_spaces.errors import rule_of
from search_spaces.interventions import (
    BASE,
    BaseDatasetSpec,
    ChangedImages,
    ConditionSpec,
    ControlledDatasetSpec,
    ExperimentDataset,
    check_training_parameters,
)
from search_spaces.tuning import TuneSpec


def _check_class(value: object) -> int | str:
    """Check that a class of a sweep file is an index or a name, and return it."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(
            "this is not a class. Write the index of a class (0, 1, 2 …) or its name as text"
        )
    return value


ClassChoice = Annotated[int | str, PlainValidator(_check_class)]
"""A class in a sweep file: its index from 0, or its name."""
PairChoice = tuple[ClassChoice, ClassChoice]
"""A pair of classes in a sweep file."""

MAX_SUBSET_SIZE = 10**9
"""Largest train or test size. A larger number is a typo: no dataset has so many images."""
MIN_SHARE = 0.0001
"""Smallest share of a core or GPU. Ray counts resources in units of 0.0001, and starts no task
with a smaller share."""


class _TableReference(specs.Spec):
    """A reference to a table's entry by its name. The other fields replace fields of the entry.

    If a sweep file has text instead of a mapping, the text is the value of ``from``.
    """

    model_config = ConfigDict(populate_by_name=True, strict=False)

    from_: str = Field(alias="from")

    @model_validator(mode="before")
    @classmethod
    def _parse_text(cls, value: object) -> object:
        if isinstance(value, str):
            return {"from": value}
        return value


class ModelChoice(_TableReference):
    """A network of a sweep.

    Attributes:
        from_: a name in the table of models, ``torchvision:NAME``, ``timm:NAME``, or
            ``package.module:function`` for a user's function.
        arguments: keyword arguments of the constructor. In a sweep file they are a mapping.
        pretrained: True to start from the pretrained weights of the library.
        name: name in results; None to make a name from the other fields.
    """

    arguments: Annotated[specs.Arguments, BeforeValidator(specs.sorted_pairs)] = ()
    pretrained: bool = False
    name: specs.Name | None = None


RECIPE_FIELDS = sorted(specs.RecipeSpec.model_fields.keys() - {"name"})
"""Fields of a recipe that a sweep can change."""


class RecipeChanges(specs.Spec):
    """Fields of a recipe that a sweep changes, each with one or several values.

    A field with several values is an axis of the grid. This class must have every field in
    :data:`RECIPE_FIELDS`. If one is missing, this module cannot be imported.
    """

    model_config = ConfigDict(strict=False)

    optimizer: tuple[specs.Optimizer, ...] = ()
    learning_rate: tuple[specs.LearningRate, ...] = ()
    weight_decay: tuple[specs.WeightDecay, ...] = ()
    batch_size: tuple[specs.BatchSize, ...] = ()
    # 0 epochs are not allowed, because an untrained network would be reported like a trained
    # one.
    epochs: tuple[Annotated[specs.Epochs, Field(ge=1)], ...] = ()
    precision: tuple[specs.Precision, ...] = ()
    num_outputs: tuple[specs.NumOutputs, ...] = ()
    input_scale: tuple[specs.InputScale, ...] = ()
    dropout: tuple[specs.Dropout, ...] = ()
    test_loss: tuple[specs.TestLoss, ...] = ()

    @field_validator(*RECIPE_FIELDS, mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            if not value:
                raise ValueError("the list is empty. Add a value, or remove the key")
            return tuple(value)
        return (value,)

    @property
    def changes(self) -> dict[str, tuple[object, ...]]:
        """The changed fields and their values, in the order of the fields of a recipe."""
        changes: dict[str, tuple[object, ...]] = {}
        for name in specs.RecipeSpec.model_fields:
            values = getattr(self, name, ())
            if values:
                changes[name] = values
        return changes

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the grid: the changed fields that have several values."""
        return tuple(name for name, values in self.changes.items() if len(values) > 1)


class RecipeOverride(RecipeChanges):
    """Values of recipe fields for some models and datasets.

    An empty ``models`` means all models. An empty ``datasets`` means all datasets.
    """

    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_single(self) -> Self:
        if self.axes:
            raise ValueError(
                f"the override has more than one value for {', '.join(self.axes)}. Write a "
                "single value for each of these keys"
            )
        if not self.changes:
            raise ValueError(
                "the override changes nothing. Add a key of the recipe with its new value, or "
                "remove the override"
            )
        return self


class RecipeChoice(RecipeChanges, _TableReference):
    """The recipe of a sweep.

    Three places can set a field. The last place that sets it decides the value:

    1. the recipe in the table, with its exceptions for some models and datasets
    2. the fields of this object, for all models and datasets
    3. the overrides, in their order
    """

    overrides: tuple[RecipeOverride, ...] = ()

    @model_validator(mode="after")
    def _check_unique_values(self) -> Self:
        for name, values in self.changes.items():
            specs.check_unique(values, field=name)
        return self


def _on_or_off(value: object) -> object:
    # YAML 1.1 and --set parse the words on and off as true and false.
    names: dict[object, str] = {True: "on", False: "off"}
    return names[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)]


class ResourceSpec(specs.Spec):
    """Resources of one trial. A trial's id does not depend on them.

    Attributes:
        num_cpus: number of cores if the cluster has no GPUs. It is also the number of torch
            threads.
        num_gpus: number of GPUs, or a fraction of one GPU; None to predict it for each trial.
        memory_bytes: number of bytes of main memory that Ray reserves; 0 reserves none.
        fast: ``on`` trains with CUDA graphs on a GPU. ``auto`` does so only if a self-test
            showed that CUDA graphs are faster and compute the same numbers as training without
            them.
        micro_batches: ``on`` splits a batch into parts if the batch does not fit in the memory
            of a whole GPU. ``auto`` does the same, but not for networks with batch norm,
            because splitting changes their results.
        mps: ``auto`` starts NVIDIA's multi-process service (MPS) if isweep starts its own Ray
            cluster and ``isweep gpu-check`` measured that MPS saves time. ``never`` starts no
            MPS.
    """

    num_cpus: Annotated[float, Field(ge=MIN_SHARE)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    memory_bytes: Annotated[int, Field(ge=0)] = 0
    fast: Switch = "auto"
    micro_batches: Switch = "auto"
    mps: Literal["auto", "never"] = "auto"

    @field_validator("num_gpus")
    @classmethod
    def _check_share(cls, share: float | None) -> float | None:
        if not share:
            return share
        if share < MIN_SHARE:
            raise ValueError(f"must be 0, or at least {MIN_SHARE} of a GPU")
        if share > 1 and share != int(share):
            raise ValueError(
                "must be a fraction below 1 or a whole number, for example 0.25, 1 or 2"
            )
        return share


class UserSourceSpec(specs.Spec):
    """A user's dataset, which is not in the table of datasets.

    Attributes:
        kind: name of the source in :mod:`tasks.sources` that reads the data.
        path: path of the folder or file.
        title: name of the dataset in text for people.
        domain: natural or medical. It is None only for a measurement outside a sweep.
        modality: subject and technique of the images, for example ``chest X-ray``.
        channels: number of channels of the raw images.
        class_names: names of the classes by index. If this list is empty and class pairs
            contain names, isweep reads the class names from the data.
        label_map: name of the class by label in the data, if a class has several spellings.
        label_columns: the label column of a table, or one column of 0 and 1 for each class.
            This field is needed only if no column has one of the usual names.
        layout: order of the folder levels for classes and patients. This field is needed only
            if the folders do not show the order.
        pixel_range: pixel values of black and white, for floating-point or signed images. This
            field is needed only if the files do not contain these values.
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
        name: name in the table of datasets, or a new name for user data or generated data.
        class_pairs: pairs of classes, one binary task for each; None for the pairs in the
            table.
        user_source: the user's data; None for other datasets. In a sweep file, the key is
            ``own``.
        generated: kind and parameters of a generated or changed dataset; None for other
            datasets. In a sweep file, the key is ``made``.
    """

    model_config = ConfigDict(populate_by_name=True)

    name: specs.Name
    class_pairs: tuple[PairChoice, ...] | None = None
    user_source: UserSourceSpec | None = Field(default=None, alias="own")
    generated: ControlledDatasetSpec | None = Field(default=None, alias="made")

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.user_source is not None and self.generated is not None:
            raise ValueError("the dataset has the keys `own` and `made`. Remove one of them")
        if self.user_source is not None and self.user_source.domain is None:
            raise ValueError("`own` has no domain. Add `domain: natural` or `domain: medical`")
        return self


class ConditionDataset(DatasetChoice):
    """A base dataset with a condition that changes its training images after the split.

    It uses the prepared images of its base dataset.

    Attributes:
        base: name of the base dataset.
        parameters: parameters of the condition.
    """

    base: specs.Name
    parameters: specs.DatasetParameters


class SweepSpec(specs.Spec):
    """The content of a sweep file or preset: trials, their training and measurement.

    Attributes:
        name: name of the sweep.
        description: text for people.
        asked_after_seeing: keys of the report's exploratory (post hoc) questions. You asked
            them after you had seen results on these images, so their answers describe these
            data but confirm nothing.
        models: networks of the grid.
        datasets: datasets of the grid.
        base_datasets: base datasets of an experiment, see :mod:`search_spaces.interventions`.
        conditions: conditions of the experiment. Every condition of every base dataset is
            another dataset of the grid, with the name ``<base dataset>_<condition>``.
        intervene_on: images that the conditions change. ``all``: all images before the split.
            ``training``: the training images after the split, so test images never change.
        further_test_sets: True to test networks also on changed test images. The network of a
            base dataset is tested on the changed test images of every condition. The network
            of a condition is tested on the changed test images of its own condition.
        train_sizes: numbers of training images.
        test_size: number of test images.
        image_size: side of the square images, in pixels.
        channels: number of channels of every prepared image. None keeps the channels of each
            dataset; then K_F cannot be compared between datasets.
        seeds: seeds of the networks, one network for each seed.
        split_seed: seed of the split into training and test images.
        recipe: training recipe of the networks.
        data_mode: ``as_released`` switches on all faults of the released code, and ``faults``
            is then ignored.
        faults: faults of the released code that are switched on if data_mode is ``corrected``.
        attacks: adversarial attacks on the test images.
        robustness: settings of the measurement of R; None if R is not measured.
        keep_weights: networks whose weights are stored: ``all``, ``none``, or ``last`` for
            networks of the largest train size. The ids of trials do not depend on it.
        d_repr_stages: True to measure d_repr after every stage of a network; False to measure
            it only at the last hidden layer.
        predictions: True to store the logits of every network for the test images.
        num_neighbors: number of nearest neighbors for intrinsic dimensions.
        estimators: estimators of d_data.
        sharpness_sample: number of images in a sample for label sharpness; None for all
            images.
        calibrate: True to also compute d_data with its bias corrected by simulation, for the
            report. This takes about a minute for each subset.
        resources: resources of each trial.
        tune: settings of ``isweep tune``. They do not change the sweep.
    """

    name: specs.Name
    description: str = ""
    asked_after_seeing: tuple[specs.Name, ...] = ()
    models: Annotated[tuple[ModelChoice, ...], Field(min_length=1)]
    datasets: Annotated[tuple[DatasetChoice, ...], Field(min_length=1)] = ()
    base_datasets: tuple[BaseDatasetSpec, ...] = Field(default=(), alias="worlds")
    conditions: tuple[ConditionSpec, ...] = Field(default=(), alias="arms")
    intervene_on: ChangedImages = "all"
    further_test_sets: bool = False
    train_sizes: Annotated[
        tuple[Annotated[int, Field(ge=2, le=MAX_SUBSET_SIZE)], ...], Field(min_length=1)
    ]
    test_size: Annotated[int, Field(ge=2, le=MAX_SUBSET_SIZE)]
    image_size: specs.ImageSize
    channels: Literal[1, 3] | None = 1
    seeds: Annotated[tuple[specs.Seed, ...], Field(min_length=1)] = (0,)
    split_seed: specs.Seed = specs.RELEASED_SEED
    recipe: RecipeChoice
    data_mode: specs.DataMode = "corrected"
    faults: tuple[specs.Fault, ...] = ()
    attacks: specs.AttackSpec = specs.AttackSpec()
    robustness: specs.RobustnessSpec | None = None
    keep_weights: specs.KeepWeights = "all"
    d_repr_stages: bool = False
    predictions: bool = False
    num_neighbors: specs.NumNeighbors = 20
    estimators: specs.Estimators = specs.DEFAULT_ESTIMATORS
    sharpness_sample: specs.SetSize | None = 1000
    calibrate: bool = False
    resources: ResourceSpec = ResourceSpec()
    tune: TuneSpec = TuneSpec()

    @model_validator(mode="after")
    def _check_repeats(self) -> Self:
        """Check that no model, train size, seed, fault or dataset is listed twice."""
        counts = Counter(self.models)
        repeated = sorted(choice.from_ for choice, count in counts.items() if count > 1)
        if repeated:
            raise ValueError(
                f"`models` lists {', '.join(repeated[:20])} more than once. List every model once"
            )
        for field in ("train_sizes", "seeds", "faults"):
            specs.check_unique(getattr(self, field), field=field)
        repeated_names = _repeated_names(self.datasets)
        if repeated_names:
            raise ValueError(
                f"`datasets` lists {repeated_names} more than once. Write one entry for "
                "each dataset, and list all its pairs under `class_pairs`"
            )
        repeated_names = _repeated_names(self.list_datasets())
        if repeated_names:
            raise ValueError(
                f"the sweep has several datasets with the name {repeated_names}. "
                "`worlds` and `arms` make datasets with names such as `<world>_<arm>`. Rename a "
                "world, an arm or a dataset"
            )
        return self

    @model_validator(mode="after")
    def _check_experiment(self) -> Self:
        """Check the keys of an experiment: base datasets, conditions and the settings for them."""
        if not self.datasets and not self.base_datasets:
            raise ValueError(
                "the sweep has neither `datasets` nor `worlds`. Add one of these two keys"
            )
        if self.conditions and not self.base_datasets:
            raise ValueError(
                "the sweep has `arms`, but no `worlds` that they could change. Add base "
                "datasets under `worlds`"
            )
        base_names = tuple(base.name for base in self.base_datasets)
        specs.check_unique(base_names, field="worlds")
        specs.check_unique(tuple(condition.name for condition in self.conditions), field="arms")
        requested = {name for condition in self.conditions for name in condition.base_names}
        unknown = sorted(requested - set(base_names))
        if unknown:
            raise ValueError(
                f"`arms` refers to worlds that do not exist: {', '.join(unknown[:20])}. "
                f"Choose from these worlds: {', '.join(base_names[:20])}"
            )
        if self.further_test_sets and self.intervene_on != "training":
            raise ValueError(
                "`further_test_sets` is on, but `intervene_on` is not `training`. Set "
                "`intervene_on: training`, or remove `further_test_sets`"
            )
        if self.intervene_on == "training" and self.all_faults:
            raise ValueError(
                "the sweep has `intervene_on: training` and faults of the released code, "
                "which cannot be combined. Set `data_mode: corrected`, and remove `faults`"
            )
        return self

    def list_experiment_datasets(self) -> tuple[ExperimentDataset, ...]:
        """Return the experiment's datasets: each base dataset, then its conditions.

        Raises:
            ValueError: a base dataset lacks a parameter of a condition, or the value is not
                allowed.
        """
        datasets: list[ExperimentDataset] = []
        for base_spec in self.base_datasets:
            base = ExperimentDataset(
                base_name=base_spec.name,
                condition_name=BASE,
                target="base",
                images=base_spec.without_name(),
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
            raise ValueError(
                f"arm {condition.name} in world {base.base_name}: {_message(error)}"
            ) from None
        return replace(
            base,
            condition_name=condition.name,
            target=condition.target,
            images=images,
            training_parameters=training_parameters,
        )

    def list_datasets(self) -> tuple[DatasetChoice, ...]:
        """Return the datasets of the grid, followed by the datasets of the experiment."""
        choices = list(self.datasets)
        for dataset in self.list_experiment_datasets():
            name = dataset.dataset_name
            if dataset.training_parameters:
                condition_dataset = ConditionDataset(
                    name=name,
                    generated=dataset.images,
                    base=dataset.base_dataset_name,
                    parameters=dataset.training_parameters,
                )
                choices.append(condition_dataset)
            else:
                choices.append(DatasetChoice(name=name, generated=dataset.images))
        return tuple(choices)

    @property
    def further_tests_by_dataset(self) -> dict[str, tuple[specs.FurtherTest, ...]]:
        """The further test sets of each dataset, by the name of the dataset.

        A base dataset has a further test set for each of its conditions. The dataset of a
        condition has only the further test set of this condition.
        """
        tests: dict[str, tuple[specs.FurtherTest, ...]] = {}
        if not self.further_test_sets:
            return tests
        for dataset in self.list_experiment_datasets():
            if dataset.training_parameters:
                test = specs.FurtherTest(
                    name=dataset.condition_name, parameters=dataset.training_parameters
                )
                tests[dataset.dataset_name] = (test,)
                base_dataset = dataset.base_dataset_name
                tests[base_dataset] = (*tests.get(base_dataset, ()), test)
        return tests

    @property
    def all_faults(self) -> tuple[specs.Fault, ...]:
        """The faults of the released code that are switched on."""
        if self.data_mode == "as_released":
            return specs.RELEASED_FAULTS
        return tuple(sorted(self.faults))


def _repeated_names(choices: tuple[DatasetChoice, ...]) -> str:
    """Return the first 20 names that several of these datasets have, joined by commas."""
    counts = Counter(choice.name for choice in choices)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    return ", ".join(repeated[:20])


def _message(error: ValueError) -> str:
    """Return the message of an error, without the text that pydantic adds around it."""
    if isinstance(error, ValidationError):
        return rule_of(error.errors()[0]["msg"])
    return str(error)
