"""Compute the representations of a trained network. Their intrinsic dimension is d_repr.

A representation consists of the activations of one layer for all training images. This module
uses the same last hidden layer as the released code of Konz & Mazurowski (ICLR 2024):

- For ResNets it is the output of ``layer4``, after its last ReLU and before pooling,
  flattened.
- For VGGs it is the output of the second fully connected layer, before its ReLU.
- For any other network it is the input of the final classifier, which is the last Linear or
  Conv2d module that the network registers.

Activations are computed in evaluation mode, without gradients and without augmentation. The
released code computes them in training mode and with augmentation.

In this module, a model is a :class:`~tasks.trials.models.PixelModel` or a network without
input scaling. Images are ``(num_images, channels, height, width)`` with pixels in [0, 255], on
the device of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

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
    """A layer, given as the input or the output of a submodule.

    ``module`` is the name of the submodule. ``end`` selects its input or its output.
    """

    module: str
    end: Literal["input", "output"]


FEATURE_LAYERS = {
    "torchvision.models.resnet.ResNet": FeatureLayer("layer4", "output"),
    "timm.models.resnet.ResNet": FeatureLayer("layer4", "output"),
    "torchvision.models.vgg.VGG": FeatureLayer("classifier.3", "output"),
    "timm.models.vgg.VGG": FeatureLayer("pre_logits.fc2", "output"),
}
"""The last hidden layer of the networks of each class. The keys are the names of the classes
as text, so this module does not import torchvision or timm."""


def feature_layer(network: nn.Module) -> FeatureLayer:
    """Return the layer of ``network`` that is its last hidden layer.

    If the class of the network is not in :data:`FEATURE_LAYERS`, the classifier is the last
    Linear or Conv2d module in the order of registration. The order of the forward pass does
    not matter.
    """
    network_class = type(network)
    layer = FEATURE_LAYERS.get(f"{network_class.__module__}.{network_class.__qualname__}")
    if layer is not None:
        return layer
    classifier = ""
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            classifier = name
    return FeatureLayer(classifier, "input")


def network_of(model: nn.Module) -> nn.Module:
    """Return the network inside a :class:`~tasks.trials.models.PixelModel`, or the model itself."""
    network: nn.Module = getattr(model, "network", model)
    return network


class Features:
    """The activations of the last hidden layer, collected batch by batch.

    Attributes:
        array: ``(num_images, num_features)`` float32, in the order of the forward passes. This
            attribute exists only after the first call of :meth:`add`, because the number of
            features is unknown before.
    """

    array: Float32Array

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images
        self._num_added = 0
        self._block: Tensor | None = None

    def add(self, activations: Tensor) -> None:
        """Flatten the activations of a batch, and add them to the array."""
        features = activations.detach().flatten(1)
        if self._block is None:
            # This memory is not pinned. The activations of a ResNet-50 need a gigabyte.
            # Pinning a gigabyte takes longer than copying it, and WSL cannot pin so much
            # memory at once (microsoft/WSL#8447).
            shape = (self._num_images, features.shape[1])
            self._block = torch.empty(shape, dtype=torch.float32)
            self.array = self._block.numpy()
        rows = self._block[self._num_added : self._num_added + len(features)]
        # The activations are copied, because on a CPU the next ReLU may change them in place.
        rows.copy_(features)
        self._num_added += len(features)


@contextmanager
def collect_features(model: nn.Module, num_images: int) -> Iterator[Features]:
    """Collect the activations of the last hidden layer in all forward passes of the block.

    Args:
        model: The model that runs in the block.
        num_images: Total number of images in all forward passes of the block.
    """
    network = network_of(model)
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
    """Return the activations of the last hidden layer, ``(num_images, num_features)`` float32.

    For images of 224 x 224 pixels, a ResNet-18 or ResNet-34 has 25,088 features, a ResNet-50
    has 100,352 features, and a VGG has 4,096 features. ``batch_size`` changes only speed and
    memory.
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
        features: The activations, as an array ``(num_images, num_features)`` or as a source
            that computes them block by block.
        estimators: Names in :data:`tasks.measures.estimators.ESTIMATORS`.
        num_neighbors: Number of nearest neighbors of each image.
        discard_fraction: Share of the distance ratios that TwoNN leaves out. It leaves out the
            largest ratios.
        seed: Seed of the bootstrap.
        block_rows: Number of images in one block. Two blocks are in memory at a time.

    Returns:
        One estimate per estimator, by the estimator's name. If there are too few images, if
        features are not finite, or if all images have the same features, the value of the
        estimate is None. The estimate then contains the reason.
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
                estimator=name,
                value=None,
                std_error=None,
                num_points=source.num_rows,
                num_neighbors=num_neighbors,
                convention="",
                reason=str(error),
            )
        return undefined
    return {name: _finite(estimate) for name, estimate in estimates.items()}


def _finite(estimate: IntrinsicDimension) -> IntrinsicDimension:
    """Return the estimate, with the value None instead of infinity or NaN."""
    if estimate.value is None or math.isfinite(estimate.value):
        return estimate
    return replace(estimate, value=None, std_error=None, reason=f"the value is {estimate.value}")
