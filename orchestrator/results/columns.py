"""Names, meanings and units of the columns of the results table: the contract between tracking and analysis.

One row is one trial. ``docs/results-columns.md`` is generated from :data:`COLUMNS`, and a test holds the two
equal, so a column cannot appear in a report without an explanation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

TRIAL_ID = "trial_id"
SWEEP = "sweep"
MODEL = "model"
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
TRAIN_LOSS = "train_loss"
TRAIN_ACCURACY = "train_accuracy"
D_REPR_MLE = "d_repr_mle"
D_REPR_TWONN = "d_repr_twonn"
D_DATA_MLE = "d_data_mle"
D_DATA_MLE_STD_ERROR = "d_data_mle_std_error"
D_DATA_TWONN = "d_data_twonn"
D_DATA_TWONN_STD_ERROR = "d_data_twonn_std_error"
LABEL_SHARPNESS = "label_sharpness"
SHARPNESS_PIXEL_RANGE = "sharpness_pixel_range"
SHARPNESS_CHANNELS = "sharpness_channels"
NUM_DUPLICATES = "num_duplicates"
NUM_CONFLICTS = "num_conflicts"
SHARED_GROUP_SHARE = "shared_group_share"
ATTEMPT = "attempt"
WALL_TIME_S = "wall_time_s"
NUM_PARAMETERS = "num_parameters"
DATA_FINGERPRINT = "data_fingerprint"
CODE_VERSION = "code_version"

NATURAL = "natural"
MEDICAL = "medical"
DOMAINS = (NATURAL, MEDICAL)
DONE = "done"

#: Epsilons of the fast gradient sign attack that every trained network meets, in 1/255 of the pixel range.
FGSM_EPSILONS = (1, 2, 4, 8)

_ATTACK = re.compile(r"^(?P<attack>[a-z][a-z0-9]*(?:_[a-z][a-z0-9]*)*)_(?P<eps>\d+(?:\.\d+)?)_loss_gain$")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, what it means, its unit, and how it is read back from CSV."""

    name: str
    meaning: str
    unit: str = "–"
    kind: Literal["text", "number"] = "number"


class AttackColumn(NamedTuple):
    """A ``{attack}_{epsilon}_loss_gain`` column taken apart; ``epsilon`` is in 1/255 of the pixel range."""

    name: str
    attack: str
    epsilon: float


def _attack_columns(attack: str, epsilon: str, words: str) -> tuple[Column, ...]:
    stem = f"{attack}_{epsilon}"
    return (
        Column(f"{stem}_loss", f"mean test loss under {words}", "nat"),
        Column(f"{stem}_loss_gain", f"mean test loss under {words}, minus the clean test loss", "nat"),
        Column(f"{stem}_accuracy_drop", f"clean test accuracy minus accuracy under {words}", "fraction"),
        Column(f"{stem}_robust_accuracy", f"share of test images right with and without {words}", "fraction"),
    )


