"""The last hidden layer of a trained network, as features whose intrinsic dimension is d_repr.

Layers as in the released code of Konz & Mazurowski (ICLR 2024), read in evaluation mode without
gradients and without augmentation (the released helper sets neither): ResNets give the output of
``layer4`` after its last ReLU and before pooling, flattened; VGGs the output of the second fully
connected layer before its ReLU; any other network the input of its final classifier.

A model is a :class:`~tasks.trials.models.PixelModel` or a bare network; images are ``(num_images,
channels, height, width)`` with pixels in [0, 255], on its device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.errors import DataError, SweepError
from tasks.measures.distances import BlockSource, as_source
from tasks.measures.estimators import IntrinsicDimension
from tasks.measures.measure import intrinsic_dimension
from tasks.measures.neighbors import BLOCK_ROWS
from tasks.trials.records import EVALUATION_PASS
from tasks.trials.training import as_pixels, evaluation_mode


@dataclass(frozen=True)
class FeatureLayer:
    """Where features are read: the input or the output of a submodule."""

    module: str
    side: Literal["input", "output"]


FEATURE_LAYERS = {
    "torchvision.models.resnet.ResNet": FeatureLayer("layer4", "output"),
    "timm.models.resnet.ResNet": FeatureLayer("layer4", "output"),
    "torchvision.models.vgg.VGG": FeatureLayer("classifier.3", "output"),
    "timm.models.vgg.VGG": FeatureLayer("pre_logits.fc2", "output"),
}
"""By class, spelled out so that neither library is imported for the other's networks."""


def feature_layer(network: nn.Module) -> FeatureLayer:
    """Return where the features of ``network`` are read."""
    kind = type(network)
    row = FEATURE_LAYERS.get(f"{kind.__module__}.{kind.__qualname__}")
    if row is not None:
        return row
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    return FeatureLayer(layers[-1], "input")


class Features:
    """The last hidden layer as it passes by: read while another pass over the images goes on.

    Attributes:
        array: ``(num_images, num_features)`` float32, filled in the order in which images pass.
    """

    array: NDArray[np.float32]

    def __init__(self, num_images: int) -> None:
        self._num_images, self._next = num_images, 0
        self._block: Tensor | None = None

    def keep(self, activations: Tensor) -> None:
        """Take the next batch's activations, flattened; on CUDA they are copied while the pass goes
        on.
        """
        features = activations.detach().flatten(1)
        if self._block is None:
            shape, pinned = (self._num_images, features.shape[1]), features.device.type == "cuda"
            self._block = torch.empty(shape, dtype=torch.float32, pin_memory=pinned)
            self.array = self._block.numpy()
        # A copy, because the ReLU after it may work in place: on a CPU the stored tensor would
        # change.
        self._block[self._next : self._next + len(features)].copy_(features, non_blocking=True)
        self._next += len(features)

    def wait(self) -> None:
        """Wait for copies from the GPU; there are none on a CPU."""
        if self._block is not None and self._block.is_pinned():
            torch.cuda.synchronize()


@contextmanager
def features_read(model: nn.Module, num_images: int) -> Iterator[Features]:
    """Read the last hidden layer of the ``num_images`` images that will pass ``model`` within the
    block.
    """
    network = getattr(model, "network", model)
    layer, features = feature_layer(network), Features(num_images)

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        features.keep(inputs[0] if output is None else output)

    module = network.get_submodule(layer.module)
    register = (
        module.register_forward_pre_hook if layer.side == "input" else module.register_forward_hook
    )
    handle = register(keep)
    try:
        yield features
    finally:
        handle.remove()
        features.wait()


def extract_features(
    model: nn.Module, images: Tensor, *, batch_size: int = EVALUATION_PASS
) -> NDArray[np.float32]:
    """Return the last hidden layer of ``model`` for every image, ``(num_images, num_features)``
    float32.

    There are 25,088 features for ResNet-18 and 34 at 224 pixels, 100,352 for ResNet-50, 4,096 for
    VGGs. How many images pass at once changes nothing but speed and memory; at least one there must
    be.
    """
    if not len(images):
        raise DataError("There must be at least one image to take features of", "none")
    with features_read(model, len(images)) as features, torch.no_grad(), evaluation_mode(model):
        for start in range(0, len(images), batch_size):
            model(as_pixels(images[start : start + batch_size]))
    return features.array


def estimate_dimension(
    features: NDArray[np.float32] | BlockSource,
    estimators: Sequence[str],
    *,
    num_neighbors: int,
    discard_fraction: float,
    seed: int,
    block_rows: int = BLOCK_ROWS,
) -> dict[str, IntrinsicDimension]:
    """Estimate d_repr; it is undefined for too few points, or where all images map to one point.

    ``features`` are ``(num_images, num_features)``, or what makes them block by block, of which
    ``block_rows`` images are in memory at once, twice. ``seed`` is of the bootstrap.
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
        reason = str(error)
        return {
            name: IntrinsicDimension(
                name, None, None, source.num_rows, num_neighbors, "", reason=reason
            )
            for name in estimators
        }
    return {name: _finite(estimate) for name, estimate in estimates.items()}


def _finite(estimate: IntrinsicDimension) -> IntrinsicDimension:
    if estimate.value is None or math.isfinite(estimate.value):
        return estimate
    return replace(estimate, value=None, std_error=None, reason=f"the value is {estimate.value}")


BATCH_SIZE = 32
BLOCK_BYTES = 256 << 20
"""Of one block in float32; the search holds two, and centred copies of a part of them."""


def stages(model: nn.Module, image: Tensor) -> tuple[str, ...]:
    """Return the modules that end a stage of a network, from the pixels on, by their names.

    timm's list where the network has one; else, for every spatial size above one pixel that
    activations take on, the last of the outermost modules that give it.
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
    """Return the side of square activations; torchvision's Swins and ConvNeXts have their channels
    last.
    """
    _, first, second, third = output.shape
    return first if first == second != third else third


@dataclass(frozen=True)
class StageRows:
    """A :class:`~tasks.measures.distances.BlockSource` of the activations after one stage, a
    ``module``'s.

    Images pass in batches that always start at the same places: a row is the same bits whenever it
    is read.
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
