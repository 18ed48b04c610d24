"""What a trial is given, checked before anything is built."""

from __future__ import annotations

import numpy as np

from search_spaces.errors import ConfigError, DataError
from search_spaces.trials import NetworkSpec
from tasks.prepared.subsets import TrialData


def check_inputs(network: NetworkSpec, data: TrialData) -> None:
    """Refuse images, labels and sizes that a trial cannot be carried out with.

    Raises:
        ConfigError: for fewer outputs than classes.
        DataError: for fewer training images than asked for, or pixels or labels out of range.
    """
    if network.train_size > len(data.train_images):
        raise DataError(
            "A subset must hold at least as many training images as train_size",
            f"{len(data.train_images)} images for train_size {network.train_size}",
            "choose a smaller train_size or a smaller test_size",
        )
    num_outputs = network.recipe.num_outputs
    if num_outputs is not None and num_outputs < data.num_classes:
        raise ConfigError(
            "A network needs at least one output per class",
            f"num_outputs {num_outputs} for {data.num_classes} classes",
            "leave num_outputs out of the recipe to get one output per class",
        )
    for name, images, labels in (
        ("training", data.train_images[: network.train_size], data.train_labels[: network.train_size]),
        ("test", data.test_images, data.test_labels),
    ):
        _check_arrays(name, images, labels, data.num_classes)


def _check_arrays(name: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    # The comparison is false for NaN as well.
    if images.dtype != np.uint8 and not (images.min() >= 0 and images.max() <= 255):
        raise DataError(
            "Pixels must be numbers from 0 to 255",
            f"{images.min()} to {images.max()} in the {name} images",
            "scale the images to [0, 255] and prepare them again",
        )
    if not (labels.min() >= 0 and labels.max() < num_classes):
        raise DataError(
            f"Labels must be integers from 0 to {num_classes - 1}",
            f"{labels.min()} to {labels.max()} in the {name} labels",
            "prepare the dataset again, or correct num_classes",
        )
