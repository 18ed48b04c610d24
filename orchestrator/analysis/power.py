"""What a design could detect: its own analysis on tables drawn in its own shape, and what an addition gains
for its cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.analysis import claims as k
from orchestrator.analysis.formats import Table
from orchestrator.analysis.simulation import Design, Truth, claim_p_values, draw
from orchestrator.planning.cards import CARDS, Card
from orchestrator.planning.estimate import DEFAULT_CARD, predicted_card_seconds
from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.prices import amount
from orchestrator.results import columns as c
from search_spaces.errors import ConfigError, unknown_name
from search_spaces.specs import ClassPair

NUM_TABLES = 400
#: What is asked of a design: the law itself, and each part of it alone.
EFFECTS = {
    "law": Truth(),
    "sharpness": Truth(exponent=0.0),
    "exponent": Truth(sharpness=0.0),
    "d_data": Truth(exponent=0.0, sharpness=0.0, d_slope=0.1),
}
#: Questions whose answer is a claim if the effect is there; an addition is judged by the first that can be
#: tested.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "law": (k.SHARPNESS, k.EXPONENT), "sharpness": (k.SHARPNESS,), "exponent": (k.EXPONENT,),
    "d_data": (k.LOSS_ON_D_DATA[c.MEDICAL], k.LOSS_ON_D_DATA[c.NATURAL]),
}  # fmt: skip


def design_of(plan: SweepPlan) -> Design:
    """Return the shape of a sweep's plan: its datasets with their domains and class pairs, models and sizes.

    Every dataset is taken to have every model and size; a plan's holes make its real power a little smaller.
    A dataset without a domain counts as natural. Arms of an experiment are copies of their worlds' bases, so
    bases alone count.
    """
    copies = {arm.dataset for arm in plan.sweep.experiment if arm.moves != "base"}
    pairs: dict[str, set[ClassPair | None]] = {}
    for trial in plan.trials:
        subset = trial.network.subset
        if subset.prepared.dataset not in copies:
            pairs.setdefault(subset.prepared.dataset, set()).add(subset.class_pair)
    return Design(
        datasets=tuple(
            (name, plan.datasets[name].domain or c.NATURAL, len(found)) for name, found in pairs.items()
        ),
        models=tuple(dict.fromkeys(trial.network.model.name for trial in plan.trials)),
        train_sizes=tuple(sorted({trial.network.train_size for trial in plan.trials})),
    )


def card_hours(plan: SweepPlan, card: Card | None = None) -> Callable[[Design], float]:
    """Return what designs like a plan's cost in hours of one card, by what its trials are predicted to take.

    A size that the plan lacks costs in proportion to N, a model that it lacks the mean of its models.
    """
    card = card or CARDS[DEFAULT_CARD]
    seconds: dict[tuple[str, int], list[float]] = {}
    for trial in plan.trials:
        cell = (trial.network.model.name, trial.network.train_size)
        seconds.setdefault(cell, []).append(predicted_card_seconds(trial, card))
    means = {cell: float(np.mean(found)) for cell, found in seconds.items()}

    def of_cell(model: str, size: int) -> float:
        known = [(s, value) for (name, s), value in means.items() if name == model]
        if not known:
            return float(np.mean([of_cell(name, size) for name in {name for name, _ in means}]))
        return dict(known).get(size, max(known)[1] * size / max(known)[0])

    def of_design(design: Design) -> float:
        num_pairs = sum(pairs for _, _, pairs in design.datasets)
        cells = (of_cell(model, size) for model in design.models for size in design.train_sizes)
        return num_pairs * sum(cells) / 3600

    return of_design


@dataclass(frozen=True, slots=True)
class Gain:
    """What an addition to a design does to the power of one question, and per hour of a card.

    ``std_error`` is that of ``gain``, from the number of drawn tables.
    """

    addition: str
    question: str
    power: float
    gain: float
    std_error: float
    gpu_hours: float | None
    gain_per_gpu_hour: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """How often a design's headline questions are answered with a claim, if the effect is what it is said
    to be.

    ``alone`` counts p ≤ 0.05, ``adjusted`` claims that hold after Holm's adjustment; the standard error of
    each is at most ``0.5 / √num_tables``.
    """

    effect: str
    num_datasets: int
    num_trials: int
    num_tables: int
    alone: dict[str, float]
    adjusted: dict[str, float]
    gpu_hours: float | None = None
    additions: tuple[Gain, ...] = ()

    def line(self) -> str:
        """Return one line for a plan: how often each question about the effect gets its claim."""
        shares = "; ".join(
            f"{k.QUESTION_WORDS[name]}: "
            + (f"{self.adjusted[name]:.0%}" if name in self.adjusted else "cannot be tested")
            for name in QUESTIONS.get(self.effect, tuple(self.adjusted))
        )
        error = 0.5 / self.num_tables**0.5
        return (
            f"Power, if the effect is “{self.effect}”: so many of such sweeps with {self.num_datasets} "
            f"datasets would claim it (± {error:.0%}): {shares or 'no question can be tested'}."
        )

    @property
    def untested(self) -> list[str]:
        """Headline questions about losses that the design's datasets do not allow at all."""
        return [name for name in k.QUESTION_WORDS if name not in (*self.alone, k.ATTACKS)]

    def tables(self) -> list[Table]:
        """Return how often every question is answered, and what additions to the design gain."""
        rows = tuple(
            (k.QUESTION_WORDS[name], f"{self.alone[name]:.0%}", f"{self.adjusted[name]:.0%}")
            for name in self.alone
        )
        cost = "" if self.gpu_hours is None else f", {amount(self.gpu_hours)} GPU-hours"
        title = f"Power for “{self.effect}”: {self.num_datasets} datasets, {self.num_trials} trials{cost}"
        error = 0.5 / self.num_tables**0.5
        note = f"Share of {self.num_tables} drawn tables; standard error at most {error:.1%}."
        if self.untested:
            words = "; ".join(k.QUESTION_WORDS[name] for name in self.untested)
            note += f" With these datasets cannot be tested: {words}."
        return [
            Table("power", title, note, ("question", "alone", "after Holm"), rows, numeric_from=1),
            *([addition_table(self.additions)] if self.additions else []),
        ]


