"""Columns of the results table: name, meaning, unit, type and origin.

Each column is defined only in this module. Rows, MLflow, CSV files, the report and
``docs/results-columns.md`` use the names and types of this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from search_spaces.specs import AttackSpec
from tasks.trials.records import TrialStatus

Origin = Literal["spec", "run", "network", "d_repr", "attack", "robustness", "measure"]
"""Origin of a column's values. ``spec``: the settings of the trial. ``run``: the run that
computed the result. ``network``: the scores of the trained network. ``d_repr``: the
activations of the network's last hidden layer. ``attack``: the attacks on the network.
``robustness``: the distances to the decision boundary. ``measure``: the measures of the
training images."""
Kind = Literal["text", "integer", "number"]
"""Type of a column's values. In MLflow, text and integers are tags, and numbers are
metrics."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the results table.

    Attributes:
        name: Name of the column.
        meaning: Explanation of the values for users.
        unit: Unit of the values, or a dash if the values have no unit.
        kind: Type of the values.
        origin: Origin of the values, or None if isweep does not define the column.
    """

    name: str
    meaning: str
    unit: str = "–"
    kind: Kind = "number"
    origin: Origin | None = None


_DEFINED: dict[str, Column] = {}
"""The columns that are defined so far, by name."""


def _define(origin: Origin, name: str, meaning: str, unit: str = "–", kind: Kind = "number") -> str:
    """Add a column to :data:`_DEFINED`, and return its name."""
    _DEFINED[name] = Column(name, meaning, unit, kind, origin)
    return name


# Each of these functions defines a column with a fixed origin. The functions `_text` and
# `_integer` also fix the type of the values.
_text = partial(_define, "spec", kind="text")
_integer = partial(_define, "spec", kind="integer")
_run = partial(_define, "run")
_score = partial(_define, "network")
_robustness = partial(_define, "robustness")
_measure = partial(_define, "measure")
_DISTANCE = "L2 pixel distance"
_PER_DISTANCE = "1 / L2 pixel distance"

# The order of the definitions is the order of the columns in the table. The trial's settings
# come first.
TRIAL_ID = _text(
    "trial_id",
    "id of the trial: a readable name, followed by a hash of all settings that can change its "
    "result",
)
SWEEP = _text("sweep", "name of the sweep")
MODEL = _text("model", "network architecture")
RECIPE = _text(
    "recipe",
    "name of the recipe, followed by the changed settings, for example `paper+epochs=30`",
)
DATASET = _text("dataset", "name of the dataset")
DOMAIN = _text("domain", "`natural` or `medical`; empty if it is not known")
CLASS_PAIR = _text(
    "class_pair",
    "the two classes of the class pair, as in `3-8`; empty if the trial uses all classes",
)
TRAIN_SIZE = _integer("train_size", "number of training images N", "images")
TEST_SIZE = _integer("test_size", "number of test images", "images")
SEED = _integer(
    "seed", "number of the repetition; the initial weights and the batch order depend on it"
)
DATA_MODE = _text(
    "data_mode",
    "`as_released` if isweep repeats the faults of the published study's code; "
    "otherwise `corrected`",
)
IMAGE_SIZE = _integer(
    "image_size", "height and width of the images in training and measurement", "pixels"
)
CHANNELS = _integer("channels", "number of image channels in training")

# These columns describe the trained network, and its predictions on the test images.
STATUS = _run("status", "`done`, or `diverged` if the loss became NaN or infinite", kind="text")
TEST_LOSS = _score(
    "test_loss", "mean cross-entropy over the test images after the last epoch", "nat"
)
TEST_ACCURACY = _score("test_accuracy", "share of test images classified correctly", "fraction")
AUC = _score(
    "auc",
    "area under the ROC curve on the test images; with more than two classes, the mean of the "
    "areas for each class against all other classes",
)
BALANCED_ACCURACY = _score(
    "balanced_accuracy",
    "mean of the accuracies that the network has on the test images of each class",
    "fraction",
)
CALIBRATION_ERROR = _score(
    "calibration_error", "expected calibration error on the test images, with 15 bins", "fraction"
)
NUM_CLASSES = _score("num_classes", "number of classes n; the chance loss is ln n")
NUM_EPOCHS = _score("num_epochs", "number of training epochs", "epochs")
BEST_EPOCH = _score(
    "best_epoch",
    "epoch with the smallest test loss; isweep tests the network after about ten of the epochs",
    "epochs",
)
TRAIN_LOSS = _score(
    "train_loss", "mean cross-entropy over the training images after the last epoch", "nat"
)
TRAIN_ACCURACY = _score(
    "train_accuracy", "share of training images classified correctly", "fraction"
)
_D_REPR = "intrinsic dimension of the last hidden layer's activations for the training images"
D_REPR_MLE = _define("d_repr", "d_repr_mle", f"{_D_REPR}, by the maximum-likelihood estimator")
D_REPR_TWONN = _define(
    "d_repr", "d_repr_twonn", f"{_D_REPR}, by the two-nearest-neighbors estimator"
)

# These columns describe attacks on the network.
ATTACK_QUANTITIES = {
    "loss": ("mean test loss under {}", "nat"),
    "loss_gain": ("mean test loss under {}, minus the clean test loss", "nat"),
    "accuracy_drop": ("clean test accuracy minus accuracy under {}", "fraction"),
    "robust_accuracy": (
        "share of test images that are classified correctly with and without {}",
        "fraction",
    ),
}
"""Meaning and unit of an attack's columns, by field of
:class:`tasks.trials.records.AttackRecord`."""


def columns_of_attack(attack: str, description: str) -> tuple[Column, ...]:
    """Return the columns of one attack at one strength.

    Args:
        attack: The attack and its strength as in column names, such as ``fgsm_8``.
        description: The attack and its strength as text.
    """
    columns = []
    for quantity, (meaning, unit) in ATTACK_QUANTITIES.items():
        name = f"{attack}_{quantity}"
        columns.append(Column(name, meaning.format(description), unit, origin="attack"))
    return tuple(columns)


FGSM_EPSILONS = tuple(int(epsilon) for epsilon in AttackSpec().epsilons)
"""Default strengths of FGSM, in 1/255 of the pixel range."""
for _epsilon in FGSM_EPSILONS:
    for _column in columns_of_attack(f"fgsm_{_epsilon}", f"FGSM at epsilon {_epsilon}/255"):
        _DEFINED[_column.name] = _column

# These columns describe distances from test images to the decision boundary.
R_HAT_PRED = _robustness(
    "r_hat_pred",
    "mean over test images of R, the distance to the nearest image that the network classifies "
    "differently",
    _DISTANCE,
)
_robustness(
    "r_hat_pred_std_error", "standard error of `r_hat_pred` over the test images", _DISTANCE
)
_robustness("r_hat_pred_median", "median of the distances in `r_hat_pred`", _DISTANCE)
_robustness(
    "r_hat_pred_geometric_mean",
    "geometric mean of the distances in `r_hat_pred`; absent if a distance is 0",
    _DISTANCE,
)
R_HAT_PRED_PER_PIXEL = _robustness(
    "r_hat_pred_per_pixel", "`r_hat_pred` divided by √(number of pixel values)", _DISTANCE
)
R_HAT_TRUE = _robustness(
    "r_hat_true",
    "mean R as in `r_hat_pred`, but with R = 0 for each image that the network classifies wrongly",
    _DISTANCE,
)
R_HAT_NOT_FOUND = _robustness(
    "r_hat_not_found",
    "number of test images for which the search found no distance; the means omit these images",
    "images",
)

# These columns are measures of the training images.
_D_DATA = "intrinsic dimension of the training images in pixel space"
D_DATA_MLE = _measure("d_data_mle", f"{_D_DATA}, by the maximum-likelihood estimator")
_measure(
    "d_data_mle_std_error",
    "standard error of `d_data_mle` over the training images",
)


def d_data_at(num_neighbors: int) -> str:
    """Return the column of d_data by the maximum-likelihood estimator with ``num_neighbors``."""
    return f"{D_DATA_MLE}_k{num_neighbors}"


OTHER_NUM_NEIGHBORS = (5, 10)
"""Further numbers of nearest neighbors for d_data. They show how much d_data depends on this
number."""
for _num_neighbors in OTHER_NUM_NEIGHBORS:
    _measure(
        d_data_at(_num_neighbors),
        f"as `d_data_mle`, but computed from {_num_neighbors} nearest neighbors instead of 20",
    )
ESTIMATORS_WITHOUT_COLUMNS = ("gride",)
"""Estimators of d_data without a column in the results table. The table of measures contains
their values. A new column would make the MLflow runs of earlier sweeps incomplete."""
D_DATA_TWONN = _measure("d_data_twonn", f"{_D_DATA}, by the two-nearest-neighbors estimator")
_measure("d_data_twonn_std_error", "standard error of `d_data_twonn`")
LABEL_SHARPNESS = _measure(
    "label_sharpness",
    "K_F: largest 1 / distance over all pairs of training images with different labels; if there "
    "are more than `sharpness_sample` (1,000) images, the mean of K_F over ten samples of images",
    _PER_DISTANCE,
)
LABEL_SHARPNESS_MEAN = _measure(
    "label_sharpness_mean",
    "mean over training images of 1 / distance to the nearest image with another label",
    _PER_DISTANCE,
)
MEAN_UNLIKE_DISTANCE = _measure(
    "mean_unlike_distance",
    "δ: mean over training images of the distance to the nearest image with another label; "
    "absent if an older version of isweep computed the measures",
    _DISTANCE,
)
LABEL_SHARPNESS_PERMUTED = _measure(
    "label_sharpness_permuted",
    "mean of `label_sharpness` over random permutations of the labels",
    _PER_DISTANCE,
)
SHARPNESS_PIXEL_RANGE = _measure(
    "sharpness_pixel_range",
    "pixel value of white minus pixel value of black in the measurement of K_F",
)
SHARPNESS_CHANNELS = _measure(
    "sharpness_channels", "number of image channels in the measurement of K_F"
)
NUM_DUPLICATES = _measure(
    "num_duplicates",
    "number of training images that equal an earlier training image; all measures exclude them",
    "images",
)
NUM_CONFLICTS = _measure(
    "num_conflicts",
    "number of duplicates whose label differs from the label of the earlier image",
    "images",
)

# These columns describe the run that computed the result.
SHARED_GROUP_SHARE = _run(
    "shared_group_share",
    "share of test images from a group (patient) that also has training images; above 0 only if "
    "a fault of the released code is switched on",
    "fraction",
)
ATTEMPT = _run(
    "attempt", "number of the attempt that succeeded; the first attempt is 1", kind="integer"
)
GPU = _run(
    "gpu",
    "GPU that trained the network, with the name from its driver; absent on a CPU",
    kind="text",
)
STEP_PATH = _run(
    "step_path",
    "kind of training step: eager (plain steps) or graph (replays of a captured graph)",
    kind="text",
)
MICRO_BATCH = _run(
    "micro_batch",
    "images per part of a batch, if isweep split the batches to save memory (batch norm then uses "
    "the statistics of each part); absent if isweep split no batches",
    "images",
    kind="integer",
)
WALL_TIME_S = _run("wall_time_s", "duration of the trial", "s")
IMAGES_PER_SECOND = _run(
    "images_per_second",
    "training images that the network processed per second of training",
    "images / s",
)
PEAK_MEMORY_BYTES = _run(
    "peak_memory_bytes",
    "peak GPU memory of the trial; on a CPU, peak memory of its process",
    "bytes",
)
ENERGY_J = _run(
    "energy_j",
    "energy that the GPU used during the trial; absent if the GPU does not measure it",
    "J",
)
NUM_PARAMETERS = _score("num_parameters", "number of trainable parameters of the network")
DATA_FINGERPRINT = _run(
    "data_fingerprint", "hash of the content of the prepared dataset", kind="text"
)
CODE_VERSION = _run(
    "code_version", "commit or package version of isweep that computed the result", kind="text"
)

COLUMNS = tuple(_DEFINED.values())
"""Columns of the results table, in order."""

# The columns below are not in the results table, so their definitions must stay below COLUMNS.
# Some are in the report's table of measures, which has one row per train size. The others are
# MLflow's curves over epochs.
LABEL_SHARPNESS_P99 = _measure(
    "label_sharpness_p99",
    "99th percentile over training images of 1 / distance to the nearest image with another label",
    _PER_DISTANCE,
)
D_DATA_CALIBRATED = _measure("d_data_calibrated", "bias-corrected d_data, with a 90 % interval")
EPOCH_PREFIX = "epoch_"
"""Prefix of the metrics that are curves over epochs in MLflow."""
for _part, _images in (("train", "training images during"), ("test", "test images after")):
    _score(f"{EPOCH_PREFIX}{_part}_loss", f"mean cross-entropy of the {_images} each epoch", "nat")
    _score(
        f"{EPOCH_PREFIX}{_part}_accuracy",
        f"share of correctly classified {_images} each epoch",
        "fraction",
    )

TEXT_COLUMNS = frozenset(column.name for column in COLUMNS if column.kind == "text")
"""Names of the columns with text."""
REQUIRED = (TRIAL_ID, MODEL, DATASET, DOMAIN, TRAIN_SIZE, TEST_LOSS)
"""Columns that every table of trials needs. Any other column may be absent."""
NATURAL = "natural"
MEDICAL = "medical"
DOMAINS = (NATURAL, MEDICAL)
"""Values of ``domain``."""
DONE = str(TrialStatus.DONE)
"""Value of ``status`` for a trial whose training finished."""

FURTHER_TEST_PREFIX = "test_on_"
"""Prefix of the columns of a further test set. The name of its condition follows."""
FURTHER_TEST_QUANTITIES = {
    "num_moved": ("number of test images that the condition `{}` changes", "images"),
    "loss": ("`test_loss` on the test images after the condition `{}` changed them", "nat"),
    "accuracy": (
        "`test_accuracy` on the test images after the condition `{}` changed them",
        "fraction",
    ),
    "moved_loss": ("`test_loss` on only the test images that the condition `{}` changed", "nat"),
    "moved_accuracy": (
        "`test_accuracy` on only the test images that the condition `{}` changed",
        "fraction",
    ),
    "unmoved_loss": (
        "`test_loss` on only the test images that the condition `{}` did not change",
        "nat",
    ),
    "unmoved_accuracy": (
        "`test_accuracy` on only the test images that the condition `{}` did not change",
        "fraction",
    ),
    "r_hat_pred": (
        "`r_hat_pred` on the test images after the condition `{}` changed them",
        _DISTANCE,
    ),
}
"""Meaning and unit of a further test set's columns."""

