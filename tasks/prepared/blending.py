"""Blend images after the split, as the conditions of an experiment require.

A blended image is a mixture of an image and its *partner*, the nearest training image of
another class. The partner is always a training image, so no test image influences training.

The images to blend are chosen from *all* training images of the split. So the choice does not
depend on the train size, and the training sets of all sizes are nested.

A *further test set* consists of the test images of the base dataset after a condition has
blended some of them. The condition blends the test images that are nearest to a training image
of another class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from search_spaces.interventions import TRAINING_PARAMETERS
from search_spaces.specs import DatasetParameters, FurtherTest, SubsetSpec
from tasks.array_types import AnyArray, BoolArray, Float64Array, Int64Array
from tasks.prepared.store import PreparedDataset
from tasks.prepared.subsets import FurtherTestImages, Subset, TrialData

DISTANCE_BLOCK_ROWS = 1024
"""Number of images in a block of the distance matrix. The number limits the memory for
distances."""


class LabeledImages(NamedTuple):
    """Images and their labels.

    Attributes:
        images: ``(num_images, channels, height, width)`` pixels.
        labels: ``(num_images,)`` label of each image.
    """

    images: AnyArray
    labels: Int64Array


class BlendedImages(NamedTuple):
    """Images of which some have been blended.

    Attributes:
        images: ``(num_images, channels, height, width)`` pixels, blended or unchanged.
        is_blended: ``(num_images,)`` mask of the blended images.
    """

    images: AnyArray
    is_blended: BoolArray


def load_subset(
    prepared: PreparedDataset,
    subset: Subset,
    spec: SubsetSpec,
    train_size: int,
    further_tests: tuple[FurtherTest, ...] = (),
) -> TrialData:
    """Read the images of a subset, and blend training images as its condition requires.

    Args:
        prepared: The prepared dataset.
        subset: The training and test images that ``spec`` chooses. They do not depend on the
            condition.
        spec: The spec of the subset and of its condition.
        train_size: Number of training images.
        further_tests: The conditions of the further test sets. Each condition is applied to
            the test images, and results in one further test set.
    """
    data = subset.load(prepared, train_size)
    if spec.condition is None and not further_tests:
        return data
    # The images to blend, and their partners, are chosen from all training images, and not
    # only from the first `train_size` images.
    training = LabeledImages(prepared.read_rows(subset.train_rows), subset.train_labels)
    if spec.condition is not None:
        blended = blend_images(training, training, spec.condition.parameters)
        data = replace(data, train_images=blended.images[:train_size])
    test_images = LabeledImages(data.test_images, data.test_labels)
    further_test_images = []
    for test in further_tests:
        blended = blend_images(test_images, training, test.parameters)
        further_test_images.append(FurtherTestImages(test.name, blended.images, blended.is_blended))
    return replace(data, further_tests=tuple(further_test_images))


def blend_images(
    originals: LabeledImages,
    training: LabeledImages,
    parameters: DatasetParameters,
) -> BlendedImages:
    """Blend the images that are nearest to a training image of another class.

    Args:
        originals: The images before blending. The blended images have the same dtype. If it is
            uint8, pixel values are rounded.
        training: The training images before blending.
        parameters: Pairs (name, value). ``reach`` is the share of images to blend, and
            ``blend`` is the weight of the partner. If a parameter is missing, its default in
            :data:`~search_spaces.interventions.TRAINING_PARAMETERS` is used.
    """
    settings = {name: parameter.default for name, parameter in TRAINING_PARAMETERS.items()}
    settings |= dict(parameters)
    partner_weight = settings["blend"]
    is_blended = np.zeros(len(originals.images), dtype=np.bool_)
    if partner_weight == 0:  # nothing changes
        return BlendedImages(originals.images, is_blended)
    partners, distances = find_nearest_of_other_class(originals, training)
    num_blended = round(settings["reach"] * len(originals.images))
    is_blended[np.argsort(distances, kind="stable")[:num_blended]] = True
    images = originals.images.copy()
    chosen_images = images[is_blended].astype(np.float64)
    partner_images = training.images[partners[is_blended]].astype(np.float64)
    mixed = chosen_images + partner_weight * (partner_images - chosen_images)
    images[is_blended] = np.rint(mixed) if images.dtype == np.uint8 else mixed
    return BlendedImages(images, is_blended)


def find_nearest_of_other_class(
    originals: LabeledImages, training: LabeledImages
) -> tuple[Int64Array, Float64Array]:
    """Return the nearest training image of another class for each image.

    Images of the same class are never neighbors. So the nearest image of a training image is
    never the image itself.

    Returns:
        ``(num_images,)`` indices into ``training``, and ``(num_images,)`` squared distances.
        For float pixels, a distance of 0 may be computed as slightly less than 0.
    """
    # In float64, products of whole pixel values are exact. So if distances are equal, the
    # choice between them does not depend on the machine.
    rows = originals.images.reshape(len(originals.images), -1).astype(np.float64)
    training_rows = training.images.reshape(len(training.images), -1).astype(np.float64)
    training_squared_norms = np.square(training_rows).sum(axis=1)
    nearest = np.zeros(len(rows), dtype=np.int64)
    distances = np.full(len(rows), np.inf)
    for block_start in range(0, len(rows), DISTANCE_BLOCK_ROWS):
        block = slice(block_start, block_start + DISTANCE_BLOCK_ROWS)
        # |a - b|² = |a|² + |b|² - 2ab
        block_squared_norms = np.square(rows[block]).sum(axis=1)
        squared_distances = block_squared_norms[:, None] + training_squared_norms
        squared_distances -= 2 * rows[block] @ training_rows.T
        squared_distances[originals.labels[block, None] == training.labels] = np.inf
        nearest[block] = squared_distances.argmin(axis=1)
        distances[block] = squared_distances.min(axis=1)
    return nearest, distances
