"""The results table: its columns, and how a stored trial becomes a flat row of it.

A column is entered once, with name, meaning, unit, type and origin. Rows, MLflow, CSV files and the
report take names and kinds from here, and so does ``docs/results-columns.md``. The same flat form
goes to MLflow (tags, params, metrics) and comes back from it, so that the table read from MLflow
and the one read from the store are equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Literal, NamedTuple

from orchestrator.results.store import (
    FileKind,
    MeasureRecord,
    ResultRecord,
    ResultStore,
    TrialRecord,
)
from search_spaces.errors import DataError
from search_spaces.specs import AttackSpec, TrialSpec, pair_name
from tasks.trials.records import EpochRecord, EpochScore, TrialResult, TrialStatus

if TYPE_CHECKING:
    import pandas as pd

Origin = Literal["spec", "run", "network", "d_repr", "attack", "robustness", "measure"]
"""Where a column comes from: the choices, the run that made the result, the trained network's
scores, its representation, attacks on it, or the measures of its training images."""
Kind = Literal["text", "integer", "number"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column; ``origin`` is None for one that is not ours.

    Text and integers are tags in MLflow, numbers are metrics.
    """

    name: str
    meaning: str
    unit: str = "–"
    kind: Kind = "number"
    origin: Origin | None = None


_ENTERED: dict[str, Column] = {}


def _enter(origin: Origin, name: str, meaning: str, unit: str = "–", kind: Kind = "number") -> str:
    """Enter a column, and return its name."""
    _ENTERED[name] = Column(name, meaning, unit, kind, origin)
    return name


_text = partial(_enter, "spec", kind="text")
_choice = partial(_enter, "spec", kind="integer")
_run = partial(_enter, "run")
_score = partial(_enter, "network")
_robust = partial(_enter, "robustness")
_measure = partial(_enter, "measure")
_PIXELS, _PER_PIXELS = "L2 pixel distance", "1 / L2 pixel distance"

TRIAL_ID = _text(
    "trial_id", "identity of the trial: readable part, and hash of all that decides its network"
)
SWEEP = _text("sweep", "name of the sweep")
MODEL = _text("model", "network architecture")
RECIPE = _text(
    "recipe", "how it was trained: recipe, and what was changed of it, as `paper+epochs=30`"
)
DATASET = _text("dataset", "dataset key")
DOMAIN = _text("domain", "`natural` or `medical`; empty where none was given")
CLASS_PAIR = _text(
    "class_pair", "the two classes used, as `3-8`; empty when the dataset is used whole"
)
TRAIN_SIZE = _choice("train_size", "number of training images N", "images")
SEED = _choice("seed", "repeat number: decides initial weights and batch order")
DATA_MODE = _text(
    "data_mode", "`corrected`, or `as_released` (with the faults of the study's code)"
)
IMAGE_SIZE = _choice(
    "image_size", "side of the square images that were trained on and measured", "pixels"
)
CHANNELS = _choice("channels", "image channels that were trained on")
STATUS = _run(
    "status", "`done`, or `diverged` when the loss stopped being a finite number", kind="text"
)
TEST_LOSS = _score(
    "test_loss", "cross-entropy, mean over the test images, after the last epoch", "nat"
)
TEST_ACCURACY = _score("test_accuracy", "share of test images classified correctly", "fraction")
AUC = _score(
    "auc", "area under the ROC curve, test images; several classes: mean of each against the rest"
)
BALANCED_ACCURACY = _score(
    "balanced_accuracy", "`test_accuracy` of a class, mean over classes", "fraction"
)
CALIBRATION_ERROR = _score(
    "calibration_error", "expected calibration error, test images, 15 bins", "fraction"
)
NUM_CLASSES = _score("num_classes", "classes; guessing has the loss ln of it")
BEST_EPOCH = _score(
    "best_epoch", "epoch with the smallest test loss, of about ten looked at", "epochs"
)
TRAIN_LOSS = _score("train_loss", "`test_loss`, of the training images", "nat")
TRAIN_ACCURACY = _score(
    "train_accuracy", "share of training images classified correctly", "fraction"
)
_LAST = "intrinsic dimension of the last hidden layer's activations of the training images"
D_REPR_MLE = _enter("d_repr", "d_repr_mle", f"{_LAST}, maximum-likelihood estimator")
D_REPR_TWONN = _enter("d_repr", "d_repr_twonn", "the same by the two-nearest-neighbours estimator")

