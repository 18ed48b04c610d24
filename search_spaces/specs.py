"""Specs: frozen records that define a study, from datasets and networks to measurements.

A spec is validated when it is created. Unknown fields are errors. Two specs are the same if
their contents are equal, see :mod:`search_spaces.fingerprint`. Resources, paths and numbers of
workers cannot change a result. So they are not part of a :class:`TrialSpec` or
:class:`MeasureSpec`.

*d_data* is the intrinsic dimension of images. *d_repr* is the intrinsic dimension of the
activations of a network for these images.
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

from search_spaces.attacks import ATTACKS
from search_spaces.errors import did_you_mean
from search_spaces.fingerprint import derive_seed, fingerprint, readable_id
from search_spaces.row_parameters import Number

# Each kind of result has a version. A higher version means that all stored results of this
# kind are computed again. Results of other kinds are not computed again.
#
# An id is a hash of a spec, but a field with its default value is not part of the hash. So:
# - A new field with a default changes no id, and needs no new version.
# - A changed default needs a new version: the old ids would stand for other content.
# - A field with a new meaning, and results that change for another reason, need a new version.
# - The Python name of a field is part of the hash, so a renamed field changes ids.
PREPARED_VERSION = 1
NETWORK_VERSION = 1
# ATTACK_VERSION is one counter for all attacks. If any attack changes, raise it by 1, and add
# the new number to the row of the changed attack in search_spaces.attacks.ATTACKS. The results
# of the other attacks are then not computed again.
ATTACK_VERSION = 2
REPRESENTATION_VERSION = 1
ROBUSTNESS_VERSION = 1
PREDICTIONS_VERSION = 1
FURTHER_TEST_VERSION = 1
MEASURE_VERSION = 3  # 3: permuted labels of small samples, and ties of distances in Gride


Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
ImageSize = Annotated[int, Field(ge=4, le=1024)]
"""Height and width of the prepared images, in pixels."""
SetSize = Annotated[int, Field(ge=2)]
"""Number of images in a training set, a test set or a sample."""
NumNeighbors = Annotated[int, Field(ge=3)]
"""Number of neighbors that an estimator of intrinsic dimension uses."""
ClassPair = tuple[Index, Index]
"""Indices of two classes, from 0. The first class has label 0, the second label 1."""
Value = TypeVar("Value", bound=Hashable)


def check_unique(values: tuple[Value, ...], *, field: str = "") -> tuple[Value, ...]:
    """Check that no value is repeated, and return the values.

    Args:
        values: the values of a field.
        field: the name of the field; empty if pydantic adds the name to the message.

    Raises:
        ValueError: a value is repeated.
    """
    repeated = sorted(str(value) for value, count in Counter(values).items() if count > 1)
    if repeated:
        name = f"`{field}`" if field else "it"
        raise ValueError(
            f"{name} lists {', '.join(repeated[:20])} more than once. List every value once"
        )
    return values


def check_range(limits: object) -> object:
    """Check that the second limit of a range is larger than the first, and return both.

    Raises:
        ValueError: the range does not have two limits, or the second is not larger than the
            first.
    """
    if not isinstance(limits, list | tuple):
        return limits
    numbers = [limit for limit in limits if isinstance(limit, int | float)]
    # If a limit is not a number, pydantic raises the error.
    is_empty_range = len(numbers) == 2 and numbers[0] >= numbers[1]
    if len(limits) != 2 or is_empty_range:
        raise ValueError("must be two different numbers, the smaller one first")
    return tuple(limits)


def sorted_pairs(value: object) -> object:
    """Return mappings as tuples of pairs sorted by key, and lists as tuples, at every depth.

    Any other value is returned unchanged.
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
"""The mode of preparing and measuring data. ``as_released`` reproduces the released code. All
faults in :data:`Fault` are then switched on, and TwoNN discards no distance ratios. Some
sources also read their files as the released code did."""
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
"""The nine faults of the released code that change data. ``docs/faults.md`` explains these and
all other faults by number, F1 to F34."""

