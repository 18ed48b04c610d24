"""GPUs: what they can do, how much of it training gets, what they hold, and what an hour costs.

A kernel takes as long as its arithmetic or its traffic, whichever is longer, at the share of the data sheet's
rate that training is seen to reach, and never less than the time between two kernels. Where a model's shares
are fitted to published training throughput at 224 pixels, a unit test, which names the sources, holds them to
it; where they are assumed, its row says so; what ``isweep gpu-check`` measured takes their place.
"""

from __future__ import annotations

import heapq
import json
import re
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import unknown_name
from tasks.trials.records import CONTEXT_BYTES

if TYPE_CHECKING:
    from orchestrator.planning.costs import PassCost


STREAM_EFFICIENCY = 0.85
"""Share of the bandwidth that long reads and writes in order reach: optimiser, casts of weights."""
EAGER_INTERVAL_S = 10e-6
GRAPH_INTERVAL_S = 3e-6
"""Time between two kernels that Python starts, and within a captured graph: assumed, not measured yet."""
IDLE_DRAW = 0.1
"""Share of its power that a card draws without work: assumed (about 70 W of an H100)."""
TENSOR_FACTOR = 1.1
WORKSPACE_FACTOR = 2.0
"""Memory of a process: context, tensors with the allocator's rounding, scratch of the convolutions. Fitted to
published A100 measurements of ResNet-50 and VGG-16 at batches 32 to 128 (0.89 to 1.10 of the measured)."""


@dataclass(frozen=True)
class Card:
    """One model of GPU.

    Attributes:
        name: as on the command line.
        half_tflops: dense bfloat16 rate of the data sheet (float16 where it has none), 1e12 operations per
            second.
        single_tflops: float32 rate without TensorFloat-32.
        bandwidth: GB/s of its memory.
        memory_gib: its memory.
        compute_efficiency: share of the arithmetic rate that training's convolutions reach.
        bandwidth_efficiency: share of the bandwidth that its elementwise kernels reach.
        watts: of the card at work.
        price: assumed list price of an hour in US dollars, November 2026; change it to yours.
        origin: where its numbers come from.
        bfloat16: whether it computes in bfloat16 (from compute capability 8.0 on).
        timed: whether its rates are known; else its hours are not.
    """

    name: str
    half_tflops: float
    single_tflops: float
    bandwidth: float
    memory_gib: float
    compute_efficiency: float
    bandwidth_efficiency: float
    watts: float
    price: float
    origin: str = "data sheet; shares fitted to published training"
    bfloat16: bool = True
    timed: bool = True


ASSUMED = "data sheet; shares assumed as those of "
CARDS = {
    card.name: card
    for card in (
        Card("rtx3090", 71, 35.6, 936, 24, 0.90, 0.65, 350, 0.4),
        Card("a100-40", 312, 19.5, 1555, 40, 0.34, 0.65, 400, 1.5),
        Card("a100", 312, 19.5, 2039, 80, 0.34, 0.65, 400, 1.8),
        Card("h100-pcie", 756, 51, 2000, 80, 0.50, 0.38, 350, 2.5),
        Card("h100", 989, 67, 3350, 80, 0.50, 0.38, 700, 3.0),
        Card("h200", 989, 67, 4800, 141, 0.50, 0.38, 700, 3.8),
        Card("rtx4090", 165, 82.6, 1008, 24, 0.65, 0.65, 450, 0.6, ASSUMED + "a 3090 and an H100"),
        Card("l4", 121, 30.3, 300, 24, 0.50, 0.65, 72, 0.8, ASSUMED + "an A100 and an H100"),
        Card("l40s", 362, 91.6, 864, 48, 0.34, 0.65, 350, 1.5, ASSUMED + "an A100"),
        Card("a10g", 70, 31.5, 600, 24, 0.65, 0.65, 300, 1.0, ASSUMED + "a 3090 and an A100"),
        Card("a6000", 155, 38.7, 768, 48, 0.41, 0.65, 300, 0.8, ASSUMED + "a 3090, which has the same chip"),
        Card("t4", 65, 8.1, 320, 16, 0.34, 0.65, 70, 0.4, ASSUMED + "an A100", bfloat16=False),
        Card("v100", 125, 15.7, 900, 16, 0.34, 0.65, 300, 1.0, ASSUMED + "an A100", bfloat16=False),
        Card("v100-32", 125, 15.7, 900, 32, 0.34, 0.65, 300, 1.2, ASSUMED + "an A100", bfloat16=False),
        Card("b200", 2250, 75, 8000, 180, 0.50, 0.38, 1000, 5.0, ASSUMED + "an H100"),
    )
}
UNKNOWN_RATES = CARDS["a10g"]
"""Whose rates stand in for those of a GPU that the table lacks, to tell long trials from short ones."""
PACKING_PAYS = 1.1
"""Images per second of two trials on one GPU over those of one, from which on trials share GPUs."""


