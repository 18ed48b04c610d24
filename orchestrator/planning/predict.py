"""What trials need of a GPU or a core, how long a plan takes there, and in which order its trials go.

Shares, hours and the order follow from each network's own costs (:mod:`orchestrator.planning.costs`) and the
table of GPUs (:mod:`orchestrator.planning.gpus`), corrected by what finished trials were measured to take.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from orchestrator.planning.gpus import (
    EAGER_INTERVAL_S,
    GRAPH_INTERVAL_S,
    Card,
    Job,
    card_like,
    memory_bytes,
    pass_time,
)
from orchestrator.planning.plan import SweepPlan
from search_spaces.errors import ConfigError, SweepError
from search_spaces.specs import NetworkSpec, RecipeSpec, Spec, TrialSpec
from search_spaces.tuning import SearchTrialSpec
from tasks.trials.records import CONTEXT_BYTES, epochs_to_look_at

if TYPE_CHECKING:
    from orchestrator.planning.costs import NetworkCost, PassCost

# What each trial needs of a card: how long it takes there, how much of it, and in which order trials go.

PGD_GRADIENTS = 5 * 20
"""Per image and strength: restarts and steps."""
TRIAL_SECONDS = 3.0
"""Building, copying, d_repr on the CPU and storing, per trial beside the card's work: assumed."""
CORE_FLOPS = 100e9
"""Sustained rate of one core where nothing was measured (benchmarks/training_throughput.py)."""
CORE_INTERVAL_S = 30e-6
"""What one operation takes on a core beside its arithmetic: a step of 32 images of 32 pixels by small_cnn, 52
operations and 0.12 GFLOP, takes 2.9 ms (benchmarks/results/training_throughput_epyc.json)."""
CORE_TRIAL_SECONDS = 0.5
"""Building, d_repr and storing, per trial on a core: assumed."""
MEMORY_MARGIN = 1.15
"""Shares are this much larger than predicted memory: a trial that asks too little ends out of memory."""
BUSY_ENOUGH = 0.95
"""A card this busy gains nothing from another trial. That trials beside each other fill each other's gaps is
assumed: it holds for processes under MPS, and is not measured yet for time slices."""
SHARE_STEP = 100
"""Shares are multiples of a hundredth of a card."""


MOST_KNOWN_COSTS = 4096
_KNOWN_COSTS: dict[tuple[int, int, int], tuple[tuple[Spec, ...], NetworkCost]] = {}
"""By the identity of the parts of a spec, which are held so that no others can have it: the trials of a plan
share them, and hashing their content for each takes longer than all the rest of a plan."""


@dataclass(frozen=True)
class CardNeed:
    """What a trial needs of one kind of card.

    Attributes:
        seconds: on its share of a card.
        share: of the card: as many trials go on one as keep it busy together, fewer where memory is short.
        memory_bytes: predicted peak.
    """

    seconds: float
    share: float
    memory_bytes: float


@dataclass(frozen=True)
class Corrections:
    """How far predictions for one kind of card were off, by model: measured over predicted, 1 where unknown.

    Attributes:
        memory: the worst peak.
        seconds: the median time.
    """

    memory: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


def cost_of(network: NetworkSpec) -> NetworkCost:
    """Return the costs of a network in its recipe, walked once for recipes that cost the same.

    Raises:
        ConfigError: for a network that cannot be built, or fails on every image.
    """
    parts = (network.model, network.recipe, network.subset.prepared)
    key = (id(parts[0]), id(parts[1]), id(parts[2]))
    known = _KNOWN_COSTS.get(key)
    if known is None:
        if len(_KNOWN_COSTS) >= MOST_KNOWN_COSTS:
            _KNOWN_COSTS.clear()
        known = _KNOWN_COSTS[key] = (parts, _counted_cost(network))
    return known[1]


def has_cost(network: NetworkSpec) -> bool:
    """Tell whether :func:`cost_of` counts a network, rather than guesses from its weights."""
    try:
        return not cost_of(network).uncounted
    except SweepError:
        return False


def has_batch_norm(network: NetworkSpec) -> bool:
    """Tell whether a network may normalise over the batch: instance norm has the same kernel, and what cannot
    be counted may have any.
    """
    cost = cost_of(network)
    return bool(cost.uncounted) or any("batch_norm" in kernel.name for kernel in cost.step.kernels)


