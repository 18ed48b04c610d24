"""What done trials say of those to come: rates, and how far predictions of memory and time were off."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.planning.cards import CONTEXT_BYTES, Card, card_like
from orchestrator.planning.packing import (
    Corrections,
    core_seconds,
    flops,
    has_cost,
    need_of,
    peak_bytes,
    seconds_on_share,
)
from search_spaces.trials import TrialSpec


@dataclass(frozen=True)
class MeasuredTrial:
    """What a finished trial cost.

    Attributes:
        spec: What was done.
        on_gpu: Whether it ran on a GPU.
        share: GPUs, or CPU threads, that it had.
        seconds: Wall time.
        card: The card's name, as its driver says; empty where nobody noted it.
        peak_bytes: What the process reserved on the card, beside its context; 0 where that is not known or
            its batches passed in parts.
    """

    spec: TrialSpec
    on_gpu: bool
    share: float
    seconds: float
    card: str = ""
    peak_bytes: int = 0

    def ran_on(self, card: Card) -> bool:
        """Tell whether it ran on this kind of card, whatever an hour of it costs."""
        found = card_like(self.card)
        return found is not None and found.name == card.name


def corrections_for(card: Card, trials: Iterable[MeasuredTrial]) -> Corrections:
    """Return measured over predicted by network: of memory the worst, of time on such a card the median.

    Memory of any card counts, since networks allocate alike on all; time counts on the same kind of card.
    """
    memory: dict[str, float] = {}
    seconds: dict[str, list[float]] = {}
    for trial in trials:
        if not trial.on_gpu or not has_cost(trial.spec.network):
            continue
        network = trial.spec.network
        name = network.model.name
        if trial.peak_bytes:
            ratio = (CONTEXT_BYTES + trial.peak_bytes) / peak_bytes(network)
            memory[name] = max(ratio, memory.get(name, 0.0))
        if network.recipe.epochs and trial.seconds > 0 and trial.ran_on(card):
            predicted = seconds_on_share(trial.spec, card, trial.share)
            seconds.setdefault(name, []).append(trial.seconds / predicted)
    return Corrections(memory, {name: statistics.median(found) for name, found in seconds.items()})


def measured_rates(trials: Iterable[MeasuredTrial]) -> dict[tuple[str, bool], float]:
    """Return achieved operations per core- or GPU-second by model and device, the median over trials."""
    seen: dict[tuple[str, bool], list[float]] = {}
    for trial in trials:
        seconds = trial.seconds * trial.share
        if seconds > 0 and trial.spec.network.recipe.epochs and has_cost(trial.spec.network):
            rates = seen.setdefault((trial.spec.network.model.name, trial.on_gpu), [])
            rates.append(flops(trial.spec) / seconds)
    return {key: statistics.median(values) for key, values in seen.items()}


@dataclass(frozen=True)
class Expectation:
    """How long trials are expected to take, so that the longest can go first.

    Attributes:
        card: They run on; None on CPUs.
        corrections: What was measured on such cards.
        core_rates: Measured operations per second of a core by model.
        share: Of a card that every trial gets; None for what each is predicted to need.
    """

    card: Card | None = None
    corrections: Corrections = field(default_factory=Corrections)
    core_rates: Mapping[str, float] = field(default_factory=dict)
    share: float | None = None

    @classmethod
    def of(
        cls, card: Card | None, trials: Collection[MeasuredTrial], share: float | None = None
    ) -> Expectation:
        """Learn from done trials."""
        rates = {model: rate for (model, on_gpu), rate in measured_rates(trials).items() if not on_gpu}
        return cls(card, corrections_for(card, trials) if card else Corrections(), rates, share)

    def seconds(self, trial: TrialSpec) -> float:
        """Return the seconds of one trial, on its share of the card or on one core.

        Raises:
            ConfigError: for a network that cannot be walked.
        """
        if self.card is not None:
            return need_of(trial, self.card, self.corrections, self.share).seconds
        if not self.core_rates:
            return core_seconds(trial)
        # A model that was never measured is taken for a middling one of those that were.
        usual = statistics.median(self.core_rates.values())
        return flops(trial) / self.core_rates.get(trial.network.model.name, usual)