def card_named(name: str) -> Card:
    """Return the card of the table.

    Raises:
        ConfigError: for a name that is not in the table.
    """
    if name not in CARDS:
        raise unknown_name("card", name, CARDS)
    return CARDS[name]


def card_like(name: str) -> Card | None:
    """Return the card of the table that a driver or Ray names, the one with least memory where several fit.

    None where the table has no such card, and for a slice of one (MIG).
    """
    words = re.split("[-_ ]+", name.lower())
    words += [first + second for first, second in pairwise(words)]  # RTX 3090
    if "mig" in words:
        return None
    fit = [card for key, card in CARDS.items() if key.partition("-")[0] in words]
    size = re.search(r"\b(\d+)\s?g", name.lower())  # NVIDIA A100-SXM4-80GB; Ray calls both A100
    fit = [card for card in fit if size and card.memory_gib == int(size[1])] or fit
    fit = [card for card in fit if ("pcie" in card.name) == ("pcie" in words)] or fit
    return min(fit, key=lambda card: card.memory_gib, default=None)


def card_there(name: str, memory_gib: float, checks: Mapping[str, Mapping[str, Any]] | None = None) -> Card:
    """Return the card that a node says is there, with the memory that it says it has.

    Args:
        name: as its driver calls it.
        memory_gib: as its driver counts it.
        checks: what ``isweep gpu-check`` found, from :func:`read_checks`.
    """
    known = card_like(name)
    card = known or replace(UNKNOWN_RATES, name=name, origin="unknown: no hours", timed=False)
    found = (checks or {}).get(name, {}).get("row", {})
    measured = {field.name: found[field.name] for field in fields(Card) if field.name in found}
    return replace(card, **{**measured, "name": card.name, "memory_gib": memory_gib})


def read_checks(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return the summaries of the records of ``isweep gpu-check`` in folders, by their GPU's name.

    Files that are none are left alone; of several of one model the last by name counts.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("gpu-check-*.json"))):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            summary = record["parts"]["summary"]["values"]
            found[str(record["gpu"])] = dict(summary)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def packing_pays(name: str, checks: Mapping[str, Mapping[str, Any]], *, mps: bool) -> bool:
    """Tell whether trials share a GPU: where MPS runs, or a pair of them was measured to be faster."""
    gain = (checks.get(name) or {}).get("pair_gain")
    return mps if gain is None else float(gain) >= PACKING_PAYS


@dataclass(frozen=True)
class PassTime:
    """How long a pass takes on a card.

    Attributes:
        seconds: alone on the card.
        busy: of those, how long the card computes or moves data; the rest it waits for the next kernel, and
            another trial could have it.
    """

    seconds: float
    busy: float


@lru_cache(maxsize=1024)
def pass_time(cost: PassCost, card: Card, *, interval: float, half: bool = True) -> PassTime:
    """Predict one pass.

    Args:
        cost: its kernels.
        card: where.
        interval: least time between two kernels, in seconds.
        half: whether products run in 16 bits; else in float32 without TensorFloat-32.
    """
    rate = 1e12 * (card.half_tflops if half else card.single_tflops)
    # Data sheets of float32 units are reached more easily than those of tensor cores.
    arithmetic = rate * (card.compute_efficiency if half else max(0.7, card.compute_efficiency))
    traffic = 1e9 * card.bandwidth
    seconds = busy = 0.0
    for kernel in cost.kernels:
        reached = STREAM_EFFICIENCY if kernel.streams else card.bandwidth_efficiency
        work = max(kernel.flops / arithmetic, kernel.num_bytes / (traffic * reached))
        busy += work
        seconds += max(work, kernel.num_launches * interval)
    return PassTime(seconds, busy)


