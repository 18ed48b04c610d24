"""Experiments that change one property of a dataset and leave the other properties unchanged.

The question is how losses change if only K_F changes. The replicates are worlds. A world is a
base dataset (the base) with changed copies (arms, or conditions), in which one parameter was
changed. An arm is compared with the base of its world. An arm is used only if the measures
show that it changed its property and no other property.

If an arm changes only training images, three slopes can be separated:

- trained on the condition, tested on the base: the effect of K_F of the training images;
- trained on the base, tested on the condition: the effect of harder test images only;
- trained and tested on the condition: both effects together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from orchestrator.analysis.experiments.records import (
    HELD,
    MOVED,
    MOVED_DIMENSION,
    Arm,
    Effect,
    Gate,
    Images,
    Interventions,
)
from orchestrator.analysis.experiments.sentences import experiment_answer
from orchestrator.analysis.inference import (
    MIN_CLASSES,
    Array,
    Interval,
    jackknife_error,
    mean_interval,
    t_interval,
    t_p_values,
)
from orchestrator.analysis.results_tables.chance_level import reaches
from orchestrator.analysis.results_tables.checks import normalise
from orchestrator.analysis.results_tables.points import (
    D_REFERENCE,
    LOG_ERROR,
    LOG_LOSS,
    OF_CHANCE_LOSS,
    fitted_points,
    sums_of,
)
from orchestrator.results.columns import (
    D_DATA_MLE,
    DATASET,
    LABEL_SHARPNESS,
    MODEL,
    R_HAT_PRED,
    TEST_LOSS,
    TRAIN_SIZE,
    further_test_column,
)

LOG_R_HAT = "log_r_hat"
"""Name of the column with log R̂."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response whose logarithm is analyzed: loss, error rate or R̂.

    Attributes:
        name: Name of the response.
        column: Column of the points that contains the logarithm of the response.
        theory: Slope on log K_F that the law predicts.
        has_control: True if the unit of the response stays the same in controls. Controls
            change the unit of R̂.
    """

    name: str
    column: str
    theory: float
    has_control: bool = True


RESPONSES = (
    Response("loss", LOG_LOSS, 1.0),
    Response("error", LOG_ERROR, 1.0),
    Response("R̂", LOG_R_HAT, -1.0, has_control=False),
)


def fit_interventions(table: pd.DataFrame, arms: Sequence[Arm]) -> Interventions:
    """Check the arms, estimate the effects, and return both together with sentences.

    Args:
        table: A results table with one row per trial.
        arms: All datasets of the experiment: bases and conditions.
    """
    full, _ = normalise(table)
    full = full[full[DATASET].isin([arm.dataset for arm in arms])]
    shows: dict[str, Sequence[str]] = {}
    bases: dict[str, str] = {}
    copies: list[Arm] = []
    names_of_conditions: set[str] = set()
    for arm in arms:
        shows[arm.world] = arm.shows
        if arm.moves == "base":
            bases[arm.world] = arm.dataset
        else:
            copies.append(arm)
        if arm.intervene_on == "training" and arm.name != "base":
            names_of_conditions.add(arm.name)
    conditions = sorted(names_of_conditions)
    points, excluded = fitted_points(_with_log_losses(full, conditions))
    points = _with_further_responses(points, conditions)
    points[LOG_R_HAT] = np.log(points[R_HAT_PRED].where(points[R_HAT_PRED] > 0))
    copies.sort(key=lambda arm: (arm.world, arm.dataset))
    gates = tuple(_gate(points, arm, bases.get(arm.world)) for arm in copies)
    changes = _changes(points, gates, bases)
    of_bases = points[points[DATASET].isin(bases.values())]
    effects = []
    for response in RESPONSES:
        if points[response.column].notna().any():
            for effect in _effects(
                changes, response, of_bases, bases, on_training=bool(conditions)
            ):
                effects.append(judged(effect, shows))
    sentences = [experiment_answer(gates, effects, HELD)]
    sentences += [f"Left out: {exclusion}." for exclusion in excluded]
    return Interventions(
        gates=gates,
        effects=tuple(effects),
        answer=" ".join(sentences),
        moved_shares=_moved_shares(points, gates, bases),
    )


def _with_log_losses(full: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Add the logarithms of losses on further test sets. Call this before seeds are averaged."""
    added = {}
    for condition in conditions:
        losses = _column(full, condition, "loss")
        added[further(LOG_LOSS, condition)] = np.log(losses.where(losses > 0))
    return full.assign(**added)


