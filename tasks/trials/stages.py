"""Compute the representations after every stage of a network, to measure d_repr at each depth.

A stage is a part of a network in which all activations have the same height and width.
:func:`list_stages` finds the modules with which the stages end. :class:`StageRows` computes
the activations after one stage, block by block, because the activations of all images may not
fit in memory.

The mode and the preprocessing are the same as in :mod:`tasks.trials.representations`.
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
"""Largest size of a block of activations in bytes, in float32. The search for neighbors needs
memory for two blocks, and for centered copies of some of their features."""


def list_stages(model: nn.Module, image: Tensor) -> tuple[str, ...]:
    """Return the names of the modules with which the stages end, from input to output.

    If the network has timm's list of stages, the names come from this list. Otherwise, a stage
    consists of all modules whose outputs have the same side, if the side is larger than one
    pixel. The name of a nested module contains dots. The stage ends with its least nested
    module, which has the fewest dots in its name. If several modules are least nested, the
    stage ends with the one that finishes last.

    Example: for a torchvision ResNet and images of 224 x 224 pixels, the stages end with
    ``relu`` (side 112), ``layer1`` (56), ``layer2`` (28), ``layer3`` (14) and ``layer4`` (7).
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
            # If a key is removed and added again, it becomes the last key of the dictionary.
            # So the keys are in the order in which the stages end.
            last_modules.pop(side, None)
            last_modules[side] = name
    return tuple(last_modules.values())


def _output_sides(
    model: nn.Module, modules: dict[str, nn.Module], image: Tensor
) -> list[tuple[str, int]]:
    """Return the name and the output side of every module whose output has spatial axes.

    The side is in pixels. The modules are in the order in which they finish a forward pass.
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

    ``output`` has four axes. The channels are on the last axis if the second and third axes
    are equally long and the last axis is not. This is the case in torchvision's Swin and
    ConvNeXt networks. Otherwise the channels are on the second axis.
    """
    _, first, second, third = output.shape
    has_channels_last = first == second != third
    return first if has_channels_last else third


@dataclass
class StageRows:
    """The activations after one stage, as a :class:`~tasks.measures.distances.BlockSource`.

    The batches always start at the same rows, so every read of a row returns exactly the same
    numbers.

    Attributes:
        model: The model. Its mode (training or evaluation) is restored after every pass.
        module: Name of the submodule with which the stage ends.
        images: The images, one for each row.
        row_shape: Shape of the activations of one image.
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
        """The number of images in a block. Their activations are in memory at the same time."""
        row_bytes = 4 * math.prod(self.row_shape)
        return max(1, min(BLOCK_ROWS, STAGE_BLOCK_BYTES // row_bytes))

    def read(self, start: int, stop: int) -> Float32Array:
        """Return the activations of the images from ``start`` to before ``stop``, as float32."""
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
        # If the module runs several times in one pass, the stage ends with its last output.
        return outputs[-1].contiguous().numpy()