RELEASED_FAULTS: tuple[Fault, ...] = get_args(Fault)
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed of random numbers. It must fit into a signed integer of 64 bits."""
RELEASED_SEED = 1337
"""The seed in the released code."""
DEFAULT_ESTIMATORS = ("mle", "twonn", "gride")
"""Default estimators of d_data."""
DatasetParameters = tuple[tuple[str, float], ...]
"""Pairs (parameter, value) of a generated or changed dataset.
:mod:`search_spaces.interventions` defines the parameters."""
NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Spec(BaseModel):
    """The base class of specs.

    Specs are frozen and have strict types. Unknown fields, NaN and infinity are errors.
    """

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
        library: library that builds the network; ``own`` for a user's function.
        architecture: name in the library; ``package.module:function`` for a user's function.
        arguments: pairs (name, value) of the constructor's keyword arguments, sorted by name.
        code: hash of the source code of a user's function; empty for other networks.
        pretrained: True to start from the pretrained weights of the library; False to start
            from random weights.
    """

    name: Name
    library: Library
    architecture: str
    arguments: Arguments = ()
    code: str = ""
    pretrained: bool = False

    @property
    def pretrained_key(self) -> str:
        """A key of the file of pretrained weights. Models with equal keys use the same file."""
        return f"{self.library}-{self.architecture}"

    @property
    def keyword_arguments(self) -> dict[str, object]:
        """The arguments as keyword arguments, with lists in place of tuples."""
        arguments: dict[str, object] = {}
        for name, value in self.arguments:
            arguments[name] = list(value) if isinstance(value, tuple) else value
        return arguments


Layout = Literal["class/group", "group/class"]
"""Order of two folder levels. ``class/group``: every class folder has a folder for each
patient. ``group/class``: every patient folder has a folder for each class."""

Origin = Literal["real", "derived", "semi-synthetic", "generated"]
"""Origin of images. ``derived``: real images, cut into patches or labeled by a rule.
``semi-synthetic``: real images that were changed."""


class DatasetSpec(Spec):
    """One row of the table of datasets. It describes a dataset, but does not contain a path.

    Attributes:
        name: name of the dataset in sweep files and tables.
        title: name of the dataset in text for people.
        domain: natural or medical; None only for data that are measured outside a sweep.
        modality: subject and technique of the images, for example ``chest X-ray``.
        label_names: names of the classes by index.
        channels: number of channels of the raw images.
        source: name of the source in :mod:`tasks.sources` that reads them.
        description: one or two sentences.
        terms: license, or terms of access with an address.
        raw_layout: the files that are expected below ``--raw``.
        groups: description of a group of images, for example a patient. A group is never split
            between training and test.
        origin: origin of the images, see :data:`Origin`.
        label_rule: rule that assigned the labels; empty if people assigned them.
        task: name of the label set, if a download has several label sets.
        class_pairs: pairs of classes that presets use; empty if there are only two classes.
        images_per_class: number of images of each class, if an installed package contains the
            dataset; empty if isweep must read the data to count the images.
        max_images_per_class: largest number of images of each class in the prepared dataset;
            None for all images. Images are drawn by groups, with a seed.
        label_map: pairs (label in the data, class) for a user's data.
        label_columns: the label column of a user's table, or one column of 0 and 1 for each
            class; empty to recognize the column by its name.
        layout: order of a user's folder levels; None if the folders show the order.
        pixel_range: pixel values of black and white in a user's data; None if the files
            contain them.
        dials: parameters of a generated or changed dataset. Ids and stored records contain the
            name ``dials``, so this field cannot be renamed.
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
    max_images_per_class: Count | None = None
    label_map: tuple[tuple[str, str], ...] = ()
    label_columns: tuple[str, ...] = ()
    layout: Layout | None = None
    pixel_range: tuple[float, float] | None = None
    dials: DatasetParameters = ()


Optimizer = Literal["adam", "adamw", "sgd"]
LearningRate = Annotated[StrictFloat, Field(gt=0, le=10)]
WeightDecay = Annotated[StrictFloat, Field(ge=0)]
BatchSize = Annotated[StrictInt, Field(ge=1)]
Epochs = Annotated[StrictInt, Field(ge=0, le=1_000_000)]
NumOutputs = Annotated[StrictInt, Field(ge=2)] | None
Precision = Literal["float32", "bfloat16", "float16_unscaled"]
InputScale = Annotated[StrictFloat, Field(gt=0)]
Dropout = Annotated[StrictFloat, Field(ge=0, lt=1)] | None
TestLoss = Literal["mean_over_examples", "mean_of_batch_means"]


class RecipeSpec(Spec):
    """A training recipe. The defaults are the values in the released code.

    Attributes:
        name: name of the recipe with its changes: ``paper+epochs=30``.
        optimizer: optimizer. ``adam`` has coupled weight decay, as in the released code.
        learning_rate: learning rate, the same in all epochs.
        weight_decay: coefficient of the weight decay.
        batch_size: number of images in one optimization step.
        epochs: number of passes over the training images.
        precision: number format of the forward pass, see :class:`tasks.trials.steps.Step`.
        num_outputs: number of logits; None for one logit per class. The released code used the
            1000 logits of torchvision's networks.
        input_scale: factor by which the model multiplies its input, pixels in [0, 255]. The
            model does this itself, so attacks work in pixel units.
        dropout: dropout probability; None for the default of the library (0.5 in torchvision's
            VGGs).
        test_loss: rule for averaging losses, see :func:`tasks.trials.evaluation.mean_loss`.
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
            "all values are below 0.5. The unit of epsilon is 1/255 of the pixel range: "
            "write 8 for 8/255"
        )
    return check_unique(epsilons)


