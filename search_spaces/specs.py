"""Specs: the choices of a study as frozen data, from datasets and networks to measurements.

A spec is validated when it is made and refuses unknown fields. Its content is its identity, see
:mod:`search_spaces.fingerprint`. Resources, paths and numbers of workers are never part of a
:class:`TrialSpec` or :class:`MeasureSpec`, because they cannot change a result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Annotated, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from search_spaces.attacks import ATTACKS, Number
from search_spaces.errors import nearest
from search_spaces.fingerprint import derive_seed, fingerprint, readable_id

# One version for each kind of result. Increase a version when results of this kind, the meaning of
# a spec field, or a default changes (defaults are not hashed). Then all stored results of this
# kind, and of no other, are computed again.
PREPARED_VERSION = 1
NETWORK_VERSION = 1
# Each row of search_spaces.attacks.ATTACKS names the versions at which its numbers changed.
ATTACK_VERSION = 2
REPRESENTATION_VERSION = 1
ROBUSTNESS_VERSION = 1
PREDICTIONS_VERSION = 1
FURTHER_TEST_VERSION = 1
MEASURE_VERSION = 3  # 3: permuted labels of small samples, and ties of distances in Gride


ClassPair = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
"""Indices of two classes, from 0. The first becomes label 0."""
V = TypeVar("V", bound=Hashable)


def check_unique(values: tuple[V, ...], *, field: str = "") -> tuple[V, ...]:
    """Return ``values`` after checking that none is repeated.

    Args:
        values: the values of a field.
        field: the name of the field, where pydantic does not add it to the message.

    Raises:
        ValueError: a value is repeated.
    """
    repeated = sorted(str(value) for value, count in Counter(values).items() if count > 1)
    if repeated:
        raise ValueError(f"{field} names {', '.join(repeated[:20])} more than once".lstrip())
    return values


def check_range(limits: object) -> object:
    """Return ``limits``, the smallest and the largest value of a range, after checking them.

    Raises:
        ValueError: they are not two numbers of which the second is larger.
    """
    if not isinstance(limits, list | tuple):
        return limits
    numbers = [limit for limit in limits if isinstance(limit, int | float)]
    # Pydantic refuses values that are no numbers, with a message of its own.
    is_not_rising = len(numbers) == 2 and numbers[0] >= numbers[1]
    if len(limits) != 2 or is_not_rising:
        raise ValueError("must be two rising numbers, the smallest and the largest")
    return tuple(limits)


def sorted_pairs(value: object) -> object:
    """Return a mapping of a sweep file as pairs sorted by key, and a list as a tuple.

    This is done inside them too. Any other value is returned as it is.
    """
    if isinstance(value, Mapping):
        value = sorted(value.items())
    if isinstance(value, list | tuple):
        return tuple(sorted_pairs(item) for item in value)
    return value


Estimators = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(check_unique)]
"""Names of estimators of intrinsic dimension."""

Domain = Literal["natural", "medical"]
DataMode = Literal["corrected", "as_released"]
"""``as_released``: all faults of the released code are on, TwoNN discards no ratios, and some
sources read their files as that code did."""
Fault = Literal[
    "misaligned_labels",
    "fixed_imagenet_files",
    "image_level_split",
    "first_k_selection",
    "test_set_depends_on_size",
    "redrawn_class_pairs",
    "unequal_channels",
    "resize_without_antialias",
    "wrapped_pixel_cast",
]
"""Faults of the released code that change data. ``docs/faults.md`` explains each under its number,
F1 to F34."""

RELEASED_FAULTS: tuple[Fault, ...] = get_args(Fault)
RELEASED_SEED = 1337
DEFAULT_ESTIMATORS = ("mle", "twonn", "gride")
"""Default estimators of d_data."""
DatasetParameters = tuple[tuple[str, float], ...]
"""Pairs (parameter, value) of a generated or changed dataset, see
:mod:`search_spaces.interventions`."""
NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Spec(BaseModel):
    """The base class of specs: frozen, strict types, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )


Library = Literal["torchvision", "timm", "isweep", "own"]
Scalar = StrictBool | StrictInt | StrictFloat | StrictStr | None
Arguments = tuple[tuple[str, Scalar | tuple[Scalar, ...]], ...]


class ModelSpec(Spec):
    """A network architecture.

    Attributes:
        name: name in results.
        library: library that builds it; ``own`` for a user's function.
        architecture: name in the library; for a user's function, ``package.module:function``.
        arguments: keyword arguments of the constructor, sorted by name.
        code: hash of the source of a user's function; empty for other networks.
        pretrained: True to start from the library's weights, not from random ones.
    """

    name: Name
    library: Library
    architecture: str
    arguments: Arguments = ()
    code: str = ""
    pretrained: bool = False

    @property
    def pretrained_key(self) -> str:
        """The name under which its pretrained weights are stored."""
        return f"{self.library}-{self.architecture}"


Layout = Literal["class/group", "group/class"]
"""Class folders with a folder for each patient in them, or patient folders with classes in them."""

Origin = Literal["real", "derived", "semi-synthetic", "generated"]
"""``derived``: real images cut into patches or labeled by a rule; ``semi-synthetic``: real images
that were changed."""


class DatasetSpec(Spec):
    """One row of the table of datasets. It describes a dataset, and does not locate its files.

    Attributes:
        name: name of the dataset in sweep files and tables.
        title: name of the dataset in text for people.
        domain: natural or medical; None only for data that are measured outside a sweep.
        modality: what the images show: ``handwritten digits``, ``chest X-ray``.
        label_names: names of the classes by index.
        channels: number of channels of the raw images.
        source: name of the source in :mod:`tasks.sources` that reads them.
        description: one or two sentences.
        terms: license or access terms, and where to ask for access.
        raw_layout: the files that are expected below ``--raw``.
        groups: text that says what a group of images is, e.g. a patient. Groups are never split.
        origin: real or generated images.
        label_rule: rule that the labels were made by; empty if a person gave them.
        task: name of the labels that are used, if a download has several kinds.
        class_pairs: binary tasks that presets use; empty if the labels are binary already.
        images_per_class: number of images of each class, if an installed package contains the
            dataset; empty if it is known only after reading.
        max_images_per_class: number of images of each class that preparation keeps, a seeded choice
            of whole groups; None keeps all.
        label_map: pairs (label as written, class) of a user's data.
        label_columns: label column of a user's table, or one column of 0 and 1 per class; empty for
            the usual name.
        layout: order of a user's folders for classes and patients; None if the folders show it.
        pixel_range: values of black and white in a user's data; None if the format has them.
        dials: parameters of a generated or changed dataset; stored records have this name.
    """

    name: Name
    title: str
    domain: Domain | None
    modality: str
    label_names: tuple[str, ...]
    channels: Literal[1, 3]
    source: Name
    description: str
    terms: str
    raw_layout: str
    groups: str = "none: every image is its own group"
    origin: Origin = "real"
    label_rule: str = ""
    task: str = "default"
    class_pairs: tuple[ClassPair, ...] = ()
    images_per_class: tuple[int, ...] = ()
    max_images_per_class: Annotated[int, Field(ge=1)] | None = None
    label_map: tuple[tuple[str, str], ...] = ()
    label_columns: tuple[str, ...] = ()
    layout: Layout | None = None
    pixel_range: tuple[float, float] | None = None
    dials: DatasetParameters = ()