ATTACK_QUANTITIES = {
    "loss": ("mean test loss under {}", "nat"),
    "loss_gain": ("mean test loss under {}, minus the clean test loss", "nat"),
    "accuracy_drop": ("clean test accuracy minus accuracy under {}", "fraction"),
    "robust_accuracy": ("share of test images right with and without {}", "fraction"),
}
"""What an attack's columns are named after, fields of
:class:`tasks.trials.records.AttackRecord`."""


def _attack_columns(stem: str, words: str) -> tuple[Column, ...]:
    return tuple(
        Column(f"{stem}_{name}", meaning.format(words), unit, origin="attack")
        for name, (meaning, unit) in ATTACK_QUANTITIES.items()
    )


FGSM_EPSILONS = tuple(int(epsilon) for epsilon in AttackSpec().epsilons)
"""Epsilons of the attack where a sweep names no others, in 1/255 of the pixel range."""
for _epsilon in FGSM_EPSILONS:
    for _found in _attack_columns(f"fgsm_{_epsilon}", f"FGSM at epsilon {_epsilon}/255"):
        _ENTERED[_found.name] = _found

R_HAT_PRED = _robust(
    "r_hat_pred", "mean distance to the nearest image with another decision (R)", _PIXELS
)
_robust("r_hat_pred_std_error", "its standard error over the test images", _PIXELS)
_robust("r_hat_pred_median", "the same, median", _PIXELS)
_robust(
    "r_hat_pred_geometric_mean", "the same, geometric mean; absent where a distance is 0", _PIXELS
)
R_HAT_PRED_PER_PIXEL = _robust(
    "r_hat_pred_per_pixel", "`r_hat_pred` / √(number of pixel values)", _PIXELS
)
R_HAT_TRUE = _robust(
    "r_hat_true", "as `r_hat_pred`, with distance 0 where the network is wrong", _PIXELS
)
R_HAT_NOT_FOUND = _robust(
    "r_hat_not_found", "test images without a distance, left out of these", "images"
)
_IN_PIXELS = "intrinsic dimension of the training images in pixel space"
D_DATA_MLE = _measure("d_data_mle", f"{_IN_PIXELS}, maximum-likelihood estimator")
_measure(
    "d_data_mle_std_error",
    "standard error of `d_data_mle` over the points of the one training subset",
)


def d_data_at(num_neighbors: int) -> str:
    """Return the column of the maximum-likelihood d_data from that many neighbours."""
    return f"{D_DATA_MLE}_k{num_neighbors}"


NEIGHBORS_TOO = (5, 10)
"""Neighbours from which d_data is shown too, to see what it owes to their number."""
for _k in NEIGHBORS_TOO:
    _measure(d_data_at(_k), f"`d_data_mle` from the {_k} nearest neighbours instead of 20")
