"""Names, meanings, units and origins of the columns of the results table: the one place that has them.

One row is one trial. Rows, MLflow, CSV files and the report take names and kinds from here;
``docs/results-columns.md`` is generated from :data:`COLUMNS`. Tests hold that page equal and run real rows
through :func:`describe`, so a column cannot appear in a report without an explanation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from search_spaces.specs import AttackSpec
from tasks.trials.records import TrialStatus

TRIAL_ID = "trial_id"
SWEEP = "sweep"
MODEL = "model"
RECIPE = "recipe"
DATASET = "dataset"
DOMAIN = "domain"
CLASS_PAIR = "class_pair"
TRAIN_SIZE = "train_size"
SEED = "seed"
DATA_MODE = "data_mode"
IMAGE_SIZE = "image_size"
CHANNELS = "channels"
STATUS = "status"
TEST_LOSS = "test_loss"
TEST_ACCURACY = "test_accuracy"
AUC = "auc"
BALANCED_ACCURACY = "balanced_accuracy"
CALIBRATION_ERROR = "calibration_error"
BEST_EPOCH = "best_epoch"
IMAGES_PER_SECOND = "images_per_second"
PEAK_MEMORY_BYTES = "peak_memory_bytes"
R_HAT_PRED = "r_hat_pred"
R_HAT_PRED_STD_ERROR = "r_hat_pred_std_error"
R_HAT_PRED_MEDIAN = "r_hat_pred_median"
R_HAT_PRED_GEOMETRIC_MEAN = "r_hat_pred_geometric_mean"
R_HAT_PRED_PER_PIXEL = "r_hat_pred_per_pixel"
R_HAT_TRUE = "r_hat_true"
R_HAT_NOT_FOUND = "r_hat_not_found"
TRAIN_LOSS = "train_loss"
TRAIN_ACCURACY = "train_accuracy"
D_REPR_MLE = "d_repr_mle"
D_REPR_TWONN = "d_repr_twonn"
D_DATA_MLE = "d_data_mle"
D_DATA_MLE_STD_ERROR = "d_data_mle_std_error"
D_DATA_TWONN = "d_data_twonn"
D_DATA_TWONN_STD_ERROR = "d_data_twonn_std_error"
LABEL_SHARPNESS = "label_sharpness"
LABEL_SHARPNESS_P99 = "label_sharpness_p99"
LABEL_SHARPNESS_MEAN = "label_sharpness_mean"
LABEL_SHARPNESS_PERMUTED = "label_sharpness_permuted"
D_DATA_CALIBRATED = "d_data_calibrated"
SHARPNESS_PIXEL_RANGE = "sharpness_pixel_range"
SHARPNESS_CHANNELS = "sharpness_channels"
NUM_DUPLICATES = "num_duplicates"
NUM_CONFLICTS = "num_conflicts"
SHARED_GROUP_SHARE = "shared_group_share"
ATTEMPT = "attempt"
STEP_PATH = "step_path"
MICRO_BATCH = "micro_batch"
WALL_TIME_S = "wall_time_s"
ENERGY_J = "energy_j"
NUM_PARAMETERS = "num_parameters"
DATA_FINGERPRINT = "data_fingerprint"
CODE_VERSION = "code_version"

NATURAL = "natural"
MEDICAL = "medical"
DOMAINS = (NATURAL, MEDICAL)
DONE = str(TrialStatus.DONE)

#: Epsilons of the attack where a sweep names no others, in 1/255 of the pixel range.
FGSM_EPSILONS = tuple(int(epsilon) for epsilon in AttackSpec().epsilons)

#: What an attack's columns are named after: fields of :class:`tasks.trials.records.AttackRecord`.
ATTACK_QUANTITIES = ("loss", "loss_gain", "accuracy_drop", "robust_accuracy")

Origin = Literal["spec", "run", "network", "d_repr", "attack", "robustness", "measure"]
"""Where a column comes from: the choices, the run that made the result, the trained network's scores, its
representation, attacks on it, or the measures of its training images."""

#: Neighbours from which d_data is shown too, to see what it owes to their number.
NEIGHBORS_TOO = (5, 10)
DEFAULT_NEIGHBORS = 20


def d_data_at(num_neighbors: int) -> str:
    """Return the column of the maximum-likelihood d_data from that many neighbours."""
    return f"{D_DATA_MLE}_k{num_neighbors}"


_ATTACK = re.compile(
    rf"(?P<attack>[a-z][a-z0-9]*(?:_[a-z][a-z0-9]*)*)_(?P<eps>\d+(?:\.\d+)?)_(?P<what>{'|'.join(ATTACK_QUANTITIES)})"
)
_DIMENSION = re.compile(
    r"(?P<dimension>d_repr|d_data)_(?P<estimator>[a-z][a-z0-9_]*?)(?:_stage(?P<place>\d+))?"
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, what it means, its unit, its type, and where it comes from.

    Text and integers are tags in a tracker, numbers are metrics.
    """

    name: str
    meaning: str
    unit: str = "–"
    kind: Literal["text", "integer", "number"] = "number"
    origin: Origin | None = None
    """None for a column that is not ours."""


