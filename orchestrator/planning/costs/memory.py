"""Predicted memory of a trial on a GPU."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.planning.costs.kernels import NetworkCost, PassCost
from orchestrator.planning.costs.networks import cost_of
from search_spaces.specs import NetworkSpec
from tasks.trials.records import CONTEXT_BYTES, epochs_to_look_at

TENSOR_FACTOR, WORKSPACE_FACTOR = 1.1, 2.0
"""Memory of a process: context, tensors with the allocator's rounding, scratch of the convolutions.
Fitted to published A100 measurements of ResNet-50 and VGG-16 at batches 32 to 128 (0.89 to 1.10 of
the measured)."""


def array_bytes(network: NetworkSpec, train_size: int | None = None) -> int:
    """Return the bytes of a trial's images, one each; of ``train_size`` training images where it is
    given.
    """
    prepared = network.subset.prepared
    num_images = (train_size or network.train_size) + network.subset.test_size
    return num_images * prepared.channels * prepared.image_size**2


def memory_bytes(cost: PassCost) -> float:
    """Predict what a process holds on a GPU while it makes this pass, its CUDA context included."""
    return CONTEXT_BYTES + TENSOR_FACTOR * cost.peak_bytes + WORKSPACE_FACTOR * cost.workspace_bytes


def peak_bytes(network: NetworkSpec) -> float:
    """Predict the most memory that a trial holds on a GPU, over training, evaluation and
    attacks.
    """
    cost = cost_of(network)
    parts = [cost.step, cost.evaluation, cost.attack]
    if epochs_to_look_at(network.recipe.epochs):
        held = cost.evaluation.peak_bytes + _training_bytes(network, cost)
        parts.append(replace(cost.evaluation, peak_bytes=held))
    return array_bytes(network) + max(memory_bytes(part) for part in parts)


def _training_bytes(network: NetworkSpec, cost: NetworkCost) -> int:
    """Return what a training holds between two epochs, beside weights: moments, gradients and
    graphs.
    """
    recipe = network.recipe
    gradients = 4 * cost.num_parameters
    moments = gradients if recipe.optimizer == "sgd" else 2 * gradients
    if (
        network.model.library == "own"
    ):  # whose steps are not captured as graphs: they need not replay
        return moments + gradients
    # A graph keeps the memory of its step, and a last batch of another size has a graph of its own.
    activations = max(0, cost.step.peak_bytes - cost.state_bytes - moments - gradients)
    last = network.train_size % recipe.batch_size
    if network.train_size < recipe.batch_size or not last:
        return moments + gradients + activations
    size = last if last > 1 else 1 + recipe.batch_size  # a single image joins the batch before it
    return moments + 2 * gradients + activations + activations * size // recipe.batch_size