# Names of columns that contain a name or a number, such as an attack and its strength.
_ATTACK_NAME = re.compile(
    r"(?P<attack>[a-z][a-z0-9]*(?:_[a-z][a-z0-9]*)*)_(?P<epsilon>\d+(?:\.\d+)?)_"
    rf"(?P<quantity>{'|'.join(ATTACK_QUANTITIES)})"
)
# test_on_near_moved_loss is the quantity moved_loss of the condition near, not the quantity
# loss of the condition near_moved. Therefore the pattern's group `condition` matches as few
# characters as possible.
_FURTHER_TEST_NAME = re.compile(
    rf"{FURTHER_TEST_PREFIX}(?P<condition>[a-z][a-z0-9_-]*?)_"
    rf"(?P<quantity>{'|'.join(FURTHER_TEST_QUANTITIES)})"
)
_DIMENSION_NAME = re.compile(
    r"(?P<dimension>d_repr|d_data)_(?P<estimator>[a-z][a-z0-9_]*?)(?:_stage(?P<stage>\d+))?"
)
_STD_ERROR = "_std_error"
"""Suffix of the columns of standard errors."""


def columns_of_estimator(estimator: str) -> tuple[Column, Column]:
    """Return two columns: d_data by an estimator, and the standard error of this d_data."""
    name = f"d_data_{estimator}"
    meaning = f"d_data by the estimator `{estimator}` (docs/measures.md)"
    return (
        Column(name, meaning, origin="measure"),
        Column(f"{name}{_STD_ERROR}", f"standard error of `{name}`", origin="measure"),
    )


