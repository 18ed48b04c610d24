"""Records of what the passes of a network cost: kernels, arithmetic, traffic and memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

# What a network costs: kernels, operations, bytes and memory of its passes.


@dataclass(frozen=True)
class Kernel:
    """One operation of a pass, by PyTorch's name of it.

    ``flops`` are of a convolution or matrix product, 0 for all others; ``num_bytes`` are read and
    written.
    """

    name: str
    flops: float
    num_bytes: float

    @property
    def num_launches(self) -> int:
        """How many kernels a GPU starts for it: a convolution's gradients of input and weight are
        two.
        """
        return 2 if self.name == "convolution_backward" else 1

    @property
    def streams(self) -> bool:
        """Whether it reads and writes long arrays in order, as an optimiser does with weights."""
        return self.name.startswith(("_fused_adam", "_to_copy", "mm", "addmm"))


@dataclass(frozen=True, eq=False)  # known by its identity: hundreds of trials share one
class PassCost:
    """What one pass costs: its operations in order, and the most memory alive at once, in tensors.

    ``workspace_bytes`` are input and output of the largest convolution: libraries' scratch grows
    with it.
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
        """Kernels that a GPU starts."""
        return sum(kernel.num_launches for kernel in self.kernels)


PASSES = ("step", "evaluation", "attack")


@dataclass(frozen=True)
class NetworkCost:
    """What one network costs in one recipe: weights and buffers kept, operations of one image
    forward.

    A multiply-add is two operations. Passes are a training step on a whole batch;
    ``evaluation_batch`` images forward, and ``attack_batch`` forward and back to the pixels, both
    in float32. ``uncounted`` says why they could not be walked: then they are those of one dense
    layer of as many weights.
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
