"""Records of what the passes of a network cost: kernels, arithmetic, traffic and memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

PASSES = ("step", "evaluation", "attack")
"""Fields of :class:`NetworkCost` that hold a pass."""
STREAMING = ("_fused_adam", "_to_copy", "mm", "addmm")
"""Beginnings of the names of operations that read and write long arrays in order."""


@dataclass(frozen=True)
class Kernel:
    """One operation of a pass.

    Attributes:
        name: PyTorch's name of the operation.
        flops: Operations of a convolution or matrix product; 0 for all others.
        num_bytes: Bytes that are read and written.
    """

    name: str
    flops: float
    num_bytes: float

    @property
    def num_launches(self) -> int:
        """Number of kernels that a GPU starts for the operation."""
        # The gradients of a convolution by its input and by its weight are two kernels.
        if self.name == "convolution_backward":
            return 2
        return 1

    @property
    def streams(self) -> bool:
        """True if the operation reads and writes long arrays in order, as an optimizer does."""
        return self.name.startswith(STREAMING)


@dataclass(frozen=True, eq=False)  # hundreds of trials share one: it is hashed by its identity
class PassCost:
    """Costs of one pass.

    Attributes:
        kernels: The operations of the pass, in order.
        peak_bytes: The most bytes that tensors hold at once.
        workspace_bytes: Bytes of input and output of the largest convolution. The scratch memory
            of a library grows with them.
    """

    kernels: tuple[Kernel, ...]
    peak_bytes: int
    workspace_bytes: int

    @cached_property
    def flops(self) -> float:
        """Operations of all convolutions and matrix products."""
        return sum(kernel.flops for kernel in self.kernels)

    @cached_property
    def num_launches(self) -> int:
        """Number of kernels that a GPU starts."""
        return sum(kernel.num_launches for kernel in self.kernels)


@dataclass(frozen=True)
class NetworkCost:
    """Costs of one network in one recipe; a multiply-add is two operations.

    Attributes:
        num_parameters: Number of trained parameters.
        state_bytes: Bytes of the weights and buffers that are stored.
        forward_flops: Operations of one image forward.
        step: A training step on a whole batch.
        evaluation: ``evaluation_batch`` images forward, in float32.
        attack: ``attack_batch`` images forward, and back to the pixels, in float32.
        evaluation_batch: Images of an evaluation's pass.
        attack_batch: Images of an attack's pass.
        uncounted: Why the passes could not be counted; empty if they were. Uncounted passes are
            those of one dense layer with as many weights.
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