class AttackColumn(NamedTuple):
    """A ``{attack}_{epsilon}_loss_gain`` column taken apart; ``epsilon`` is in 1/255 of the pixel range."""

    name: str
    attack: str
    epsilon: float

    @property
    def words(self) -> str:
        """Say it as people do."""
        return f"{self.attack.upper()} at {self.epsilon:g}/255"


_attack = partial(Column, origin="attack")


def _attack_columns(attack: str, epsilon: str, words: str) -> tuple[Column, ...]:
    stem = f"{attack}_{epsilon}"
    return (
        _attack(f"{stem}_loss", f"mean test loss under {words}", "nat"),
        _attack(f"{stem}_loss_gain", f"mean test loss under {words}, minus the clean test loss", "nat"),
        _attack(f"{stem}_accuracy_drop", f"clean test accuracy minus accuracy under {words}", "fraction"),
        _attack(
            f"{stem}_robust_accuracy", f"share of test images right with and without {words}", "fraction"
        ),
    )


_text = partial(Column, kind="text", origin="spec")
_choice = partial(Column, kind="integer", origin="spec")
_run = partial(Column, origin="run")
_score = partial(Column, origin="network")
_measure = partial(Column, origin="measure")
_robust = partial(Column, origin="robustness")
_L2 = "L2 pixel distance"

