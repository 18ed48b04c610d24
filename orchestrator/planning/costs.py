"""What a network costs: kernels, operations, bytes and memory of its passes, as found by a walk over it.

Those of the presets' networks lie beside this module, so that a plan of them needs neither torch nor the
seconds of a walk (:mod:`orchestrator.planning.walk`); a test holds them to the walk.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from search_spaces.fingerprint import fingerprint
from search_spaces.specs import ModelSpec, RecipeSpec
from tasks.trials.records import EVALUATION_PASS

Sizes = tuple[int, int, int, int, int | None]
"""Channels and side of the images, outputs, images of an evaluation pass and of an attack pass."""
WALKED = Path(__file__).with_name("walked.json")


@dataclass(frozen=True)
class Kernel:
    """One operation of a pass.

    Attributes:
        name: PyTorch's name of it.
        flops: floating-point operations of a convolution or matrix product; 0 for all others.
        num_bytes: read and written once each.
    """

    name: str
    flops: float
    num_bytes: float

    @property
    def num_launches(self) -> int:
        """How many kernels a GPU starts for it: a convolution's gradients of input and weight are two."""
        return 2 if self.name == "convolution_backward" else 1

    @property
    def streams(self) -> bool:
        """Whether it reads and writes long arrays in order, as an optimiser does with weights."""
        return self.name.startswith(("_fused_adam", "_to_copy", "mm", "addmm"))


@dataclass(frozen=True, eq=False)  # known by its identity: hundreds of trials share one
class PassCost:
    """What one pass costs.

    Attributes:
        kernels: its operations in order.
        peak_bytes: most memory alive at once, in tensors: weights, gradients, moments and activations.
        workspace_bytes: input and output of the largest convolution: libraries' scratch grows with it.
    """

    kernels: tuple[Kernel, ...]
    peak_bytes: int
    workspace_bytes: int

    def __hash__(self) -> int:
        # Of all kernels it would take longer than what is looked up by it.
        return hash((len(self.kernels), self.peak_bytes, self.workspace_bytes))

    @property
    def flops(self) -> float:
        """Operations of all convolutions and matrix products."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def num_bytes(self) -> float:
        """Bytes moved by all kernels."""
        return sum(kernel.num_bytes for kernel in self.kernels)

    @property
    def num_launches(self) -> int:
        """Kernels that a GPU starts."""
        return sum(kernel.num_launches for kernel in self.kernels)


@dataclass(frozen=True)
class NetworkCost:
    """What one network costs in one recipe.

    Attributes:
        num_parameters: trainable parameters.
        state_bytes: of its kept weights: all parameters and buffers.
        num_activations: numbers that the layers give out for one image.
        forward_flops: of one image, multiply-adds counted twice.
        step: one training step on a whole batch.
        evaluation: one forward pass of ``evaluation_batch`` images in float32.
        attack: forward and back to the pixels, ``attack_batch`` images in float32.
        uncounted: why its passes could not be walked, empty where they were; they are then those of one dense
            layer of as many weights, and ``num_activations`` is 0.
    """

    num_parameters: int
    state_bytes: int
    num_activations: int
    forward_flops: float
    step: PassCost
    evaluation: PassCost
    attack: PassCost
    evaluation_batch: int
    attack_batch: int
    uncounted: str = ""


@lru_cache(maxsize=256)
def network_cost(
    model: ModelSpec,
    recipe: RecipeSpec,
    *,
    channels: int,
    image_size: int,
    num_outputs: int = 2,
    evaluation_batch: int = EVALUATION_PASS,
    attack_batch: int | None = None,
) -> NetworkCost:
    """Return the costs of one training step, one evaluation pass and one attack pass of a network.

    Args:
        model: which network.
        recipe: optimiser, batch size, precision.
        channels: of the images.
        image_size: height and width of the images.
        num_outputs: logits, where the recipe names none.
        evaluation_batch: images per evaluation pass.
        attack_batch: images per attack pass; None takes :func:`tasks.trials.attacks.attack_pass`.

    Raises:
        ConfigError: for a network that cannot be built so.
    """
    sizes = (channels, image_size, num_outputs, evaluation_batch, attack_batch)
    known = _walked().get(cost_key(model, recipe, sizes))
    if known is not None:
        return from_plain(known)
    from orchestrator.planning.walk import walk_network

    return walk_network(model, recipe, *sizes)


def cost_key(model: ModelSpec, recipe: RecipeSpec, sizes: Sizes) -> str:
    """Return by what a network's costs are kept."""
    return fingerprint([model, recipe, sizes])[:16]


def to_plain(cost: NetworkCost) -> dict[str, Any]:
    """Return costs as JSON values; equal kernels of a pass are counted, and their order is lost."""
    plain = asdict(cost)
    for name in PASSES:
        kernels = Counter((k.name, k.flops, k.num_bytes) for k in getattr(cost, name).kernels)
        plain[name]["kernels"] = [[*kernel, number] for kernel, number in kernels.items()]
    return plain


def from_plain(plain: dict[str, Any]) -> NetworkCost:
    """Return what :func:`to_plain` was given."""
    passes = {}
    for name in PASSES:
        counted = plain[name]["kernels"]
        kernels = tuple(Kernel(*kernel) for *kernel, number in counted for _ in range(number))
        passes[name] = PassCost(**{**plain[name], "kernels": kernels})
    return NetworkCost(**{**plain, **passes})


PASSES = ("step", "evaluation", "attack")


@cache
def _walked() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(WALKED.read_text(encoding="utf-8"))
    return found
