"""Which images of a prepared dataset are trained and tested on: class pairs, group-wise split,
nested sizes.

The faults of the released code, which ``docs/faults.md`` lists, change that choice where a spec
switches them on. The pool of a training set of N images is then (N + test size) / 2 images of each
class:

- ``first_k_selection`` (F6): the first of each class in stored order, instead of a seeded choice;
- ``misaligned_labels`` (F3, natural sets held in memory): surplus images of the class that fills
  first are dropped from the list of labels but not from the array of images, so image i meets the
  label of another image; the pool is then the first of each class, split by image;
- ``fixed_imagenet_files`` (F4, ImageNet): the position in the pair's list is looked up in the list
  of all files, so the images are the first files whatever the pair is;
- ``test_set_depends_on_size`` (F7): pool and permutation depend on N, so every N has another test
set;
- ``image_level_split`` (F5): groups are ignored.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_spaces.datasets import DATASETS
from search_spaces.errors import DataError, plural
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import RELEASED_SEED, SubsetSpec, pair_name
from search_spaces.tuning import ValidationSpec
from tasks.prepared.store import PreparedDataset
from tasks.prepared.table import number_groups, occurrence, quotas_of

FILE_LISTS = ("imagenet",)
"""Natural sets read by file name: their labels stay aligned, their files do not (F4 instead of
F3)."""
TEST_GROUP_SHARE = 0.3
"""Share of the groups that test images are spread over (750 of 2,500 in the study), or more if
needed."""


@dataclass(frozen=True)
class FurtherTestImages:
    """A further test set: the test images of a subset, some of them moved; labels stay.

    Attributes:
        name: The condition that moved them.
        images: ``(test_size, channels, height, width)``, dtype and range of the test images.
        is_moved: ``(test_size,)`` which of them the condition moved.
    """

    name: str
    images: NDArray[np.generic]
    is_moved: NDArray[np.bool_]


@dataclass(frozen=True)
class TrialData:
    """The arrays of one subset, shared read-only by all trials and measures of that subset.

    Attributes:
        train_images: ``(num_train, channels, height, width)``, uint8 or float32, pixels in [0,
            255], in nested order: the training set of size N is the first N rows.
        train_labels: ``(num_train,)`` int64 in ``range(num_classes)``.
        test_images: ``(test_size, channels, height, width)``, same range.
        data_fingerprint: fingerprint of the prepared dataset they come from.
        shared_group_share: share of test images whose group is also in training; 0 without faults.
        test_rows: ``(test_size,)`` which images of the prepared dataset the test images are; None
            where that is not known.
        further_tests: test images moved as conditions of an experiment say, where asked for.
    """

    train_images: NDArray[np.generic]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.generic]
    test_labels: NDArray[np.int64]
    num_classes: int
    data_fingerprint: str
    shared_group_share: float = 0.0
    test_rows: NDArray[np.int64] | None = None
    further_tests: tuple[FurtherTestImages, ...] = ()


@dataclass(frozen=True)
class Subset:
    """Rows of a prepared dataset to train and test on.

    Attributes:
        train_order: ``(max_train_size,)`` rows; the training set of size N is the first N. Any
            prefix is balanced: equal classes up to one image, or proportional for a whole set of
            more than two classes.
        train_labels: ``(max_train_size,)`` labels of those rows, in ``range(num_classes)``.
        test_rows: ``(test_size,)`` rows, the same for every train size.
        class_names: Spelling of each class for messages: its index in the prepared dataset.
    """

    train_order: NDArray[np.int64]
    train_labels: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    test_labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    shared_group_share: float = 0.0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def max_train_size(self) -> int:
        """Largest train size this subset allows."""
        return len(self.train_order)

    def class_counts(self, train_size: int) -> tuple[int, ...]:
        """Images of each class among the first ``train_size``."""
        return tuple(
            np.bincount(self.train_labels[:train_size], minlength=self.num_classes).tolist()
        )

    def load(self, prepared: PreparedDataset, train_size: int) -> TrialData:
        """Read the test images and the first ``train_size`` training images."""
        images = prepared.read_rows(np.concatenate([self.train_order[:train_size], self.test_rows]))
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


class _Task(NamedTuple):
    """Rows of a task's classes in the prepared dataset, their labels; and groups and splits of all
    images.
    """

    rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    names: tuple[str, ...]
    groups: NDArray[np.int64]
    splits: NDArray[np.int8]


def make_subset(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    spec: SubsetSpec,
    splits: NDArray[np.int8] | None = None,
    *,
    max_train_size: int | None = None,
    label_names: Sequence[str] = (),
) -> Subset:
    """Split one class pair, or a whole dataset, by groups.

    The order is a function of ``labels``, who shares a group, and ``spec``; never of which train
    sizes are used. ``labels``, ``groups`` and ``splits`` are as those of :class:`PreparedDataset`;
    the values of ids do not matter. ``max_train_size`` is the largest train size that will be asked
    for, to refuse it here. It changes nothing else, unless faults of the released code are on that
    make the choice depend on it; those subsets have to be made anew for every train size. Too few
    images, of a class or in all, are a DataError.
    """
    classes = spec.class_pair or tuple(range(int(labels.max(initial=-1)) + 1))
    missing = [str(label) for label in classes if not (labels == label).any()]
    if missing or len(classes) < 2:
        about = " ".join(filter(None, (spec.prepared.dataset, pair_name(spec.class_pair))))
        found = f"none of class {', '.join(missing)}" if missing else "one class only"
        raise DataError(f"{about}: each class needs images", found)
    rows = np.flatnonzero(np.isin(labels, classes)).astype(np.int64)
    lookup = {label: index for index, label in enumerate(classes)}
    targets = np.array([lookup[label] for label in labels[rows].tolist()], dtype=np.int64)
    names = tuple(label_names[label] if label_names else str(label) for label in classes)
    task = _Task(
        rows, targets, names, groups, np.zeros(len(labels), np.int8) if splits is None else splits
    )
    if spec.prepared.faults:
        subset = _faulty_subset(task, spec, max_train_size)
    else:
        rng = np.random.default_rng(derive_seed("subset", spec.split_seed, spec.class_pair))
        subset = _split(task, task.groups[task.rows], spec, rng, balanced=len(task.names) == 2)
        if subset.shared_group_share:  # spelt out, so that python -O checks it too
            raise AssertionError("a group is on both sides of the split")
    largest = subset.max_train_size
    if max_train_size is not None and max_train_size > largest:
        per_class = dict(zip(subset.class_names, subset.class_counts(largest), strict=True))
        raise DataError(
            (
                f"Train size {max_train_size} needs as many images beside {len(subset.test_rows)} "
                "test "
                "images"
            ),
            f"at most {largest} (class: images {per_class})",
            f"lower train_sizes to at most {largest}, or lower test_size"
            if largest > 1
            else "lower test_size",
        )
    return subset


def _split(
    task: _Task,
    groups: NDArray[np.int64],
    spec: SubsetSpec,
    rng: np.random.Generator | None,
    *,
    balanced: bool,
) -> Subset:
    """Split the images of a task by ``groups``; ``rng`` None takes them in stored order (F6)."""
    targets, members, given = task.targets, number_groups(groups), task.splits[task.rows]
    quotas = quotas_of(
        np.bincount(targets, minlength=len(task.names)), spec.test_size, balanced=balanced
    )
    test = choose_test(targets, members, quotas, given, rng, task.names)
    free = ~np.isin(members, members[test]) & (given != 2)
    train = stratified_order(targets, np.flatnonzero(free), rng, balanced=balanced)
    return _subset(task, train, test)


def _subset(task: _Task, train: NDArray[np.int64], test: NDArray[np.int64]) -> Subset:
    rows, targets, groups = task.rows, task.targets, task.groups
    shared = float(np.isin(groups[rows[test]], groups[rows[train]]).mean())
    return Subset(rows[train], targets[train], rows[test], targets[test], task.names, shared)


def _faulty_subset(task: _Task, spec: SubsetSpec, train_size: int | None) -> Subset:
    """Split with the faults of the released code that the spec switches on; see the top of this
    module.
    """
    faults, name = set(spec.prepared.faults), spec.prepared.dataset
    by_size = "test_set_depends_on_size" in faults
    in_memory = name not in FILE_LISTS and (
        name not in DATASETS or DATASETS[name].domain == "natural"
    )
    misaligned = "misaligned_labels" in faults and in_memory
    pooled = misaligned or ("fixed_imagenet_files" in faults and name in FILE_LISTS)
    if (pooled or by_size) and train_size is None:
        rule = "These faults need the train size: " + ", ".join(sorted(faults))
        raise DataError(rule, "none", "pass max_train_size, one train size at a time")
    as_released = by_size and {"image_level_split", "first_k_selection"} <= faults
    if train_size is not None and (pooled or as_released):
        num_classes = len(task.names)
        per_class = (train_size + spec.test_size) // num_classes
        chosen = [np.flatnonzero(task.targets == label)[:per_class] for label in range(num_classes)]
        if (short := min(map(len, chosen))) < per_class:
            raise DataError(
                f"{name}, as released: {train_size} training and {spec.test_size} test images need "
                f"{per_class} images of each class",
                f"{short} of one",
                "lower train_sizes or test_size",
            )
        places = np.sort(np.concatenate(chosen)).astype(np.int64)
        shown = task.rows[: len(places)] if misaligned else places if pooled else task.rows[places]
        task = task._replace(rows=shown, targets=task.targets[places])
    if as_released:
        import torch

        # The permutation of torch's random_split with the released seed; its head is for training.
        seeded = torch.Generator().manual_seed(RELEASED_SEED)
        order = torch.randperm(len(task.rows), generator=seeded).numpy().astype(np.int64)
        return _subset(task, order[: -spec.test_size], order[-spec.test_size :])
    seed = ("subset", spec.split_seed, spec.class_pair, *((train_size,) if by_size else ()))
    rng = None if "first_k_selection" in faults else np.random.default_rng(derive_seed(*seed))
    # A pool has no image to spare, so it cannot be split by groups.
    by_image = pooled or "image_level_split" in faults
    groups = np.arange(len(task.rows)) if by_image else task.groups[task.rows]
    return _split(task, groups, spec, rng, balanced=len(task.names) == 2 and not misaligned)


def split_validation(
    prepared: PreparedDataset, spec: SubsetSpec, train_size: int, validation: ValidationSpec
) -> Subset:
    """Split the first ``train_size`` training images of a subset by groups, for a learning-rate
    search.

    The held-out side, ``test_rows``, is the validation images: whole groups of the training images,
    and never a test image of ``spec``. A DataError where a class has too few groups to be on both
    sides, or faults of the released code are on, which let test groups be trained on.
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
    members, num_classes = number_groups(groups[rows]), subset.num_classes
    counts, balanced = np.bincount(targets, minlength=num_classes), num_classes == 2
    groups_of = [len(np.unique(members[targets == label])) for label in range(num_classes)]
    found = zip(subset.class_names, groups_of, counts, strict=True)
    too_few = DataError(
        "A class needs enough groups among the training images for a validation split",
        f"{where}: "
        + "; ".join(
            f"class {name}: {plural(of, 'group')}, {plural(int(count), 'image')}"
            for name, of, count in found
        ),
        (
            "raise tune.train_size, lower tune.validation_share, or leave this dataset out of the "
            "search"
        ),
    )
    if min(groups_of) < 2:
        raise too_few
    size = max(round(validation.share * len(targets)), num_classes)
    quotas = np.maximum(quotas_of(counts, size, balanced=balanced), 1)
    rng = np.random.default_rng(derive_seed("validation", spec, train_size, validation))
    chosen = choose_test(
        targets, members, quotas, np.zeros(len(rows), np.int8), rng, subset.class_names
    )
    free = np.flatnonzero(~np.isin(members, members[chosen]))
    if np.bincount(targets[free], minlength=num_classes).min() < 2:
        raise too_few
    train = stratified_order(targets, free, None, balanced=balanced)
    sides = {"training": rows[train], "validation": rows[chosen], "test": subset.test_rows}
    for first, second in itertools.combinations(
        sides, 2
    ):  # spelt out, so that python -O checks it too
        if np.isin(groups[sides[first]], groups[sides[second]]).any():
            raise AssertionError(f"a group is on the {first} and the {second} side of a search")
    return Subset(rows[train], targets[train], rows[chosen], targets[chosen], subset.class_names)


