"""The validation split of a learning-rate search: whole groups of the training images, never a test image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import SubsetSpec, pair_name
from search_spaces.tuning import ValidationSpec
from tasks.prepared.dataset import PreparedDataset
from tasks.prepared.stratify import choose_test, number_groups, quotas_of, stratified_order
from tasks.prepared.subsets import Subset, TrialData, make_subset


@dataclass(frozen=True)
class Split:
    """Rows of a prepared dataset that a search trains on and is judged on.

    Attributes:
        train_rows: rows to train on, the classes in proportion in every prefix.
        train_labels: their labels, in ``range(num_classes)``.
        validation_rows: rows to judge by; they share no group with the others.
        validation_labels: their labels.
        num_classes: number of classes.
    """

    train_rows: NDArray[np.int64]
    train_labels: NDArray[np.int64]
    validation_rows: NDArray[np.int64]
    validation_labels: NDArray[np.int64]
    num_classes: int


def split_validation(
    prepared: PreparedDataset, spec: SubsetSpec, train_size: int, validation: ValidationSpec
) -> Split:
    """Split the first ``train_size`` training images of a subset by groups.

    Args:
        prepared: The dataset.
        spec: The subset whose test images are left alone.
        train_size: Images to train and validate on.
        validation: How many of them to validate on.

    Raises:
        DataError: when the data do not have ``train_size`` images, or a class has too few groups to be on
            both sides, or faults of the released code are on, which let test groups be trained on.
    """
    where = " ".join(filter(None, (spec.prepared.dataset, pair_name(spec.class_pair))))
    if spec.prepared.faults:
        raise DataError(
            "A search validates on groups that no test image is of, which needs corrected data",
            f"{where} with faults {', '.join(spec.prepared.faults)}",
            "tune a sweep in data_mode corrected without faults, and use its recipe",
        )
    labels, groups = prepared.labels, prepared.groups
    subset = make_subset(labels, groups, spec, prepared.splits, max_train_size=train_size)
    rows, targets = subset.train_order[:train_size], subset.train_labels[:train_size]
    members = number_groups(groups[rows])
    quotas = _quotas(where, subset, targets, members, validation.share)
    rng = np.random.default_rng(derive_seed("validation", spec, train_size, validation))
    nowhere = np.zeros(len(rows), np.int8)
    chosen = choose_test(targets, members, quotas, nowhere, rng, subset.class_names)
    free = np.flatnonzero(~np.isin(members, members[chosen]))
    left = np.bincount(targets[free], minlength=subset.num_classes)
    if left.min() < 2:
        raise _too_few_groups(where, subset, targets, members)
    train = stratified_order(targets, free, None, balanced=subset.num_classes == 2)
    _check_apart(groups, rows[train], rows[chosen], subset.test_rows)
    return Split(rows[train], targets[train], rows[chosen], targets[chosen], subset.num_classes)


def load_validation(
    prepared: PreparedDataset, spec: SubsetSpec, train_size: int, validation: ValidationSpec
) -> TrialData:
    """Read the images of a split; see :func:`split_validation`.

    Returns:
        Arrays in the form of any trial's, whose held-out side, ``test_images``, is the validation images. No
        test image is read.

    Raises:
        DataError: see :func:`split_validation`.
        CorruptStoreError: when a shard is damaged.
    """
    split = split_validation(prepared, spec, train_size, validation)
    images = prepared.read_rows(np.concatenate([split.train_rows, split.validation_rows]))
    num_train = len(split.train_rows)
    return TrialData(
        train_images=images[:num_train],
        train_labels=split.train_labels,
        test_images=images[num_train:],
        test_labels=split.validation_labels,
        num_classes=split.num_classes,
        data_fingerprint=prepared.fingerprint,
    )


def _quotas(
    where: str, subset: Subset, targets: NDArray[np.int64], members: NDArray[np.int64], share: float
) -> NDArray[np.int64]:
    """Return how many validation images each class gives, one at least."""
    counts = np.bincount(targets, minlength=subset.num_classes)
    groups = [len(np.unique(members[targets == label])) for label in range(subset.num_classes)]
    if min(groups) < 2:
        raise _too_few_groups(where, subset, targets, members)
    size = max(round(share * len(targets)), subset.num_classes)
    return np.maximum(quotas_of(counts, size, balanced=subset.num_classes == 2), 1)


def _too_few_groups(
    where: str, subset: Subset, targets: NDArray[np.int64], members: NDArray[np.int64]
) -> DataError:
    found = {
        name: f"{len(np.unique(members[targets == label]))} groups, {int((targets == label).sum())} images"
        for label, name in enumerate(subset.class_names)
    }
    return DataError(
        "A class needs enough groups among the training images for a validation split",
        f"{where}: " + "; ".join(f"class {name}: {what}" for name, what in found.items()),
        "raise tune.train_size, lower tune.validation_share, or leave this dataset out of the search",
    )


def _check_apart(
    groups: NDArray[np.generic],
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    test: NDArray[np.int64],
) -> None:
    """See that no group is on two sides; spelt out, so that ``python -O`` checks it too."""
    sides = {"training": train, "validation": validation, "test": test}
    names = list(sides)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            if np.isin(groups[sides[first]], groups[sides[second]]).any():
                raise AssertionError(f"a group is on the {first} and the {second} side of a search")
