"""Predict the GPU memory of a trial: CUDA context, tensors and scratch memory of convolutions."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.planning.costs.kernels import NetworkCost, PassCost
from orchestrator.planning.costs.networks import cost_of
from search_spaces.specs import NetworkSpec
from tasks.trials.records import CONTEXT_BYTES, scored_epochs

TENSOR_FACTOR = 1.1
"""Memory that PyTorch's allocator reserves, divided by the memory of the tensors. This factor
and :data:`WORKSPACE_FACTOR` are fitted to published measurements of ResNet-50 and VGG-16 on an
A100 with batches of 32 to 128. The predicted memory is 0.89 to 1.10 times the measured
memory."""
WORKSPACE_FACTOR = 2.0
"""Scratch memory of all convolutions, divided by the bytes of the input and output of the
largest convolution."""


def array_bytes(network: NetworkSpec, train_size: int | None = None) -> int:
    """Return the bytes of a trial's training and test images, with one byte per value.

    Args:
        network: The network to train.
        train_size: Number of training images to load. If it is None, use the train size in
            ``network``.
    """
    prepared = network.subset.prepared
    num_images = (train_size or network.train_size) + network.subset.test_size
    return num_images * prepared.channels * prepared.image_size**2


def memory_bytes(cost: PassCost) -> float:
    """Predict the GPU memory of a process in a pass, in bytes. It includes the CUDA context."""
    return CONTEXT_BYTES + TENSOR_FACTOR * cost.peak_bytes + WORKSPACE_FACTOR * cost.workspace_bytes


def peak_bytes(network: NetworkSpec) -> float:
    """Predict the peak GPU memory of a trial in bytes: the maximum over all its phases.

    The phases are training, evaluation and attacks.
    """
    cost = cost_of(network)
    passes = [cost.step, cost.evaluation, cost.attack]
    if scored_epochs(network.recipe.epochs):
        # isweep evaluates the test set between two epochs, while the training still uses its
        # memory.
        during_training = cost.evaluation.peak_bytes + _training_bytes(network, cost)
        passes.append(replace(cost.evaluation, peak_bytes=during_training))
    return array_bytes(network) + max(memory_bytes(part) for part in passes)


def _training_bytes(network: NetworkSpec, cost: NetworkCost) -> int:
    """Return the memory, in bytes, that a training uses between two epochs besides its weights."""
    recipe = network.recipe
    gradients = 4 * cost.num_parameters  # float32
    moments_per_gradient = 1 if recipe.optimizer == "sgd" else 2
    moments = moments_per_gradient * gradients
    if network.model.library == "own":
        # Your own network uses no CUDA graph, so its activations are freed after each step.
        return moments + gradients
    # A CUDA graph does not free the memory of its step. If the last batch has another size, it
    # has a second graph.
    activations = max(0, cost.step.peak_bytes - cost.state_bytes - moments - gradients)
    last_batch = network.train_size % recipe.batch_size
    if network.train_size < recipe.batch_size or not last_batch:
        return moments + gradients + activations
    if last_batch == 1:
        last_batch = 1 + recipe.batch_size  # a single image joins the batch before it
    of_last_batch = activations * last_batch // recipe.batch_size
    return moments + 2 * gradients + activations + of_last_batch
