"""What the study chooses, as frozen data: nothing here knows how anything is computed.

Every spec is validated when it is made and refuses unknown fields. Identity is content: see
:mod:`search_spaces.fingerprint`. Resources, paths and worker counts are never part of a
:class:`~search_spaces.specs.TrialSpec` or :class:`MeasureSpec`, because they cannot change a
result.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)

from search_spaces.fingerprint import derive_seed, fingerprint, readable_id

# One version per kind, counted up when the meaning of its specs changes or one of their defaults
# does (fields at their default are no part of an id), so that old results of that kind, and of it
# alone, are made anew.
PREPARED_VERSION = 1
NETWORK_VERSION = 1
ATTACK_VERSION = 2  # of all but FGSM, whose numbers are those of 1; 2: PGD keeps its best iterate
REPRESENTATION_VERSION = 1
ROBUSTNESS_VERSION = 1
PREDICTIONS_VERSION = 1
FURTHER_TEST_VERSION = 1
MEASURE_VERSION = 2


ClassPair = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
V = TypeVar("V", bound=str | int | float)


def each_once(values: tuple[V, ...], *, what: str = "") -> tuple[V, ...]:
    """Refuse values that are named more than once; ``what`` is the field, where pydantic does not
    say it.
    """
    repeated = sorted(str(value) for value, count in Counter(values).items() if count > 1)
    if repeated:
        raise ValueError(f"{what} names {', '.join(repeated[:20])} more than once".lstrip())
    return values


def two_rising(limits: object) -> object:
    """Refuse a list that is no range."""
    if not isinstance(limits, list | tuple):
        return limits
    numbers = [limit for limit in limits if isinstance(limit, int | float)]
    if len(limits) != 2 or (len(numbers) == 2 and numbers[0] >= numbers[1]):
        raise ValueError("must be two rising numbers, the smallest and the largest")
    return tuple(limits)


Estimators = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(each_once)]
"""Estimators of intrinsic dimension, by name."""

Domain = Literal["natural", "medical"]
DataMode = Literal["corrected", "as_released"]
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
"""Faults of the released code that change data, by name; ``docs/faults.md`` maps them to F1-F34."""

RELEASED_FAULTS: tuple[Fault, ...] = get_args(Fault)
RELEASED_SEED = 1337
DEFAULT_ESTIMATORS = ("mle", "twonn", "gride")
"""Estimators of d_data where none are named."""
Dials = tuple[tuple[str, float], ...]
"""Of made data: pairs (dial, value), see :mod:`search_spaces.interventions`."""
NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Spec(BaseModel):
    """Base of all specs: frozen, strict types, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )


Library = Literal["torchvision", "timm", "isweep", "own"]
Scalar = StrictBool | StrictInt | StrictFloat | StrictStr | None
Arguments = tuple[tuple[str, Scalar | tuple[Scalar, ...]], ...]


class ModelSpec(Spec):
    """One network architecture: ``library`` says who builds it, ``architecture`` is its name
    there.
    """

    name: Name
    library: Library
    architecture: str
    """For a network of one's own, ``package.module:function``."""
    arguments: Arguments = ()
    """Keyword arguments of the constructor, sorted by name."""
    code: str = ""
    """For a network of one's own, hash of the source that defines it."""
    pretrained: bool = False
    """Start from the weights that the library has, not from random ones."""

    @property
    def pretrained_key(self) -> str:
        """Library and architecture: what pretrained weights belong to."""
        return f"{self.library}-{self.architecture}"


Layout = Literal["class/group", "group/class"]
"""Class folders with a folder for each patient in them, or the other way round."""


Origin = Literal["real", "derived", "semi-synthetic", "generated"]
"""``derived``: real pictures cut into patches, or labelled by a rule; ``semi-synthetic``:
changed."""


class DatasetSpec(Spec):
    """One row of the table of datasets: what it is, never where it lies on a disk."""

    name: Name
    title: str
    domain: Domain | None
    """None for own data that were measured without saying what they are; a sweep's datasets have
    one."""
    modality: str
    label_names: tuple[str, ...]
    channels: Literal[1, 3]
    source: Name
    description: str
    terms: str
    """Licence or access terms, and where to ask for access."""
    raw_layout: str
    """Which files are expected where below ``--raw``."""
    groups: str = "none: every image is its own group"
    origin: Origin = "real"
    label_rule: str = ""
    """How labels were made where nobody gave them."""
    task: str = "default"
    class_pairs: tuple[ClassPair, ...] = ()
    """Binary tasks used by the presets; empty when the labels are already binary."""
    images_per_class: tuple[int, ...] = ()
    """How many there are, of a set that an installed package ships; empty where only reading
    tells."""
    max_images_per_class: Annotated[int, Field(ge=1)] | None = None
    """How many images of each class preparation keeps (a seeded choice of whole groups); None keeps
    all."""
    label_map: tuple[tuple[str, str], ...] = ()
    """Of your own data: pairs (label as written, class it means)."""
    label_columns: tuple[str, ...] = ()
    """Of a table of your own: its column of labels, or one of 0 and 1 per class; empty: the usual
    one."""
    layout: Layout | None = None
    """Of class folders of your own: what is on top; None where the folders say it."""
    pixel_range: tuple[float, float] | None = None
    """Of your own data: the values that are black and white; None where the format says it."""
    dials: Dials = ()


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
    """How a network is trained. Defaults are those of the released code (``study.md`` section D).

    ``num_outputs`` None means one logit per class; the released code left torchvision's 1000.
    ``input_scale`` multiplies pixels in [0, 255] inside the model, so attacks keep pixel units.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.+=-]{0,199}$")]
    """The recipe's own name, with what was changed of it: ``paper+epochs=30``."""
    optimizer: Optimizer = "adam"
    learning_rate: LearningRate = 1e-3
    weight_decay: WeightDecay = 1e-4
    batch_size: BatchSize = 32
    epochs: Epochs = 100
    precision: Precision = "float32"
    num_outputs: NumOutputs = None
    input_scale: InputScale = 1.0
    dropout: Dropout = None
    """None keeps the library's own default (0.5 in torchvision's VGGs)."""
    test_loss: TestLoss = "mean_over_examples"