D_DATA_TWONN = _measure("d_data_twonn", "the same by the two-nearest-neighbours estimator")
_measure("d_data_twonn_std_error", "standard error of `d_data_twonn`")
LABEL_SHARPNESS = _measure(
    "label_sharpness",
    "K_F: largest label difference per distance over pairs of training images",
    _PER_PIXELS,
)
LABEL_SHARPNESS_MEAN = _measure(
    "label_sharpness_mean",
    "mean over images of 1 / distance to the nearest with another label",
    _PER_PIXELS,
)
MEAN_UNLIKE_DISTANCE = _measure(
    "mean_unlike_distance",
    "δ: mean over training images of the distance to the nearest with another label "
    "(mean nearest-enemy distance); absent from measures stored before it existed",
    _PIXELS,
)
LABEL_SHARPNESS_PERMUTED = _measure(
    "label_sharpness_permuted",
    "`label_sharpness`, had labels nothing to do with the images",
    _PER_PIXELS,
)
SHARPNESS_PIXEL_RANGE = _measure(
    "sharpness_pixel_range", "largest pixel value that K_F was measured with"
)
SHARPNESS_CHANNELS = _measure("sharpness_channels", "image channels that K_F was measured on")
NUM_DUPLICATES = _measure(
    "num_duplicates", "exact duplicates found in the training subset", "images"
)
NUM_CONFLICTS = _measure(
    "num_conflicts", "identical training images with different labels", "images"
)
_SHARED = (
    "share of test images whose group (patient) is also trained on; 0 unless a released fault is on"
)
SHARED_GROUP_SHARE = _run("shared_group_share", _SHARED, "fraction")
ATTEMPT = _run("attempt", "which attempt at the trial succeeded, from 1", kind="integer")
GPU = _run(
    "gpu", "GPU that trained the network, by its driver's name; absent on a CPU", kind="text"
)
STEP_PATH = _run(
    "step_path", "training steps: eager (by Python) or graph (replayed by a GPU)", kind="text"
)
_MICRO = (
    "images of a batch that passed at once where memory was short: batch norm sees these; "
    "else absent"
)
MICRO_BATCH = _run("micro_batch", _MICRO, "images", kind="integer")
WALL_TIME_S = _run("wall_time_s", "duration of the trial", "s")
IMAGES_PER_SECOND = _run(
    "images_per_second", "training images per second of training", "images / s"
)
PEAK_MEMORY_BYTES = _run(
    "peak_memory_bytes", "peak of the trial: on the GPU, or of its process", "bytes"
)
ENERGY_J = _run("energy_j", "energy of the GPU meanwhile; absent where no GPU counts it", "J")
NUM_PARAMETERS = _score("num_parameters", "trainable parameters of the network")
DATA_FINGERPRINT = _run("data_fingerprint", "content hash of the prepared dataset", kind="text")
CODE_VERSION = _run(
    "code_version", "commit, or package version, that produced the row", kind="text"
)

COLUMNS = tuple(_ENTERED.values())
"""Of the table. What is entered below is shown beside it: in the report's table of measures, which
has a row per train size, and by MLflow, epoch by epoch."""
LABEL_SHARPNESS_P99 = _measure(
    "label_sharpness_p99", "sharpness that 99 % of the images stay below", _PER_PIXELS
)
D_DATA_CALIBRATED = _measure(
    "d_data_calibrated", "d_data corrected for its bias, with its 90 % interval"
)
EPOCH_PREFIX = "epoch_"
for _seen, _images in (("train", "training images, during it"), ("test", "test images, after it")):
    _score(f"{EPOCH_PREFIX}{_seen}_loss", f"mean cross-entropy, by epoch: {_images}", "nat")
    _score(
        f"{EPOCH_PREFIX}{_seen}_accuracy",
        f"share classified correctly, by epoch: {_images}",
        "fraction",
    )

TEXT_COLUMNS = frozenset(column.name for column in COLUMNS if column.kind == "text")
REQUIRED = (TRIAL_ID, MODEL, DATASET, DOMAIN, TRAIN_SIZE, TEST_LOSS)
"""Without these a row is no trial at all; every other column may be absent, which reads as
missing."""
NATURAL, MEDICAL = DOMAINS = ("natural", "medical")
DONE = str(TrialStatus.DONE)

_ATTACK = re.compile(
    r"(?P<attack>[a-z][a-z0-9]*(?:_[a-z][a-z0-9]*)*)_(?P<eps>\d+(?:\.\d+)?)_"
    rf"(?P<what>{'|'.join(ATTACK_QUANTITIES)})"
)
FURTHER_TEST_PREFIX = "test_on_"
"""Prefix of the columns of a further test set, before the name of its condition."""
FURTHER_TEST_QUANTITIES = {
    "num_moved": ("test images that the condition `{}` moves", "images"),
    "loss": ("`test_loss` on the test images moved by the condition `{}`", "nat"),
    "accuracy": ("`test_accuracy` on the test images moved by the condition `{}`", "fraction"),
    "moved_loss": ("the same loss, of the images that the condition `{}` moves alone", "nat"),
    "moved_accuracy": (
        "the same accuracy, of the images that the condition `{}` moves alone",
        "fraction",
    ),
    "unmoved_loss": ("the same loss, of the images that the condition `{}` leaves alone", "nat"),
    "unmoved_accuracy": (
        "the same accuracy, of the images that the condition `{}` leaves alone",
        "fraction",
    ),
    "r_hat_pred": (
        "`r_hat_pred` on the test images moved by the condition `{}`",
        "L2 pixel distance",
    ),
}
"""What a further test set's columns are named after."""
_FURTHER_TEST = re.compile(
    rf"{FURTHER_TEST_PREFIX}(?P<condition>[a-z][a-z0-9_-]*?)_"
    rf"(?P<what>{'|'.join(sorted(FURTHER_TEST_QUANTITIES, key=len, reverse=True))})"
)
_DIMENSION = re.compile(
    r"(?P<dimension>d_repr|d_data)_(?P<estimator>[a-z][a-z0-9_]*?)(?:_stage(?P<place>\d+))?"
)