def _check_method(name: str) -> str:
    if name not in ATTACKS:
        hint = f"{did_you_mean(name, ATTACKS)}Known attacks: {', '.join(sorted(ATTACKS))}"
        raise ValueError(f"no attack has this name. {hint}")
    return name


def _check_and_drop_defaults(by_method: AttackParameters) -> AttackParameters:
    """Check all parameters of attacks. Return those whose values differ from their defaults.

    Raises:
        ValueError: an attack or parameter is unknown, or a value is not allowed.
    """
    changed: list[tuple[str, ParameterValues]] = []
    for method, values in sorted(by_method):
        parameters = ATTACKS[_check_method(method)].parameters
        changed_values: list[tuple[str, Number]] = []
        for name, value in sorted(values):
            if name not in parameters:
                names = ", ".join(parameters)
                hint = (
                    f"Choose from these parameters: {names}" if names else "Remove its parameters"
                )
                raise ValueError(f"{method} has no parameter {name!r}. {hint}")
            parameter = parameters[name]
            problem = parameter.problem(value)
            if problem:
                raise ValueError(f"{method}.{name} {problem}")
            if value != parameter.default:
                # 1 and 1.0 are equal, but would have different ids. So the value gets the type
                # of the default.
                changed_values.append((name, type(parameter.default)(value)))
        if changed_values:
            changed.append((method, tuple(changed_values)))
    return tuple(changed)


ParameterValues = tuple[tuple[str, StrictInt | StrictFloat], ...]
"""Pairs (parameter, value) of one attack."""
AttackParameters = tuple[tuple[str, ParameterValues], ...]
"""Pairs (attack, parameters of the attack)."""


