"""What the cells that are left will cost: from measured trials where there are some, else from networks."""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.planning.gpus import CARDS, IDLE_DRAW, Card, Job, card_named, longest_first, replay
from orchestrator.planning.plain_yaml import read_plain
from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.predict import (
    CORE_FLOPS,
    CORE_INTERVAL_S,
    PGD_GRADIENTS,
    Corrections,
    MeasuredTrial,
    attack_flops,
    core_seconds,
    corrections_for,
    cost_of,
    flops,
    has_cost,
    jobs_on,
    measured_rates,
    need_of,
    peak_bytes,
    training_flops,
    uncounted,
)
from search_spaces.errors import ConfigError
from search_spaces.specs import NetworkSpec, TrialSpec
from tasks.atomic import read_whole

# What an hour of a card and of a CPU core costs, in money and power: a table that a root may replace.

DEFAULT_CARD = "h100"
LARGEST = 1e6
"""Of dollars and of watts: more than any machine has, and little enough to be read as a mistake."""


class Price(BaseModel):
    """Of one unit, a card or a core.

    Attributes:
        dollars: an hour.
        watts: at work, with its share of the machine if that is to count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dollars: float = Field(ge=0, le=LARGEST, allow_inf_nan=False)
    watts: float = Field(ge=0, le=LARGEST, allow_inf_nan=False)


class Prices(BaseModel):
    """The table.

    Attributes:
        card: of a whole graphics card.
        core: of a CPU core; by default about what clouds ask for one of a general machine, and the draw of a
            server's core (assumed).
        origin: where the table is from, for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    card: Price = Price(dollars=CARDS[DEFAULT_CARD].price, watts=CARDS[DEFAULT_CARD].watts)
    core: Price = Price(dollars=0.05, watts=8)
    origin: str = f"assumed prices of an {DEFAULT_CARD} and of cloud cores"


def read_prices(path: Path) -> Prices:
    """Read a price table, such as ``{card: a100, core: {dollars: 0, watts: 5}}``; the default without one.

    ``card`` may be a name of :data:`orchestrator.planning.gpus.CARDS` instead of numbers; what is left out
    has its default.

    Raises:
        ConfigError: for a table that cannot be read.
    """
    if not os.path.lexists(path):
        return Prices()
    found = _table(path)
    if isinstance(found.get("card"), str):
        card = card_named(found["card"])
        found["card"] = {"dollars": card.price, "watts": card.watts}
    try:
        return Prices.model_validate({"origin": str(path.name), **found})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ConfigError(
            f"A price table has card and core, each with dollars and watts an hour, from 0 to {LARGEST:,.0f}",
            f"{path}: {place}: {problem['msg']}",
            "card: {dollars: 2.5, watts: 700}",
        ) from None


def card_to_plan(name: str | None, path: Path, here: Card | None = None) -> Card | None:
    """Return the GPU of this name, else the one that a root's table names, else the one that is here.

    Its price and draw are those that the table has in numbers, if any; None where there is none to plan for.

    Raises:
        ConfigError: as :func:`read_prices`, and for a name that is not in the table of GPUs.
    """
    price = read_prices(path).card
    told = _table(path).get("card") if os.path.lexists(path) else None
    if name is None and isinstance(told, str):
        name = told
    card = here if name is None else card_named(name)
    if card is None or not isinstance(told, dict):
        return card
    return replace(card, price=price.dollars, watts=price.watts)