def load_validation(
    prepared: PreparedDataset, spec: SubsetSpec, train_size: int, validation: ValidationSpec
) -> TrialData:
    """Read the images of a :func:`split_validation`: no test image is read.

    Raises:
        DataError: for a condition that moves training images, which a search does not tune for.
    """
    if spec.condition is not None:
        raise DataError(
            "A search tunes on images as they were prepared",
            f"{spec.dataset} moves training images",
            f"tune on its base, {spec.prepared.dataset}, and use that recipe",
        )
    split = split_validation(prepared, spec, train_size, validation)
    return split.load(prepared, split.max_train_size)


def choose_test(
    targets: NDArray[np.int64],
    members: NDArray[np.int64],
    quotas: NDArray[np.int64],
    given: NDArray[np.int8],
    rng: np.random.Generator | None,
    names: tuple[str, ...],
) -> NDArray[np.int64]:
    """Draw the test rows: groups in a seeded order, one image of each group in turn, until quotas
    are met.

    The first 30 % of the groups are used, or as many as the quotas need, so that few big groups
    (volumes) do not make the whole test set. Groups that give no image stay free for training.
    """
    fixed = bool((given == 2).any())
    allowed = given == 2 if fixed else given != 1
    # A group with an image given for training is a training group.
    allowed &= ~np.isin(members, members[given == 1])
    num_groups = int(members.max()) + 1
    position = rng.permutation(num_groups) if rng else np.arange(num_groups)
    order = rng.permutation(len(targets)) if rng else np.arange(len(targets))
    order = order[np.argsort(position[members[order]], kind="stable")]
    order = order[allowed[order]]
    spread = num_groups if fixed else int(np.ceil(TEST_GROUP_SHARE * num_groups))
    more = (
        "; those given for training, and their groups, are not tested on: name others test, or "
        "no split"
    )
    more = more if (given == 1).any() else ""
    chosen = []
    for label, quota in enumerate(quotas):
        rows = order[targets[order] == label]
        if len(rows) < quota:
            raise DataError(
                f"Class {names[label]} needs {plural(quota, 'test image')}",
                f"{len(rows)} that may be used for testing",
                f"lower test_size, or add images{more}",
            )
        # How far into the group order this class must go: the spread, or where its quota is met.
        last = max(spread, int(position[members[rows[quota - 1]]]) + 1) if quota else 0
        rows = rows[position[members[rows]] < last]
        turn = occurrence(members[rows])
        chosen.append(rows[np.argsort(turn, kind="stable")[:quota]])
    return np.sort(np.concatenate(chosen))


def stratified_order(
    targets: NDArray[np.int64],
    free: NDArray[np.int64],
    rng: np.random.Generator | None,
    *,
    balanced: bool,
) -> NDArray[np.int64]:
    """Interleave the shuffled classes so that every prefix has them in proportion.

    Image j of a class with weight w stands at (j + 1/2) / w; equal weights alternate the classes.
    """
    shuffled = rng.permutation(free) if rng else free
    labels = targets[shuffled]
    counts = np.bincount(labels, minlength=int(targets.max()) + 1)
    turn = occurrence(labels)
    if balanced:
        keep = turn < counts.min()
        shuffled, labels, turn = shuffled[keep], labels[keep], turn[keep]
    weights = np.ones(len(counts)) if balanced else counts.astype(float)
    place = (turn + 0.5) / weights[labels]
    return shuffled[np.lexsort((labels, place))]