class AttackColumn(NamedTuple):
    """An attack's column of loss gains, ``{attack}_{epsilon}_loss_gain``.

    Attributes:
        name: Name of the column.
        attack: Name of the attack.
        epsilon: Strength of the attack, in 1/255 of the pixel range.
    """

    name: str
    attack: str
    epsilon: float

    @property
    def words(self) -> str:
        """Attack and strength as text, for example ``FGSM at 8/255``."""
        return f"{self.attack.upper()} at {self.epsilon:g}/255"


def attack_columns(names: Iterable[str]) -> tuple[AttackColumn, ...]:
    """Return the loss-gain columns among ``names``, sorted by attack and then by strength."""
    columns = []
    for name in names:
        match = _ATTACK_NAME.fullmatch(name)
        if match and match["quantity"] == "loss_gain":
            columns.append(AttackColumn(name, match["attack"], float(match["epsilon"])))
    return tuple(sorted(columns, key=lambda column: (column.attack, column.epsilon)))


def further_test_column(condition: str, quantity: str) -> str:
    """Return the column of a further test set, such as ``test_on_near_loss``."""
    return f"{FURTHER_TEST_PREFIX}{condition}_{quantity}"


def describe(names: Iterable[str]) -> tuple[Column, ...]:
    """Return the column of each name, in order.

    For a name that isweep does not define, return a column without an origin.
    """
    return tuple(_DEFINED.get(name) or _describe_by_pattern(name) for name in names)