class AttackColumn(NamedTuple):
    """A ``{attack}_{epsilon}_loss_gain`` column taken apart; ``epsilon`` is in 1/255 of the pixel
    range.
    """

    name: str
    attack: str
    epsilon: float

    @property
    def words(self) -> str:
        """Say it as people do."""
        return f"{self.attack.upper()} at {self.epsilon:g}/255"


def attack_columns(names: Iterable[str]) -> tuple[AttackColumn, ...]:
    """Return the loss-gain columns among ``names``, ordered by attack and then by epsilon."""
    matches = ((name, _ATTACK.fullmatch(name)) for name in names)
    gains = ((name, m) for name, m in matches if m and m["what"] == "loss_gain")
    found = [AttackColumn(name, m["attack"], float(m["eps"])) for name, m in gains]
    return tuple(sorted(found, key=lambda column: (column.attack, column.epsilon)))


def further_test_column(condition: str, quantity: str) -> str:
    """Return the column of a further test set: ``test_on_near_loss``."""
    return f"{FURTHER_TEST_PREFIX}{condition}_{quantity}"


def describe(names: Iterable[str]) -> tuple[Column, ...]:
    """Return the column of each name, in the order given; strangers say so and have no origin."""
    return tuple(_ENTERED.get(name) or _described(name) for name in names)


def _described(name: str) -> Column:
    """Describe a column by the pattern of its name."""
    if m := _ATTACK.fullmatch(name):
        columns = _attack_columns(
            f"{m['attack']}_{m['eps']}", f"{m['attack']} at epsilon {m['eps']}/255"
        )
        return next(column for column in columns if column.name == name)
    if m := _FURTHER_TEST.fullmatch(name):
        meaning, unit = FURTHER_TEST_QUANTITIES[m["what"]]
        return Column(name, meaning.format(m["condition"]), unit, origin="network")
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


Row = dict[str, str | int | float]
"""One line of the results table, by column."""
Point = tuple[str, int, float, int]
"""A point of a curve: metric, step (epoch, number of results), value, milliseconds since 1970."""
CURVE = "curve"
"""Kind, and beginning of the key, of runs that hold the curve of a model on a dataset over N."""
MOST_TAG = 5000
"""Letters of a tag's value that every MLflow takes."""


@dataclass(frozen=True)
class FlatRun:
    """A trial with a result as MLflow keeps it; times are in milliseconds since 1970.

    ``run_key``, the trial's id, is the tag by which its run is found. ``params`` are choices,
    ``metrics`` final finite numbers, the newest made at ``metrics_ms``: of two values MLflow shows
    the later one.
    """

    run_key: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    series: tuple[Point, ...] = ()
    started_ms: int = 0
    finished_ms: int = 0
    metrics_ms: int = 0


@dataclass(frozen=True)
class Live:
    """What MLflow shows of a run without a result: it is running, or its latest attempt has failed.

    ``tags`` are of its start or failure, None where it is open already; ``points`` are not sent
    yet.
    """

    tags: Mapping[str, str] | None = None
    at_ms: int = 0
    points: tuple[Point, ...] = ()
    failed: bool = False


def trial_tags(trial: TrialSpec, domain: str | None, status: str, attempt: int) -> dict[str, str]:
    """Return the tags of a trial's run that are known when it starts, and its status."""
    network, prepared = trial.network, trial.network.subset.prepared
    return {
        TRIAL_ID: trial.trial_id,
        MODEL: network.model.name,
        RECIPE: network.recipe.name,
        DATASET: network.subset.dataset,
        DOMAIN: domain or "",
        CLASS_PAIR: pair_name(network.subset.class_pair),
        TRAIN_SIZE: str(network.train_size),
        SEED: str(network.seed),
        DATA_MODE: prepared.data_mode,
        IMAGE_SIZE: str(prepared.image_size),
        CHANNELS: str(prepared.channels),
        STATUS: str(status),
        ATTEMPT: str(attempt),
    }