COLUMNS: tuple[Column, ...] = (
    Column(
        TRIAL_ID,
        "identity of the trial: readable part and hash of everything that decides its result",
        kind="text",
    ),
    Column(SWEEP, "name of the sweep", kind="text"),
    Column(MODEL, "network architecture", kind="text"),
    Column(DATASET, "dataset key", kind="text"),
    Column(DOMAIN, "`natural` or `medical`", kind="text"),
    Column(CLASS_PAIR, "the two classes used, as `3-8`; empty when the dataset is used whole", kind="text"),
    Column(TRAIN_SIZE, "number of training images N", "images"),
    Column(SEED, "repeat number: decides initial weights and batch order"),
    Column(
        DATA_MODE, "`corrected`, or `as_released` (with the faults of the study's released code)", kind="text"
    ),
    Column(IMAGE_SIZE, "side of the square images that were trained on and measured", "pixels"),
    Column(CHANNELS, "image channels that were trained on"),
    Column(STATUS, "`done`, or `diverged` when the loss stopped being a finite number", kind="text"),
    Column(TEST_LOSS, "cross-entropy, mean over the test images, after the last epoch", "nat"),
    Column(TEST_ACCURACY, "share of test images classified correctly", "fraction"),
    Column(TRAIN_LOSS, "cross-entropy, mean over the training images, after the last epoch", "nat"),
    Column(TRAIN_ACCURACY, "share of training images classified correctly", "fraction"),
    Column(
        D_REPR_MLE,
        "intrinsic dimension of the last hidden layer's activations of the training images, "
        "maximum-likelihood estimator",
    ),
    Column(D_REPR_TWONN, "the same by the two-nearest-neighbours estimator"),
    *(
        column
        for epsilon in FGSM_EPSILONS
        for column in _attack_columns("fgsm", str(epsilon), f"FGSM at epsilon {epsilon}/255")
    ),
    Column(
        D_DATA_MLE, "intrinsic dimension of the training images in pixel space, maximum-likelihood estimator"
    ),
    Column(D_DATA_MLE_STD_ERROR, "standard error of `d_data_mle` over the points of the one training subset"),
    Column(D_DATA_TWONN, "the same by the two-nearest-neighbours estimator"),
    Column(D_DATA_TWONN_STD_ERROR, "standard error of `d_data_twonn`"),
    Column(
        LABEL_SHARPNESS,
        "largest label difference per pixel distance over pairs of training images (K_F)",
        "1 / L2 pixel distance",
    ),
    Column(SHARPNESS_PIXEL_RANGE, "largest pixel value on the scale that K_F was measured on", "pixel value"),
    Column(SHARPNESS_CHANNELS, "image channels that K_F was measured on"),
    Column(NUM_DUPLICATES, "exact duplicates found in the training subset", "images"),
    Column(NUM_CONFLICTS, "identical training images with different labels", "images"),
    Column(
        SHARED_GROUP_SHARE,
        "share of test images whose group (patient) is also trained on; 0 unless a released fault is on",
        "fraction",
    ),
    Column(ATTEMPT, "which attempt at the trial succeeded, from 1"),
    Column(WALL_TIME_S, "duration of the trial", "s"),
    Column(NUM_PARAMETERS, "trainable parameters of the network"),
    Column(DATA_FINGERPRINT, "content hash of the prepared dataset", kind="text"),
    Column(CODE_VERSION, "commit, or package version, that produced the row", kind="text"),
)

#: Other attacks follow the same four-column pattern; ``{eps}`` is in 1/255 of the pixel range.
ATTACK_PATTERN: tuple[Column, ...] = _attack_columns("{attack}", "{eps}", "that attack at epsilon {eps}/255")

TEXT_COLUMNS = frozenset(column.name for column in COLUMNS if column.kind == "text")

#: Without these a row is no trial at all; every other column may be absent, which reads as missing.
REQUIRED = (TRIAL_ID, MODEL, DATASET, DOMAIN, TRAIN_SIZE, TEST_LOSS)


def attack_columns(names: Iterable[str]) -> tuple[AttackColumn, ...]:
    """Return the loss-gain columns among ``names``, ordered by attack and then by epsilon."""
    matches = ((name, _ATTACK.match(name)) for name in names)
    found = [AttackColumn(name, m["attack"], float(m["eps"])) for name, m in matches if m]
    return tuple(sorted(found, key=lambda column: (column.attack, column.epsilon)))


def describe(names: Iterable[str]) -> tuple[Column, ...]:
    """Return the dictionary entry of each name, in the order given; unknown names say so."""
    known = {column.name: column for column in COLUMNS}
    entries = []
    for name in names:
        entry = known.get(name) or _describe_attack(name)
        entries.append(entry or Column(name, "not part of the standard table"))
    return tuple(entries)


def _describe_attack(name: str) -> Column | None:
    for suffix in ("_loss_gain", "_accuracy_drop", "_robust_accuracy", "_loss"):
        match = _ATTACK.match(name.removesuffix(suffix) + "_loss_gain") if name.endswith(suffix) else None
        if match:
            words = f"{match['attack']} at epsilon {match['eps']}/255"
            return next(c for c in _attack_columns(match["attack"], match["eps"], words) if c.name == name)
    return None


def markdown_table() -> str:
    """Render the dictionary as the Markdown table of ``docs/results-columns.md``."""
    lines = ["| column | meaning | unit |", "|---|---|---|"]
    lines += [f"| `{c.name}` | {c.meaning} | {c.unit} |" for c in (*COLUMNS, *ATTACK_PATTERN)]
    return "\n".join(lines) + "\n"
