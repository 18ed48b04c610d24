"""Costs of a network's passes: kernels, arithmetic operations, memory traffic and memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

PASSES = ("step", "evaluation", "attack")
"""Names of the fields of :class:`NetworkCost` that contain a :class:`PassCost`."""
STREAMING = ("_fused_adam", "_to_copy", "mm", "addmm")
"""Beginnings of the names of operations that read and write long arrays sequentially."""


@dataclass(frozen=True)
class Kernel:
    """One operation of a pass.

    Attributes:
        name: PyTorch's name of the operation.
        flops: Number of arithmetic operations of a convolution or a matrix product. For any
            other operation, the number is 0.
        num_bytes: Number of bytes that the operation reads and writes.
    """

    name: str
    flops: float
    num_bytes: float

    @property
    def num_launches(self) -> int:
        """Number of kernels that a GPU starts for the operation."""
        # The GPU starts one kernel for the gradient of the input, and one for the gradient of
        # the weights.
        if self.name == "convolution_backward":
            return 2
        return 1

    @property
    def streams(self) -> bool:
        """True if the operation reads and writes long arrays sequentially, as an optimizer does."""
        return self.name.startswith(STREAMING)


@dataclass(frozen=True, eq=False)  # hundreds of trials share one cost, so it is hashed by identity
class PassCost:
    """Costs of one pass.

    Attributes:
        kernels: All operations of the pass, in order.
        peak_bytes: Largest number of bytes that tensors occupy at the same time.
        workspace_bytes: Bytes of the input and output of the largest convolution. The scratch
            memory of convolutions grows with this number.
    """

    kernels: tuple[Kernel, ...]
    peak_bytes: int
    workspace_bytes: int

    @cached_property
    def flops(self) -> float:
        """Number of arithmetic operations of all convolutions and matrix products."""
        return sum(kernel.flops for kernel in self.kernels)

    @cached_property
    def num_launches(self) -> int:
        """Number of kernels that a GPU starts for the pass."""
        return sum(kernel.num_launches for kernel in self.kernels)


@dataclass(frozen=True)
class NetworkCost:
    """Costs of one network with one recipe. A multiply-add counts as two operations.

    Attributes:
        num_parameters: Number of trained parameters.
        state_bytes: Bytes of the stored weights and buffers.
        forward_flops: Number of arithmetic operations in a forward pass of one image.
        step: Cost of a training step on a whole batch.
        evaluation: Cost of a forward pass of ``evaluation_batch`` images in float32.
        attack: Cost of a forward and a backward pass to the pixels of ``attack_batch`` images
            in float32.
        evaluation_batch: Number of images in a pass of the evaluation.
        attack_batch: Number of images in a pass of an attack.
        uncounted: Reason why isweep could not count the costs of the passes. Empty if they
            were counted. Otherwise they are the costs of one dense layer with the same number
            of weights.
    """

    num_parameters: int
    state_bytes: int
    forward_flops: float
    step: PassCost
    evaluation: PassCost
    attack: PassCost
    evaluation_batch: int
    attack_batch: int
    uncounted: str = ""
