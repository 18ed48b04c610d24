"""Representations of a trained network. Their intrinsic dimension is d_repr.

A representation is the activations of one layer for all training images. The last hidden layer is
the same as in the released code of Konz & Mazurowski (ICLR 2024):

- For ResNets it is the output of ``layer4``, after its last ReLU and before pooling, flattened.
- For VGGs it is the output of the second fully connected layer, before its ReLU.
- For any other network it is the input of the final classifier: the last Linear or Conv2d
  module that the network registers.

Activations are computed in evaluation mode, without gradients and without augmentation. The
released code computes them in training mode and with augmentation.

A model is a :class:`~tasks.trials.models.PixelModel` or a network without input scaling. Images are
``(num_images, channels, height, width)`` with pixels in [0, 255], on the device of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces.errors import SweepError
from tasks.array_types import Float32Array
from tasks.measures.distances import BlockSource, as_source
from tasks.measures.estimators import IntrinsicDimension
from tasks.measures.measure import intrinsic_dimension
from tasks.measures.neighbors import BLOCK_ROWS
from tasks.trials.evaluation import evaluation_mode
from tasks.trials.image_tensors import as_pixels
from tasks.trials.records import EVALUATION_PASS


@dataclass(frozen=True)
class FeatureLayer:
    """The input or the output of a submodule. ``module`` is the name of the submodule."""

    module: str
    end: Literal["input", "output"]


FEATURE_LAYERS = {
    "torchvision.models.resnet.ResNet": FeatureLayer("layer4", "output"),
    "timm.models.resnet.ResNet": FeatureLayer("layer4", "output"),
    "torchvision.models.vgg.VGG": FeatureLayer("classifier.3", "output"),
    "timm.models.vgg.VGG": FeatureLayer("pre_logits.fc2", "output"),
}
"""Last hidden layer by the class of a network. The keys are names of classes, not classes: a
network of one library must not import the other library."""


def feature_layer(network: nn.Module) -> FeatureLayer:
    """Return the last hidden layer of ``network``."""
    network_class = type(network)
    layer = FEATURE_LAYERS.get(f"{network_class.__module__}.{network_class.__qualname__}")
    if layer is not None:
        return layer
    classifier = ""
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            classifier = name
    return FeatureLayer(classifier, "input")


class Features:
    """The activations of the last hidden layer, collected batch by batch.

    Attributes:
        array: ``(num_images, num_features)`` float32, in the order of the forward passes.
    """

    array: Float32Array

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images
        self._num_added = 0
        self._block: Tensor | None = None

    def add(self, activations: Tensor) -> None:
        """Flatten a batch of activations and add it."""
        features = activations.detach().flatten(1)
        if self._block is None:
            # This memory is not pinned. A ResNet-50 needs a gigabyte, and pinning it takes longer
            # than copying it. WSL cannot pin so much memory at once (microsoft/WSL#8447).
            shape = (self._num_images, features.shape[1])
            self._block = torch.empty(shape, dtype=torch.float32)
            self.array = self._block.numpy()
        rows = self._block[self._num_added : self._num_added + len(features)]
        # The values are copied, because on a CPU the next ReLU may change the tensor in place.
        rows.copy_(features)
        self._num_added += len(features)


@contextmanager
def collect_features(model: nn.Module, num_images: int) -> Iterator[Features]:
    """Collect the activations of the last hidden layer in all forward passes of the block.

    Args:
        model: the model that runs in the block.
        num_images: number of images of all forward passes together.
    """
    network = getattr(model, "network", model)
    layer = feature_layer(network)
    features = Features(num_images)

    def add_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.add(inputs[0])

    def add_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        features.add(output)

    module = network.get_submodule(layer.module)
    if layer.end == "input":
        handle = module.register_forward_pre_hook(add_input)
    else:
        handle = module.register_forward_hook(add_output)
    try:
        yield features
    finally:
        handle.remove()


def extract_features(
    model: nn.Module, images: Tensor, *, batch_size: int = EVALUATION_PASS
) -> Float32Array:
    """Return the last hidden layer of every image, ``(num_images, num_features)`` float32.

    For images of 224 pixels, a ResNet-18 or ResNet-34 has 25,088 features, a ResNet-50 has 100,352,
    and a VGG has 4,096. ``batch_size`` only changes speed and memory.
    """
    with collect_features(model, len(images)) as features, torch.no_grad(), evaluation_mode(model):
        for start in range(0, len(images), batch_size):
            model(as_pixels(images[start : start + batch_size]))
    return features.array


def estimate_dimension(
    features: Float32Array | BlockSource,
    estimators: Sequence[str],
    *,
    num_neighbors: int,
    discard_fraction: float,
    seed: int,
    block_rows: int = BLOCK_ROWS,
) -> dict[str, IntrinsicDimension]:
    """Return estimates of d_repr, the intrinsic dimension of representations.

    Args:
        features: ``(num_images, num_features)``, or a source that computes them block by block.
        estimators: names in :data:`tasks.measures.estimators.ESTIMATORS`.
        num_neighbors: number of nearest neighbors of each image.
        discard_fraction: share of the largest distance ratios that TwoNN leaves out.
        seed: seed of the bootstrap.
        block_rows: number of images in one block. Two blocks are in memory at a time.

    Returns:
        The estimate of each estimator. Its value is None, with a reason, if there are too few
        images, if features are not finite, or if all images have the same features.
    """
    source = as_source(features)
    try:
        estimates = intrinsic_dimension(
            source,
            num_neighbors=num_neighbors,
            estimators=estimators,
            discard_fraction=discard_fraction,
            seed=seed,
            block_rows=block_rows,
        )
    except SweepError as error:  # features that are not finite
        undefined: dict[str, IntrinsicDimension] = {}
        for name in estimators:
            undefined[name] = IntrinsicDimension(
                name, None, None, source.num_rows, num_neighbors, "", reason=str(error)
            )
        return undefined
    return {name: _finite(estimate) for name, estimate in estimates.items()}


def _finite(estimate: IntrinsicDimension) -> IntrinsicDimension:
    """Return the estimate. If its value is infinite or NaN, replace the value by None."""
    if estimate.value is None or math.isfinite(estimate.value):
        return estimate
    return replace(estimate, value=None, std_error=None, reason=f"the value is {estimate.value}")


# The rest of this module: representations after every stage of a network.

STAGE_BATCH_SIZE = 32
"""Number of images in a forward pass of :class:`StageRows`."""
STAGE_BLOCK_BYTES = 256 << 20
"""Bytes of one block of activations in float32. The search for neighbors needs memory for two
blocks, and for centered copies of a part of them."""


def list_stages(model: nn.Module, image: Tensor) -> tuple[str, ...]:
    """Return the names of the modules whose outputs end the stages, from input to output.

    If the network has timm's list of stages, the names come from this list. Otherwise, a stage
    consists of all modules whose outputs have the same side, if this side is above one pixel. The
    stage ends with the module that has the fewest dots in its name. If several have, it ends with
    the one that finishes last.

    Example: for a torchvision ResNet and images of 224 pixels, the stages end with ``relu``
    (112 pixels), ``layer1`` (56), ``layer2`` (28), ``layer3`` (14) and ``layer4`` (7).
    """
    network = getattr(model, "network", model)
    modules = dict(network.named_modules())
    timm_stages = getattr(network, "feature_info", None)
    if isinstance(timm_stages, list) and timm_stages:
        names = [row["module"] for row in timm_stages if row.get("module") in modules]
        return tuple(dict.fromkeys(names))
    last_modules: dict[int, str] = {}
    for name, size in _spatial_sizes(model, modules, image):
        previous = last_modules.get(size)
        if previous is None or name.count(".") <= previous.count("."):
            # Remove the key first, so that the order of the keys is the order of the stage ends.
            last_modules.pop(size, None)
            last_modules[size] = name
    return tuple(last_modules.values())


def _spatial_sizes(
    model: nn.Module, modules: dict[str, nn.Module], image: Tensor
) -> list[tuple[str, int]]:
    """Return the names of the modules with a spatial output, and the side of the output in pixels.

    The modules are in the order in which they finish a forward pass.
    """
    sizes: list[tuple[str, int]] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note_size(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                size = _side_in_pixels(output)
                if size > 1:
                    sizes.append((name, size))

        return module.register_forward_hook(note_size)

    handles = [watch(name, module) for name, module in modules.items() if name]
    try:
        with torch.no_grad(), evaluation_mode(model):
            model(as_pixels(image))
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _side_in_pixels(output: Tensor) -> int:
    """Return the side of square activations.

    In torchvision's Swin and ConvNeXt networks, the last axis has the channels. In all other
    networks, the second axis has the channels.
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

        network = getattr(self.model, "network", self.model)
        handle = network.get_submodule(self.module).register_forward_hook(keep_copy)
        try:
            with torch.no_grad(), evaluation_mode(self.model):
                self.model(as_pixels(images))
        finally:
            handle.remove()
        # If the module runs several times in one pass, its last output ends the stage.
        return outputs[-1].contiguous().numpy()