def flat_trial(record: TrialRecord, measures: Mapping[tuple[str, int], MeasureRecord]) -> FlatRun:
    """Return a stored trial as one flat run; its measures are joined from
    :func:`index_measures`.
    """
    network, result = record.spec.network, record.result
    # Tags, not params: more may be measured on the same network later, and MLflow's params never
    # change.
    measured = record.spec.model_dump(
        mode="json", include={"attacks", "representation", "robustness"}
    )
    tags = spelled_params(measured)
    if record.gpu_name:
        tags[GPU] = record.gpu_name
    if result.step_path:
        tags[STEP_PATH] = result.step_path
    if result.micro_batch is not None:
        tags[MICRO_BATCH] = str(result.micro_batch)
    metrics = trial_metrics(result, network.train_size) | {
        SHARED_GROUP_SHARE: record.shared_group_share
    }
    newest = max(record.finished_at, record.measured_at or 0.0)
    measure = measures.get((network.subset.subset_id, network.train_size))
    if measure is not None and measure.data_fingerprint == record.data_fingerprint:
        tags["measure_id"] = measure.measure_id
        metrics.update(measure_metrics(measure, network.train_size))
        newest = max(newest, measure.finished_at)
    started = milliseconds(record.started_at)
    epochs = [point for epoch in result.history for point in epoch_points(epoch, None, started)]
    scores = [
        point for score in result.test_history for point in epoch_points(None, score, started)
    ]
    return flat_run(record, tags, metrics, (*epochs, *scores), newest)


def flat_run(
    record: ResultRecord,
    tags: Mapping[str, str],
    metrics: dict[str, float],
    series: tuple[Point, ...],
    newest: float,
) -> FlatRun:
    """Return a stored result as one flat run: what all say, and these; ``newest`` metric in s since
    1970.
    """
    said = {
        **trial_tags(record.spec, record.domain, record.result.status, record.attempt),
        TRIAL_ID: record.trial_id,
        SWEEP: record.sweep,
        DATA_FINGERPRINT: record.data_fingerprint,
        CODE_VERSION: record.provenance.code_version,
    }
    return FlatRun(
        record.trial_id,
        {**said, **tags},
        spelled_params(record.spec.network.model_dump(mode="json")),
        metrics | {WALL_TIME_S: record.finished_at - record.started_at},
        series,
        milliseconds(record.started_at),
        milliseconds(record.finished_at),
        milliseconds(newest),
    )


def curve_runs(trials: Iterable[FlatRun]) -> Iterator[FlatRun]:
    """Yield a run per model, recipe and dataset with the curve over N that their trials make.

    Its loss and accuracy at step N are means over class pairs and seeds. Its tag has them too:
    MLflow forgets no point, so a curve with other means needs another run, and one with more N does
    not.
    """
    groups: dict[tuple[str, ...], dict[int, list[FlatRun]]] = {}
    for run in trials:
        sizes = groups.setdefault(tuple(run.tags[name] for name in (MODEL, RECIPE, DATASET)), {})
        sizes.setdefault(int(run.tags[TRAIN_SIZE]), []).append(run)
    for whose, sizes in groups.items():
        points = [
            (name, size, fmean(values), max(run.metrics_ms for run in runs))
            for size, runs in sorted(sizes.items())
            for name in (TEST_LOSS, TEST_ACCURACY)
            if (values := [run.metrics[name] for run in runs if name in run.metrics])
        ]
        tags = dict(zip((MODEL, RECIPE, DATASET), whose, strict=True)) | {"kind": CURVE}
        shown = " ".join(
            f"{size}:{value:.10g}" for name, size, value, _ in points if name == TEST_LOSS
        )
        tags[CURVE] = shown[:MOST_TAG]
        times = [run.finished_ms for runs in sizes.values() for run in runs]
        if points:
            key = " ".join((CURVE, *whose))
            yield FlatRun(key, tags, {}, {}, (*points,), min(times), max(times))