COLUMNS: tuple[Column, ...] = (
    _text(
        TRIAL_ID,
        "identity of the trial, which is its network's: readable part and hash of all that decides it",
    ),
    _text(SWEEP, "name of the sweep"),
    _text(MODEL, "network architecture"),
    _text(RECIPE, "how it was trained: the recipe's name and what was changed of it, as `paper+epochs=30`"),
    _text(DATASET, "dataset key"),
    _text(DOMAIN, "`natural` or `medical`; empty where none was given"),
    _text(CLASS_PAIR, "the two classes used, as `3-8`; empty when the dataset is used whole"),
    _choice(TRAIN_SIZE, "number of training images N", "images"),
    _choice(SEED, "repeat number: decides initial weights and batch order"),
    _text(DATA_MODE, "`corrected`, or `as_released` (with the faults of the study's released code)"),
    _choice(IMAGE_SIZE, "side of the square images that were trained on and measured", "pixels"),
    _choice(CHANNELS, "image channels that were trained on"),
    _run(STATUS, "`done`, or `diverged` when the loss stopped being a finite number", kind="text"),
    _score(TEST_LOSS, "cross-entropy, mean over the test images, after the last epoch", "nat"),
    _score(TEST_ACCURACY, "share of test images classified correctly", "fraction"),
    _score(
        AUC, "area under the ROC curve on the test images; several classes: mean of each against the rest"
    ),
    _score(
        BALANCED_ACCURACY,
        "mean over the classes of the share of test images classified correctly",
        "fraction",
    ),
    _score(
        CALIBRATION_ERROR, "expected calibration error on the test images, 15 bins of confidence", "fraction"
    ),
    _score(
        BEST_EPOCH,
        "epoch with the smallest test loss of about ten looked at; tells how training went",
        "epochs",
    ),
    _score(TRAIN_LOSS, "cross-entropy, mean over the training images, after the last epoch", "nat"),
    _score(TRAIN_ACCURACY, "share of training images classified correctly", "fraction"),
    Column(
        D_REPR_MLE,
        "intrinsic dimension of the last hidden layer's activations of the training images, "
        "maximum-likelihood estimator",
        origin="d_repr",
    ),
    Column(D_REPR_TWONN, "the same by the two-nearest-neighbours estimator", origin="d_repr"),
    *(
        column
        for epsilon in FGSM_EPSILONS
        for column in _attack_columns("fgsm", str(epsilon), f"FGSM at epsilon {epsilon}/255")
    ),
    _robust(
        R_HAT_PRED, "mean distance of a test image to the nearest one found with another decision (R)", _L2
    ),
    _robust(R_HAT_PRED_STD_ERROR, "its standard error over the images", _L2),
    _robust(R_HAT_PRED_MEDIAN, "the same, median", _L2),
    _robust(R_HAT_PRED_GEOMETRIC_MEAN, "the same, geometric mean; absent where a distance is 0", _L2),
    _robust(R_HAT_PRED_PER_PIXEL, "`r_hat_pred` over the square root of the number of pixel values", _L2),
    _robust(R_HAT_TRUE, "as `r_hat_pred`, with distance 0 where the network is wrong", _L2),
    _robust(R_HAT_NOT_FOUND, "test images without a distance, left out of the others", "images"),
    _measure(
        D_DATA_MLE, "intrinsic dimension of the training images in pixel space, maximum-likelihood estimator"
    ),
    _measure(
        D_DATA_MLE_STD_ERROR, "standard error of `d_data_mle` over the points of the one training subset"
    ),
    *(
        _measure(d_data_at(k), f"`d_data_mle` from the {k} nearest neighbours instead of {DEFAULT_NEIGHBORS}")
        for k in NEIGHBORS_TOO
    ),
    _measure(D_DATA_TWONN, "the same by the two-nearest-neighbours estimator"),
    _measure(D_DATA_TWONN_STD_ERROR, "standard error of `d_data_twonn`"),
    _measure(
        LABEL_SHARPNESS,
        "largest label difference per pixel distance over pairs of training images (K_F)",
        "1 / L2 pixel distance",
    ),
    _measure(
        LABEL_SHARPNESS_MEAN,
        "mean over training images of 1 / distance to the nearest with another label (average smoothness)",
        "1 / L2 pixel distance",
    ),
    _measure(
        LABEL_SHARPNESS_PERMUTED,
        "what `label_sharpness` would be if the same labels had nothing to do with the images",
        "1 / L2 pixel distance",
    ),
    _measure(
        SHARPNESS_PIXEL_RANGE, "largest pixel value on the scale that K_F was measured on", "pixel value"
    ),
    _measure(SHARPNESS_CHANNELS, "image channels that K_F was measured on"),
    _measure(NUM_DUPLICATES, "exact duplicates found in the training subset", "images"),
    _measure(NUM_CONFLICTS, "identical training images with different labels", "images"),
    _run(
        SHARED_GROUP_SHARE,
        "share of test images whose group (patient) is also trained on; 0 unless a released fault is on",
        "fraction",
    ),
    _run(ATTEMPT, "which attempt at the trial succeeded, from 1", kind="integer"),
    _run(
        STEP_PATH,
        "how training steps were taken: eager (started by Python) or graph (captured, replayed by a GPU)",
        kind="text",
    ),
    _run(
        MICRO_BATCH,
        "images of a batch that passed at once where memory was short, which changes what batch norm sees; "
        "absent where whole batches passed",
        "images",
        kind="integer",
    ),
    _run(WALL_TIME_S, "duration of the trial", "s"),
    _run(IMAGES_PER_SECOND, "training images per second of training", "images / s"),
    _run(PEAK_MEMORY_BYTES, "peak memory of the trial: on the GPU, or of the process on a CPU", "bytes"),
    _run(
        ENERGY_J,
        "energy of the GPU while the trial ran, of all that ran on it; absent without a GPU that counts",
        "J",
    ),
    _score(NUM_PARAMETERS, "trainable parameters of the network"),
    _run(DATA_FINGERPRINT, "content hash of the prepared dataset", kind="text"),
    _run(CODE_VERSION, "commit, or package version, that produced the row", kind="text"),
)

#: Other attacks follow the same four-column pattern; ``{eps}`` is in 1/255 of the pixel range.
ATTACK_PATTERN: tuple[Column, ...] = _attack_columns("{attack}", "{eps}", "that attack at epsilon {eps}/255")

