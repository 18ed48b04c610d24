"""Choose training and test images of a prepared dataset, split by groups.

Test images are drawn first, from groups in a random order with a seed. Training images come
only from the other groups, so no group is in both sets. The training images are in one fixed
order. The training set of size N contains the first N images in this order.

A *class* is an index into all classes of the prepared dataset. A *label* is an index into the
classes of the subset, from 0 to ``num_classes - 1``. Networks are trained with labels. For
example, if the subset is the class pair (3, 8), images of class 3 have the label 0, and images
of class 8 have the label 1.

A *given split* is a split that the data themselves define, such as an official test set. If
the data have a given split with test images, test images are drawn only from these images.

:mod:`tasks.prepared.group_split` draws and orders the images. A spec can switch on faults of
the code that was released with the paper (``docs/faults.md``). In that case,
:mod:`tasks.prepared.released_faults` chooses the images.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search_spaces.errors import DataError, TooFewImagesError, plural
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import SubsetSpec, pair_name
from search_spaces.tuning import ValidationSpec
from tasks.array_types import AnyArray, BoolArray, Int8Array, Int64Array
from tasks.prepared.group_split import (
    Candidates,
    GroupSplit,
    draw_held_out,
    split_by_group,
    stratified_order,
)
from tasks.prepared.released_faults import split_with_faults
from tasks.prepared.store import PreparedDataset
from tasks.prepared.table import class_counts_for, count_groups, number_groups
from tasks.sources.own.splits import GivenSplit

MIN_IMAGES_PER_CLASS = 2
"""Smallest allowed number of training images per class after a validation split. We chose 2,
because a network cannot learn a class from a single image."""


@dataclass(frozen=True)
class FurtherTestImages:
    """A further test set: the test images of a subset after a condition blended some of them.

    Attributes:
        name: Name of the condition.
        images: ``(test_size, channels, height, width)`` test images after blending. They have
            the dtype and the pixel range of the original test images.
        is_blended: ``(test_size,)`` mask of the images that the condition blended. A condition
            does not change labels.
    """

    name: str
    images: AnyArray
    is_blended: BoolArray


@dataclass(frozen=True)
class TrialData:
    """The images and labels of one subset, which its trials and measures use.

    Do not change the arrays, because all trials and measures of the subset share them.

    Attributes:
        train_images: ``(num_train, channels, height, width)`` training images, uint8 or
            float32 with pixels in [0, 255]. The training set of size N contains the first N
            images.
        train_labels: ``(num_train,)`` labels in ``range(num_classes)``.
        test_images: ``(test_size, channels, height, width)`` test images, with the same dtype
            and pixel range.
        test_labels: ``(test_size,)`` labels in ``range(num_classes)``.
        num_classes: Number of classes.
        data_fingerprint: Fingerprint of the prepared dataset that contains the images.
        shared_group_share: Share of test images whose group is also in the training set. It is
            0 if no fault is switched on.
        test_rows: ``(test_size,)`` rows of the test images in the prepared dataset; None if
            unknown.
        further_tests: The further test sets on which the trial tests its network.
    """

    train_images: AnyArray
    train_labels: Int64Array
    test_images: AnyArray
    test_labels: Int64Array
    num_classes: int
    data_fingerprint: str
    shared_group_share: float = 0.0
    test_rows: Int64Array | None = None
    further_tests: tuple[FurtherTestImages, ...] = ()


@dataclass(frozen=True)
class Subset:
    """The rows of a prepared dataset that are used for training and testing.

    Attributes:
        train_rows: ``(max_train_size,)`` rows of the training images. The training set of size
            N contains the first N rows. If there are two classes, their numbers of images in
            such a set differ by at most one. If there are more classes, their proportions in
            such a set are the same as in all training images, up to rounding. Some faults of
            the released code violate these rules.
        train_labels: ``(max_train_size,)`` labels of these rows, in ``range(num_classes)``.
        test_rows: ``(test_size,)`` rows of the test images, the same for every train size.
        test_labels: ``(test_size,)`` labels of the test images.
        class_names: Names of the classes in messages, in the order of their labels.
        shared_group_share: Share of test images whose group is also in the training set. It is
            0 if no fault is switched on.
    """

    train_rows: Int64Array
    train_labels: Int64Array
    test_rows: Int64Array
    test_labels: Int64Array
    class_names: tuple[str, ...]
    shared_group_share: float = 0.0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def max_train_size(self) -> int:
        """Largest train size that this subset allows."""
        return len(self.train_rows)

    def load(self, prepared: PreparedDataset, train_size: int) -> TrialData:
        """Read the first ``train_size`` training images, and all test images.

        Raises:
            DataError: The subset has fewer than ``train_size`` training images.
        """
        if train_size > self.max_train_size:
            raise DataError(
                f"The subset has only {self.max_train_size} training images, but the train "
                f"size is {train_size}",
                hint=f"Lower the train size to at most {self.max_train_size}",
            )
        rows = np.concatenate([self.train_rows[:train_size], self.test_rows])
        images = prepared.read_rows(rows)
        return TrialData(
            train_images=images[:train_size],
            train_labels=self.train_labels[:train_size],
            test_images=images[train_size:],
            test_labels=self.test_labels,
            num_classes=self.num_classes,
            data_fingerprint=prepared.fingerprint,
            shared_group_share=self.shared_group_share,
            test_rows=self.test_rows,
        )


def make_subset(
    classes: Int64Array,
    groups: Int64Array,
    spec: SubsetSpec,
    splits: Int8Array | None = None,
    *,
    max_train_size: int | None = None,
    class_names: Sequence[str] = (),
) -> Subset:
    """Split the images of one class pair, or of a whole dataset, by groups.

    The order of the images depends on the classes, the groups and the subset spec, but not on
    train sizes. With some faults of the released code, the chosen images also depend on
    ``max_train_size``. The caller must then call this function once for every train size.

    Args:
        classes: ``(num_images,)`` class index of each image.
        groups: ``(num_images,)`` group id of each image. The ids are only compared for
            equality.
        spec: The subset spec: the class pair, the size of the test set, the seed and the
            faults.
        splits: ``(num_images,)`` given split of each image, see :class:`GivenSplit`; None if
            the data have no given split.
        max_train_size: The largest train size. The subset must have at least this many
            training images.
        class_names: Names of all classes of the dataset, for messages. If it is empty,
            messages contain class indices instead.

    Raises:
        DataError: A class has no images, or there are too few images.
    """
    subset_classes = spec.class_pair or tuple(range(int(classes.max(initial=-1)) + 1))
    _check_classes(classes, subset_classes, spec)
    rows = np.flatnonzero(np.isin(classes, subset_classes)).astype(np.int64)
    labels = np.zeros(len(rows), np.int64)
    for label, class_index in enumerate(subset_classes):
        labels[classes[rows] == class_index] = label
    if splits is None:
        splits = np.full(len(classes), GivenSplit.NONE, np.int8)
    if not class_names:
        class_names = list(map(str, range(max(subset_classes) + 1)))
    subset_class_names = tuple(class_names[class_index] for class_index in subset_classes)
    candidates = Candidates(rows, labels, subset_class_names, all_groups=groups, all_splits=splits)
    if spec.prepared.faults:
        subset = _subset_from_split(split_with_faults(candidates, spec, max_train_size))
    else:
        rng = np.random.default_rng(derive_seed("subset", spec.split_seed, spec.class_pair))
        split = split_by_group(
            candidates,
            spec.test_size,
            rng,
            groups=candidates.groups,  # only faults of the released code use others
            balanced=len(subset_classes) == 2,
        )
        subset = _subset_from_split(split)
        # If this module is correct, this error cannot occur. With python -O, an assert
        # statement would not be checked.
        if subset.shared_group_share:
            raise AssertionError("the training set and the test set share a group")
    if max_train_size is not None:
        _check_train_size(subset, max_train_size)
    return subset


def _check_classes(
    classes: Int64Array,
    subset_classes: Sequence[int],
    spec: SubsetSpec,
) -> None:
    """Raise a DataError if a class of the subset has no images, or if there is only one class."""
    empty = [str(index) for index in subset_classes if not (classes == index).any()]
    if empty:
        raise DataError(
            f"{_describe(spec)}: there are no images of the class {', '.join(empty)}",
            hint="Choose other classes, or add images",
        )
    if len(subset_classes) < 2:
        raise DataError(
            f"{_describe(spec)}: the data have only one class", hint="Add images of a second class"
        )


def _describe(spec: SubsetSpec) -> str:
    """Format the name of the dataset and the class pair of a subset for messages."""
    return f"{spec.prepared.dataset} {pair_name(spec.class_pair)}".strip()


def _check_train_size(subset: Subset, train_size: int) -> None:
    """Raise a TooFewImagesError if a subset has fewer than ``train_size`` training images."""
    largest = subset.max_train_size
    if train_size <= largest:
        return
    counts = np.bincount(subset.train_labels, minlength=subset.num_classes)
    classes = zip(subset.class_names, counts, strict=True)
    images_of_class = ", ".join(f"class {name}: {count}" for name, count in classes)
    hint = "Lower test_size"
    if largest > 1:
        hint = f"Lower `train_sizes` to at most {largest}, or lower `test_size`"
    raise TooFewImagesError(
        f"the train size {train_size} is too large: with {len(subset.test_rows)} test images, "
        f"at most {largest} images are left for training ({images_of_class})",
        hint=hint,
        largest_train_size=largest,
    )


def _subset_from_split(split: GroupSplit) -> Subset:
    """Convert a split of candidates to a subset.

    The indices in the split are indices of candidates. In the result they are rows of the
    prepared dataset.
    """
    candidates = split.candidates
    train_rows = candidates.rows[split.train]
    test_rows = candidates.rows[split.test]
    is_shared = np.isin(candidates.all_groups[test_rows], candidates.all_groups[train_rows])
    return Subset(
        train_rows=train_rows,
        train_labels=candidates.labels[split.train],
        test_rows=test_rows,
        test_labels=candidates.labels[split.test],
        class_names=candidates.class_names,
        shared_group_share=float(is_shared.mean()),
    )


def split_validation(
    prepared: PreparedDataset, spec: SubsetSpec, train_size: int, validation: ValidationSpec
) -> Subset:
    """Split the training images of a subset by groups, for a learning-rate search.

    Args:
        prepared: The prepared dataset.
        spec: The subset spec. The result does not contain its test images.
        train_size: Number of training images to split. The first training images of the subset
            are split.
        validation: The spec of the split: the share of validation images, and the index of the
            random split.

    Returns:
        A subset whose ``test_rows`` are the rows of the validation images. All its training
        images are from other groups.

    Raises:
        DataError: A class has too few groups for two sets. Or the spec switches on faults of
            the released code: with such faults, a group may be in both sets.
    """
    if spec.prepared.faults:
        raise DataError(
            f"A search needs corrected data, but {_describe(spec)} has the faults "
            f"{', '.join(spec.prepared.faults)}",
            hint="Run `isweep tune` on a sweep with `data_mode: corrected` and no faults. "
            "Then use the recipe that the search wrote in this sweep",
        )
    subset = make_subset(
        prepared.classes, prepared.groups, spec, prepared.splits, max_train_size=train_size
    )
    rows = subset.train_rows[:train_size]
    labels = subset.train_labels[:train_size]
    group_numbers = number_groups(prepared.groups[rows])
    num_classes = subset.num_classes
    groups_per_class = count_groups(labels, group_numbers, num_classes)
    images_per_class = np.bincount(labels, minlength=num_classes)
    too_few_groups_error = _too_few_groups_error(
        spec, subset.class_names, groups_per_class.tolist(), images_per_class.tolist()
    )
    if groups_per_class.min() < 2:
        raise too_few_groups_error
    balanced = num_classes == 2
    size = max(round(validation.share * len(labels)), num_classes)
    # The validation set must have at least one image of each class.
    quotas = np.maximum(class_counts_for(images_per_class, size, balanced=balanced), 1)
    no_splits = np.full(len(rows), GivenSplit.NONE, np.int8)
    rng = np.random.default_rng(derive_seed("validation", spec, train_size, validation))
    validation_indices = draw_held_out(
        labels, group_numbers, quotas, no_splits, rng, subset.class_names
    )
    trainable = np.flatnonzero(~np.isin(group_numbers, group_numbers[validation_indices]))
    # No image of a drawn group stays in the training set.
    num_trainable_per_class = np.bincount(labels[trainable], minlength=num_classes)
    if num_trainable_per_class.min() < MIN_IMAGES_PER_CLASS:
        raise too_few_groups_error
    # rng=None keeps the order of the training images, which is already random.
    train = stratified_order(labels, trainable, None, balanced=balanced)
    _check_no_shared_group(
        prepared.groups,
        {
            "training": rows[train],
            "validation": rows[validation_indices],
            "test": subset.test_rows,
        },
    )
    return Subset(
        train_rows=rows[train],
        train_labels=labels[train],
        test_rows=rows[validation_indices],
        test_labels=labels[validation_indices],
        class_names=subset.class_names,
    )


def _too_few_groups_error(
    spec: SubsetSpec,
    class_names: Sequence[str],
    groups_per_class: Sequence[int],
    images_per_class: Sequence[int],
) -> DataError:
    """Return the error for a class with too few groups for a validation split."""
    counts = []
    classes = zip(class_names, groups_per_class, images_per_class, strict=True)
    for name, num_groups, num_images in classes:
        counts.append(f"class {name}: {plural(num_groups, 'group')}, {plural(num_images, 'image')}")
    return DataError(
        f"{_describe(spec)}: the training images have too few groups (patients) for a "
        f"validation split ({'; '.join(counts)})",
        hint="Raise `tune.train_size`, lower `tune.validation_share`, or leave the dataset "
        f"{spec.prepared.dataset} out of the search",
    )


def _check_no_shared_group(groups: Int64Array, rows_of_sets: dict[str, Int64Array]) -> None:
    """Raise an AssertionError if two sets of a learning-rate search share a group.

    Args:
        groups: ``(num_images,)`` group ids of all images.
        rows_of_sets: Rows of each set, by the name of the set.
    """
    for first, second in itertools.combinations(rows_of_sets, 2):
        if np.isin(groups[rows_of_sets[first]], groups[rows_of_sets[second]]).any():
            # An assert statement would not be checked with python -O.
            raise AssertionError(f"the {first} and the {second} set of a search share a group")


def load_validation(
    prepared: PreparedDataset, spec: SubsetSpec, train_size: int, validation: ValidationSpec
) -> TrialData:
    """Read the training and validation images that :func:`split_validation` chooses.

    No test image of the subset is read.

    Raises:
        DataError: The spec has a condition that changes training images.
    """
    if spec.condition is not None:
        raise DataError(
            f"A search needs unchanged images, but the condition of {spec.dataset} changes "
            "training images",
            hint=f"Run `isweep tune` on the base dataset {spec.prepared.dataset}, and write "
            "the recipe that the search chooses into this sweep file",
        )
    split = split_validation(prepared, spec, train_size, validation)
    return split.load(prepared, split.max_train_size)