def epoch_points(
    epoch: EpochRecord | None, score: EpochScore | None, at_ms: int
) -> tuple[Point, ...]:
    """Return the points of one epoch: what training saw of it, and what the test images gave after
    it.
    """
    seen = ((epoch, (TRAIN_LOSS, TRAIN_ACCURACY)), (score, (TEST_LOSS, TEST_ACCURACY)))
    return tuple(
        (EPOCH_PREFIX + name, record.epoch, getattr(record, name), at_ms)
        for record, names in seen
        if record is not None
        for name in names
    )


def trial_metrics(result: TrialResult, train_size: int = 0) -> dict[str, float]:
    """Return a trial's numbers under their column names; undefined ones are absent, the result says
    why.
    """
    found: dict[str, float | None] = {ENERGY_J: result.energy_j}
    if (scores := result.scores) is not None:
        found.update({name: float(value) for name, value in scores if name != "classification"})
        if scores.classification is not None:
            for name in (AUC, BALANCED_ACCURACY, CALIBRATION_ERROR):
                found[name] = getattr(scores.classification, name)
            found[NUM_CLASSES] = len(scores.classification.per_class_accuracy)
        found[BEST_EPOCH] = result.best_epoch
    seconds = sum(epoch.seconds for epoch in result.history)
    if seconds > 0 and train_size:
        found[IMAGES_PER_SECOND] = train_size * len(result.history) / seconds
    if result.peak_memory_bytes:
        found[PEAK_MEMORY_BYTES] = result.peak_memory_bytes
    if (robustness := result.robustness) is not None:
        found[R_HAT_NOT_FOUND] = robustness.num_not_found
        if robustness.true is not None:
            found[R_HAT_TRUE] = robustness.true.mean
        if (pred := robustness.pred) is not None:
            found[R_HAT_PRED], found[R_HAT_PRED_PER_PIXEL] = pred.mean, pred.mean_per_pixel
            for name in ("std_error", "median", "geometric_mean"):
                found[f"{R_HAT_PRED}_{name}"] = getattr(pred, name)
    found.update({f"d_repr_{name}": estimate.value for name, estimate in result.d_repr.items()})
    for place, stage in enumerate(result.d_repr_stages, start=1):
        found.update({f"d_repr_{name}_stage{place}": e.value for name, e in stage.d_repr.items()})
    for test in result.further_tests:
        for name in FURTHER_TEST_QUANTITIES:
            found[further_test_column(test.name, name)] = getattr(test, name, None)
        if test.robustness is not None and test.robustness.pred is not None:
            found[further_test_column(test.name, R_HAT_PRED)] = test.robustness.pred.mean
    for attack in result.attacks:
        found.update({f"{attack.name}_{name}": getattr(attack, name) for name in ATTACK_QUANTITIES})
    return _finite(found)


def measure_metrics(record: MeasureRecord, train_size: int) -> dict[str, float]:
    """Return a measure's numbers at one train size under their column names; undefined ones are
    absent.
    """
    size = next((size for size in record.result.sizes if size.train_size == train_size), None)
    if size is None:
        return {}
    found: dict[str, float | None]
    found = {NUM_DUPLICATES: size.num_duplicates, NUM_CONFLICTS: size.num_conflicts}
    sharpness = size.label_sharpness
    if sharpness is not None:
        pixel_range = sharpness.convention.pixel_range
        found[LABEL_SHARPNESS] = sharpness.value
        found[SHARPNESS_PIXEL_RANGE] = (
            None if pixel_range is None else pixel_range[1] - pixel_range[0]
        )
        found[SHARPNESS_CHANNELS] = sharpness.convention.channels
        found[LABEL_SHARPNESS_MEAN] = (sharpness.percentiles or {}).get("mean")
        found[LABEL_SHARPNESS_PERMUTED] = sharpness.permuted
        found[MEAN_UNLIKE_DISTANCE] = sharpness.mean_unlike_distance
    for name in ("mle", "twonn"):
        if name in size.d_data:
            found[f"d_data_{name}"] = size.d_data[name].value
            found[f"d_data_{name}_std_error"] = size.d_data[name].std_error
    if "mle" in size.d_data:
        points = size.d_data["mle"].details.get("curve", ())
        curve = {point["num_neighbors"]: point["value"] for point in points}
        found.update({d_data_at(k): curve.get(k) for k in NEIGHBORS_TOO})
    return _finite(found)


