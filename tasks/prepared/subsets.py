"""Which images of a prepared dataset are trained and tested on: class pairs, group-wise split, nested
sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from search_spaces.datasets import DATASETS
from search_spaces.errors import DataError
from search_spaces.fingerprint import derive_seed
from search_spaces.recipes import RELEASED_SEED
from search_spaces.specs import SubsetSpec, pair_name
from search_spaces.tuning import ValidationSpec
from tasks.prepared.store import PreparedDataset
from tasks.prepared.table import choose_test, number_groups, quotas_of, stratified_order

# How the released code chose training and test images, fault by fault (``docs/faults.md``).
#
# The pool of a training set of N images is (N + test size) / 2 images of each class:
#
# * ``first_k_selection`` (F6): the first of each class in stored order, instead of a seeded choice; *
# ``misaligned_labels`` (F3, natural sets held in memory): surplus images of the class that fills first are
# dropped from the list of labels but not from the array of images, so image i meets the label of another
# image; the pool is then the first of each class, split by image; * ``fixed_imagenet_files`` (F4,
# ImageNet): the position in the pair's list is looked up in the list of all files, so the images are the
# first files whatever the pair is; * ``test_set_depends_on_size`` (F7): pool and permutation depend on N,
# so every N has another test set; * ``image_level_split`` (F5): groups are ignored.

FILE_LISTS = ("imagenet",)
"""Natural sets read by file name: their labels stay aligned, their files do not (F4 instead of F3)."""


def misaligns(spec: SubsetSpec) -> bool:
    """Tell whether F3 applies: it does to natural sets that the released code held in memory."""
    row = DATASETS.get(spec.prepared.dataset)
    in_memory = row is None or (row.domain == "natural" and row.name not in FILE_LISTS)
    return "misaligned_labels" in spec.prepared.faults and in_memory


def fixes_files(spec: SubsetSpec) -> bool:
    """Tell whether F4 applies."""
    return "fixed_imagenet_files" in spec.prepared.faults and spec.prepared.dataset in FILE_LISTS


def pool(
    rows: NDArray[np.int64], targets: NDArray[np.int64], spec: SubsetSpec, train_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and labels of the pool that F3, F4 and F6 leave, in stored order.

    Args:
        rows: ``(num_images,)`` rows of the task's classes in the prepared dataset, ascending.
        targets: ``(num_images,)`` their labels in ``range(num_classes)``.
        spec: Subset, with faults.
        train_size: N.

    Raises:
        DataError: when a class has fewer than (N + test size) / 2 images, as the released code would.
    """
    num_classes = int(targets.max()) + 1
    per_class = (train_size + spec.test_size) // num_classes
    chosen = [np.flatnonzero(targets == label)[:per_class] for label in range(num_classes)]
    short = min(map(len, chosen))
    if short < per_class:
        raise DataError(
            f"{spec.prepared.dataset}, as released: {train_size} training and {spec.test_size} test images "
            f"need {per_class} images of each class",
            f"{short} of one",
            "lower train_sizes or test_size",
        )
    places = np.sort(np.concatenate(chosen))
    shown = rows[places]
    if misaligns(spec):
        shown = rows[: len(places)]
    elif fixes_files(spec):
        shown = places.astype(np.int64)
    return shown, targets[places]


def released_permutation(size: int) -> NDArray[np.int64]:
    """Return the permutation of torch's ``random_split`` with the released seed; its head is the training
    set.
    """
    import torch

    order = torch.randperm(size, generator=torch.Generator().manual_seed(RELEASED_SEED))
    return order.numpy().astype(np.int64)


@dataclass(frozen=True)
class TrialData:
    """The arrays of one subset, shared read-only by all trials and measures of that subset.

    Attributes:
        train_images: ``(num_train, channels, height, width)``, uint8 or float32, pixels in [0, 255], in
            nested
            order: the training set of size N is the first N rows.
        train_labels: ``(num_train,)`` int64 in ``range(num_classes)``.
        test_images: ``(test_size, channels, height, width)``, same range.
        test_labels: ``(test_size,)`` int64.
        num_classes: number of classes of the task (2 for a class pair).
        data_fingerprint: fingerprint of the prepared dataset they come from.
        shared_group_share: share of test images whose group is also in training; 0 without faults.
        test_rows: ``(test_size,)`` which images of the prepared dataset the test images are; None where that
            is not known.
    """

    train_images: NDArray[np.generic]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.generic]
    test_labels: NDArray[np.int64]
    num_classes: int
    data_fingerprint: str
    shared_group_share: float = 0.0
    test_rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Subset:
    """Rows of a prepared dataset to train and test on.

    Attributes:
        train_order: ``(max_train_size,)`` rows; the training set of size N is the first N. Any prefix is
            balanced: equal classes up to one image, or proportional for a whole set of more than two classes.
        train_labels: ``(max_train_size,)`` labels of those rows, in ``range(num_classes)``.
        test_rows: ``(test_size,)`` rows, the same for every train size.
        test_labels: ``(test_size,)`` labels.
        num_classes: Number of classes.
        class_names: Spelling of each class for messages: its index in the prepared dataset.
        shared_group_share: Share of test images whose group is also in ``train_order``; 0 unless a fault of
            the
            released code is switched on.
    """

    train_order: NDArray[np.int64]
    train_labels: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    test_labels: NDArray[np.int64]
    num_classes: int
    class_names: tuple[str, ...]
    shared_group_share: float = 0.0

    @property
    def max_train_size(self) -> int:
        """Largest train size this subset allows."""
        return len(self.train_order)

    def class_counts(self, train_size: int) -> tuple[int, ...]:
        """Images of each class among the first ``train_size``."""
        return tuple(np.bincount(self.train_labels[:train_size], minlength=self.num_classes).tolist())

    def check_train_size(self, train_size: int) -> None:
        """Refuse a train size that the data do not allow.

        Raises:
            DataError: saying how many images there are.
        """
        if train_size > self.max_train_size:
            per_class = dict(zip(self.class_names, self.class_counts(self.max_train_size), strict=True))
            raise DataError(
                f"Train size {train_size} needs as many images beside {len(self.test_rows)} test images",
                f"at most {self.max_train_size} (class: images {per_class})",
                f"lower train_sizes to at most {self.max_train_size}, or lower test_size",
            )


def make_subset(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    spec: SubsetSpec,
    splits: NDArray[np.int8] | None = None,
    *,
    max_train_size: int | None = None,
) -> Subset:
    """Split one class pair, or a whole dataset, by groups.

    The order is a function of ``labels``, who shares a group, and ``spec``; never of which train sizes are
    used.

    Args:
        labels: ``(num_images,)`` class indices of the prepared dataset.
        groups: ``(num_images,)`` ids; images with equal ids never end on both sides. The ids' values do not
            matter.
        spec: Class pair, test size, seed.
        splits: ``(num_images,)`` 0 = to be split here, 1 = only for training, 2 = only for testing.
        max_train_size: Largest train size that will be asked for, to refuse it here. It changes nothing else,
            unless faults of the released code are on that make the choice depend on it; those subsets have
            to be made anew for every train size.

    Raises:
        DataError: when the data do not have ``max_train_size`` images beside the test set, when a class is
            missing, or has too few images outside the training groups for the test
            set.
    """
    rows, targets, names = _task(labels, spec)
    if splits is None:
        splits = np.zeros(len(labels), np.int8)
    if spec.prepared.faults:
        subset = _faulty_subset(rows, targets, names, groups, splits, spec, max_train_size)
    else:
        rng = np.random.default_rng(derive_seed("subset", spec.split_seed, spec.class_pair))
        balanced = len(names) == 2
        subset = _split(rows, targets, names, groups[rows], splits[rows], spec, rng, balanced=balanced)
        if subset.shared_group_share:  # spelt out, so that python -O checks it too
            raise AssertionError("a group is on both sides of the split")
    if max_train_size is not None:
        subset.check_train_size(max_train_size)
    return subset


def _split(
    rows: NDArray[np.int64],
    targets: NDArray[np.int64],
    names: tuple[str, ...],
    groups: NDArray[np.int64],
    given: NDArray[np.int8],
    spec: SubsetSpec,
    rng: np.random.Generator | None,
    *,
    balanced: bool,
) -> Subset:
    """Split the images of a task by groups; ``rng`` None takes them in stored order (F6)."""
    members = number_groups(groups)
    quotas = quotas_of(np.bincount(targets, minlength=len(names)), spec.test_size, balanced=balanced)
    test = choose_test(targets, members, quotas, given, rng, names)
    free = ~np.isin(members, members[test]) & (given != 2)
    train = stratified_order(targets, np.flatnonzero(free), rng, balanced=balanced)
    shared = float(np.isin(members[test], members[train]).mean())
    return Subset(rows[train], targets[train], rows[test], targets[test], len(names), names, shared)