def recipe_of_costs(network: NetworkSpec) -> RecipeSpec:
    """Return the recipe of a network without what changes no cost."""
    # Adam's kernel decays weights by the way; SGD adds them to copies of all gradients.
    decay = 1e-4 if network.recipe.optimizer == "sgd" and network.recipe.weight_decay else 0.0
    return network.recipe.model_copy(
        update={"name": "cost", "learning_rate": 1e-3, "weight_decay": decay, "epochs": 1, "input_scale": 1.0}
    )


def _counted_cost(network: NetworkSpec) -> NetworkCost:
    from orchestrator.planning.costs import network_cost

    where = f"{network.model.library} {network.model.architecture}"
    prepared, recipe = network.subset.prepared, recipe_of_costs(network)
    try:
        return network_cost(network.model, recipe, channels=prepared.channels, image_size=prepared.image_size)
    except SweepError:
        raise
    except (Exception, SystemExit) as error:  # whatever a network does
        raise ConfigError(
            "A network must take a training step, an evaluation and an attack on some image",
            f"{where}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        ) from error


def uncounted(trials: Iterable[TrialSpec]) -> dict[str, str]:
    """Return the networks whose costs are guessed from their weights, and what failed in counting them."""
    costs = {trial.network.model.name: cost_of(trial.network) for trial in trials}
    return {name: cost.uncounted for name, cost in costs.items() if cost.uncounted}


def flops(trial: TrialSpec) -> float:
    """Return the floating-point operations of one trial: training, evaluation and attacks."""
    network = trial.network
    num_images = network.train_size + network.subset.test_size + _images_looked_at(network)
    evaluation = num_images * cost_of(network).forward_flops
    return training_flops(trial) + evaluation + sum(attack_flops(trial).values())


def _images_looked_at(network: NetworkSpec) -> int:
    """Return how many test images pass between epochs."""
    return len(epochs_to_look_at(network.recipe.epochs)) * network.subset.test_size


def training_flops(trial: TrialSpec) -> float:
    """Return the operations of a trial's training."""
    network = trial.network
    per_image = cost_of(network).step.flops / network.recipe.batch_size
    return network.recipe.epochs * network.train_size * per_image


def attack_flops(trial: TrialSpec) -> dict[str, float]:
    """Return the operations of a trial's attacks by kind; a gradient of the pixels costs three passes."""
    forward = cost_of(trial.network).forward_flops
    return {
        kind: forward * (3 * num_gradients + num_evaluations)
        for kind, (num_gradients, num_evaluations) in attack_passes(trial).items()
    }


def attack_passes(trial: TrialSpec) -> dict[str, tuple[int, int]]:
    """Return by kind of attack how many images take a gradient, and how many a forward pass alone."""
    attacks, asked = trial.attacks, trial.robustness
    num_epsilons, test_size = len(attacks.epsilons), trial.network.subset.test_size
    num_images = 0 if asked is None else min(asked.num_images, test_size)
    return {
        "fgsm": (test_size, test_size * num_epsilons) if "fgsm" in attacks.methods else (0, 0),
        "pgd": (test_size * num_epsilons * PGD_GRADIENTS, 0) if "pgd" in attacks.methods else (0, 0),
        "robustness": (0, 0)
        if asked is None
        else (num_images * asked.num_steps, 2 * num_images * asked.num_bisections),
    }


def array_bytes(network: NetworkSpec) -> int:
    """Return the bytes of a trial's images, one each."""
    prepared = network.subset.prepared
    pixels = prepared.channels * prepared.image_size**2
    return (network.train_size + network.subset.test_size) * pixels


def peak_bytes(network: NetworkSpec) -> float:
    """Predict the most memory that a trial holds on a card, over training, evaluation and attacks."""
    cost = cost_of(network)
    parts = [cost.step, cost.evaluation, cost.attack]
    if _images_looked_at(network):
        held = cost.evaluation.peak_bytes + _training_bytes(network, cost)
        parts.append(replace(cost.evaluation, peak_bytes=held))
    return array_bytes(network) + max(memory_bytes(part) for part in parts)


def _training_bytes(network: NetworkSpec, cost: NetworkCost) -> int:
    """Return what a training holds between two epochs, beside weights: moments, gradients and graphs."""
    recipe = network.recipe
    gradients = 4 * cost.num_parameters
    moments = gradients if recipe.optimizer == "sgd" else 2 * gradients
    if not _is_captured(network):
        return moments + gradients
    # A graph keeps the memory of its step, and a last batch of another size has a graph of its own.
    activations = max(0, cost.step.peak_bytes - cost.state_bytes - moments - gradients)
    last = network.train_size % recipe.batch_size
    if network.train_size < recipe.batch_size or not last:
        return moments + gradients + activations
    size = last if last > 1 else 1 + recipe.batch_size  # a single image joins the batch before it
    return moments + 2 * gradients + activations + activations * size // recipe.batch_size


def _is_captured(network: NetworkSpec) -> bool:
    """Tell whether a network's steps may be captured graphs: somebody's own code need not replay."""
    return network.model.library != "own"


def need_of(
    trial: TrialSpec, card: Card, corrections: Corrections | None = None, given: float | None = None
) -> CardNeed:
    """Predict what ``trial`` needs of ``card``, corrected by what others like it were measured to need.

    Args:
        trial: the trial.
        card: the kind of card.
        corrections: from measured trials.
        given: the share that it gets whatever it needs; None for the share that it needs.
    """
    corrections = corrections or Corrections()
    alone, busy = _alone(trial, card)
    name = trial.network.model.name
    memory = peak_bytes(trial.network) * corrections.memory.get(name, 1.0)
    seconds, share = _shared(alone, busy, memory, card)
    if given:
        seconds, share = seconds_on_share(trial, card, given), given
    return CardNeed(seconds * corrections.seconds.get(name, 1.0), share, memory)


def seconds_on_share(trial: TrialSpec, card: Card, share: float) -> float:
    """Predict the time of ``trial`` on a given share of ``card``; of several cards it uses one."""
    alone, busy = _alone(trial, card)
    return alone * max(1.0, busy / min(share, 1.0))


def core_seconds(trial: TrialSpec) -> float:
    """Predict how long a trial takes one core, where no trial of its model was measured."""
    cost = cost_of(trial.network)
    parts = zip(_num_passes(trial, cost), (cost.step, cost.evaluation, cost.attack), strict=True)
    return CORE_TRIAL_SECONDS + sum(number * _core_pass(part) for number, part in parts)


@lru_cache(maxsize=1024)
def _core_pass(cost: PassCost) -> float:
    launches = sum(kernel.num_launches for kernel in cost.kernels)
    return cost.flops / CORE_FLOPS + launches * CORE_INTERVAL_S


def _num_passes(trial: TrialSpec, cost: NetworkCost) -> tuple[float, float, float]:
    """Return how many training steps, batches of an evaluation and gradients of a batch it takes."""
    network, recipe, attacks = trial.network, trial.network.recipe, attack_passes(trial)
    gradients, forwards = (sum(numbers) for numbers in zip(*attacks.values(), strict=True))
    # The pass that gives FGSM its directions gives the test loss too, and is made without FGSM as well.
    clean = network.subset.test_size - attacks["fgsm"][0]
    return (
        recipe.epochs * math.ceil(network.train_size / recipe.batch_size),
        (network.train_size + _images_looked_at(network) + forwards) / cost.evaluation_batch,
        (gradients + clean) / cost.attack_batch,
    )


def _alone(trial: TrialSpec, card: Card) -> tuple[float, float]:
    """Return the seconds of ``trial`` alone on ``card``, and in which share of them the card works."""
    cost, recipe = cost_of(trial.network), trial.network.recipe
    interval = GRAPH_INTERVAL_S if _is_captured(trial.network) else EAGER_INTERVAL_S
    step = pass_time(cost.step, card, interval=interval, half=recipe.precision != "float32")
    evaluation = pass_time(cost.evaluation, card, interval=EAGER_INTERVAL_S, half=False)
    attack = pass_time(cost.attack, card, interval=EAGER_INTERVAL_S, half=False)
    passes = tuple(zip(_num_passes(trial, cost), (step, evaluation, attack), strict=True))
    alone = TRIAL_SECONDS + sum(number * part.seconds for number, part in passes)
    return alone, sum(number * part.busy for number, part in passes) / alone


def _shared(alone: float, busy: float, memory: float, card: Card) -> tuple[float, float]:
    """Return the share, with the seconds on it before, of a trial that takes ``alone`` on a whole card."""
    together = max(1, math.ceil(BUSY_ENOUGH / busy))
    work = math.floor(SHARE_STEP / together) / SHARE_STEP  # down: a third is 0.33, three of which fit
    work = work if card.timed else max(work, 0.25)
    room = math.ceil(SHARE_STEP * MEMORY_MARGIN * memory / (card.memory_gib * 2**30)) / SHARE_STEP
    share = min(1.0, max(work, room, 1 / SHARE_STEP))
    return alone * max(1.0, busy / share), share


def jobs_on(
    trials: Iterable[TrialSpec],
    card: Card,
    corrections: Corrections | None = None,
    given: float | None = None,
) -> list[Job]:
    """Return trials as jobs for a replay on cards of this kind; arguments as of :func:`need_of`."""
    needs = [(trial.trial_id, need_of(trial, card, corrections, given)) for trial in trials]
    return [Job(trial_id, need.seconds, need.share) for trial_id, need in needs]


# What done trials say of those to come: rates, and how far predictions of memory and time were off.


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


# In which order trials are offered: the longest first, as far as the arrays they share fit into memory.

log = logging.getLogger(__name__)
Cell = TypeVar("Cell")


def order_trials(
    plan: SweepPlan, trials: Sequence[TrialSpec], budget: float, seconds: Mapping[str, float]
) -> list[TrialSpec]:
    """Return trials in the order in which they are offered, when arrays may take ``budget`` bytes at once.

    ``seconds`` are those of :func:`expected_seconds`.
    """
    return longest_first_within(
        trials,
        seconds=lambda trial: seconds[trial.trial_id],
        array=lambda trial: array_key(plan, trial),
        array_bytes=lambda trial: _array_bytes(plan, trial),
        budget=budget,
    )


def expected_seconds(trials: Iterable[TrialSpec], expectation: Expectation) -> dict[str, float]:
    """Return how long each trial is expected to take, by its id; infinite where nothing is known of it."""
    return {trial.trial_id: _seconds(trial, expectation) for trial in trials}


def array_key(plan: SweepPlan, trial: TrialSpec) -> str:
    """Name the arrays that a trial needs; trials of all sizes share them where no fault forbids it.

    Those of a search are of one size, and of one validation split each.
    """
    subset = trial.network.subset
    key = f"{subset.subset_id}@{plan.load_size(subset, trial.network.train_size)}"
    return f"{key}/{trial.validation.split}" if isinstance(trial, SearchTrialSpec) else key


def _array_bytes(plan: SweepPlan, trial: TrialSpec) -> int:
    network, prepared = trial.network, trial.network.subset.prepared
    num_images = plan.load_size(network.subset, network.train_size) + network.subset.test_size
    return num_images * prepared.channels * prepared.image_size**2


def _seconds(trial: TrialSpec, expectation: Expectation) -> float:
    try:
        return expectation.seconds(trial)
    except SweepError as error:  # it will say so itself, and soonest when it goes first
        log.warning("%s: %s", trial.trial_id, error)
        return math.inf


def longest_first_within(
    cells: Sequence[Cell],
    *,
    seconds: Callable[[Cell], float],
    array: Callable[[Cell], str],
    array_bytes: Callable[[Cell], int],
    budget: float,
) -> list[Cell]:
    """Return ``cells``, the longest first; where their arrays do not fit together, one shelf after another.

    A shelf is as many arrays as fit into half the budget, so that the next one can be filled while the last
    trials of the one before still run: nothing waits for a shelf to be done.

    Args:
        cells: to order; ties keep their order.
        seconds: how long a cell is expected to take, on any scale.
        array: name of the array that a cell needs.
        array_bytes: how large that array is.
        budget: bytes that arrays may take at once.
    """
    sizes = {array(cell): array_bytes(cell) for cell in cells}
    by_length = sorted(cells, key=lambda cell: -seconds(cell))
    if sum(sizes.values()) <= budget:
        return by_length
    shelf_of = _shelves((array(cell) for cell in by_length), sizes, budget / 2)
    return sorted(by_length, key=lambda cell: shelf_of[array(cell)])


def _shelves(names: Iterable[str], sizes: dict[str, int], room: float) -> dict[str, int]:
    """Return the shelf of each array, filled in the order in which the longest cells need them."""
    shelf_of: dict[str, int] = {}
    shelf, used = 0, 0.0
    for name in names:
        if name in shelf_of:
            continue
        if used and used + sizes[name] > room:
            shelf, used = shelf + 1, 0.0
        shelf_of[name] = shelf
        used += sizes[name]
    return shelf_of
