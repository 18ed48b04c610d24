"""What each trial needs of a card: how long it takes there, how much of it, and in which order trials go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from orchestrator.planning.cards import EAGER_INTERVAL_S, GRAPH_INTERVAL_S, Card, memory_bytes, pass_time
from orchestrator.planning.simulate import Job
from search_spaces.errors import ConfigError, SweepError
from search_spaces.specs import RecipeSpec, Spec
from search_spaces.trials import NetworkSpec, TrialSpec
from tasks.trials.measured import epochs_to_look_at

if TYPE_CHECKING:
    from tasks.trials.costs import NetworkCost, PassCost

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


def recipe_of_costs(network: NetworkSpec) -> RecipeSpec:
    """Return the recipe of a network without what changes no cost."""
    # Adam's kernel decays weights by the way; SGD adds them to copies of all gradients.
    decay = 1e-4 if network.recipe.optimizer == "sgd" and network.recipe.weight_decay else 0.0
    return network.recipe.model_copy(
        update={"name": "cost", "learning_rate": 1e-3, "weight_decay": decay, "epochs": 1, "input_scale": 1.0}
    )


def _counted_cost(network: NetworkSpec) -> NetworkCost:
    from tasks.trials.costs import network_cost

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