#: What the report's table of measures has besides the columns above, one row per train size.
MEASURE_TABLE: tuple[Column, ...] = (
    _measure(
        LABEL_SHARPNESS_P99,
        "label sharpness that 99 % of the images stay below",
        "1 / L2 pixel distance",
    ),
    _measure(D_DATA_CALIBRATED, "d_data corrected for its bias by simulation, with its 90 % interval"),
)

EPOCH_PREFIX = "epoch_"
_IN_TRAINING = "examples of one epoch of training, while the weights moved; a tracker's series by epoch"
_AFTER_EPOCH = "test images after one epoch of training; a tracker's series by epoch"

#: What a tracker shows of a trial by epoch; no part of the table, whose rows are trained networks.
EPOCH_SERIES: tuple[Column, ...] = (
    _score(EPOCH_PREFIX + TRAIN_LOSS, f"mean cross-entropy on the {_IN_TRAINING}", "nat"),
    _score(EPOCH_PREFIX + TRAIN_ACCURACY, f"share classified rightly of the {_IN_TRAINING}", "fraction"),
    _score(EPOCH_PREFIX + TEST_LOSS, f"mean cross-entropy on the {_AFTER_EPOCH}", "nat"),
    _score(EPOCH_PREFIX + TEST_ACCURACY, f"share classified rightly of the {_AFTER_EPOCH}", "fraction"),
)

TEXT_COLUMNS = frozenset(column.name for column in COLUMNS if column.kind == "text")
INTEGER_COLUMNS = frozenset(column.name for column in COLUMNS if column.kind == "integer")

#: Estimators of d_data and d_repr whose values are columns.
TABLE_ESTIMATORS = ("mle", "twonn")

#: Without these a row is no trial at all; every other column may be absent, which reads as missing.
REQUIRED = (TRIAL_ID, MODEL, DATASET, DOMAIN, TRAIN_SIZE, TEST_LOSS)


def attack_columns(names: Iterable[str]) -> tuple[AttackColumn, ...]:
    """Return the loss-gain columns among ``names``, ordered by attack and then by epsilon."""
    matches = ((name, _ATTACK.fullmatch(name)) for name in names)
    gains = ((name, m) for name, m in matches if m and m["what"] == "loss_gain")
    found = [AttackColumn(name, m["attack"], float(m["eps"])) for name, m in gains]
    return tuple(sorted(found, key=lambda column: (column.attack, column.epsilon)))


def describe(names: Iterable[str]) -> tuple[Column, ...]:
    """Return the dictionary entry of each name, in the order given; strangers say so and have no origin."""
    known = {column.name: column for column in (*COLUMNS, *MEASURE_TABLE, *EPOCH_SERIES)}
    return tuple(known.get(name) or _described(name) for name in names)


def _described(name: str) -> Column:
    """Describe a column by the pattern of its name."""
    if m := _ATTACK.fullmatch(name):
        columns = _attack_columns(m["attack"], m["eps"], f"{m['attack']} at epsilon {m['eps']}/255")
        return columns[ATTACK_QUANTITIES.index(m["what"])]
    if m := _DIMENSION.fullmatch(name):
        origin: Origin = "d_repr" if m["dimension"] == "d_repr" else "measure"
        if m["place"] and origin == "d_repr":
            where = f"activations after stage {m['place']} of the network, counted from the pixels"
            words = f"intrinsic dimension of the {where}, by the estimator `{m['estimator']}`"
        else:
            estimator = name.removeprefix(f"{m['dimension']}_")
            words = f"{m['dimension']} by the estimator `{estimator}` (docs/measures.md)"
        return Column(name, words, origin=origin)
    return Column(name, "not part of the standard table")


def markdown_table() -> str:
    """Render the dictionary as the Markdown table of ``docs/results-columns.md``."""
    lines = ["| column | meaning | unit | from |", "|---|---|---|---|"]
    columns = (*COLUMNS, *ATTACK_PATTERN, *MEASURE_TABLE, *EPOCH_SERIES)
    lines += [f"| `{c.name}` | {c.meaning} | {c.unit} | {c.origin} |" for c in columns]
    return "\n".join(lines) + "\n"