class AttackSpec(Spec):
    """Adversarial attacks on the test images."""

    methods: Annotated[
        tuple[Annotated[str, AfterValidator(_check_method)], ...], AfterValidator(check_unique)
    ] = ("fgsm",)
    """Names of attacks in :data:`search_spaces.attacks.ATTACKS`."""
    epsilons: Annotated[
        tuple[Annotated[float, Field(gt=0, le=255)], ...], AfterValidator(_check_epsilons)
    ] = (1.0, 2.0, 4.0, 8.0)
    """Strengths of the attacks: the largest change of a pixel, in units of 1/255 of the pixel
    range."""
    parameters: Annotated[
        AttackParameters, BeforeValidator(sorted_pairs), AfterValidator(_check_and_drop_defaults)
    ] = ()
    """Parameters whose values differ from their defaults, by attack. In a sweep file they are
    a mapping."""

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        unused = sorted({method for method, _ in self.parameters} - set(self.methods))
        if unused:
            raise ValueError(
                f"`parameters` contains {', '.join(unused)}, but `methods` does not. Add the "
                "attack to `methods`, or remove its parameters"
            )
        return self

    def all_parameters(self, method: str) -> dict[str, Number]:
        """Return all parameters of ``method`` with their values."""
        changed = dict(self.parameters).get(method, ())
        return ATTACKS[method].values(dict(changed))

    def requests(self, attack_version: int = ATTACK_VERSION) -> list[AttackRequest]:
        """Return one request for each method and epsilon, grouped by method."""
        changed = dict(self.parameters)
        requests: list[AttackRequest] = []
        for method in self.methods:
            for epsilon in self.epsilons:
                requests.append(
                    AttackRequest(
                        schema_version=ATTACKS[method].version_at(attack_version),
                        method=method,
                        epsilon=epsilon,
                        parameters=changed.get(method, ()),
                    )
                )
        return requests


class RobustnessSpec(Spec):
    """The settings of adversarial robustness R, see :mod:`tasks.trials.robustness`.

    Attributes:
        num_images: number of test images on which R is measured. They are a fixed sample.
        num_steps: number of gradient steps per image.
        num_bisections: number of bisections per image.
    """

    num_images: Count = 250
    num_steps: Count = 100
    num_bisections: Count = 20


KeepWeights = Literal["all", "last", "none"]
"""Networks whose weights are stored: all networks, only networks of the largest train size, or
none."""


class RepresentationSpec(Spec):
    """The measurement of d_repr: the intrinsic dimension of the activations of a hidden layer.

    Attributes:
        estimators: names of estimators.
        num_neighbors: number of nearest neighbors of each image.
        stages: True to measure the activations after every stage of the network; False to
            measure only the last hidden layer.
    """

    estimators: Estimators = ("mle", "twonn")
    num_neighbors: NumNeighbors = 20
    stages: bool = False


class PreparedSpec(Spec):
    """The preparation of a dataset. Equal specs and equal raw files result in equal arrays.

    Attributes:
        dataset: name of the dataset.
        task: see :class:`DatasetSpec`.
        image_size: side of the square images, in pixels.
        channels: number of channels of the prepared images.
        data_mode: ``corrected``, or ``as_released`` with the faults of the released code.
        faults: faults of the released code that are switched on.
        max_images_per_class: see :class:`DatasetSpec`.
        dials: see :class:`DatasetSpec`.
    """

    schema_version: int = PREPARED_VERSION
    dataset: Name
    task: str = "default"
    image_size: ImageSize
    channels: Literal[1, 3]
    data_mode: DataMode = "corrected"
    faults: tuple[Fault, ...] = ()
    max_images_per_class: Count | None = None
    dials: DatasetParameters = ()

    @property
    def prepared_id(self) -> str:
        """The folder name of the prepared dataset: readable words and a hash."""
        return readable_id([self.dataset, f"{self.image_size}px", self.data_mode], self)


class TrainingCondition(Spec):
    """A condition of an experiment that changes training images after the split.

    The condition does not change test images. A sweep file defines the condition
    (:class:`~search_spaces.interventions.ConditionSpec`). In the list of datasets, a base
    dataset with this condition is a :class:`~search_spaces.sweeps.ConditionDataset`.

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
        name: name of the condition, without the name of the base dataset.
        parameters: pairs (parameter, value), as in :class:`TrainingCondition`.
    """

    name: Name
    parameters: DatasetParameters


