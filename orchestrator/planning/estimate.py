"""What the cells that are left will cost: from measured trials where there are some, else from arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.planning.plan import SweepPlan
from search_spaces.models import MODEL_COSTS, ModelCost
from search_spaces.trials import NetworkSpec, TrialSpec

REFERENCE_SIDE = 224
TRAINING_FACTOR = 3
"""A training step costs about three forward passes (forward, gradient of inputs, gradient of weights)."""
PGD_PASSES = 5 * 20 * 3
"""Forward passes per image and strength: restarts, steps, and a step's gradient of the pixels at two."""
BYTES_PER_PARAMETER = 16
"""Weight, gradient and Adam's two moments in float32."""
ASSUMED_GPU_FLOPS = 50e12
ASSUMED_CPU_FLOPS = 30e9
"""Sustained rates assumed when nothing was measured: a data-centre card in bfloat16, one CPU core."""


@dataclass(frozen=True)
class MeasuredTrial:
    """What a finished trial cost.

    Attributes:
        spec: What was done.
        on_gpu: Whether it ran on a GPU.
        share: GPUs, or CPU threads, that it had.
        seconds: Wall time.
    """

    spec: TrialSpec
    on_gpu: bool
    share: float
    seconds: float


def estimate(
    left: Collection[TrialSpec], measured_trials: Iterable[MeasuredTrial], share: float
) -> dict[str, Any]:
    """Estimate what is left of a sweep.

    Args:
        left: Trials to do.
        measured_trials: What done trials cost.
        share: GPUs per trial that the sweep asks for.

    Returns:
        ``trials_left``; ``gpu_hours`` and ``cpu_core_hours`` (alternatives, not a sum), with the share of
        cells whose cost was scaled from measured trials of the same model in ``measured_share``;
        ``memory_bytes`` of the largest trial; ``trials_per_gpu`` by the sweep's GPU share; ``assumptions``.
    """
    rates = _measured_rates(measured_trials)
    cpu_seconds = gpu_seconds = 0.0
    measured = 0
    for trial in left:
        work = flops(trial)
        model = trial.network.model.name
        cpu_rate, gpu_rate = rates.get((model, False)), rates.get((model, True))
        measured += bool(cpu_rate or gpu_rate)
        cpu_seconds += work / (cpu_rate or ASSUMED_CPU_FLOPS)
        gpu_seconds += work / (gpu_rate or ASSUMED_GPU_FLOPS)
    result: dict[str, Any] = {
        "trials_left": len(left),
        "gpu_hours": gpu_seconds / 3600,
        "cpu_core_hours": cpu_seconds / 3600,
        "measured_share": measured / len(left) if left else 1.0,
        "memory_bytes": max((memory_bytes(trial) for trial in left), default=0),
        "trials_per_gpu": int(1 / share) if 0 < share <= 1 else 1,
        "assumptions": (
            f"{ASSUMED_GPU_FLOPS / 1e12:g} TFLOP/s per GPU and {ASSUMED_CPU_FLOPS / 1e9:g} GFLOP/s per core "
            "where this sweep has no finished trial of the model yet"
        ),
    }
    gibibytes = result["memory_bytes"] / 2**30
    result["text"] = (
        f"left: {result['trials_left']} trials, about {result['gpu_hours']:.2g} GPU-hours or "
        f"{result['cpu_core_hours']:.2g} core-hours; largest trial {gibibytes:.2g} GiB; "
        f"{result['trials_per_gpu']} trials per GPU ({result['assumptions']})"
    )
    return result


HANG_FACTOR = 20
MIN_LIMIT_S = 1800.0


def time_limit(trial: TrialSpec, measured: Collection[MeasuredTrial]) -> float:
    """Return the seconds after which a trial counts as hung: many times what is expected of it.

    Args:
        trial: What is to be done.
        measured: What done trials cost; without any of the model, the slowest device that is assumed.
    """
    rates = _measured_rates(measured)
    model = trial.network.model.name
    known = [rate for (name, _), rate in rates.items() if name == model]
    return max(MIN_LIMIT_S, HANG_FACTOR * flops(trial) / min(known, default=ASSUMED_CPU_FLOPS))


