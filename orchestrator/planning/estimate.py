"""What the cells that are left will cost: from measured trials where there are some, else from networks."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from orchestrator.planning.cards import CARDS, IDLE_DRAW, Card
from orchestrator.planning.measured import MeasuredTrial, corrections_for, measured_rates
from orchestrator.planning.packing import (
    CORE_FLOPS,
    CORE_INTERVAL_S,
    Corrections,
    core_seconds,
    flops,
    jobs_on,
    need_of,
)
from orchestrator.planning.prices import amount, roughly
from orchestrator.planning.simulate import longest_first, replay
from orchestrator.planning.threads import hours_by_threads, threads_text
from search_spaces.errors import ConfigError
from search_spaces.trials import TrialSpec

DEFAULT_CARD = "h100"


def estimate(
    left: Collection[TrialSpec],
    measured_trials: Collection[MeasuredTrial],
    *,
    card: Card | None = None,
    num_cards: int | None = None,
    share: float | None = None,
) -> dict[str, Any]:
    """Estimate what is left of a sweep.

    Args:
        left: Trials to do.
        measured_trials: What done trials cost.
        card: The kind of card to plan for; None plans for one H100.
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
    card = card or CARDS[DEFAULT_CARD]
    rates = measured_rates(trial for trial in measured_trials if not trial.card or trial.ran_on(card))
    corrections = corrections_for(card, measured_trials)
    cpu_seconds = gpu_seconds = 0.0
    measured = 0
    for trial in left:
        model = trial.network.model.name
        cpu_rate, gpu_rate = rates.get((model, False)), rates.get((model, True))
        measured += bool(cpu_rate or gpu_rate)
        cpu_seconds += flops(trial) / cpu_rate if cpu_rate else core_seconds(trial)
        gpu_seconds += (
            flops(trial) / gpu_rate if gpu_rate else predicted_card_seconds(trial, card, corrections, share)
        )
    num_cores = os.cpu_count() or 1
    result: dict[str, Any] = {
        "trials_left": len(left),
        "gpu_hours": gpu_seconds / 3600,
        "cpu_core_hours": cpu_seconds / 3600,
        "measured_share": measured / len(left) if left else 1.0,
        "memory_bytes": max((need_of(trial, card, corrections).memory_bytes for trial in left), default=0),
        "cluster": on_cards(left, card, num_cards or _whole_cards(share), corrections, share),
        "corrections": asdict(corrections),
        "hours_by_threads": hours_by_threads(left, measured_trials, num_cores),
        "assumptions": (
            f"cards as in the table of data sheets and published training rates ({card.name}), "
            f"{CORE_FLOPS / 1e9:g} GFLOP/s per core and {CORE_INTERVAL_S * 1e6:g} µs an operation, "
            "where this sweep has no finished trial of the model yet"
        ),
    }
    threads = threads_text(result["hours_by_threads"], num_cores)
    result["text"] = "\n".join(filter(None, (_text(result), threads)))
    return result


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
    cluster = result["cluster"]
    cards = f"{cluster['num_cards']} {cluster['card']}" + ("s" if cluster["num_cards"] > 1 else "")
    shares = ", ".join(f"{name} {share:g}" for name, share in cluster["shares"].items())
    return (
        f"left: {result['trials_left']} trials, {roughly(result['gpu_hours'])} GPU-hours or "
        f"{amount(result['cpu_core_hours'])} core-hours; "
        f"largest trial {amount(result['memory_bytes'] / 2**30)} GiB. On {cards}: "
        f"{amount(cluster['hours'])} h (no order can beat {amount(cluster['lower_bound_hours'])} h), "
        f"{100 * cluster['utilisation']:.0f} % used, {roughly(cluster['dollars'])} $ and "
        f"{amount(cluster['kilowatt_hours'])} kWh; "
        f"share of a card: {shares or 'none'} ({result['assumptions']}){_too_large_text(cluster)}"
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
        f"\nmore memory than the share has: {named}; such trials end out of memory and start again, on a "
        "larger share if there is one, then with their batches in parts: choose a larger card, or a smaller "
        "recipe.batch_size"
    )
