"""Conditions of an experiment that move images after the split.

To move an image is to blend the nearest training image of another class into it. A training image
moves toward another training image, so nothing of the test set enters training. Which images move
is chosen among *all* training images of the split. It does not depend on the train sizes of a
sweep, so training sets of all sizes stay nested.

A further test set is the base dataset's test images, moved by the same rule: those nearest to a
training image of another class move toward it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_spaces.interventions import TRAINING_PARAMETERS
from search_spaces.specs import DatasetParameters, FurtherTest, SubsetSpec
from tasks.prepared.store import PreparedDataset
from tasks.prepared.subsets import FurtherTestImages, Subset, TrialData

Images = NDArray[np.generic]
Labels = NDArray[np.int64]
DISTANCE_BLOCK_ROWS = 1024
"""Images whose distances to the training images are in memory at a time."""


class LabeledImages(NamedTuple):
    """Images ``(num_images, channels, height, width)``, and labels ``(num_images,)``."""

    images: Images
    labels: Labels


def load_subset(
    prepared: PreparedDataset,
    subset: Subset,
    spec: SubsetSpec,
    train_size: int,
    further_tests: tuple[FurtherTest, ...] = (),
) -> TrialData:
    """Read the images of a subset, and apply its condition to the training images.

    Args:
        prepared: The prepared dataset.
        subset: The split of ``spec``, which no condition changes.
        spec: The subset and its condition.
        train_size: Number of training images.
        further_tests: Conditions that move the test images, each for a further test set.
    """
    data = subset.load(prepared, train_size)
    if spec.condition is None and not further_tests:
        return data
    training = LabeledImages(prepared.read_rows(subset.train_order), subset.train_labels)
    if spec.condition is not None:
        images, _ = blend_images(training, training, spec.condition.parameters)
        data = replace(data, train_images=images[:train_size])
    base_test = LabeledImages(data.test_images, data.test_labels)
    tests = []
    for test in further_tests:
        images, is_blended = blend_images(base_test, training, test.parameters)
        tests.append(FurtherTestImages(test.name, images, is_blended))
    return replace(data, further_tests=tuple(tests))


def blend_images(
    start: LabeledImages,
    training: LabeledImages,
    parameters: DatasetParameters,
) -> tuple[Images, NDArray[np.bool_]]:
    """Move the images that lie nearest to a training image of another class toward it.

    Args:
        start: The images before they move. Their dtype is kept, and uint8 is rounded.
        training: The training images as they were prepared.
        parameters: Values of ``reach`` and ``blend``, if they are not at their default; see
            :data:`~search_spaces.interventions.TRAINING_PARAMETERS`.

    Returns:
        The images, and ``(num_images,)`` whether each one moved.
    """
    values = {name: parameter.default for name, parameter in TRAINING_PARAMETERS.items()}
    values |= dict(parameters)
    is_blended = np.zeros(len(start.images), dtype=np.bool_)
    if values["blend"] == 0:  # the control condition: no image moves
        return start.images, is_blended
    partners, distances = find_nearest_of_other_class(start, training)
    num_moved = round(values["reach"] * len(start.images))
    is_blended[np.argsort(distances, kind="stable")[:num_moved]] = True
    images = start.images.copy()
    moving = images[is_blended].astype(np.float64)
    target = training.images[partners[is_blended]].astype(np.float64)
    mixed = moving + values["blend"] * (target - moving)
    images[is_blended] = np.rint(mixed) if images.dtype == np.uint8 else mixed
    return images, is_blended


def find_nearest_of_other_class(
    start: LabeledImages, training: LabeledImages
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each image's nearest training image of another class, and the squared distance.

    Returns:
        ``(num_images,)`` indices into ``training``, and ``(num_images,)`` squared distances.
    """
    # In float64 the products of whole pixel values are exact, so ties do not depend on the machine.
    rows = start.images.reshape(len(start.images), -1).astype(np.float64)
    training_rows = training.images.reshape(len(training.images), -1).astype(np.float64)
    training_squares = np.square(training_rows).sum(axis=1)
    nearest = np.zeros(len(rows), dtype=np.int64)
    distances = np.full(len(rows), np.inf)
    for first in range(0, len(rows), DISTANCE_BLOCK_ROWS):
        block = slice(first, first + DISTANCE_BLOCK_ROWS)
        squares = np.square(rows[block]).sum(axis=1)[:, None] + training_squares
        squares -= 2 * rows[block] @ training_rows.T
        squares[start.labels[block, None] == training.labels] = np.inf
        nearest[block] = squares.argmin(axis=1)
        distances[block] = squares.min(axis=1)
    return nearest, distances
