"""Representations after every stage of a trained network, for d_repr by depth.

A stage is a part of a network whose activations have the same side in pixels.
:func:`list_stages` finds the modules that end the stages. :class:`StageRows` computes the
activations after one stage block by block, because the activations of all images may not fit in
memory.

Activations are computed as in :mod:`tasks.trials.representations`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from tasks.array_types import Float32Array
from tasks.measures.neighbors import BLOCK_ROWS
from tasks.trials.evaluation import evaluation_mode
from tasks.trials.image_tensors import as_pixels
from tasks.trials.representations import network_of

STAGE_BATCH_SIZE = 32
"""Number of images in a forward pass of :class:`StageRows`."""
STAGE_BLOCK_BYTES = 256 << 20
"""Bytes of one block of activations in float32. The search for neighbors needs memory for two
blocks, and for centered copies of a part of them."""


def list_stages(model: nn.Module, image: Tensor) -> tuple[str, ...]:
    """Return the names of the modules whose outputs end the stages, from input to output.

    If the network has timm's list of stages, the names come from this list. Otherwise, a stage
    consists of all modules whose outputs have the same side, if this side is above one pixel.
    The stage ends with the module of the highest level, which has the fewest dots in its name.
    If several modules have this level, the stage ends with the module that finishes last.

    Example: for a torchvision ResNet and images of 224 pixels, the stages end with ``relu``
    (112 pixels), ``layer1`` (56), ``layer2`` (28), ``layer3`` (14) and ``layer4`` (7).
    """
    network = network_of(model)
    modules = dict(network.named_modules())
    timm_stages = getattr(network, "feature_info", None)
    if isinstance(timm_stages, list) and timm_stages:
        names = [row["module"] for row in timm_stages if row.get("module") in modules]
        return tuple(dict.fromkeys(names))
    last_modules: dict[int, str] = {}
    for name, side in _output_sides(model, modules, image):
        previous = last_modules.get(side)
        if previous is None or name.count(".") <= previous.count("."):
            # A key that is removed and added again becomes the last one. So the keys are in
            # the order in which the stages end.
            last_modules.pop(side, None)
            last_modules[side] = name
    return tuple(last_modules.values())


def _output_sides(
    model: nn.Module, modules: dict[str, nn.Module], image: Tensor
) -> list[tuple[str, int]]:
    """Return the names of the modules with a spatial output, and the side of the output in pixels.

    The modules are in the order in which they finish a forward pass.
    """
    names = {module: name for name, module in modules.items() if name}
    sides: list[tuple[str, int]] = []

    def add_side(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            side = _side_in_pixels(output)
            if side > 1:
                sides.append((names[module], side))

    handles = [module.register_forward_hook(add_side) for module in names]
    try:
        with torch.no_grad(), evaluation_mode(model):
            model(as_pixels(image))
    finally:
        for handle in handles:
            handle.remove()
    return sides


def _side_in_pixels(output: Tensor) -> int:
    """Return the side of square activations.

    If only the last axis differs from the others, it has the channels, as in torchvision's
    Swin and ConvNeXt networks. Otherwise the second axis has the channels.
    """
    _, first, second, third = output.shape
    has_channels_last = first == second != third
    return first if has_channels_last else third


@dataclass
class StageRows:
    """The activations after one stage, as a :class:`~tasks.measures.distances.BlockSource`.

    Batches always start at the same rows, so reading a row again returns the same bits.

    Attributes:
        model: the model. Its mode is restored after every pass.
        module: name of the submodule that ends the stage.
        images: the images, one for each row.
        row_shape: shape of the activations of one image.
    """

    model: nn.Module
    module: str
    images: Tensor
    row_shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.row_shape = self._activations(self.images[:1]).shape[1:]

    @property
    def num_rows(self) -> int:
        """The number of images."""
        return len(self.images)

    @property
    def block_rows(self) -> int:
        """The number of images whose activations are in memory at the same time."""
        row_bytes = 4 * math.prod(self.row_shape)
        return max(1, min(BLOCK_ROWS, STAGE_BLOCK_BYTES // row_bytes))

    def read(self, start: int, stop: int) -> Float32Array:
        """Return the activations of images ``start`` to ``stop``, float32."""
        rows = np.empty((stop - start, *self.row_shape), np.float32)
        for first in range(start - start % STAGE_BATCH_SIZE, stop, STAGE_BATCH_SIZE):
            batch = self._activations(self.images[first : first + STAGE_BATCH_SIZE])
            low = max(first, start)
            high = min(first + STAGE_BATCH_SIZE, stop)
            rows[low - start : high - start] = batch[low - first : high - first]
        return rows

    def _activations(self, images: Tensor) -> Float32Array:
        """Return the activations of a batch of images after this stage."""
        outputs: list[Tensor] = []

        def keep_copy(module: nn.Module, inputs: object, output: Tensor) -> None:
            # The tensor is copied, because later layers may change it in place.
            outputs.append(output.detach().float().cpu().clone())

        stage_end = network_of(self.model).get_submodule(self.module)
        handle = stage_end.register_forward_hook(keep_copy)
        try:
            with torch.no_grad(), evaluation_mode(self.model):
                self.model(as_pixels(images))
        finally:
            handle.remove()
        # If the module runs several times in one pass, its last output ends the stage.
        return outputs[-1].contiguous().numpy()
