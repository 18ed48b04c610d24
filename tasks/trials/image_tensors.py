"""Convert images to tensors on a device, and to batches of float32 pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from tasks.array_types import AnyArray


def to_device(array: AnyArray, device: torch.device | str = "cpu") -> Tensor:
    """Return ``array`` as a tensor on ``device``.

    On a CPU, the tensor shares the memory of the array, so it must not be changed. The array
    may be read-only, like the arrays in Ray's object store.
    """
    with warnings.catch_warnings():
        # torch warns if an array is read-only. The warning is ignored, because the tensor is
        # never changed.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def as_pixels(images: Tensor) -> Tensor:
    """Return a float32 copy in the channels-last layout, in which convolutions are fastest."""
    # float32 images are copied too, so that the memory of all batches is aligned in the same
    # way. With another alignment, kernels may round differently.
    return images.to(torch.float32, copy=True, memory_format=torch.channels_last)


def image_batches(
    images: Tensor, labels: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of float32 pixels with their labels, in the order of the images."""
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        yield as_pixels(images[rows]), labels[rows]
