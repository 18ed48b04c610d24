"""Experiments that move one property of a dataset and hold the others: what losses do when only K_F
is moved.

Worlds (a base, and arms in which one dial was turned) are the replicates; an arm is compared with
its own base, and counts only where the measures say that it moved what it was meant to move, and
that alone.

An arm that moves training images alone leaves its base's test images as they are. Then three slopes
are told apart: trained on the condition and tested on the base (what K_F of the training images
does), trained on the base and tested on the condition (what harder test images do, an artefact),
and both at once (what an arm that moves all images shows).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from orchestrator.analysis import guessing as g
from orchestrator.analysis import inference as i
from orchestrator.analysis import table as t
from orchestrator.results import columns as c

Moves = Literal["base", "sharpness", "dimension", "nothing"]
InterveneOn = Literal["all", "training"]
Images = Literal["", "base", "condition"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One dataset of a world: what was moved in it, by which dial, and the classes that it
    shows.
    """

    dataset: str
    world: str
    moves: Moves
    name: str = ""
    shows: tuple[str, ...] = ()
    intervene_on: InterveneOn = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the measures say of one arm against its base (log ratios), and whether it counts."""

    arm: Arm
    sharpness_moved: float | None = None
    dimension_moved: float | None = None
    counts: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one response does when one property moves: mean over worlds, with the wider interval and
    the larger p of t over worlds and a jackknife over the classes that they share (``num_classes``,
    if enough).

    ``arm`` is empty for all together. Of pairs of equal model and N ``num_cells`` entered; the base
    of ``num_at_chance`` learned nothing, and ``num_without`` lack the response on one side (an
    error of 0).
    """

    estimand: str
    response: str
    arm: str
    theory: float
    num_worlds: int
    num_classes: int = 0
    value: float | None = None
    interval: i.Interval | None = None
    p_zero: float | None = None
    p_theory: float | None = None
    by_world: dict[str, float]
    num_cells: int = 0
    num_at_chance: int = 0
    num_without: int = 0
    trained_on: Images = ""
    tested_on: Images = ""
    """The images of the compared networks, where arms move training images alone; else empty."""

    @property
    def told_from_zero(self) -> bool:
        """Whether the interval leaves 0 out: the response follows K_F, or moves against the law."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def smaller_than_half(self) -> bool:
        """Whether the whole interval lies within half the law's rate of 0."""
        bound = SMALL_SHARE * abs(self.theory)
        return (
            self.interval is not None and -bound < min(self.interval) <= max(self.interval) < bound
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Interventions:
    """Gates of all arms, effects of those that count, and the sentences that say what came out.

    ``moved_shares`` has, for the networks of the bases, the median share of the test loss that lies
    on the images that a condition moves: ``base`` as the base has them, ``condition`` as moved.
    """

    gates: tuple[Gate, ...]
    effects: tuple[Effect, ...]
    answer: str
    moved_shares: Mapping[str, float] = field(default_factory=dict)


#: An arm counts where what it moves moves by this much (log) and what it holds by less than that
#: much.
MOVED, HELD = float(np.log(2)), 0.05
#: d cannot be doubled as easily as K_F: a nuisance arm counts from a quarter on.
MOVED_DIMENSION = float(np.log(1.25))
LOG_R_HAT = "log_r_hat"
#: A slope whose interval lies within this share of the law's rate of 0 is smaller than half of it.
SMALL_SHARE = 0.5


class Response(NamedTuple):
    """A logged response and its slope on log K_F in the paper; controls move R's unit, so it has
    none.
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


def fit_interventions(table: pd.DataFrame, arms: Sequence[Arm]) -> Interventions:
    """Gate the arms (every dataset of the experiment), estimate the effects and say what came
    out.
    """
    full, _ = t.normalise(table)
    full = full[full[c.DATASET].isin([arm.dataset for arm in arms])]
    conditions = sorted({arm.name for arm in arms if arm.intervene_on == "training"} - {"base"})
    points, excluded = t.fitted_points(_with_log_losses(full, conditions))
    points = _with_further_responses(points, conditions)
    points[LOG_R_HAT] = np.log(points[c.R_HAT_PRED].where(points[c.R_HAT_PRED] > 0))
    bases = {arm.world: arm.dataset for arm in arms if arm.moves == "base"}
    moved = sorted(
        (arm for arm in arms if arm.moves != "base"), key=lambda arm: (arm.world, arm.dataset)
    )
    gates = tuple(_gate(points, arm, bases.get(arm.world)) for arm in moved)
    changes = _changes(points, gates, bases)
    known = [response for response in RESPONSES if points[response.column].notna().any()]
    shows = {arm.world: arm.shows for arm in arms}
    effects = tuple(
        judged(effect, shows)
        for response in known
        for effect in _effects(
            changes,
            response,
            points[points[c.DATASET].isin(bases.values())],
            bases,
            on_training=bool(conditions),
        )
    )
    answer = " ".join(
        [_answer(gates, effects), *(f"Left out: {exclusion}." for exclusion in excluded)]
    )
    shares = _moved_shares(points, gates, bases)
    return Interventions(gates=gates, effects=effects, answer=answer, moved_shares=shares)


def _with_log_losses(full: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Add logarithms of losses on further test sets: seeds are averaged as logarithms."""
    added = {}
    for condition in conditions:
        losses = _column(full, condition, "loss")
        added[further(t.LOG_LOSS, condition)] = np.log(losses.where(losses > 0))
    return full.assign(**added)


def _with_further_responses(points: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Add what is logged after seeds are averaged, of every further test set: error and R̂."""
    added = {}
    for condition in conditions:
        errors = 1.0 - _column(points, condition, "accuracy")
        radii = _column(points, condition, c.R_HAT_PRED)
        added[further(t.LOG_ERROR, condition)] = np.log(errors.where(errors > 0))
        added[further(LOG_R_HAT, condition)] = np.log(radii.where(radii > 0))
    return points.assign(**added)


def _column(table: pd.DataFrame, condition: str, quantity: str) -> pd.Series:
    name = c.further_test_column(condition, quantity)
    values = table.get(name, pd.Series(np.nan, index=table.index))
    return pd.Series(values, index=table.index).astype(float)


def further(column: str, condition: str) -> str:
    """Return the column of a logged response on the test set of a condition."""
    return f"{column}_on_{condition}"


def _moved_shares(
    points: pd.DataFrame, gates: Sequence[Gate], bases: Mapping[str, str]
) -> dict[str, float]:
    """Return the median share of the bases' test loss on the images that a condition moves."""
    shares: dict[str, list[float]] = {"base": [], "condition": []}
    for gate in gates:
        condition = gate.arm.name
        if not gate.counts or gate.arm.intervene_on != "training":
            continue
        rows = points[points[c.DATASET] == bases[gate.arm.world]]
        sums = _column(rows, condition, "num_moved") * _column(rows, condition, "moved_loss")
        unmoved = _column(rows, condition, "unmoved_loss")
        total = _column(rows, condition, "loss")
        # n, the number of test images, from n · loss = m · moved + (n − m) · unmoved.
        moved = _column(rows, condition, "num_moved")
        apart = (total - unmoved).where(total != unmoved)
        num = np.rint(moved * (_column(rows, condition, "moved_loss") - unmoved) / apart)
        in_base = 1 - (num - moved) * unmoved / (num * rows[c.TEST_LOSS])
        shares["condition"] += (sums / (num * total)).dropna().tolist()
        shares["base"] += in_base.dropna().tolist()
    return {name: float(np.median(values)) for name, values in shares.items() if values}


def _gate(points: pd.DataFrame, arm: Arm, base: str | None) -> Gate:
    """Judge an arm by its measures at the largest train size that it and its base have."""
    if base is None:
        return Gate(arm=arm, reason=f"world {arm.world} has no base")
    ratios = []
    for column in (c.LABEL_SHARPNESS, c.D_DATA_MLE):
        means = (
            points[points[column] > 0].groupby([c.DATASET, c.TRAIN_SIZE])[column].mean().unstack(0)
        )
        both = means.reindex(columns=[arm.dataset, base]).dropna().sort_index()
        if both.empty:
            return Gate(
                arm=arm, reason="d_data or K_F was not measured at a train size that both have"
            )
        of_arm, of_base = both.to_numpy(dtype=float)[-1]
        ratios.append(float(np.log(of_arm / of_base)))
    sharpness, dimension = ratios
    wanted = {
        "sharpness": (abs(sharpness) >= MOVED, abs(dimension) < HELD, "K_F", "d"),
        "dimension": (abs(dimension) >= MOVED_DIMENSION, abs(sharpness) < HELD, "d", "K_F"),
        "nothing": (True, abs(dimension) < HELD, "", "d"),
    }
    moved, held, what, other = wanted[arm.moves]
    reasons = [f"{what} moved too little"] * (not moved)
    reasons += [f"|Δ log {other}| is {HELD:g} or more"] * (not held)
    return Gate(
        arm=arm,
        sharpness_moved=sharpness,
        dimension_moved=dimension,
        counts=not reasons,
        reason=" and ".join(reasons),
    )


def _changes(points: pd.DataFrame, gates: Sequence[Gate], bases: dict[str, str]) -> pd.DataFrame:
    """Change of every logged response from base to arm, a row per arm that counts, model and train
    size. Where the base is at chance nothing could get worse; no others go: choosing by their own
    loss moves it.
    """
    columns = [*(response.column for response in RESPONSES), t.OF_GUESSING]
    tested = [name for name in points.columns if "_on_" in name and name.startswith("log_")]
    means = points.groupby([c.DATASET, c.MODEL, c.TRAIN_SIZE])[[*columns, *tested]].mean()
    parts = [
        pd.DataFrame(columns=[*columns, "dataset", "world", "name", "moves", "by", "at_chance"])
    ]
    for gate in gates:
        if gate.counts:
            arm = gate.arm
            of_arm, of_base = (
                means.query("dataset == @name") for name in (arm.dataset, bases[arm.world])
            )
            moved, start = of_arm.droplevel(0).align(of_base.droplevel(0), join="inner", axis=0)
            at_chance = g.at_guessing(start[t.OF_GUESSING], 1.0)
            by = gate.sharpness_moved if arm.moves == "sharpness" else 1.0
            about = {
                "dataset": arm.dataset,
                "world": arm.world,
                "name": arm.name,
                "moves": arm.moves,
            }
            change = (moved - start)[columns].assign(**about, by=by, at_chance=at_chance)
            if arm.intervene_on == "training":
                for response in RESPONSES:
                    column = further(response.column, arm.name)
                    for images, rows in (("base", start), ("condition", moved)):
                        change[f"{response.column}:{images}"] = (
                            rows[column] - start[response.column]
                        )
            parts.append(change)
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _effects(
    changes: pd.DataFrame,
    response: Response,
    of_bases: pd.DataFrame,
    bases: Mapping[str, str],
    *,
    on_training: bool,
) -> Iterator[Effect]:
    """Average pairs within an arm, arms within a world: none outweighs another. Exponents are of
    bases. ``on_training``: arms move training images alone.
    """
    sharper, controls = (changes[changes["moves"] == moves] for moves in ("sharpness", "nothing"))
    slope, names = f"Δ log {response.name} / Δ log K_F", sorted(sharper["name"].unique())
    images: tuple[Images, Images] = ("condition", "base") if on_training else ("", "")
    yield _slope(sharper, response, slope, response.column, images=images)
    if on_training:
        for trained_on in ("base", "condition"):
            column = f"{response.column}:{trained_on}"
            if column in sharper and sharper[column].notna().any():
                pair: tuple[Images, Images] = (trained_on, "condition")
                yield _slope(sharper, response, slope, column, images=pair)
    if len(names) > 1:
        for arm in names:
            rows = sharper[sharper["name"] == arm]
            yield _slope(rows, response, slope, response.column, arm=arm, images=images)
    if response.has_control:
        control = response._replace(theory=0.0)
        estimand = f"Δ log {response.name} of controls"
        yield _slope(controls, control, estimand, response.column, images=images)
        rows = of_bases.dropna(subset=[response.column, t.D_REFERENCE])
        rows = rows[rows.groupby([c.DATASET, c.MODEL])[c.TRAIN_SIZE].transform("nunique") > 1]
        own = {
            name: float(xy / xx)
            for name, xx, xy in zip(*t.sums_of(rows, response.column), strict=True)
        }
        worlds = {world: own[base] for world, base in sorted(bases.items()) if base in own}
        yield Effect(
            estimand="exponent · d",
            response=response.name,
            arm="",
            theory=1.0,
            num_worlds=len(worlds),
            by_world=worlds,
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
    """Return the slope of a logged response in each world, not judged yet."""
    at_chance, without = rows["at_chance"].astype(bool), rows[column].isna()
    kept = rows[~at_chance & ~without]
    slopes = (kept[column] / kept["by"]).astype(float)
    by_world = dict(slopes.groupby([kept["world"], kept["dataset"]]).mean().groupby("world").mean())
    return Effect(
        estimand=estimand,
        response=response.name,
        arm=arm,
        theory=response.theory,
        num_worlds=len(by_world),
        by_world=by_world,
        num_cells=len(kept),
        num_at_chance=int(at_chance.sum()),
        num_without=int((without & ~at_chance).sum()),
        trained_on=images[0],
        tested_on=images[1],
    )


def judged(effect: Effect, shows: Mapping[str, Sequence[str]]) -> Effect:
    """Return an effect with its mean over worlds, and by which interval and p-values that is
    judged.
    """
    if not effect.by_world:
        return effect
    values = np.array([*effect.by_world.values()])
    mean, error, bounds = i.mean_interval(values)
    if bounds is None:
        return replace(effect, value=mean)
    judges = [(error, len(values) - 1)]
    shown = {name for world in effect.by_world for name in shows[world]}
    kept = (
        values[[name not in shows[world] for world in effect.by_world]] for name in sorted(shown)
    )
    without = [float(some.mean()) for some in kept if len(some)]
    num_classes = len(without) if len(without) >= i.MIN_CLASSES else 0
    if num_classes:
        judges.append((i.jackknife_error(mean, np.array(without)), num_classes - 1))
    p_values = [i.t_p_values(mean - np.array([0.0, effect.theory]), *judge) for judge in judges]
    p_zero, p_theory = np.max(p_values, axis=0).tolist()
    widest = max(
        (i.t_interval(mean, *judge) for judge in judges), key=lambda ends: ends[1] - ends[0]
    )
    effect = replace(effect, value=mean, interval=widest, num_classes=num_classes)
    return replace(effect, p_zero=p_zero, p_theory=p_theory)


def _answer(gates: Sequence[Gate], effects: Sequence[Effect]) -> str:
    """Say plainly what the responses do when only K_F is moved, whichever way it came out."""
    tried = [gate for gate in gates if gate.arm.moves == "sharpness"]
    passed = sum(gate.counts for gate in tried)
    moved_k = f"{passed} of {t.plural(len(tried), 'arm')} moved K_F by a factor 2 or more"
    parts = [f"{moved_k} and log d by less than {HELD:g}.", followed(effects)]
    for effect in effects:
        if "controls" in effect.estimand and effect.interval is not None:
            moved = [
                abs(g.sharpness_moved or 0) for g in gates if g.counts and g.arm.moves == "nothing"
            ]
            low, high = effect.interval
            parts.append(
                "In controls, which change nothing that is learned, K_F moved by up to a factor "
                f"{t.number(float(np.exp(max(moved))))} and log {effect.response} "
                f"{'did not move beyond its interval' if low <= 0 <= high else 'moved'} "
                f"({t.number(effect.value)}, {t.interval(effect.interval)}; expected 0)."
            )
    if off := sorted({gate.arm.dataset for gate in tried if not gate.counts}):
        parts.append(f"Left out by the gate: {t.listing(off)}.")
    return " ".join(parts)


def followed(effects: Sequence[Effect]) -> str:
    """Say of every response whether it follows K_F when only that is moved."""
    if any(effect.tested_on for effect in effects):
        return _followed_on_base(effects)
    said = []
    for effect in effects:
        if "Δ log K_F" not in effect.estimand or effect.arm:
            continue
        worlds = t.plural(effect.num_worlds, "world")
        worlds += f" that share {effect.num_classes} classes" if effect.num_classes else ""
        if effect.interval is None:
            needed = f"{worlds} with such an arm, at least 3 with scatter needed"
            said.append(f"whether log {effect.response} follows cannot be told ({needed})")
            continue
        # Turned so that the theory's direction is the positive one.
        low, high = sorted(bound / effect.theory for bound in effect.interval)
        agrees, way = (
            low <= 1 <= high,
            "rises with it" if effect.theory > 0 else "falls as it rises",
        )
        if low <= 0 <= high:
            verdict = "may follow it as the law says or not at all"
            verdict = verdict if agrees else "does not follow it as the law says"
        elif agrees:
            verdict = f"{way}, at a rate that agrees with the law"
        elif low > 1:
            verdict = f"{way}, more strongly than the law says"
        else:
            verdict = (
                "moves against the law" if high < 0 else f"{way}, more weakly than the law says"
            )
        said.append(
            f"log {effect.response} {verdict} ({effect.estimand} = {t.number(effect.value)}, 95 % "
            "interval "
            f"{t.interval(effect.interval)} over {worlds}; the law says {t.number(effect.theory)})"
        )
    return f"When K_F is moved, in training and test images, {'; '.join(said)}." if said else ""


def _followed_on_base(effects: Sequence[Effect]) -> str:
    """Say of every response whether it follows K_F of the training images alone, by how much of the
    law's rate at most, and what harder test images do by themselves.
    """
    sentences = []
    for effect in effects:
        if "Δ log K_F" not in effect.estimand or effect.arm:
            continue
        slope = f"slope {t.number(effect.value)}, 95 % interval {t.interval(effect.interval)}"
        about = f"{slope} over {t.plural(effect.num_worlds, 'world')}"
        if effect.num_classes:
            about += f" that share {effect.num_classes} classes"
        if effect.interval is None:
            about = f"{t.plural(effect.num_worlds, 'world')}, at least 3 with scatter needed"
        law = f"the law says {t.number(effect.theory)}"
        if (effect.trained_on, effect.tested_on) == ("condition", "base"):
            sentences.append(
                "Trained on images whose K_F was moved and tested on the base's: log "
                f"{effect.response} {_verdict(effect)} ({about}; {law})."
            )
        elif effect.trained_on == "base":
            sentences.append(
                "Trained on the base and tested on images that were moved, which no K_F of "
                f"training images can explain: log {effect.response} on log K_F has {about}."
            )
    return " ".join(sentences)


def _verdict(effect: Effect) -> str:
    """Return what the registered rule concludes of a slope on log K_F of the training images."""
    if effect.interval is None:
        return "cannot be judged"
    half = "half the law's rate"
    if not effect.told_from_zero:
        if effect.smaller_than_half:
            return f"shows no effect, and an effect of {half} is ruled out"
        return f"shows no effect, but effects of {half} are compatible with these data: undecided"
    low, high = sorted(bound / effect.theory for bound in effect.interval)
    if high < 0:
        way = "moves against the law"
    else:
        way = "rises with it" if effect.theory > 0 else "falls as it rises"
    if effect.smaller_than_half:
        return f"{way}, by less than {half}"
    if low <= 1 <= high:
        return f"{way}, at a rate that agrees with the law"
    return f"{way}, {'more strongly' if low > 1 else 'more weakly'} than the law says"