Optimizer = Literal["adam", "adamw", "sgd"]
LearningRate = Annotated[StrictFloat, Field(gt=0, le=10)]
WeightDecay = Annotated[StrictFloat, Field(ge=0)]
BatchSize = Annotated[StrictInt, Field(ge=1)]
Epochs = Annotated[StrictInt, Field(ge=0)]
NumOutputs = Annotated[StrictInt, Field(ge=2)] | None
Precision = Literal["float32", "bfloat16", "float16_unscaled"]
InputScale = Annotated[StrictFloat, Field(gt=0)]
Dropout = Annotated[StrictFloat, Field(ge=0, lt=1)] | None
TestLoss = Literal["mean_over_examples", "mean_of_batch_means"]


class RecipeSpec(Spec):
    """A training recipe. Defaults are those of the released code.

    Attributes:
        name: name of the recipe with its changes: ``paper+epochs=30``.
        optimizer: ``adam`` has the coupled weight decay of the released code.
        learning_rate: learning rate of all epochs.
        weight_decay: factor of the weight decay.
        batch_size: number of images of one optimization step.
        epochs: number of passes over the training images.
        precision: number format of the forward pass, see :class:`tasks.trials.training.Step`.
        num_outputs: number of logits; None for one per class. The released code left torchvision's
            1000.
        input_scale: factor on pixels in [0, 255], inside the model, so that attacks keep pixel
            units.
        dropout: dropout probability; None keeps the library's (0.5 in torchvision's VGGs).
        test_loss: how losses are averaged, see :data:`tasks.trials.training.LossRule`.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.+=-]{0,199}$")]
    optimizer: Optimizer = "adam"
    learning_rate: LearningRate = 1e-3
    weight_decay: WeightDecay = 1e-4
    batch_size: BatchSize = 32
    epochs: Epochs = 100
    precision: Precision = "float32"
    num_outputs: NumOutputs = None
    input_scale: InputScale = 1.0
    dropout: Dropout = None
    test_loss: TestLoss = "mean_over_examples"


def _check_epsilons(epsilons: tuple[float, ...]) -> tuple[float, ...]:
    if max(epsilons, default=1) < 0.5:
        raise ValueError(
            "must be in 1/255 of the pixel range, one at least from 0.5 on: 8 stands for 8/255"
        )
    return check_unique(epsilons)


def _check_method(name: str) -> str:
    if name not in ATTACKS:
        known = f"{nearest(name, ATTACKS)}Known attacks: {', '.join(sorted(ATTACKS))}"
        raise ValueError(f"no attack has this name. {known}")
    return name


def _changed_parameters(by_method: AttackParameters) -> AttackParameters:
    """Return the parameters that are not at their default, after checking all of them.

    Raises:
        ValueError: an attack or parameter is unknown, or a value is not allowed.
    """
    changed: list[tuple[str, ParameterValues]] = []
    for method, values in sorted(by_method):
        parameters = ATTACKS[_check_method(method)].parameters
        changed_values: list[tuple[str, Number]] = []
        for name, value in sorted(values):
            if name not in parameters:
                names = ", ".join(parameters) or "none"
                raise ValueError(f"{method} has no parameter {name!r}; its parameters: {names}")
            parameter = parameters[name]
            problem = parameter.problem(value)
            if problem:
                raise ValueError(f"{method}.{name} {problem}")
            if value != parameter.default:
                # Equal values must have one spelling: 1 and 1.0 would be two identities.
                changed_values.append((name, type(parameter.default)(value)))
        if changed_values:
            changed.append((method, tuple(changed_values)))
    return tuple(changed)


ParameterValues = tuple[tuple[str, StrictInt | StrictFloat], ...]
"""Pairs (parameter, value) of one attack."""
AttackParameters = tuple[tuple[str, ParameterValues], ...]
"""Pairs (attack, its parameters)."""


class AttackSpec(Spec):
    """Adversarial attacks on the test images."""

    methods: Annotated[
        tuple[Annotated[str, AfterValidator(_check_method)], ...], AfterValidator(check_unique)
    ] = ("fgsm",)
    """Names in :data:`search_spaces.attacks.ATTACKS`."""
    epsilons: Annotated[
        tuple[Annotated[float, Field(gt=0, le=255)], ...], AfterValidator(_check_epsilons)
    ] = (1.0, 2.0, 4.0, 8.0)
    """Largest change of a pixel, in units of 1/255 of the range."""
    parameters: Annotated[
        AttackParameters, BeforeValidator(sorted_pairs), AfterValidator(_changed_parameters)
    ] = ()
    """Parameters that are not at their default, by method; a mapping in a sweep file."""

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        unused = sorted({method for method, _ in self.parameters} - set(self.methods))
        if unused:
            raise ValueError(
                f"parameters of {', '.join(unused)}, which methods does not name; "
                "add it there, or drop its parameters"
            )
        return self

    def all_parameters(self, method: str) -> dict[str, Number]:
        """Return all parameters of ``method`` with their values."""
        changed = dict(self.parameters).get(method, ())
        return ATTACKS[method].values(dict(changed))

    def measurements(self, attack_version: int = ATTACK_VERSION) -> list[AttackMeasurement]:
        """Return one measurement for each method and epsilon, method by method."""
        changed = dict(self.parameters)
        measurements: list[AttackMeasurement] = []
        for method in self.methods:
            for epsilon in self.epsilons:
                measurements.append(
                    AttackMeasurement(
                        schema_version=ATTACKS[method].version_at(attack_version),
                        method=method,
                        epsilon=epsilon,
                        parameters=changed.get(method, ()),
                    )
                )
        return measurements


class RobustnessSpec(Spec):
    """The measurement of adversarial robustness R, see :mod:`tasks.trials.robustness`.

    Attributes:
        num_images: size of a fixed sample of the test images.
        num_steps: gradient steps per image.
        num_bisections: bisections per image.
    """

    num_images: Annotated[int, Field(ge=1)] = 250
    num_steps: Annotated[int, Field(ge=1)] = 100
    num_bisections: Annotated[int, Field(ge=1)] = 20


KeepWeights = Literal["all", "last", "none"]


class RepresentationSpec(Spec):
    """The measurement of d_repr, the intrinsic dimension of the last hidden layer's activations.

    Attributes:
        estimators: names of estimators.
        num_neighbors: number of nearest neighbors of each image.
        stages: True to measure also the activations after every stage of the network.
    """

    estimators: Estimators = ("mle", "twonn")
    num_neighbors: Annotated[int, Field(ge=3)] = 20
    stages: bool = False


class PreparedSpec(Spec):
    """The preparation of a dataset. Equal specs and equal raw files give equal arrays.

    Attributes:
        dataset: name of the dataset.
        task: see :class:`DatasetSpec`.
        image_size: side of the square images, in pixels.
        channels: number of channels of the prepared images.
        data_mode: ``corrected``, or ``as_released`` with the faults of the released code.
        faults: faults of the released code that are on.
        max_images_per_class: see :class:`DatasetSpec`.
        dials: see :class:`DatasetSpec`.
    """

    schema_version: int = PREPARED_VERSION
    dataset: Name
    task: str = "default"
    image_size: Annotated[int, Field(ge=4, le=1024)]
    channels: Literal[1, 3]
    data_mode: DataMode = "corrected"
    faults: tuple[Fault, ...] = ()
    max_images_per_class: Annotated[int, Field(ge=1)] | None = None
    dials: DatasetParameters = ()

    @property
    def prepared_id(self) -> str:
        """The name of the prepared dataset's folder: readable, with a hash."""
        return readable_id([self.dataset, f"{self.image_size}px", self.data_mode], self)