class SubsetSpec(Spec):
    """A subset of a prepared dataset: its training images of every size, and its test images.

    The training sets of all sizes are prefixes of one stratified permutation. They share one
    test set. So a subset does not depend on the train sizes of a sweep. Only some faults of
    the released code make it depend on them (:attr:`depends_on_size`).

    Attributes:
        prepared: the prepared dataset.
        class_pair: the two classes of a binary task; None for all classes.
        test_size: number of test images.
        split_seed: seed of the permutation.
        condition: condition that changes the training images; None for a base dataset.
    """

    prepared: PreparedSpec
    class_pair: ClassPair | None = None
    test_size: SetSize
    split_seed: Seed = RELEASED_SEED
    condition: TrainingCondition | None = None

    @property
    def dataset(self) -> str:
        """The dataset's name in plans and results."""
        if self.condition is None:
            return self.prepared.dataset
        return self.condition.dataset

    @property
    def without_condition(self) -> SubsetSpec:
        """The same subset without its condition: the subset of the base dataset."""
        if self.condition is None:
            return self
        return self.model_copy(update={"condition": None})

    @property
    def depends_on_size(self) -> bool:
        """True if a fault makes the images depend on the train size.

        Only the faults F3, F4 and F7 of ``docs/faults.md`` have this effect.
        """
        size_dependent = {"test_set_depends_on_size", "misaligned_labels", "fixed_imagenet_files"}
        return not size_dependent.isdisjoint(self.prepared.faults)

    @property
    def twonn_discard_fraction(self) -> float:
        """The share of the distance ratios that TwoNN leaves out.

        TwoNN leaves out the largest ratios.
        """
        if self.prepared.data_mode == "as_released":
            return 0.0
        return 0.1  # as in Facco et al. (2017)

    @property
    def subset_id(self) -> str:
        """The id of the subset: a readable name that ends with a hash."""
        return readable_id([self.dataset, pair_name(self.class_pair)], self)


class MeasureSpec(Spec):
    """The measurement of intrinsic dimension and label sharpness of a subset.

    Attributes:
        subset: subset whose training images are measured. The result does not depend on the
            models.
        train_sizes: numbers of training images.
        num_neighbors: number of nearest neighbors of each image.
        estimators: names of estimators of intrinsic dimension.
        sharpness_sample: number of images in a sample for label sharpness; None for all
            images.
        sharpness_seeds: seeds of the samples, one sample for each seed.
        calibrate: True to also compute intrinsic dimensions whose bias is corrected by
            simulation.
    """

    schema_version: int = MEASURE_VERSION
    subset: SubsetSpec
    train_sizes: tuple[SetSize, ...]
    num_neighbors: NumNeighbors = 20
    estimators: Estimators = DEFAULT_ESTIMATORS
    sharpness_sample: SetSize | None = 1000
    sharpness_seeds: tuple[Annotated[int, Field(ge=0)], ...] = tuple(range(10))
    calibrate: bool = False

    @property
    def measure_id(self) -> str:
        """The id of the measurement: a readable name that ends with a hash."""
        subset = self.subset
        return readable_id([subset.dataset, pair_name(subset.class_pair), "measures"], self)

    @property
    def derived_seed(self) -> int:
        """The seed of the estimators and of the calibration.

        It depends only on the subset, ``num_neighbors`` and ``sharpness_sample``.
        Samples for label sharpness have separate seeds (``sharpness_seeds``). The permutations
        of the labels always have the seed 0.
        """
        return derive_seed("measure", self.subset, self.num_neighbors, self.sharpness_sample)


def pair_name(class_pair: ClassPair | None) -> str:
    """Format a class pair for tables and ids: ``"3-8"``; ``""`` for all classes."""
    if class_pair is None:
        return ""
    return f"{class_pair[0]}-{class_pair[1]}"