def _table(path: Path) -> dict[str, Any]:
    try:
        if path.is_char_device():
            raise OSError("a device, which may have no end")
        text = read_whole(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        way_out = "mend it or delete it"
        raise ConfigError("A price table must be readable text", f"{path}: {error}", way_out) from None
    found = read_plain(text, str(path))
    if not isinstance(found, dict):
        raise ConfigError("A price table must be a mapping", str(path), "card: {dollars: 2.5, watts: 700}")
    return found


def amount(value: float) -> str:
    """Spell an amount to two figures, without exponents: ``17,000``, ``0.45``, ``under 0.001``."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return "under 0.001"
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 else f"{rounded:g}"


def roughly(value: float) -> str:
    """Spell an estimate in a sentence: ``about 17,000``, ``under 0.001``, ``0``."""
    found = amount(value)
    return found if found.startswith("under") or found == "0" else f"about {found}"


# How many threads a trial should have on CPUs: what measured trials say of each number, and nothing else.
#
# Another number of threads adds in another order, so it is told and never chosen (docs/decisions/0013).

Rates = Mapping[str, Mapping[int, float]]
"""Operations per second of a trial, by model and its number of threads."""


def hours_by_threads(
    left: Collection[TrialSpec], measured_trials: Iterable[MeasuredTrial], num_cores: int
) -> dict[int, float]:
    """Return how long ``left`` takes on one machine by threads of a trial, for each number that was measured.

    As many trials run at once as the machine has threads for, the longest first. Of a network that was not
    measured with a number of threads it is taken that it gains what others gain, in the median.

    Args:
        left: Trials to do.
        measured_trials: What done trials cost.
        num_cores: Of the machine.

    Returns:
        Nothing where no network was measured with two numbers of threads: then there is nothing to compare.
    """
    rates = _rates(measured_trials)
    gains = _gains(rates)
    choices = [threads for threads in sorted(gains) if threads <= num_cores]
    if not left or len(choices) < 2:
        return {}
    comparable = {model: found for model, found in rates.items() if found.keys() & gains.keys()}
    hours = {}
    for threads in choices:
        known = {model: _rate(found, gains, threads) for model, found in comparable.items()}
        usual = statistics.median(known.values())
        jobs = [
            Job(
                trial.trial_id, flops(trial) / known.get(trial.network.model.name, usual), threads / num_cores
            )
            for trial in left
        ]
        hours[threads] = replay(longest_first(jobs), 1).makespan / 3600
    return hours


def threads_text(hours: Mapping[int, float], num_cores: int) -> str:
    """Say it in a line; nothing where there is no choice."""
    said = ", ".join(f"{amount(hours[threads])} h with {threads}" for threads in sorted(hours))
    best = min(hours, key=lambda threads: hours[threads], default=0)
    return (
        f"on {num_cores} cores, by measured threads of a trial: {said}; "
        f"resources.num_cpus: {best} ends first, with other last digits in results"
        if hours
        else ""
    )


def _rates(measured_trials: Iterable[MeasuredTrial]) -> dict[str, dict[int, float]]:
    seen: dict[tuple[str, int], list[float]] = {}
    for trial in measured_trials:
        network = trial.spec.network
        if not trial.on_gpu and trial.seconds > 0 and network.recipe.epochs and has_cost(network):
            key = (network.model.name, int(trial.share))
            seen.setdefault(key, []).append(flops(trial.spec) / trial.seconds)
    rates: dict[str, dict[int, float]] = {}
    for (model, threads), found in seen.items():
        rates.setdefault(model, {})[threads] = statistics.median(found)
    return rates


def _gains(rates: Rates) -> dict[int, float]:
    """Return by number of threads how much faster a trial is than with the fewest that were measured."""
    numbers = {threads for found in rates.values() for threads in found}
    fewest = min(numbers, default=0)
    ratios = {
        threads: [
            found[threads] / found[fewest] for found in rates.values() if {threads, fewest} <= found.keys()
        ]
        for threads in numbers
    }
    return {threads: statistics.median(found) for threads, found in ratios.items() if found}


def _rate(found: Mapping[int, float], gains: Mapping[int, float], threads: int) -> float:
    """Return the rate of one network, measured or from what it was measured with."""
    if threads in found:
        return found[threads]
    return statistics.median(
        rate * gains[threads] / gains[other] for other, rate in found.items() if other in gains
    )


def estimate(
    left: Collection[TrialSpec],
    measured_trials: Collection[MeasuredTrial],
    *,
    card: Card | None = CARDS[DEFAULT_CARD],
    num_cards: int | None = None,
    share: float | None = None,
) -> dict[str, Any]:
    """Estimate what is left of a sweep.

    Args:
        left: Trials to do.
        measured_trials: What done trials cost.
        card: The model of GPU to plan for; None plans for none.
        num_cards: How many there are; None for as many as one trial takes.
        share: Of a card that the sweep asks for each trial; None (or 0) for what each is predicted to need.

    Returns:
        ``trials_left``; ``gpu_hours`` and ``cpu_core_hours`` (alternatives, not a sum), with the share of
        cells whose cost was scaled from measured trials of the same model in ``measured_share``;
        ``memory_bytes`` of the largest trial; ``cluster``, see :func:`on_cards`; ``corrections`` of what was
        predicted for the card, by model; ``hours_by_threads`` on this machine's CPUs, see
        :func:`hours_by_threads`; ``assumptions``.

    Raises:
        ConfigError: if a trial asks for more cards than there are.
    """
    rates = measured_rates(
        trial for trial in measured_trials if not trial.card or (card is not None and trial.ran_on(card))
    )
    corrections = Corrections() if card is None else corrections_for(card, measured_trials)
    cpu_seconds = gpu_seconds = 0.0
    measured = 0
    for trial in left:
        model = trial.network.model.name
        cpu_rate, gpu_rate = rates.get((model, False)), rates.get((model, True))
        measured += bool(cpu_rate or gpu_rate)
        cpu_seconds += flops(trial) / cpu_rate if cpu_rate else core_seconds(trial)
        if card is not None:
            predicted = 0.0 if gpu_rate else predicted_card_seconds(trial, card, corrections, share)
            gpu_seconds += flops(trial) / gpu_rate if gpu_rate else predicted
    num_cores, there = os.cpu_count() or 1, num_cards or _whole_cards(share)
    memory = (peak_bytes(t.network) * corrections.memory.get(t.network.model.name, 1.0) for t in left)
    result: dict[str, Any] = {
        "trials_left": len(left),
        "gpu_hours": None if card is None else gpu_seconds / 3600,
        "cpu_core_hours": cpu_seconds / 3600,
        "measured_share": measured / len(left) if left else 1.0,
        "memory_bytes": max(memory, default=0),
        "cluster": None if card is None else on_cards(left, card, there, corrections, share),
        "hours_one_at_a_time": None
        if card is None
        else _one_at_a_time(left, card, there, corrections, share),
        "corrections": asdict(corrections),
        "hours_by_threads": hours_by_threads(left, measured_trials, num_cores),
        "assumptions": _assumptions(card),
    }
    threads = threads_text(result["hours_by_threads"], num_cores)
    result["text"] = "\n".join(filter(None, (_text(result), threads)))
    return result


def _one_at_a_time(
    left: Collection[TrialSpec], card: Card, num_cards: int, corrections: Corrections, share: float | None
) -> float:
    """Return the hours with a GPU for each trial, as where nothing shows that sharing one pays."""
    hours: float = on_cards(left, card, num_cards, corrections, max(1.0, share or 1.0))["hours"]
    return hours


def _assumptions(card: Card | None) -> str:
    cores = (
        f"{CORE_FLOPS / 1e9:g} GFLOP/s per core and {CORE_INTERVAL_S * 1e6:g} µs an operation, "
        "where this sweep has no finished trial of the model yet"
    )
    return cores if card is None else f"predicted for {card.name} ({card.origin}), {cores}"


def predicted_card_seconds(
    trial: TrialSpec, card: Card, corrections: Corrections | None = None, share: float | None = None
) -> float:
    """Return for how long a trial is predicted to take a whole card: its seconds there times its share.

    Arguments as of :func:`need_of`: whole cards that it is given are taken, whatever it makes of them.
    """
    need = need_of(trial, card, corrections, share)
    return need.seconds * need.share


def on_cards(
    trials: Collection[TrialSpec],
    card: Card,
    num_cards: int,
    corrections: Corrections | None = None,
    share: float | None = None,
) -> dict[str, Any]:
    """Replay trials on ``num_cards`` cards, longest first, each on ``share`` or what it is predicted to need.

    Returns:
        ``card`` and ``num_cards``; ``hours`` until the last trial ends, ``lower_bound_hours`` that no order
        can beat, ``utilisation`` and ``most_at_once``; ``dollars`` at the card's price, of all cards until
        the last trial ends; ``kilowatt_hours`` of the cards, which draw little where they have no trial;
        ``shares``: the largest share by model; ``too_large``: the bytes by model of those that are predicted
        to need more memory than their share has.

    Raises:
        ConfigError: if a trial asks for more cards than there are.
    """
    whole = _whole_cards(share)
    if whole > num_cards:
        rule = "There must be as many cards as one trial asks for"
        raise ConfigError(
            rule, f"resources.num_gpus {whole}, {num_cards} in all", f"plan with --gpus {whole}"
        )
    shares: dict[str, float] = {}
    too_large: dict[str, float] = {}
    for trial in trials:
        name, need = trial.network.model.name, need_of(trial, card, corrections, share)
        shares[name] = max(need.share, shares.get(name, 0.0))
        if need.memory_bytes > min(need.share, 1.0) * card.memory_gib * 2**30:
            too_large[name] = max(need.memory_bytes, too_large.get(name, 0.0))
    groups = num_cards // whole
    found = replay(longest_first(jobs_on(trials, card, corrections, share)), groups)
    # Cards that are too few for one more trial are paid for too.
    utilisation = found.utilisation * groups * whole / num_cards
    card_hours = num_cards * found.makespan / 3600
    draw = utilisation + IDLE_DRAW * (1 - utilisation)
    return {
        "card": card.name,
        "num_cards": num_cards,
        "hours": found.makespan / 3600,
        "lower_bound_hours": found.lower_bound / 3600,
        "utilisation": utilisation,
        "most_at_once": found.most_at_once,
        "dollars": card_hours * card.price,
        "kilowatt_hours": card_hours * card.watts * draw / 1000,
        "shares": dict(sorted(shares.items())),
        "too_large": dict(sorted(too_large.items())),
        "card_data": asdict(card),
    }


def _whole_cards(share: float | None) -> int:
    """Return how many cards a trial on this share lies on."""
    return max(1, int(share or 1))


def _text(result: dict[str, Any]) -> str:
    left, largest = result["trials_left"], f"largest trial {amount(result['memory_bytes'] / 2**30)} GiB"
    cores, cluster = f"{amount(result['cpu_core_hours'])} core-hours", result["cluster"]
    if cluster is None:
        return (
            f"left: {left} trials, {cores}; {largest} ({result['assumptions']}). No GPU is here, and none "
            "was named: --card h100 plans for one"
        )
    cards = f"{cluster['num_cards']} {cluster['card']}" + ("s" if cluster["num_cards"] > 1 else "")
    shares = ", ".join(f"{name} {share:g}" for name, share in cluster["shares"].items())
    if not cluster["card_data"]["timed"]:
        return (
            f"left: {left} trials, {cores}; {largest}. On {cards} the time cannot be known: isweep gpu-check "
            f"measures it ({result['assumptions']}){_too_large_text(cluster)}"
        )
    return (
        f"left: {left} trials, {roughly(result['gpu_hours'])} GPU-hours or {cores}; {largest}. On {cards}: "
        f"{amount(result['hours_one_at_a_time'])} h one trial at a time, {amount(cluster['hours'])} h where "
        f"trials share GPUs and fill each other's gaps, under MPS (no order can beat "
        f"{amount(cluster['lower_bound_hours'])} h), {100 * cluster['utilisation']:.0f} % used, "
        f"{roughly(cluster['dollars'])} $ and {amount(cluster['kilowatt_hours'])} kWh; "
        f"share of a GPU: {shares or 'none'} ({result['assumptions']}){_too_large_text(cluster)}"
    )


def _too_large_text(cluster: dict[str, Any]) -> str:
    """Say which models need more memory than they get; empty where none does."""
    if not cluster["too_large"]:
        return ""
    memory = cluster["card_data"]["memory_gib"]
    named = ", ".join(
        f"{name} {amount(size / 2**30)} of {amount(min(cluster['shares'][name], 1.0) * memory)} GiB"
        for name, size in cluster["too_large"].items()
    )
    return (
        f"\nmore memory than the share has: {named}; such trials end out of memory and start again with "
        "twice the share, up to a whole GPU; then they fail, or pass batches in parts where no batch norm "
        "forbids it: choose a larger GPU, or a smaller recipe.batch_size"
    )


# What a plan costs beside training: attacks, disk for weights, and how long a trial may take at most.

ATTACK_BUDGET = 0.15
"""Of training: what all attacks together are meant to cost at most. The paper's grid takes 2 % by default."""
_CHEAPER = {
    "fgsm": "fewer attacks.epsilons or a smaller test_size, or more epochs",
    "pgd": f"{3 * PGD_GRADIENTS} passes per image and strength, so leave pgd out of attacks.methods, or "
    "name few attacks.epsilons, or a smaller test_size",
    "robustness": "a smaller robustness.num_images or robustness.num_steps",
}
COLUMN_BYTES = 650
"""Of a Parquet file's column beside its values: measured, 520 to 670 at 20 to 750 images."""
HANG_FACTOR = 20
MIN_LIMIT_S = 600.0
"""Without an epoch or a result: libraries, arrays and a card's start come first, and machines are shared."""


def time_limit(trial: TrialSpec, measured: Collection[MeasuredTrial]) -> float:
    """Return the seconds without an epoch or a result after which a trial counts as hung.

    They are many times what is expected of the whole trial.

    Args:
        trial: What is to be done.
        measured: What done trials cost; without any of the model, the slowest device that is assumed.

    Returns:
        Infinity for a network whose operations cannot be counted.
    """
    if not has_cost(trial.network):
        return math.inf
    model = trial.network.model
    rates = [
        flops(done.spec) / done.seconds
        for done in measured
        if done.spec.network.model == model and done.seconds > 0 and done.spec.network.recipe.epochs
    ]
    expected = flops(trial) / min(rates) if rates else core_seconds(trial)
    return max(MIN_LIMIT_S, HANG_FACTOR * expected)


@dataclass(frozen=True)
class Extras:
    """What a plan costs beside training.

    Attributes:
        num_retrained: done trials that are trained again because their weights were not kept.
        num_measured: done trials on whose kept weights only something is measured.
        weights_bytes: disk that kept weights will take in all.
        predictions_bytes: disk that kept predictions will take in all.
        attack_shares: operations of each kind of attack over those of training, over the whole grid; empty
            where nothing is trained.
        uncounted: networks whose costs are guessed from their weights, and what failed in counting them.
    """

    num_retrained: int
    num_measured: int
    weights_bytes: float
    predictions_bytes: float
    attack_shares: dict[str, float]
    uncounted: dict[str, str]

    @property
    def attack_share(self) -> float:
        """Operations of all attacks over those of training."""
        return sum(self.attack_shares.values())

    @property
    def text(self) -> str:
        """The costs in words."""
        words = [f"kept weights: {_gib(self.weights_bytes)} in all"]
        if self.predictions_bytes:
            words.append(f"kept predictions: {_gib(self.predictions_bytes)} in all")
        words.append(self._attacks())
        if self.num_measured:
            words.append(
                f"{self.num_measured} trained networks are only measured, none of them trained again"
            )
        if self.num_retrained:
            words.append(f"{self.num_retrained} networks are trained again: their weights were not kept")
        words += [
            f"costs of {name} are guessed from its weights: {why}" for name, why in self.uncounted.items()
        ]
        return "; ".join(words)

    def _attacks(self) -> str:
        """Say what attacks cost and, where that is more than was meant, what makes them cheaper."""
        if not self.attack_shares:
            return "nothing is trained"
        shares = {kind: share for kind, share in self.attack_shares.items() if share}
        words = f"attacks: {self.attack_share:.0%} of training"
        if len(shares) > 1:
            words += f" ({', '.join(f'{kind} {share:.0%}' for kind, share in shares.items())})"
        if self.attack_share <= ATTACK_BUDGET:
            return words
        most = max(shares, key=lambda kind: shares[kind])
        times = self.attack_share / ATTACK_BUDGET
        return f"{words}, {times:.1f} times the {ATTACK_BUDGET:.0%} that are meant: {_CHEAPER[most]}"


def _gib(num_bytes: float) -> str:
    return f"{amount(num_bytes / 2**30)} GiB"


def extras(plan: SweepPlan, incomplete: Mapping[str, bool]) -> Extras:
    """Return what a plan costs beside training.

    Args:
        plan: The whole grid.
        incomplete: By id of every done trial that lacks a measurement: whether its weights are kept.
    """
    attacks: Counter[str] = Counter()
    for trial in plan.trials:
        attacks.update(attack_flops(trial))
    training = sum(training_flops(trial) for trial in plan.trials)
    return Extras(
        num_retrained=sum(not kept for kept in incomplete.values()),
        num_measured=sum(incomplete.values()),
        weights_bytes=sum(cost_of(t.network).state_bytes for t in plan.trials if plan.keeps_weights(t)),
        predictions_bytes=sum(_predictions_bytes(plan, t.network) for t in plan.trials if t.predictions),
        attack_shares={kind: spent / training for kind, spent in attacks.items() if training},
        uncounted=uncounted(plan.trials),
    )


def _predictions_bytes(plan: SweepPlan, network: NetworkSpec) -> int:
    num_columns = plan.num_outputs(network) + 2  # image and label
    return num_columns * (COLUMN_BYTES + 4 * network.subset.test_size)