def _in_255ths(epsilons: tuple[float, ...]) -> tuple[float, ...]:
    if max(epsilons, default=1) < 0.5:
        raise ValueError(
            "must be in 1/255 of the pixel range, one at least from 0.5 on: 8 stands for 8/255"
        )
    return each_once(epsilons)


class AttackSpec(Spec):
    """Adversarial attacks on the test images; ``epsilons`` in units of 1/255 of the pixel range."""

    methods: Annotated[tuple[Literal["fgsm", "pgd"], ...], AfterValidator(each_once)] = ("fgsm",)
    epsilons: Annotated[
        tuple[Annotated[float, Field(gt=0, le=255)], ...], AfterValidator(_in_255ths)
    ] = (*(1.0, 2.0, 4.0, 8.0),)


class RobustnessSpec(Spec):
    """How far the nearest image with another decision lies (R of the paper's theorem), in L2 pixel
    units.
    """

    num_images: Annotated[int, Field(ge=1)] = 250
    """A fixed sample of the test images."""
    num_steps: Annotated[int, Field(ge=1)] = 100
    num_bisections: Annotated[int, Field(ge=1)] = 20


KeepWeights = Literal["all", "last", "none"]


class RepresentationSpec(Spec):
    """How the intrinsic dimension d_repr of the last hidden layer's activations is estimated."""

    estimators: Estimators = ("mle", "twonn")
    num_neighbors: Annotated[int, Field(ge=3)] = 20
    stages: bool = False
    """Also of the activations after every stage."""


class PreparedSpec(Spec):
    """What a prepared dataset is made from; equal specs and equal raw files give equal arrays."""

    schema_version: int = PREPARED_VERSION
    dataset: Name
    task: str = "default"
    image_size: Annotated[int, Field(ge=4, le=1024)]
    channels: Literal[1, 3]
    data_mode: DataMode = "corrected"
    faults: tuple[Fault, ...] = ()
    max_images_per_class: Annotated[int, Field(ge=1)] | None = None
    dials: Dials = ()

    @property
    def prepared_id(self) -> str:
        """Readable name plus hash; the folder of the prepared dataset."""
        return readable_id([self.dataset, f"{self.image_size}px", self.data_mode], self)


class TrainingCondition(Spec):
    """A condition of an experiment that moves training images after the split.

    Test images stay as they were prepared. Results of the condition stand under ``dataset``.
    """

    dataset: Name
    parameters: Dials
    """Pairs (parameter, value), see :data:`search_spaces.interventions.TRAINING_PARAMETERS`."""


class FurtherTest(Spec):
    """A further test set: the test images of a subset, moved as a condition says."""

    name: Name
    """The condition's, without that of the base dataset."""
    parameters: Dials


class SubsetSpec(Spec):
    """Which images of a prepared dataset are trained and tested on.

    Train subsets of all sizes are prefixes of one stratified permutation and share one test set, so
    nothing here depends on which sizes a sweep asks for.
    """

    prepared: PreparedSpec
    class_pair: ClassPair | None = None
    test_size: Annotated[int, Field(ge=2)]
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 1337
    condition: TrainingCondition | None = None
    """What moves its training images; None trains on the images as they were prepared."""

    @property
    def dataset(self) -> str:
        """The name under which its results stand."""
        return self.prepared.dataset if self.condition is None else self.condition.dataset

    @property
    def unmoved(self) -> SubsetSpec:
        """The same images with no training image moved: the subset of the condition's base."""
        return self if self.condition is None else self.model_copy(update={"condition": None})

    @property
    def depends_on_size(self) -> bool:
        """Whether a fault makes images, or the test set, other ones for every train size (F3, F4,
        F7).
        """
        by_size = {"test_set_depends_on_size", "misaligned_labels", "fixed_imagenet_files"}
        return not by_size.isdisjoint(self.prepared.faults)

    @property
    def twonn_discard_fraction(self) -> float:
        """Share of the largest distance ratios that TwoNN leaves out: 0.1 (Facco et al.), 0 as
        released.
        """
        return 0.0 if self.prepared.data_mode == "as_released" else 0.1

    @property
    def subset_id(self) -> str:
        """Readable name plus hash."""
        return readable_id([self.dataset, pair_name(self.class_pair)], self)


