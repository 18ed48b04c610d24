"""Functions that build the network and the images with which a GPU is tested."""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.machine.self_test.case import Case
from tasks.trials.image_tensors import as_pixels
from tasks.trials.isolation import seeded
from tasks.trials.models import PixelModel, build_model


def build_network(case: Case, dropout: float | None = None) -> PixelModel:
    """Return the case's network on the CPU. Its weights are always the same.

    If ``dropout`` is not None, it replaces the dropout of the network.
    """
    return build_model(
        case.model,
        num_outputs=2,
        in_channels=case.channels,
        input_scale=1 / 255,
        dropout=dropout,
        seed=0,
        image_size=case.image_size,
    )


def random_images(num_images: int, side: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Return random images from a fixed seed, with labels that alternate between 0 and 1.

    Returns:
        Images ``(num_images, channels, side, side)`` uint8, and labels ``(num_images,)``
        int64.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (num_images, channels, side, side)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return images, torch.arange(num_images) % 2


def is_random_in_training(model: PixelModel, images: Tensor) -> bool:
    """Return whether a network draws random numbers in training mode.

    The function compares two passes with different seeds on the CPU. Afterwards the network is
    in training mode.
    """
    with torch.no_grad():
        outputs = []
        for seed in (1, 2):
            with seeded(seed):
                outputs.append(model.train()(as_pixels(images)))
    return not torch.equal(*outputs)