def measure_rows(record: MeasureRecord) -> list[dict[str, str | int | float | None]]:
    """Return a stored measure as the rows of a table for people: one per train size, every
    estimator.
    """
    subset = record.spec.subset
    about = {DATASET: subset.dataset, CLASS_PAIR: pair_name(subset.class_pair)}
    rows: list[dict[str, str | int | float | None]] = [
        {
            **about,
            TRAIN_SIZE: size.train_size,
            **{f"d_data_{name}": estimate.value for name, estimate in size.d_data.items()},
            LABEL_SHARPNESS: sharpness.value if (sharpness := size.label_sharpness) else None,
            LABEL_SHARPNESS_P99: (sharpness.percentiles or {}).get("99") if sharpness else None,
            NUM_DUPLICATES: size.num_duplicates,
            NUM_CONFLICTS: size.num_conflicts,
        }
        for size in record.result.sizes
    ]
    calibration = record.result.calibration
    if (
        calibration is not None
        and calibration.value is not None
        and calibration.interval is not None
    ):
        low, high = calibration.interval
        rows[-1][D_DATA_CALIBRATED] = f"{calibration.value:.3g} ({low:.3g} to {high:.3g})"
    return rows


def row_of(tags: Mapping[str, str], metrics: Mapping[str, float]) -> Row:
    """Return one row of the results table from a trial's tags and metrics."""
    row: Row = {}
    for column in COLUMNS:
        if column.kind == "text":
            row[column.name] = tags.get(column.name, "")
        elif column.kind == "integer" and column.name in tags:
            row[column.name] = int(tags[column.name])
    row.update(
        {name: value for name, value in metrics.items() if not name.startswith(EPOCH_PREFIX)}
    )
    return row


def rows_of(trials: Iterable[TrialRecord], measures: Iterable[MeasureRecord]) -> list[Row]:
    """Return the rows of stored trials, ordered by trial id."""
    index = index_measures(measures)
    flat = (flat_trial(record, index) for record in trials)
    return sorted(
        (row_of(run.tags, run.metrics) for run in flat), key=lambda row: str(row[TRIAL_ID])
    )


def predictions_table(records: Iterable[TrialRecord], store: ResultStore) -> pd.DataFrame:
    """Return one row per trial with predictions and test image: what it is, ``image``, ``label``,
    logits.

    DataError when no trial has predictions, CorruptStoreError when a trial's are gone or damaged.
    """
    import pandas as pd

    from tasks.trials.scores import from_parquet

    columns = (TRIAL_ID, MODEL, RECIPE, DATASET, CLASS_PAIR, TRAIN_SIZE, SEED)
    tables = []
    for record in sorted(records, key=lambda record: record.trial_id):
        if record.result.predictions is not None:
            kept = store.get(FileKind.PREDICTIONS, record.trial_id, record.result.predictions)
            (row,), table = rows_of([record], ()), from_parquet(kept)
            about = {name: [row[name]] * len(table) for name in columns}
            tables.append(pd.concat([pd.DataFrame(about), table], axis=1))
    if not tables:
        raise DataError(
            "No trial of this sweep has predictions",
            way_out=(
                "set predictions: true and run it again: where weights are kept, nothing is trained"
            ),
        )
    return pd.concat(tables, ignore_index=True)


def index_measures(measures: Iterable[MeasureRecord]) -> dict[tuple[str, int], MeasureRecord]:
    """Index measure records by subset id and train size; of two for one cell, the newer."""
    index: dict[tuple[str, int], MeasureRecord] = {}
    for record in sorted(measures, key=lambda record: record.finished_at):
        index.update(
            {(record.spec.subset.subset_id, size): record for size in record.spec.train_sizes}
        )
    return index


def spelled_params(spec: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return one entry of text per field of a spec, by its dotted name."""
    flat: dict[str, str] = {}
    for name, value in spec.items():
        if isinstance(value, dict):
            flat.update(spelled_params(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = "" if value is None else str(value)
    return flat


def milliseconds(seconds: float) -> int:
    """Return whole milliseconds."""
    return round(seconds * 1000)


def _finite(found: Mapping[str, float | None]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }
