"""The activations after every stage of a network, made block by block: they need not fit into memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.measures.neighbors import BLOCK_ROWS
from tasks.trials.step import as_pixels
from tasks.trials.training import evaluation_mode

BATCH_SIZE = 32
BLOCK_BYTES = 256 << 20
"""Of one block in float32; the search holds two, and centred copies of a part of them."""


def stages(model: nn.Module, image: Tensor) -> tuple[str, ...]:
    """Return the modules that end a stage of a network, from the pixels on, by their names.

    timm's list where the network has one; else, for every spatial size above one pixel that activations take
    on, the last of the outermost modules that give it.

    Args:
        model: a :class:`~tasks.trials.models.PixelModel` or a bare network.
        image: ``(1, channels, height, width)``, pixels in [0, 255].
    """
    network = getattr(model, "network", model)
    modules = dict(network.named_modules())
    listed = getattr(network, "feature_info", None)
    if isinstance(listed, list) and listed:
        return tuple(dict.fromkeys(row["module"] for row in listed if row.get("module") in modules))
    ends: dict[int, str] = {}
    for name, size in _sizes(model, modules, image):
        known = ends.get(size)
        if known is None or name.count(".") <= known.count("."):
            ends.pop(size, None)  # the order is that in which stages end
            ends[size] = name
    return tuple(ends.values())


def _sizes(model: nn.Module, modules: dict[str, nn.Module], image: Tensor) -> list[tuple[str, int]]:
    """Return modules whose output is an image, with its side, in the order in which they end."""
    found: list[tuple[str, int]] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(module: nn.Module, inputs: object, output: object) -> None:
            size = _side(output) if isinstance(output, Tensor) and output.dim() == 4 else 1
            if size > 1:
                found.append((name, size))

        return module.register_forward_hook(note)

    handles = [watch(name, module) for name, module in modules.items() if name]
    try:
        with torch.no_grad(), evaluation_mode(model):
            model(as_pixels(image))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _side(output: Tensor) -> int:
    """Return the side of square activations; torchvision's Swins and ConvNeXts have their channels last."""
    _, first, second, third = output.shape
    return first if first == second != third else third


@dataclass(frozen=True)
class StageRows:
    """A :class:`~tasks.measures.distances.BlockSource` of the activations after one stage.

    Images pass in batches that always start at the same places: a row is the same bits whenever it is read.

    Attributes:
        model: a :class:`~tasks.trials.models.PixelModel` or a bare network, on the device of ``images``.
        module: whose output is read.
        images: ``(num_images, channels, height, width)``, pixels in [0, 255].
    """

    model: nn.Module
    module: str
    images: Tensor
    row_shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "row_shape", tuple(self._passed(self.images[:1]).shape[1:]))

    @property
    def num_rows(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def block_rows(self) -> int:
        """How many images' activations may be in memory at once."""
        return max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * math.prod(self.row_shape))))

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the activations of images ``start`` to ``stop``, float32."""
        rows = np.empty((stop - start, *self.row_shape), np.float32)
        for first in range(start - start % BATCH_SIZE, stop, BATCH_SIZE):
            passed = self._passed(self.images[first : first + BATCH_SIZE])
            low, high = max(first, start), min(first + BATCH_SIZE, stop)
            rows[low - start : high - start] = passed[low - first : high - first]
        return rows

    def _passed(self, images: Tensor) -> NDArray[np.float32]:
        found: list[Tensor] = []
        # A copy, because what follows may work in place.
        network = getattr(self.model, "network", self.model)
        handle = network.get_submodule(self.module).register_forward_hook(
            lambda module, inputs, output: found.append(output.detach().float().cpu().clone())
        )
        try:
            with torch.no_grad(), evaluation_mode(self.model):
                self.model(as_pixels(images))
        finally:
            handle.remove()
        return found[-1].contiguous().numpy()