def power(
    design: Design,
    *,
    effect: str = "law",
    truth: Truth | None = None,
    num_tables: int = NUM_TABLES,
    seed: int = 0,
    gpu_hours: float | None = None,
) -> Power:
    """Simulate a design's own analysis.

    Args:
        design: its datasets, models and train sizes.
        effect: one of :data:`EFFECTS`.
        truth: the effect in full, in place of a named one.
        num_tables: tables drawn.
        seed: of the draws.
        gpu_hours: cost of the design, only carried along.

    Raises:
        ConfigError: if the effect is unknown, or the design has fewer than three datasets or no table is
        asked.
    """
    if truth is None and effect not in EFFECTS:
        raise unknown_name("effect", effect, tuple(EFFECTS))
    if len(design.datasets) < 3 or num_tables < 1:
        raise ConfigError(
            "Power needs at least 3 datasets and one table",
            f"{len(design.datasets)} datasets, {num_tables} tables",
            "add datasets to the sweep",
        )
    rng = np.random.default_rng(seed)
    alone: Counter[str] = Counter()
    adjusted: Counter[str] = Counter()
    asked: dict[str, None] = {}
    for _ in range(num_tables):
        p_values = claim_p_values(design, draw(design, truth or EFFECTS[effect], rng))
        asked |= dict.fromkeys(p_values)
        alone.update(name for name, p in p_values.items() if p <= k.LEVEL)
        adjusted.update(claim.key for claim in k.adjust(p_values) if claim.established)
    return Power(
        effect=effect,
        num_datasets=len(design.datasets),
        num_trials=len(design.layout.dataset),
        num_tables=num_tables,
        alone={name: alone[name] / num_tables for name in asked},
        adjusted={name: adjusted[name] / num_tables for name in asked},
        gpu_hours=gpu_hours,
    )


def addition_table(gains: Sequence[Gain]) -> Table:
    """Return additions to a design, the one that gains most for its cost first."""
    error = max((gain.std_error for gain in gains), default=0.0)
    rows = tuple(
        (
            gain.addition,
            f"{gain.power:.0%}",
            f"{gain.gain:+.0%}",
            "" if gain.gpu_hours is None else amount(gain.gpu_hours),
            "" if gain.gain_per_gpu_hour is None else f"{100 * gain.gain_per_gpu_hour:+.3g}",
        )
        for gain in gains
    )
    return Table(
        "power-additions",
        f"What one addition does to the power: {k.QUESTION_WORDS[gains[0].question]}",
        f"Unadjusted. Standard error of a gain at most {error:.1%}: gains below twice that say nothing.",
        ("addition", "power", "gain", "GPU-hours", "points per GPU-hour"),
        rows,
        numeric_from=1,
    )


def best_additions(
    design: Design,
    question: str,
    *,
    effect: str = "law",
    cost: Callable[[Design], float] | None = None,
    num_tables: int = NUM_TABLES,
    seed: int = 0,
) -> tuple[Gain, ...]:
    """Rank additions (a dataset of each domain, a larger train size, a model) by power gained per
    GPU-hour.
    """
    base = _alone(design, question, effect, num_tables, seed)
    gains = []
    for name, larger in _additions(design):
        found = _alone(larger, question, effect, num_tables, seed)
        extra = None if cost is None else cost(larger) - cost(design)
        error = float(np.sqrt((_variance(base, num_tables) + _variance(found, num_tables)) / num_tables))
        rate = (found - base) / extra if extra else None
        gains.append(Gain(name, question, found, found - base, error, extra, rate))
    return tuple(
        sorted(gains, key=lambda g: -(g.gain if g.gain_per_gpu_hour is None else g.gain_per_gpu_hour))
    )


def _variance(share: float, num: int) -> float:
    """Of one draw, by Laplace's rule: that none of so many was counted does not say that none ever is."""
    likely = (share * num + 1) / (num + 2)
    return likely * (1 - likely)


def _alone(design: Design, question: str, effect: str, num_tables: int, seed: int) -> float:
    """How often one question has p ≤ 0.05."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(num_tables):
        p_values = claim_p_values(design, draw(design, EFFECTS[effect], rng), question=question)
        found += p_values.get(question, 1.0) <= k.LEVEL
    return found / num_tables


def _additions(design: Design) -> Sequence[tuple[str, Design]]:
    domains = sorted({domain for _, domain, _ in design.datasets})
    more = [
        (
            f"one {domain} dataset",
            replace(design, datasets=(*design.datasets, (f"one more {domain}", domain, 1))),
        )
        for domain in domains
    ]
    size = 4 * max(design.train_sizes)
    return [
        *more,
        (f"train size {size:,}", replace(design, train_sizes=(*design.train_sizes, size))),
        ("one model", replace(design, models=(*design.models, "one more model"))),
    ]
