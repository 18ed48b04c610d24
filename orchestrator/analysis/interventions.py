"""Experiments that move one property of a dataset and hold the others: what losses do when only K_F is moved.

A world is a dataset in several arms: its base, and copies in which one dial was turned. Worlds are the
replicates, and every arm is compared with the base of its own world at equal model and train size. An arm
counts only where the measures say that it moved what it was meant to move, and that alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from orchestrator.analysis import table as t
from orchestrator.analysis.fit_records import Arm, Effect, Gate, Interventions, interval, number
from orchestrator.analysis.inference import mean_interval, t_tail
from orchestrator.analysis.laws import dataset_sums
from orchestrator.analysis.table import listing, plural
from orchestrator.results import table as c

__all__ = ["Arm", "Effect", "Gate", "Interventions", "fit_interventions"]

#: An arm counts where what it moves moves by this much (log) and what it holds by less than that much.
MOVED, HELD = float(np.log(2)), 0.05
#: d cannot be doubled as easily as K_F: a nuisance arm counts from a quarter on.
MOVED_DIMENSION = float(np.log(1.25))
LOG_R_HAT = "log_r_hat"


@dataclass(frozen=True, slots=True)
class Response:
    """A logged response: its column, and its slope on log K_F in the paper's bounds.

    R, the distance to the nearest other decision, is a length in pixels, which a control of the pixels' scale
    moves by itself; so it has no control.
    """

    name: str
    column: str
    theory: float
    has_control: bool = True


RESPONSES = (
    Response("loss", t.LOG_LOSS, 1.0),
    Response("error", t.LOG_ERROR, 1.0),
    Response("R̂", LOG_R_HAT, -1.0, has_control=False),
)


@dataclass(frozen=True, slots=True)
class _Change:
    """Mean change of a logged response from base to arm, over pairs of equal model and train size."""

    gate: Gate
    value: float | None
    num_cells: int
    num_at_chance: int
    num_without: int


def fit_interventions(table: pd.DataFrame, arms: Sequence[Arm]) -> Interventions:
    """Gate the arms, estimate the effects and say what came out.

    Args:
        table: results table of the sweep.
        arms: every dataset of the intervention; each world has one base.

    Raises:
        DataError: if the table contradicts itself.
    """
    full, _ = t.normalise(table)
    trials, excluded = t.usable_trials(full[full[c.DATASET].isin([arm.dataset for arm in arms])])
    points = t.fitted_points(trials)
    points[LOG_R_HAT] = np.log(points[c.R_HAT_PRED].where(points[c.R_HAT_PRED] > 0))
    bases = {arm.world: arm for arm in arms if arm.moves == "base"}
    gates = tuple(
        _gate(points, arm, bases.get(arm.world))
        for arm in sorted(arms, key=lambda a: (a.world, a.dataset))
        if arm.moves != "base"
    )
    effects: list[Effect] = []
    for response in RESPONSES:
        if points[response.column].notna().any():
            effects += _effects(points, gates, bases, response)
    answer = " ".join([_answer(gates, effects), *(f"Left out: {exclusion}." for exclusion in excluded)])
    return Interventions(gates=gates, effects=tuple(effects), answer=answer)


def _gate(points: pd.DataFrame, arm: Arm, base: Arm | None) -> Gate:
    blank = Gate(arm=arm, sharpness_moved=None, dimension_moved=None, counts=False)
    if base is None:
        return replace(blank, reason=f"world {arm.world} has no base")
    sharpness = _log_ratio(points, arm, base, c.LABEL_SHARPNESS)
    dimension = _log_ratio(points, arm, base, c.D_DATA_MLE)
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


def _log_ratio(points: pd.DataFrame, arm: Arm, base: Arm, column: str) -> float | None:
    """Log ratio of a measure at the largest train size that both have: with fewer images K_F is a lower
    bound of what it is bound for, and d an estimate with a bias.
    """
    known = points[points[column] > 0]
    means = [
        known[known[c.DATASET] == name].groupby(c.TRAIN_SIZE)[column].mean()
        for name in (arm.dataset, base.dataset)
    ]
    ratios = (means[0] / means[1]).dropna().sort_index()
    return float(np.log(ratios.iloc[-1])) if len(ratios) else None


def _effects(
    points: pd.DataFrame, gates: Sequence[Gate], bases: dict[str, Arm], response: Response
) -> list[Effect]:
    changes = [_change(points, gate, bases[gate.arm.world], response) for gate in gates if gate.counts]
    slopes = [change for change in changes if change.gate.arm.moves == "sharpness"]
    name = f"Δ log {response.name} / Δ log K_F"
    found = [_over_worlds(name, response, slopes, response.theory)]
    names = sorted({change.gate.arm.name for change in slopes})
    if len(names) > 1:
        for arm in names:
            alone = [change for change in slopes if change.gate.arm.name == arm]
            found.append(_over_worlds(name, response, alone, response.theory, arm=arm))
    if response.has_control:
        controls = [change for change in changes if change.gate.arm.moves == "nothing"]
        found.append(_over_worlds(f"Δ log {response.name} of controls", response, controls, 0.0))
        found.append(_exponent_effect(points, bases, response))
    return found


def _change(points: pd.DataFrame, gate: Gate, base: Arm, response: Response) -> _Change:
    """Compare an arm with its base. Where the base is at chance there is nothing that could get worse, and
    the cell is left out; where only the arm is, its loss is a lower bound of the change, and it stays.
    """
    moved_to, start = (
        points[points[c.DATASET] == name]
        .assign(response=points[response.column], loss=points[t.LOG_LOSS])
        .groupby([c.MODEL, c.TRAIN_SIZE])[["response", "loss"]]
        .mean()
        for name in (gate.arm.dataset, base.dataset)
    )
    moved_to, start = moved_to.align(start, join="inner", axis=0)
    at_chance = start["loss"] >= np.log(t.CHANCE_LOSS)
    moved = moved_to["response"] - start["response"]
    without = moved.isna() & ~at_chance
    kept = moved[~at_chance & ~without]
    return _Change(
        gate, float(kept.mean()) if len(kept) else None, len(kept), int(at_chance.sum()), int(without.sum())
    )


def _over_worlds(
    estimand: str, response: Response, changes: Sequence[_Change], theory: float, *, arm: str = ""
) -> Effect:
    """Average arms within a world, then worlds: no world and no arm outweighs another."""
    worlds: dict[str, list[float]] = {}
    for change in changes:
        by = 1.0 if change.gate.arm.moves == "nothing" else change.gate.sharpness_moved
        if change.value is not None and by:
            worlds.setdefault(change.gate.arm.world, []).append(change.value / by)
    effect = _effect(estimand, response, {w: float(np.mean(v)) for w, v in worlds.items()}, theory, arm=arm)
    return replace(
        effect,
        num_cells=sum(change.num_cells for change in changes),
        num_at_chance=sum(change.num_at_chance for change in changes),
        num_without=sum(change.num_without for change in changes),
    )


def _exponent_effect(points: pd.DataFrame, bases: dict[str, Arm], response: Response) -> Effect:
    worlds, num = {}, 0
    for world, base in bases.items():
        rows, _ = t.complete(points[points[c.DATASET] == base.dataset], (response.column, t.D_REFERENCE))
        if rows[c.TRAIN_SIZE].nunique() < 2:
            continue
        sums = dataset_sums(rows, response.column, rows[t.D_REFERENCE].to_numpy(dtype=float))
        worlds[world] = float(sums.xy[0] / sums.xx[0])
        num += len(rows)
    return replace(_effect("exponent · d", response, worlds, 1.0), num_cells=num)


def _effect(
    estimand: str, response: Response, worlds: dict[str, float], theory: float, *, arm: str = ""
) -> Effect:
    values = np.array([worlds[name] for name in sorted(worlds)])
    blank = Effect(
        estimand=estimand, response=response.name, arm=arm, theory=theory, num_worlds=len(values), value=None,
        interval=None, p_zero=None, p_theory=None, by_world=dict(sorted(worlds.items())),
    )  # fmt: skip
    if len(values) == 0:
        return blank
    mean, bounds = mean_interval(values)
    if bounds is None:
        return replace(blank, value=mean)
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    p_zero, p_theory = (2 * t_tail(abs(mean - at) / error, len(values) - 1) for at in (0.0, theory))
    return replace(blank, value=mean, interval=bounds, p_zero=p_zero, p_theory=p_theory)


def _answer(gates: Sequence[Gate], effects: Sequence[Effect]) -> str:
    """Say plainly what the responses do when only K_F is moved, whichever way it came out."""
    tried = [gate for gate in gates if gate.arm.moves == "sharpness"]
    passed = sum(gate.counts for gate in tried)
    parts = [
        f"{passed} of {plural(len(tried), 'arm')} moved K_F by a factor 2 or more and d by less than 5 %."
    ]
    parts += [_follows(effect) for effect in effects if "Δ log K_F" in effect.estimand and not effect.arm]
    parts += [_control(gates, effect) for effect in effects if "controls" in effect.estimand]
    off = sorted({gate.arm.dataset for gate in tried if not gate.counts})
    if off:
        parts.append(f"Left out by the gate: {listing(off)}.")
    return " ".join(filter(None, parts))


def _follows(effect: Effect) -> str:
    if effect.interval is None:
        return (
            f"Whether the {effect.response} follows K_F when only K_F is moved cannot be told: "
            f"{plural(effect.num_worlds, 'world')} with such an arm, at least 3 with scatter needed."
        )
    # Turned so that the theory's direction is the positive one.
    low, high = sorted(bound / effect.theory for bound in effect.interval)
    return (
        f"When only K_F is moved, log {effect.response} {_verdict(low, high)} ({effect.estimand} = "
        f"{number(effect.value)}, 95 % interval {interval(effect.interval)} over "
        f"{plural(effect.num_worlds, 'world')}; the law says {number(effect.theory)})."
    )


def _control(gates: Sequence[Gate], effect: Effect) -> str:
    if effect.interval is None:
        return ""
    moved = [abs(g.sharpness_moved or 0) for g in gates if g.counts and g.arm.moves == "nothing"]
    low, high = effect.interval
    verdict = "did not move beyond its interval" if low <= 0 <= high else "moved"
    return (
        f"In controls, which change nothing that is learned, K_F moved by up to a factor "
        f"{number(float(np.exp(max(moved))))} and log {effect.response} {verdict} ({number(effect.value)}, "
        f"{interval(effect.interval)}; expected 0)."
    )


def _verdict(low: float, high: float) -> str:
    if low <= 0 <= high:
        return (
            "may follow it as the law says or not at all"
            if low <= 1 <= high
            else "does not follow it as the law says"
        )
    if low <= 1 <= high:
        return "follows it, at a rate that agrees with the law"
    if low > 1:
        return "follows it more strongly than the law says"
    return "moves against it" if high < 0 else "follows it more weakly than the law says"