@dataclass(frozen=True)
class Extras:
    """What a plan costs beside training.

    Attributes:
        num_retrained: done trials that are trained again because their weights were not kept.
        num_measured: done trials on whose kept weights only something is measured.
        weights_bytes: disk that kept weights will take in all.
        attack_share: operations of attacks over those of training, over the whole grid.
    """

    num_retrained: int
    num_measured: int
    weights_bytes: float
    attack_share: float

    @property
    def text(self) -> str:
        """The costs in words."""
        words = [f"kept weights: {self.weights_bytes / 2**30:.2g} GiB in all"]
        words.append(f"attacks: {self.attack_share:.0%} of training")
        if self.num_measured:
            words.append(
                f"{self.num_measured} trained networks are only measured, none of them trained again"
            )
        if self.num_retrained:
            words.append(f"{self.num_retrained} networks are trained again: their weights were not kept")
        return "; ".join(words)


def extras(plan: SweepPlan, incomplete: Mapping[str, bool]) -> Extras:
    """Return what a plan costs beside training.

    Args:
        plan: The whole grid.
        incomplete: By id of every done trial that lacks a measurement: whether its weights are kept.
    """
    attacks = sum(attack_flops(trial) for trial in plan.trials)
    return Extras(
        num_retrained=sum(not kept for kept in incomplete.values()),
        num_measured=sum(incomplete.values()),
        weights_bytes=sum(
            4e6 * _cost(t.network).mega_parameters for t in plan.trials if plan.keeps_weights(t)
        ),
        attack_share=attacks / max(1.0, sum(flops(trial) for trial in plan.trials) - attacks),
    )


def attack_flops(trial: TrialSpec) -> float:
    """Return the operations of a trial's attacks: forward passes, and gradients of the pixels at two each."""
    network = trial.network
    forward = 2e9 * _cost(network).giga_macs * (network.subset.prepared.image_size / REFERENCE_SIDE) ** 2
    num_epsilons, test_size = len(trial.attacks.epsilons), network.subset.test_size
    passes = 0.0
    if "fgsm" in trial.attacks.methods:
        passes += test_size * (3 + num_epsilons)
    if "pgd" in trial.attacks.methods:
        passes += test_size * num_epsilons * PGD_PASSES
    if trial.robustness is not None:
        asked = trial.robustness
        passes += min(asked.num_images, test_size) * (3 * asked.num_steps + 2 * asked.num_bisections)
    return forward * passes


def flops(trial: TrialSpec) -> float:
    """Return the floating-point operations of one trial: training, evaluation and attacks."""
    network = trial.network
    scale = (network.subset.prepared.image_size / REFERENCE_SIDE) ** 2
    forward = 2e9 * _cost(network).giga_macs * scale
    training = TRAINING_FACTOR * network.recipe.epochs * network.train_size
    evaluation = 2 * network.train_size + network.subset.test_size
    return forward * (training + evaluation) + attack_flops(trial)


def memory_bytes(trial: TrialSpec) -> float:
    """Return the memory of one trial: optimiser state, its images, and one batch of activations."""
    network = trial.network
    cost = _cost(network)
    prepared = network.subset.prepared
    pixels = prepared.channels * prepared.image_size**2
    images = (network.train_size + network.subset.test_size) * pixels
    scale = (prepared.image_size / REFERENCE_SIDE) ** 2
    activations = 4e6 * cost.mega_activations * scale * network.recipe.batch_size * 2
    return BYTES_PER_PARAMETER * 1e6 * cost.mega_parameters + images + activations


def _cost(network: NetworkSpec) -> ModelCost:
    # Until costs are computed from the networks themselves, what no table knows is taken as a ResNet-50.
    return MODEL_COSTS.get(network.model.name, MODEL_COSTS["resnet50"])


def _measured_rates(trials: Iterable[MeasuredTrial]) -> dict[tuple[str, bool], float]:
    """Return achieved operations per core- or GPU-second by model and device, the median over trials."""
    seen: dict[tuple[str, bool], list[float]] = {}
    for trial in trials:
        seconds = trial.seconds * trial.share
        if seconds > 0 and trial.spec.network.recipe.epochs:
            rates = seen.setdefault((trial.spec.network.model.name, trial.on_gpu), [])
            rates.append(flops(trial.spec) / seconds)
    return {key: statistics.median(values) for key, values in seen.items()}
