"""Split images by groups into training and test images, and order the training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from search_spaces.errors import TooFewImagesError, plural
from tasks.array_types import BoolArray, Int8Array, Int64Array
from tasks.prepared.table import class_counts_for, count_earlier, number_groups
from tasks.sources.own.splits import GivenSplit

Generator = np.random.Generator
MIN_TEST_GROUP_SHARE = 0.3
"""Smallest share of the groups from which test images are drawn. With a smaller share, the
test set could consist of a few large groups (patients with many images). We chose the share of
test images in the study, 750 of 2,500 images."""


class Candidates(NamedTuple):
    """All images of a subset's classes. Training and test images are chosen from these images.

    Attributes:
        rows: ``(num_candidates,)`` rows of the candidates in the prepared dataset.
        labels: ``(num_candidates,)`` labels of the candidates.
        class_names: Names of the classes in messages, in the order of their labels.
        all_groups: ``(num_images,)`` group ids of all images of the prepared dataset.
        all_splits: ``(num_images,)`` given split of each image of the prepared dataset, see
            :class:`GivenSplit`.
    """

    rows: Int64Array
    labels: Int64Array
    class_names: tuple[str, ...]
    all_groups: Int64Array
    all_splits: Int8Array

    @property
    def groups(self) -> Int64Array:
        """The group id of each candidate, ``(num_candidates,)``."""
        return self.all_groups[self.rows]

    @property
    def splits(self) -> Int8Array:
        """The given split of each candidate, ``(num_candidates,)``."""
        return self.all_splits[self.rows]


class GroupSplit(NamedTuple):
    """The training and test images that were chosen from candidates.

    Attributes:
        candidates: The images that were split.
        train: Indices of the training images in ``candidates.rows``. The training set of size
            N contains the first N of these images.
        test: Indices of the test images in ``candidates.rows``.
    """

    candidates: Candidates
    train: Int64Array
    test: Int64Array


def split_by_group(
    candidates: Candidates,
    test_size: int,
    rng: Generator | None,
    *,
    groups: Int64Array,
    balanced: bool,
) -> GroupSplit:
    """Split candidates by groups into training and test images.

    Args:
        candidates: The images to split.
        test_size: Number of test images.
        rng: Random generator for the order of images and groups. With None, both stay in
            stored order, as in the released code (fault F6).
        groups: ``(num_candidates,)`` group ids. They are usually ``candidates.groups``. If the
            split should ignore groups, each image has another id.
        balanced: True for equal numbers of images of all classes; False for proportional
            numbers.
    """
    labels = candidates.labels
    class_names = candidates.class_names
    splits = candidates.splits
    group_numbers = number_groups(groups)
    available = np.bincount(labels, minlength=len(class_names))
    quotas = class_counts_for(available, test_size, balanced=balanced)
    test = draw_held_out(labels, group_numbers, quotas, splits, rng, class_names)
    in_test_group = np.isin(group_numbers, group_numbers[test])
    trainable = np.flatnonzero(~in_test_group & (splits != GivenSplit.TEST))
    train = stratified_order(labels, trainable, rng, balanced=balanced)
    return GroupSplit(candidates, train, test)


def draw_held_out(
    labels: Int64Array,
    group_numbers: Int64Array,
    quotas: Int64Array,
    splits: Int8Array,
    rng: Generator | None,
    class_names: Sequence[str],
) -> Int64Array:
    """Draw images for testing or validation.

    The images are drawn in three steps:

    1. The groups are ordered at random.
    2. The share :data:`MIN_TEST_GROUP_SHARE` of all groups is used, in this order. More groups
       are used only if a quota needs more groups, or if the data have a test split.
    3. For each class, one image of each used group is drawn first, then a second image of each
       used group, and so on, until the quota is reached.

    If no image of a group is drawn, the group can be used for training.

    Args:
        labels: ``(num_images,)`` label of each image.
        group_numbers: ``(num_images,)`` number of each image's group, from 0.
        quotas: ``(num_classes,)`` number of images to draw for each label.
        splits: ``(num_images,)`` given split of each image. If the data have a test split,
            only its images are drawn.
        rng: Random generator for the order of groups and images. With None, both stay in
            stored order.
        class_names: Names of the classes in messages, in the order of their labels.

    Returns:
        Ascending indices of the drawn images.

    Raises:
        TooFewImagesError: A class has too few images that may be test images.
    """
    num_groups = int(group_numbers.max()) + 1
    rank_of_group = np.arange(num_groups)
    shuffled = np.arange(len(labels))
    if rng is not None:
        rank_of_group = rng.permutation(num_groups)
        shuffled = rng.permutation(len(labels))
    ranks = rank_of_group[group_numbers]
    # The images are ordered by the ranks of their groups. Within each group, they are in
    # shuffled order.
    ordered = shuffled[np.argsort(ranks[shuffled], kind="stable")]
    eligible = ordered[_may_be_tested(group_numbers, splits)[ordered]]
    min_groups = int(np.ceil(MIN_TEST_GROUP_SHARE * num_groups))
    has_test_split = bool((splits == GivenSplit.TEST).any())
    if has_test_split:
        min_groups = num_groups  # the user chose the test images, so all their groups are used
    drawn = []
    for label, quota in enumerate(quotas.tolist()):
        class_images = eligible[labels[eligible] == label]
        if len(class_images) < quota:
            raise _too_few_images(class_names[label], quota, len(class_images), splits)
        drawn.append(_one_per_group_first(class_images, ranks, min_groups, quota))
    return np.sort(np.concatenate(drawn))


def _may_be_tested(group_numbers: Int64Array, splits: Int8Array) -> BoolArray:
    """Return a mask of the images that may be test images, ``(num_images,)``.

    If a group contains an image of the data's training split, no image of this group may be a
    test image. If the data have a test split, only images of the test split may be test
    images.
    """
    training_groups = group_numbers[splits == GivenSplit.TRAIN]
    is_allowed = ~np.isin(group_numbers, training_groups)
    is_test = splits == GivenSplit.TEST
    if is_test.any():
        is_allowed &= is_test
    return is_allowed


def _one_per_group_first(
    class_images: Int64Array, ranks: Int64Array, min_groups: int, quota: int
) -> Int64Array:
    """Choose ``quota`` images: one of each group, then a second image of each group, and so on.

    Args:
        class_images: Indices of the images of one class, in the order of their groups' ranks.
        ranks: ``(num_images,)`` rank of the group of each image, from 0.
        min_groups: Smallest number of groups from which images are chosen. The groups are used
            in the order of their ranks. If the quota needs more groups, more groups are used.
        quota: Number of images to choose.
    """
    if quota == 0:
        return class_images[:0]
    # The groups up to this rank together have at least `quota` images of the class.
    last_needed_rank = int(ranks[class_images[quota - 1]])
    num_groups_used = max(min_groups, last_needed_rank + 1)
    usable = class_images[ranks[class_images] < num_groups_used]
    index_in_group = count_earlier(ranks[usable])
    return usable[np.argsort(index_in_group, kind="stable")[:quota]]


def _too_few_images(
    class_name: str, quota: int, num_allowed: int, splits: Int8Array
) -> TooFewImagesError:
    """Return the error for a class with too few images that may be test images."""
    hint = "Lower test_size, or add images"
    if (splits == GivenSplit.TRAIN).any():
        hint += (
            ". isweep does not test on images of your training split, or on other images of "
            "the same groups. Move some groups to your test split, or remove the split"
        )
    return TooFewImagesError(
        f"Class {class_name} needs {plural(quota, 'test image')}, but {num_allowed} of its "
        "images may be used for testing",
        hint=hint,
    )


def stratified_order(
    labels: Int64Array, trainable: Int64Array, rng: Generator | None, *, balanced: bool
) -> Int64Array:
    """Order images so that the first N images contain all classes in proportion, for every N.

    The weight of a class is its number of images. If ``balanced`` is True, all weights are 1,
    so the classes alternate. In each class, the images are numbered from 0. The image with the
    number j has the key (j + 1/2) / weight. All images are sorted by their keys. Example with
    4 images of class A and 2 of class B: the keys are 1/8, 3/8, 5/8 and 7/8 for A, and 1/4 and
    3/4 for B. The order is A B A A B A.

    Args:
        labels: ``(num_images,)`` label of each image.
        trainable: Indices of the images that may be used.
        rng: Random generator for the order in each class. With None, the order of
            ``trainable`` is kept.
        balanced: True to use equal numbers of images of all classes.

    Returns:
        Indices of the used images, in the new order.
    """
    shuffled = trainable if rng is None else rng.permutation(trainable)
    counts = np.bincount(labels[shuffled], minlength=int(labels.max()) + 1)
    index_in_class = count_earlier(labels[shuffled])
    weights = counts.astype(float)
    if balanced:
        is_used = index_in_class < counts.min()
        shuffled = shuffled[is_used]
        index_in_class = index_in_class[is_used]
        weights = np.ones(len(counts))
    used_labels = labels[shuffled]
    keys = (index_in_class + 0.5) / weights[used_labels]
    # If keys are equal, images are sorted by their labels.
    return shuffled[np.lexsort((used_labels, keys))]