class MeasureSpec(Spec):
    """Intrinsic dimension and label sharpness of one subset at every train size, once for all
    models.
    """

    schema_version: int = MEASURE_VERSION
    subset: SubsetSpec
    train_sizes: tuple[Annotated[int, Field(ge=2)], ...]
    num_neighbors: Annotated[int, Field(ge=3)] = 20
    estimators: Estimators = DEFAULT_ESTIMATORS
    """Of intrinsic dimension, by name."""
    sharpness_sample: Annotated[int, Field(ge=2)] | None = 1000
    sharpness_seeds: tuple[Annotated[int, Field(ge=0)], ...] = tuple(range(10))
    """One sample per seed, for sizes above ``sharpness_sample``."""
    calibrate: bool = False

    @property
    def measure_id(self) -> str:
        """Readable name plus hash."""
        subset = self.subset
        return readable_id([subset.dataset, pair_name(subset.class_pair), "measures"], self)

    @property
    def derived_seed(self) -> int:
        """Seed of every random choice of this measure (independent of the train sizes asked
        for).
        """
        return derive_seed("measure", self.subset, self.num_neighbors, self.sharpness_sample)


def pair_name(class_pair: ClassPair | None) -> str:
    """Spell a class pair as in tables and ids: ``"3-8"``, or ``""`` when a dataset is used
    whole.
    """
    return "" if class_pair is None else f"{class_pair[0]}-{class_pair[1]}"


class NetworkSpec(Spec):
    """One trained network: what it is, what it is trained on and how. Its content is its
    identity.
    """

    schema_version: int = NETWORK_VERSION
    model: ModelSpec
    subset: SubsetSpec
    train_size: Annotated[int, Field(ge=2)]
    recipe: RecipeSpec
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @property
    def network_id(self) -> str:
        """Readable slug plus 12 hex digits."""
        subset = self.subset
        where = [self.model.name, subset.dataset, pair_name(subset.class_pair)]
        return readable_id([*where, f"n{self.train_size}", f"s{self.seed}"], self)

    @property
    def derived_seed(self) -> int:
        """Seed of weight initialisation and batch order: a function of this spec alone."""
        return derive_seed("network", fingerprint(self))


class AttackMeasurement(Spec):
    """One attack at one strength."""

    schema_version: int
    method: str
    epsilon: float


class RepresentationMeasurement(Spec):
    """One estimate of the intrinsic dimension of a network's representation of its training set."""

    schema_version: int
    estimator: str
    num_neighbors: int
    stages: bool = False
    """After every stage, not of the last hidden layer."""


class RobustnessMeasurement(Spec):
    """The distances to other decisions."""

    schema_version: int
    robustness: RobustnessSpec


class PredictionMeasurement(Spec):
    """What a network says of every test image."""

    schema_version: int


class FurtherTestMeasurement(Spec):
    """Loss and accuracy on a further test set, and R on it where R is measured at all."""

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
    """One cell of the grid: a network, and what is measured on it once it is trained.

    The cell's identity and seed are the network's, so that asking for more measurements changes no
    network.
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
        """The network's id; carried by Tune's trial, the store's folder and MLflow's tag."""
        return self.network.network_id

    @property
    def derived_seed(self) -> int:
        """The network's seed."""
        return self.network.derived_seed

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Everything that is measured on the network, one entry per number or group of numbers."""
        attacks, representation, k = (
            self.attacks,
            self.representation,
            self.representation.num_neighbors,
        )
        version = self.representation_version
        found: list[Measurement] = [
            RepresentationMeasurement(
                schema_version=version, estimator=name, num_neighbors=k, stages=stages
            )
            for stages in (False, True)[: 1 + representation.stages]
            for name in representation.estimators
        ]
        versions = {"fgsm": 1, "pgd": self.attack_version}
        found += [
            AttackMeasurement(schema_version=versions[method], method=method, epsilon=epsilon)
            for method in attacks.methods
            for epsilon in attacks.epsilons
        ]
        if (asked := self.robustness) is not None:
            found.append(
                RobustnessMeasurement(schema_version=self.robustness_version, robustness=asked)
            )
        if self.predictions:
            found.append(PredictionMeasurement(schema_version=self.predictions_version))
        found += [
            FurtherTestMeasurement(
                schema_version=self.further_tests_version, test=test, robustness=self.robustness
            )
            for test in self.further_tests
        ]
        return tuple(found)

    def lacks(self, asked: TrialSpec) -> tuple[Measurement, ...]:
        """Return the measurements of ``asked`` that a trial made by this spec does not have."""
        if self == asked:
            return ()
        have = set(self.measurements)
        return tuple(item for item in asked.measurements if item not in have)