def memory_bytes(cost: PassCost) -> float:
    """Predict what a process holds on a card while it makes this pass, its CUDA context included."""
    return CONTEXT_BYTES + TENSOR_FACTOR * cost.peak_bytes + WORKSPACE_FACTOR * cost.workspace_bytes


# Replaying a plan on cards that need not be there: how long it takes, what it costs, how far from the best.
#
# Cards take jobs in order; a job starts on the first card with room for its share, as Ray places fractions:
# no share spans two cards. A share is chosen so that jobs beside each other do not slow each other down.

LOOK_AHEAD = 16
"""Trials that wait for a place at the same time, at most; those behind them are not offered yet."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Job:
    """One trial.

    Attributes:
        name: its id.
        seconds: how long it takes on its share of a card.
        share: of one card, above 0 and up to 1; or a whole number of cards.
    """

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Replay:
    """What a replay found.

    Attributes:
        makespan: seconds until the last job has ended.
        lower_bound: no order can be faster: the longest job, or all work spread evenly.
        utilisation: share of the cards' time that was given to jobs.
        most_at_once: jobs running at the same time, at most.
        starts: when each job begins, in seconds, by name.
    """

    makespan: float
    lower_bound: float
    utilisation: float
    most_at_once: int
    starts: Mapping[str, float]


def longest_first(jobs: Iterable[Job]) -> list[Job]:
    """Return jobs with the longest first, so that none is begun when all others have ended; ties by name."""
    return sorted(jobs, key=lambda job: (-job.seconds, job.name))


def replay(jobs: Sequence[Job], num_cards: int) -> Replay:
    """Run ``jobs`` in their order on ``num_cards`` cards.

    A job that fits nowhere waits, and those of the next ``LOOK_AHEAD`` that fit go before it, as Ray does.

    Args:
        jobs: in the order in which they are offered.
        num_cards: at least 1.
    """
    cards = _Cards(max(1, min(num_cards, len(jobs))))
    running: list[tuple[float, int, float]] = []
    offered, waiting = iter(jobs), list[Job]()
    now, most = 0.0, 0
    starts: dict[str, float] = {}
    while True:
        for job in _startable(waiting, offered, cards):
            share = min(job.share, 1.0)
            starts[job.name] = now
            heapq.heappush(running, (now + job.seconds, cards.take(share), share))
        most = max(most, len(running))
        if not running:
            break
        now = running[0][0]
        while running and running[0][0] <= now + _ROUNDING:
            _, card, share = heapq.heappop(running)
            cards.give(card, share)
    work = sum(job.seconds * min(job.share, 1.0) for job in jobs)
    bound = max(work / num_cards, max((job.seconds for job in jobs), default=0.0))
    return Replay(now, bound, work / (now * num_cards) if now else 0.0, most, starts)


class _Cards:
    """How much of each card is free; the fullest comes first, and of equal ones the first."""

    def __init__(self, number: int) -> None:
        self._free = [1.0] * number
        self._fullest_first = [(1.0, card) for card in range(number)]

    def fit(self, share: float) -> bool:
        return share <= self._fullest_first[-1][0] + _ROUNDING

    def take(self, share: float) -> int:
        """Take a share of the fullest card with room for it, as Ray packs; return which."""
        place = bisect_left(self._fullest_first, (share - _ROUNDING, 0))
        _, card = self._fullest_first.pop(place)
        self._free[card] -= share
        insort(self._fullest_first, (self._free[card], card))
        return card

    def give(self, card: int, share: float) -> None:
        del self._fullest_first[bisect_left(self._fullest_first, (self._free[card], card))]
        self._free[card] += share
        insort(self._fullest_first, (self._free[card], card))


def _startable(waiting: list[Job], offered: Iterator[Job], cards: _Cards) -> Iterator[Job]:
    """Yield what fits now, each placed before the next is asked for; ``waiting`` keeps what fits nowhere."""
    queue = chain(tuple(waiting), offered)
    waiting.clear()
    while len(waiting) < LOOK_AHEAD:
        job = next(queue, None)
        if job is None:
            return
        if cards.fit(min(job.share, 1.0)):
            yield job
        else:
            waiting.append(job)