class NetworkSpec(Spec):
    """A trained network: its model, its training images, its recipe and its seed."""

    schema_version: int = NETWORK_VERSION
    model: ModelSpec
    subset: SubsetSpec
    train_size: SetSize
    recipe: RecipeSpec
    seed: Seed = 0

    @property
    def network_id(self) -> str:
        """The id of the network: a readable name that ends with a hash."""
        subset = self.subset
        combination = [self.model.name, subset.dataset, pair_name(subset.class_pair)]
        return readable_id([*combination, f"n{self.train_size}", f"s{self.seed}"], self)

    @property
    def derived_seed(self) -> int:
        """The seed of the weights and of the batch order. It depends only on this spec."""
        return derive_seed("network", fingerprint(self))


class AttackRequest(Spec):
    """A request for the results of one attack at one epsilon."""

    schema_version: int
    method: str
    epsilon: float
    parameters: ParameterValues = ()
    """Parameters whose values differ from their defaults."""


class RepresentationRequest(Spec):
    """A request for the estimates of d_repr by one estimator.

    d_repr is the intrinsic dimension of the representation of the training set.

    Attributes:
        stages: True for one estimate after every stage of the network; False for a single
            estimate, at the last hidden layer.
    """

    schema_version: int
    estimator: str
    num_neighbors: int
    stages: bool = False


class RobustnessRequest(Spec):
    """A request for the adversarial robustness R of a network."""

    schema_version: int
    robustness: RobustnessSpec


class PredictionRequest(Spec):
    """A request to store the logits of every test image."""

    schema_version: int


class FurtherTestRequest(Spec):
    """A request for loss and accuracy on a further test set, and for R if R is measured."""

    schema_version: int
    test: FurtherTest
    robustness: RobustnessSpec | None = None


MeasurementRequest = (
    AttackRequest
    | RepresentationRequest
    | RobustnessRequest
    | PredictionRequest
    | FurtherTestRequest
)
"""A request for one measurement of a trained network. A trial stores its result."""


class TrialSpec(Spec):
    """A trial: a network and its measurements after training.

    A trial has the id and the seed of its network. So additional measurements change neither
    the id nor the network.
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
        """The id of the network. Ray Tune, the result store and MLflow use it as a name."""
        return self.network.network_id

    @property
    def derived_seed(self) -> int:
        """The seed of the network."""
        return self.network.derived_seed

    @property
    def requests(self) -> tuple[MeasurementRequest, ...]:
        """The requests for all measurements of the network.

        Each estimator of d_repr has one request for the last hidden layer. With ``stages``,
        each estimator has another request for all stages. Each attack has one request for
        every epsilon. Each further test set has one request. The radius R and the predictions
        have one request each.
        """
        representation = self.representation
        requests: list[MeasurementRequest] = []
        # The last hidden layer is always measured. With ``stages``, all stages are measured
        # too.
        stage_options = [False]
        if representation.stages:
            stage_options.append(True)
        for stages in stage_options:
            for estimator in representation.estimators:
                requests.append(
                    RepresentationRequest(
                        schema_version=self.representation_version,
                        estimator=estimator,
                        num_neighbors=representation.num_neighbors,
                        stages=stages,
                    )
                )
        requests += self.attacks.requests(self.attack_version)
        if self.robustness is not None:
            requests.append(
                RobustnessRequest(
                    schema_version=self.robustness_version, robustness=self.robustness
                )
            )
        if self.predictions:
            requests.append(PredictionRequest(schema_version=self.predictions_version))
        for test in self.further_tests:
            requests.append(
                FurtherTestRequest(
                    schema_version=self.further_tests_version, test=test, robustness=self.robustness
                )
            )
        return tuple(requests)

    def missing_for(self, requested: TrialSpec) -> tuple[MeasurementRequest, ...]:
        """Return the requests of ``requested`` that this spec does not have."""
        if self == requested:
            return ()
        present = set(self.requests)
        return tuple(request for request in requested.requests if request not in present)
