"""Experiments that move one property of a dataset and hold the others: what the loss does when only K_F is
moved.

A world is a dataset in several arms: its base, and copies in which one dial was turned. Worlds are the
replicates, and every arm is compared with the base of its own world at equal model and train size. An arm
counts only where the measures say that it moved what it was meant to move, and that alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from orchestrator.analysis import points as t
from orchestrator.analysis.clusters import mean_interval
from orchestrator.analysis.exponents import dataset_sums
from orchestrator.analysis.formats import interval, number
from orchestrator.analysis.law_records import Interval
from orchestrator.analysis.words import listing, plural
from orchestrator.results import columns as c

Moves = Literal["base", "sharpness", "dimension", "nothing"]

#: An arm counts where what it moves moves by this much (log) and what it holds by less than that much.
MOVED, HELD = float(np.log(2)), 0.05
#: d cannot be doubled as easily as K_F: a nuisance arm counts from a quarter on.
MOVED_DIMENSION = float(np.log(1.25))
RESPONSES = {"loss": t.LOG_LOSS, "error": t.LOG_ERROR}


@dataclass(frozen=True, slots=True)
class Arm:
    """One dataset of an intervention: which world it belongs to, and what was moved in it."""

    dataset: str
    world: str
    moves: Moves


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the measures say of one arm against its base (log ratios), and whether it counts."""

    arm: Arm
    sharpness_moved: float | None
    dimension_moved: float | None
    counts: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one response does when one property moves: mean over worlds with its 95 % t interval.

    ``estimand``: ``Δ log loss / Δ log K_F`` (1 in the law, 0 without one), ``Δ log loss`` of a control
    (0), or ``exponent · d`` (1). ``p_zero`` and ``p_one`` are paired t tests over worlds.
    """

    estimand: str
    response: str
    num_worlds: int
    value: float | None
    interval: Interval | None
    p_zero: float | None
    p_one: float | None
    by_world: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interventions:
    """Gates of all arms, effects of those that count, and the sentence that says what came out."""

    gates: tuple[Gate, ...]
    effects: tuple[Effect, ...]
    answer: str


def fit_interventions(table: pd.DataFrame, arms: Sequence[Arm]) -> Interventions:
    """Gate the arms, estimate the effects and say what came out.

    Args:
        table: results table of the sweep.
        arms: every dataset of the intervention; each world has one base.

    Raises:
        DataError: if the table contradicts itself.
    """
    points = t.fitted_points(t.usable_trials(t.normalise(table)[0])[0])
    bases = {arm.world: arm for arm in arms if arm.moves == "base"}
    gates = tuple(
        _gate(points, arm, bases.get(arm.world))
        for arm in sorted(arms, key=lambda a: (a.world, a.dataset))
        if arm.moves != "base"
    )
    effects = []
    for response, column in RESPONSES.items():
        if not points[column].notna().any():
            continue
        effects += [
            _sharpness_effect(points, gates, bases, response, column),
            _control_effect(points, gates, bases, response, column),
            _exponent_effect(points, bases, response, column),
        ]
    return Interventions(gates=gates, effects=tuple(effects), answer=_answer(gates, effects))


def _gate(points: pd.DataFrame, arm: Arm, base: Arm | None) -> Gate:
    blank = Gate(arm=arm, sharpness_moved=None, dimension_moved=None, counts=False)
    if base is None:
        return replace(blank, reason=f"world {arm.world} has no base")
    sharpness = _log_ratio(points, arm, base, t.LOG_SHARPNESS, logged=True)
    dimension = _log_ratio(points, arm, base, t.D_REFERENCE, logged=False)
    if sharpness is None or dimension is None:
        return replace(blank, reason="d_data or K_F was not measured at a train size that both have")
    measured = replace(blank, sharpness_moved=sharpness, dimension_moved=dimension)
    wanted = {
        "sharpness": (abs(sharpness) >= MOVED, abs(dimension) < HELD, "K_F", "d"),
        "dimension": (abs(dimension) >= MOVED_DIMENSION, abs(sharpness) < HELD, "d", "K_F"),
        "nothing": (True, abs(dimension) < HELD, "", "d"),
    }
    moved, held, what, other = wanted[arm.moves]
    reasons = [] if moved else [f"{what} moved too little"]
    reasons += [] if held else [f"{other} moved by 5 % or more"]
    return replace(measured, counts=moved and held, reason=" and ".join(reasons))


def _log_ratio(points: pd.DataFrame, arm: Arm, base: Arm, column: str, *, logged: bool) -> float | None:
    means = []
    for name in (arm.dataset, base.dataset):
        rows = points[points[c.DATASET] == name].dropna(subset=[column])
        values = rows[column] if logged else pd.Series(np.log(rows[column].to_numpy()), index=rows.index)
        means.append(values.groupby(rows[c.TRAIN_SIZE]).mean())
    moved = (means[0] - means[1]).dropna()
    return float(moved.mean()) if len(moved) else None


def _moved(points: pd.DataFrame, arm: Arm, base: Arm, column: str) -> float | None:
    """Mean change of a logged response from base to arm over the (model, train size) cells that both have."""
    means = [
        points[points[c.DATASET] == name]
        .dropna(subset=[column])
        .groupby([c.MODEL, c.TRAIN_SIZE])[column]
        .mean()
        for name in (arm.dataset, base.dataset)
    ]
    moved = (means[0] - means[1]).dropna()
    return float(moved.mean()) if len(moved) else None


def _sharpness_effect(
    points: pd.DataFrame, gates: Sequence[Gate], bases: dict[str, Arm], response: str, column: str
) -> Effect:
    worlds: dict[str, list[tuple[float, float]]] = {}
    for gate in gates:
        if gate.counts and gate.arm.moves == "sharpness" and gate.sharpness_moved:
            moved = _moved(points, gate.arm, bases[gate.arm.world], column)
            if moved is not None:
                worlds.setdefault(gate.arm.world, []).append((gate.sharpness_moved, moved))
    # Least squares through the base of each world, over its arms.
    slopes = {
        world: sum(x * y for x, y in pairs) / sum(x * x for x, _ in pairs) for world, pairs in worlds.items()
    }
    return _effect(f"Δ log {response} / Δ log K_F", response, slopes)


def _control_effect(
    points: pd.DataFrame, gates: Sequence[Gate], bases: dict[str, Arm], response: str, column: str
) -> Effect:
    worlds: dict[str, list[float]] = {}
    for gate in gates:
        if gate.counts and gate.arm.moves == "nothing":
            moved = _moved(points, gate.arm, bases[gate.arm.world], column)
            if moved is not None:
                worlds.setdefault(gate.arm.world, []).append(moved)
    return _effect(
        f"Δ log {response} of controls", response, {w: float(np.mean(v)) for w, v in worlds.items()}
    )


def _exponent_effect(points: pd.DataFrame, bases: dict[str, Arm], response: str, column: str) -> Effect:
    worlds = {}
    for world, base in bases.items():
        rows, _ = t.complete(points[points[c.DATASET] == base.dataset], (column, t.D_REFERENCE))
        if rows[c.TRAIN_SIZE].nunique() < 2:
            continue
        sums = dataset_sums(rows, column, rows[t.D_REFERENCE].to_numpy(dtype=float))
        worlds[world] = float(sums.xy[0] / sums.xx[0])
    return _effect("exponent · d", response, worlds)


def _effect(estimand: str, response: str, worlds: dict[str, float]) -> Effect:
    values = np.array([worlds[name] for name in sorted(worlds)])
    blank = Effect(
        estimand=estimand, response=response, num_worlds=len(values), value=None, interval=None, p_zero=None,
        p_one=None, by_world=dict(sorted(worlds.items())),
    )  # fmt: skip
    if len(values) == 0:
        return blank
    mean, bounds = mean_interval(values)
    if bounds is None:
        return replace(blank, value=mean)
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    p_zero, p_one = (float(2 * stats.t.sf(abs(mean - at) / error, len(values) - 1)) for at in (0.0, 1.0))
    return replace(blank, value=mean, interval=bounds, p_zero=p_zero, p_one=p_one)


def _answer(gates: Sequence[Gate], effects: Sequence[Effect]) -> str:
    """Say plainly what the responses do when only K_F is moved, whichever way it came out."""
    tried = [gate for gate in gates if gate.arm.moves == "sharpness"]
    passed = sum(gate.counts for gate in tried)
    parts = [
        f"{passed} of {plural(len(tried), 'arm')} moved K_F by a factor 2 or more and d by less than 5 %."
    ]
    for effect in effects:
        if "Δ log K_F" not in effect.estimand:
            continue
        if effect.interval is None:
            parts.append(
                f"Whether the {effect.response} follows K_F when only K_F is moved cannot be told: "
                f"{plural(effect.num_worlds, 'world')} with such an arm, at least 3 with scatter needed."
            )
            continue
        low, high = effect.interval
        verdict = _verdict(low, high)
        parts.append(
            f"When only K_F is moved, log {effect.response} {verdict} ({effect.estimand} = "
            f"{number(effect.value)}, 95 % "
            f"interval {interval(effect.interval)} over {plural(effect.num_worlds, 'world')}; the law says "
            "1)."
        )
    off = sorted({gate.arm.dataset for gate in tried if not gate.counts})
    if off:
        parts.append(f"Left out by the gate: {listing(off)}.")
    return " ".join(parts)


def _verdict(low: float, high: float) -> str:
    if low <= 0 <= high:
        return (
            "may follow it as the law says or not at all"
            if low <= 1 <= high
            else "does not follow it as the law says"
        )
    if low <= 1 <= high:
        return "follows it as the law says"
    if low > 1:
        return "follows it more strongly than the law says"
    return "moves against it" if high < 0 else "follows it more weakly than the law says"