def _faulty_subset(
    rows: NDArray[np.int64],
    targets: NDArray[np.int64],
    names: tuple[str, ...],
    groups: NDArray[np.int64],
    splits: NDArray[np.int8],
    spec: SubsetSpec,
    train_size: int | None,
) -> Subset:
    """Split with the faults of the released code that the spec switches on; see
    :mod:`tasks.prepared.subsets`.
    """
    faults = set(spec.prepared.faults)
    by_size = "test_set_depends_on_size" in faults
    pooled = misaligns(spec) or fixes_files(spec)
    if pooled or by_size:
        if train_size is None:
            rule = "These faults need the train size: " + ", ".join(sorted(faults))
            raise DataError(rule, "none", "pass max_train_size, one train size at a time")
        if by_size and {"image_level_split", "first_k_selection"} <= faults:
            return _as_released(rows, targets, names, groups, spec, train_size)
        if pooled:
            rows, targets = pool(rows, targets, spec, train_size)
    seed = ("subset", spec.split_seed, spec.class_pair, *((train_size,) if by_size else ()))
    rng = None if "first_k_selection" in faults else np.random.default_rng(derive_seed(*seed))
    # A pool has no image to spare, so it cannot be split by groups.
    members = np.arange(len(rows)) if pooled or "image_level_split" in faults else groups[rows]
    balanced = len(names) == 2 and not misaligns(spec)
    subset = _split(rows, targets, names, members, splits[rows], spec, rng, balanced=balanced)
    shared = float(np.isin(groups[subset.test_rows], groups[subset.train_order]).mean())
    return replace(subset, shared_group_share=shared)


def _as_released(
    rows: NDArray[np.int64],
    targets: NDArray[np.int64],
    names: tuple[str, ...],
    groups: NDArray[np.int64],
    spec: SubsetSpec,
    train_size: int,
) -> Subset:
    """Choose exactly the images, labels and order of the released code for one train size."""
    shown, shown_targets = pool(rows, targets, spec, train_size)
    order = released_permutation(len(shown))
    train, test = order[: len(shown) - spec.test_size], order[len(shown) - spec.test_size :]
    shared = float(np.isin(groups[shown[test]], groups[shown[train]]).mean())
    return Subset(
        shown[train], shown_targets[train], shown[test], shown_targets[test], len(names), names, shared
    )


def load_subset(prepared: PreparedDataset, spec: SubsetSpec, *, max_train_size: int) -> TrialData:
    """Read a subset's images.

    Args:
        prepared: The dataset.
        spec: Which images.
        max_train_size: How many training images to read; smaller training sets are prefixes.

    Raises:
        DataError: when the data do not have that many images.
        CorruptStoreError: when a shard is damaged.
    """
    subset = make_subset(
        prepared.labels, prepared.groups, spec, prepared.splits, max_train_size=max_train_size
    )
    train = subset.train_order[:max_train_size]
    images = prepared.read_rows(np.concatenate([train, subset.test_rows]))
    return TrialData(
        train_images=images[:max_train_size],
        train_labels=subset.train_labels[:max_train_size],
        test_images=images[max_train_size:],
        test_labels=subset.test_labels,
        num_classes=subset.num_classes,
        data_fingerprint=prepared.fingerprint,
        shared_group_share=subset.shared_group_share,
        test_rows=subset.test_rows,
    )


def _task(
    labels: NDArray[np.int64], spec: SubsetSpec
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    """Return (rows, labels in ``range(num_classes)``, class names) of the task."""
    classes = spec.class_pair or tuple(range(int(labels.max(initial=-1)) + 1))
    counts = {label: int((labels == label).sum()) for label in classes}
    missing = [str(label) for label, count in counts.items() if count == 0]
    name = spec.prepared.dataset
    if missing or len(classes) < 2:
        rule = f"{name}{' ' + pair_name(spec.class_pair) if spec.class_pair else ''}: each class needs images"
        raise DataError(rule, f"none of class {', '.join(missing)}" if missing else "one class only")
    rows = np.flatnonzero(np.isin(labels, classes)).astype(np.int64)
    lookup = {label: index for index, label in enumerate(classes)}
    targets = np.array([lookup[int(label)] for label in labels[rows]], dtype=np.int64)
    return rows, targets, tuple(map(str, classes))


# The validation split of a learning-rate search: whole groups of the training images, never a test image.


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