def _describe_by_pattern(name: str) -> Column:
    """Return the column of a name that contains another name, such as the name of an attack."""
    attack = _ATTACK_NAME.fullmatch(name)
    if attack:
        meaning, unit = ATTACK_QUANTITIES[attack["quantity"]]
        description = f"{attack['attack']} at epsilon {attack['epsilon']}/255"
        return Column(name, meaning.format(description), unit, origin="attack")
    further_test = _FURTHER_TEST_NAME.fullmatch(name)
    if further_test:
        meaning, unit = FURTHER_TEST_QUANTITIES[further_test["quantity"]]
        return Column(name, meaning.format(further_test["condition"]), unit, origin="network")
    dimension = _DIMENSION_NAME.fullmatch(name)
    if dimension:
        return _describe_dimension(name, dimension)
    return Column(name, "not part of the standard table")


def _describe_dimension(name: str, match: re.Match[str]) -> Column:
    """Return the column of an intrinsic dimension, of data or of a representation."""
    if match["dimension"] == "d_data":
        estimator = name.removeprefix("d_data_").removesuffix(_STD_ERROR)
        value, std_error = columns_of_estimator(estimator)
        return std_error if name == std_error.name else value
    estimator = match["estimator"]
    meaning = f"d_repr by the estimator `{estimator}` (docs/measures.md)"
    if match["stage"]:
        meaning = (
            f"intrinsic dimension of the activations after stage {match['stage']} of the network, "
            f"counted from the input, by the estimator `{estimator}`"
        )
    return Column(name, meaning, origin="d_repr")