def _with_further_responses(points: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Add log error and log R̂ on every further test set. Call this after seeds are averaged."""
    added = {}
    for condition in conditions:
        errors = 1.0 - _column(points, condition, "accuracy")
        radii = _column(points, condition, R_HAT_PRED)
        added[further(LOG_ERROR, condition)] = np.log(errors.where(errors > 0))
        added[further(LOG_R_HAT, condition)] = np.log(radii.where(radii > 0))
    return points.assign(**added)


def _column(table: pd.DataFrame, condition: str, quantity: str) -> pd.Series:
    """Return a quantity on the test set of a condition. It is NaN if it was not measured."""
    name = further_test_column(condition, quantity)
    values = table.get(name, pd.Series(np.nan, index=table.index))
    return pd.Series(values, index=table.index).astype(float)


def further(column: str, condition: str) -> str:
    """Return the name of the column with a log response on the test set of a condition."""
    return f"{column}_on_{condition}"


def _moved_shares(
    points: pd.DataFrame, gates: Sequence[Gate], bases: Mapping[str, str]
) -> dict[str, float]:
    """Return the median share of the test loss that comes from images that a condition changes."""
    shares: dict[str, list[float]] = {"base": [], "condition": []}
    for gate in gates:
        condition = gate.arm.name
        if not gate.counts or gate.arm.intervene_on != "training":
            continue
        rows = points[points[DATASET] == bases[gate.arm.world]]
        num_moved = _column(rows, condition, "num_moved")
        moved_loss = _column(rows, condition, "moved_loss")
        unmoved_loss = _column(rows, condition, "unmoved_loss")
        mean_loss = _column(rows, condition, "loss")
        # Three mean losses are stored: over all n test images, over the m moved images, and
        # over the other images. The equation n · mean = m · moved + (n − m) · unmoved gives n.
        difference = (mean_loss - unmoved_loss).where(mean_loss != unmoved_loss)
        num_images = np.rint(num_moved * (moved_loss - unmoved_loss) / difference)
        in_condition = num_moved * moved_loss / (num_images * mean_loss)
        num_unmoved = num_images - num_moved
        in_base = 1 - num_unmoved * unmoved_loss / (num_images * rows[TEST_LOSS])
        shares["condition"] += in_condition.dropna().tolist()
        shares["base"] += in_base.dropna().tolist()
    return {name: float(np.median(values)) for name, values in shares.items() if values}


def _gate(points: pd.DataFrame, arm: Arm, base: str | None) -> Gate:
    """Check an arm by its measures at the largest train size that the arm and its base share."""
    if base is None:
        return Gate(arm=arm, reason=f"world {arm.world} has no base dataset")
    sharpness = _log_ratio(points, LABEL_SHARPNESS, arm.dataset, base)
    dimension = _log_ratio(points, D_DATA_MLE, arm.dataset, base)
    if sharpness is None or dimension is None:
        reason = (
            "d_data or K_F was not measured at a train size that the arm and its base dataset share"
        )
        return Gate(arm=arm, reason=reason)
    reasons = []
    if arm.moves == "sharpness" and abs(sharpness) < MOVED:
        reasons.append("K_F changed too little")
    if arm.moves == "dimension" and abs(dimension) < MOVED_DIMENSION:
        reasons.append("d changed too little")
    if arm.moves == "dimension" and abs(sharpness) >= HELD:
        reasons.append(f"|Δ log K_F| is {HELD:g} or more")
    if arm.moves != "dimension" and abs(dimension) >= HELD:
        reasons.append(f"|Δ log d| is {HELD:g} or more")
    return Gate(
        arm=arm,
        sharpness_moved=sharpness,
        dimension_moved=dimension,
        counts=not reasons,
        reason=" and ".join(reasons),
    )


def _log_ratio(points: pd.DataFrame, column: str, dataset: str, base: str) -> float | None:
    """Return the log ratio of a measure at the largest common train size.

    Returns None if there is no common train size.
    """
    positive = points[points[column] > 0]
    means = positive.groupby([DATASET, TRAIN_SIZE])[column].mean().unstack(0)
    at_both = means.reindex(columns=[dataset, base]).dropna().sort_index()
    if at_both.empty:
        return None
    # The rows are sorted by train size, so the last row has the largest common size.
    of_dataset, of_base = at_both.to_numpy(dtype=float)[-1]
    return float(np.log(of_dataset / of_base))


def _changes(points: pd.DataFrame, gates: Sequence[Gate], bases: dict[str, str]) -> pd.DataFrame:
    """Return the change of every log response from base to arm.

    The table has one row for each model and train size of each used arm. If the loss of the
    base is at least the chance loss, the row is marked, because such a loss cannot rise. No
    arm is excluded because of its own loss: such exclusions would bias the effect.
    """
    columns = [*(response.column for response in RESPONSES), OF_CHANCE_LOSS]
    on_further = [name for name in points.columns if "_on_" in name and name.startswith("log_")]
    means = points.groupby([DATASET, MODEL, TRAIN_SIZE])[[*columns, *on_further]].mean()
    about = ["dataset", "world", "name", "moves", "by", "at_chance"]
    parts = []
    for gate in gates:
        if gate.counts:
            part = _changes_of_arm(means, gate, bases[gate.arm.world], columns)
            if len(part):
                parts.append(part)
    if not parts:
        return pd.DataFrame(columns=[*columns, *about])
    return pd.concat(parts, ignore_index=True)


def _changes_of_arm(
    means: pd.DataFrame, gate: Gate, base: str, columns: Sequence[str]
) -> pd.DataFrame:
    """Return the changes of one arm at the models and train sizes that arm and base share."""
    arm = gate.arm
    datasets = means.index.get_level_values(DATASET)
    of_arm = means[datasets == arm.dataset].droplevel(DATASET)
    of_base = means[datasets == base].droplevel(DATASET)
    of_arm_aligned, start = of_arm.align(of_base, join="inner", axis=0)
    changes = (of_arm_aligned - start)[list(columns)].assign(
        dataset=arm.dataset,
        world=arm.world,
        name=arm.name,
        moves=arm.moves,
        # If the arm changes K_F, the change of the response is divided by the change of K_F.
        by=gate.sharpness_moved if arm.moves == "sharpness" else 1.0,
        at_chance=reaches(start[OF_CHANCE_LOSS], 1.0),
    )
    if arm.intervene_on == "training":
        for response in RESPONSES:
            column = further(response.column, arm.name)
            changes[f"{response.column}:base"] = start[column] - start[response.column]
            changes[f"{response.column}:condition"] = (
                of_arm_aligned[column] - start[response.column]
            )
    return changes


def _effects(
    changes: pd.DataFrame,
    response: Response,
    of_bases: pd.DataFrame,
    bases: Mapping[str, str],
    *,
    on_training: bool,
) -> Iterator[Effect]:
    """Yield the effects on a response, without intervals.

    Values are averaged within an arm, and then over the arms of a world. Arms of a world
    therefore have equal weights.

    Args:
        changes: Changes from base to arm.
        response: The response.
        of_bases: Points of the bases, from which their exponents are estimated.
        bases: Name of the base dataset of each world, by name of the world.
        on_training: True if arms change only training images.
    """
    of_sharpness = changes[changes["moves"] == "sharpness"]
    estimand = f"Δ log {response.name} / Δ log K_F"
    images: tuple[Images, Images] = ("condition", "base") if on_training else ("", "")
    yield _slope(of_sharpness, response, estimand, response.column, images=images)
    if on_training:
        yield from _on_moved_tests(of_sharpness, response, estimand)
    names = sorted(of_sharpness["name"].unique())
    if len(names) > 1:
        for name in names:
            rows = of_sharpness[of_sharpness["name"] == name]
            yield _slope(rows, response, estimand, response.column, arm=name, images=images)
    if response.has_control:
        controls = changes[changes["moves"] == "nothing"]
        estimand = f"Δ log {response.name} of controls"
        no_effect = replace(response, theory=0.0)
        yield _slope(controls, no_effect, estimand, response.column, images=images)
        yield _exponent(of_bases, response, bases)


def _on_moved_tests(
    of_sharpness: pd.DataFrame, response: Response, estimand: str
) -> Iterator[Effect]:
    """Yield the slopes for networks that are tested on changed images."""
    trained_ons: tuple[Images, ...] = ("base", "condition")
    for trained_on in trained_ons:
        column = f"{response.column}:{trained_on}"
        if column in of_sharpness and of_sharpness[column].notna().any():
            images: tuple[Images, Images] = (trained_on, "condition")
            yield _slope(of_sharpness, response, estimand, column, images=images)


def _exponent(of_bases: pd.DataFrame, response: Response, bases: Mapping[str, str]) -> Effect:
    """Return the exponent b of N^(−b/d), estimated within bases that have two train sizes."""
    rows = of_bases.dropna(subset=[response.column, D_REFERENCE])
    num_sizes = rows.groupby([DATASET, MODEL])[TRAIN_SIZE].transform("nunique")
    rows = rows[num_sizes > 1]
    by_dataset = {}
    for name, xx, xy in zip(*sums_of(rows, response.column), strict=True):
        by_dataset[name] = float(xy / xx)
    by_world = {}
    for world, base in sorted(bases.items()):
        if base in by_dataset:
            by_world[world] = by_dataset[base]
    return Effect(
        estimand="exponent · d",
        response=response.name,
        arm="",
        theory=1.0,
        num_worlds=len(by_world),
        by_world=by_world,
        num_cells=len(rows),
    )


def _slope(
    rows: pd.DataFrame,
    response: Response,
    estimand: str,
    column: str,
    *,
    arm: str = "",
    images: tuple[Images, Images] = ("", ""),
) -> Effect:
    """Return the slope of a log response in each world, without an interval."""
    is_at_chance = rows["at_chance"].astype(bool)
    is_without = rows[column].isna()
    used = rows[~is_at_chance & ~is_without]
    # Each slope follows from two points, base and arm: Δ log response / Δ log K_F.
    slopes = (used[column] / used["by"]).astype(float)
    by_arm = slopes.groupby([used["world"], used["dataset"]]).mean()
    by_world = dict(by_arm.groupby("world").mean())
    trained_on, tested_on = images
    return Effect(
        estimand=estimand,
        response=response.name,
        arm=arm,
        theory=response.theory,
        num_worlds=len(by_world),
        by_world=by_world,
        num_cells=len(used),
        num_at_chance=int(is_at_chance.sum()),
        num_without=int((is_without & ~is_at_chance).sum()),
        trained_on=trained_on,
        tested_on=tested_on,
    )


def judged(effect: Effect, shows: Mapping[str, Sequence[str]]) -> Effect:
    """Add the mean over worlds, the interval and the p-values to an effect.

    Args:
        effect: The effect, with the values of all worlds.
        shows: Classes that the images of each world show, by name of the world.
    """
    if not effect.by_world:
        return effect
    values = np.array([*effect.by_world.values()])
    mean, error, interval_over_worlds = mean_interval(values)
    if interval_over_worlds is None or error is None:
        return replace(effect, value=mean)
    tests = [(error, len(values) - 1)]
    means_without = _means_without_each_class(effect, values, shows)
    num_classes = 0
    if len(means_without) >= MIN_CLASSES:
        num_classes = len(means_without)
        tests.append((jackknife_error(mean, np.array(means_without)), num_classes - 1))
    differences = mean - np.array([0.0, effect.theory])
    p_values = []
    intervals = []
    for std_error, degrees in tests:
        p_values.append(t_p_values(differences, std_error, degrees))
        intervals.append(t_interval(mean, std_error, degrees))
    # A conclusion must hold by both methods, so the larger p and the wider interval are used.
    p_zero, p_theory = np.max(p_values, axis=0).tolist()
    return replace(
        effect,
        value=mean,
        interval=max(intervals, key=_length),
        num_classes=num_classes,
        p_zero=p_zero,
        p_theory=p_theory,
    )


def _length(bounds: Interval) -> float:
    low, high = bounds
    return high - low


def _means_without_each_class(
    effect: Effect, values: Array, shows: Mapping[str, Sequence[str]]
) -> list[float]:
    """Return, for each class, the mean over the worlds whose images do not show this class.

    A class that all worlds show has no such mean, and is left out.
    """
    names = {name for world in effect.by_world for name in shows[world]}
    means = []
    for name in sorted(names):
        is_left = [name not in shows[world] for world in effect.by_world]
        if any(is_left):
            means.append(float(values[is_left].mean()))
    return means