class TrainingCondition(Spec):
    """A condition of an experiment that changes training images after the split.

    Test images stay as they were prepared.

    Attributes:
        dataset: name of the condition's dataset in plans and results.
        parameters: pairs (parameter, value), see
            :data:`search_spaces.interventions.TRAINING_PARAMETERS`.
    """

    dataset: Name
    parameters: DatasetParameters


class FurtherTest(Spec):
    """A further test set: the test images of a subset, changed by a condition.

    Attributes:
        name: name of the condition, without that of the base dataset.
        parameters: pairs (parameter, value), as in :class:`TrainingCondition`.
    """

    name: Name
    parameters: DatasetParameters


class SubsetSpec(Spec):
    """A subset of a prepared dataset: its training images of every size, and its test images.

    Training sets of all sizes are prefixes of one stratified permutation and share one test set, so
    nothing here depends on the train sizes of a sweep, unless a fault makes it
    (:attr:`depends_on_size`).

    Attributes:
        prepared: the prepared dataset.
        class_pair: the two classes of a binary task; None for all classes.
        test_size: number of test images.
        split_seed: seed of the permutation.
        condition: condition that changes the training images; None if there is none.
    """

    prepared: PreparedSpec
    class_pair: ClassPair | None = None
    test_size: Annotated[int, Field(ge=2)]
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = RELEASED_SEED
    condition: TrainingCondition | None = None

    @property
    def dataset(self) -> str:
        """The dataset's name in plans and results."""
        if self.condition is None:
            return self.prepared.dataset
        return self.condition.dataset

    @property
    def without_condition(self) -> SubsetSpec:
        """The same subset without a condition: that of the base dataset."""
        if self.condition is None:
            return self
        return self.model_copy(update={"condition": None})

    @property
    def depends_on_size(self) -> bool:
        """True if a fault makes images or the test set depend on the train size.

        These faults are F3, F4 and F7 in ``docs/faults.md``.
        """
        by_size = {"test_set_depends_on_size", "misaligned_labels", "fixed_imagenet_files"}
        return not by_size.isdisjoint(self.prepared.faults)

    @property
    def twonn_discard_fraction(self) -> float:
        """The share of the largest distance ratios that TwoNN leaves out."""
        if self.prepared.data_mode == "as_released":
            return 0.0
        return 0.1  # as in Facco et al. (2017)

    @property
    def subset_id(self) -> str:
        """A readable name with a hash."""
        return readable_id([self.dataset, pair_name(self.class_pair)], self)


class MeasureSpec(Spec):
    """The measures of a subset: intrinsic dimension and label sharpness at every train size.

    Attributes:
        subset: subset whose training images are measured, once for all models.
        train_sizes: numbers of training images.
        num_neighbors: number of nearest neighbors of each image.
        estimators: names of estimators of intrinsic dimension.
        sharpness_sample: number of images of a sample for label sharpness; None takes all images.
        sharpness_seeds: seeds of the samples, one sample for each.
        calibrate: True to correct the bias of the intrinsic dimension also by simulation.
    """

    schema_version: int = MEASURE_VERSION
    subset: SubsetSpec
    train_sizes: tuple[Annotated[int, Field(ge=2)], ...]
    num_neighbors: Annotated[int, Field(ge=3)] = 20
    estimators: Estimators = DEFAULT_ESTIMATORS
    sharpness_sample: Annotated[int, Field(ge=2)] | None = 1000
    sharpness_seeds: tuple[Annotated[int, Field(ge=0)], ...] = tuple(range(10))
    calibrate: bool = False

    @property
    def measure_id(self) -> str:
        """A readable name with a hash."""
        subset = self.subset
        return readable_id([subset.dataset, pair_name(subset.class_pair), "measures"], self)

    @property
    def derived_seed(self) -> int:
        """The seed of every random choice. It does not depend on the train sizes."""
        return derive_seed("measure", self.subset, self.num_neighbors, self.sharpness_sample)


def pair_name(class_pair: ClassPair | None) -> str:
    """Return a class pair as in tables and ids, ``"3-8"``; ``""`` for all classes."""
    if class_pair is None:
        return ""
    return f"{class_pair[0]}-{class_pair[1]}"


class NetworkSpec(Spec):
    """A trained network: its model, its training images, its recipe and its seed."""

    schema_version: int = NETWORK_VERSION
    model: ModelSpec
    subset: SubsetSpec
    train_size: Annotated[int, Field(ge=2)]
    recipe: RecipeSpec
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @property
    def network_id(self) -> str:
        """A readable name with a hash."""
        subset = self.subset
        combination = [self.model.name, subset.dataset, pair_name(subset.class_pair)]
        return readable_id([*combination, f"n{self.train_size}", f"s{self.seed}"], self)

    @property
    def derived_seed(self) -> int:
        """The seed of weights and batch order, which depends on this spec alone."""
        return derive_seed("network", fingerprint(self))


class AttackMeasurement(Spec):
    """One attack at one strength."""

    schema_version: int
    method: str
    epsilon: float
    parameters: ParameterValues = ()
    """The parameters that are not at their default."""


class RepresentationMeasurement(Spec):
    """One estimate of d_repr, the intrinsic dimension of the training set's representation.

    Attributes:
        stages: True for the activations after every stage, False for the last hidden layer.
    """

    schema_version: int
    estimator: str
    num_neighbors: int
    stages: bool = False


class RobustnessMeasurement(Spec):
    """The adversarial robustness R."""

    schema_version: int
    robustness: RobustnessSpec


class PredictionMeasurement(Spec):
    """The logits of every test image."""

    schema_version: int


class FurtherTestMeasurement(Spec):
    """Loss and accuracy on a further test set, and R on it if R is measured."""

    schema_version: int
    test: FurtherTest
    robustness: RobustnessSpec | None = None


Measurement = (
    AttackMeasurement
    | RepresentationMeasurement
    | RobustnessMeasurement
    | PredictionMeasurement
    | FurtherTestMeasurement
)


class TrialSpec(Spec):
    """A trial: a network, and what is measured on it after training.

    Its identity and seed are those of the network, so more measurements change no network.
    """

    network: NetworkSpec
    attacks: AttackSpec = AttackSpec()
    attack_version: int = ATTACK_VERSION
    representation: RepresentationSpec = RepresentationSpec()
    representation_version: int = REPRESENTATION_VERSION
    robustness: RobustnessSpec | None = None
    robustness_version: int = ROBUSTNESS_VERSION
    predictions: bool = False
    predictions_version: int = PREDICTIONS_VERSION
    further_tests: tuple[FurtherTest, ...] = ()
    further_tests_version: int = FURTHER_TEST_VERSION

    @property
    def trial_id(self) -> str:
        """The network's id, used as Tune trial name, store folder and MLflow tag."""
        return self.network.network_id

    @property
    def derived_seed(self) -> int:
        """The network's seed."""
        return self.network.derived_seed

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """All measurements on the network, one for each number or group of numbers."""
        representation = self.representation
        measurements: list[Measurement] = []
        layers = (False, True) if representation.stages else (False,)
        for stages in layers:
            for estimator in representation.estimators:
                measurements.append(
                    RepresentationMeasurement(
                        schema_version=self.representation_version,
                        estimator=estimator,
                        num_neighbors=representation.num_neighbors,
                        stages=stages,
                    )
                )
        measurements += self.attacks.measurements(self.attack_version)
        if self.robustness is not None:
            measurements.append(
                RobustnessMeasurement(
                    schema_version=self.robustness_version, robustness=self.robustness
                )
            )
        if self.predictions:
            measurements.append(PredictionMeasurement(schema_version=self.predictions_version))
        for test in self.further_tests:
            measurements.append(
                FurtherTestMeasurement(
                    schema_version=self.further_tests_version, test=test, robustness=self.robustness
                )
            )
        return tuple(measurements)

    def missing_for(self, requested: TrialSpec) -> tuple[Measurement, ...]:
        """Return the measurements of ``requested`` that a trial of this spec does not have."""
        if self == requested:
            return ()
        present = set(self.measurements)
        return tuple(
            measurement for measurement in requested.measurements if measurement not in present
        )
