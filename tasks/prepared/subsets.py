"""Training and test images of a prepared dataset: class pairs, group-wise split, nested sizes.

Test images are drawn first, from groups in a seeded order. The other groups are for training, so no
group is in both sets. The training images have one fixed order. The training set of size N is the
first N images in this order.

A *class* is an index into all classes of the prepared dataset. A *label* is an index into the
classes of the subset, in ``range(num_classes)``. Networks are trained on labels. For the class pair
(3, 8), images of class 3 have label 0, and images of class 8 have label 1.

A spec can switch on faults of the released code (F3 to F7, see ``docs/faults.md``):

- ``misaligned_labels`` (F3, natural datasets that the released code reads into memory): If one
  class has too many images, the surplus is removed from the labels but not from the images. So
  image i has the label of another image.
- ``fixed_imagenet_files`` (F4, ImageNet): An index into the images of the class pair is used as an
  index into all images. So the images are always the first files, for every class pair.
- ``image_level_split`` (F5): Groups are ignored.
- ``first_k_selection`` (F6): Images are chosen in stored order, instead of a seeded order.
- ``test_set_depends_on_size`` (F7): The split depends on N, so every N has another test set.

F5, F6 and F7 together are the *released split*. With F3, with F4 and with the released split, the
images come from a *pool*. The pool is the first images of each class, as many as N training images
and the test images need.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_spaces.datasets import DATASETS
from search_spaces.errors import DataError, TooFewImagesError, plural
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import RELEASED_SEED, SubsetSpec, pair_name
from search_spaces.tuning import ValidationSpec
from tasks.prepared.store import PreparedDataset
from tasks.prepared.table import count_earlier, number_groups, quotas_of
from tasks.sources.own.splits import GivenSplit

Integers = NDArray[np.int64]
Generator = np.random.Generator
FILE_LISTS = ("imagenet",)
"""Natural-image datasets that the released code reads by file name. Fault F4 occurs only in these
datasets. Fault F3 occurs only in the other natural-image datasets."""
MISPAIRING = frozenset({"misaligned_labels", "fixed_imagenet_files"})
"""Faults that combine images with wrong labels (F3), or class pairs with wrong images (F4)."""
RELEASED_SPLIT = frozenset({"image_level_split", "first_k_selection", "test_set_depends_on_size"})
"""Faults F5, F6 and F7. Together they are the split of the released code."""
MIN_TEST_GROUP_SHARE = 0.3
"""Smallest share of the groups from which test images are drawn. With a smaller share, the test set
could consist of a few large groups (volumes). The study used 750 of 2,500 images for testing."""


@dataclass(frozen=True)
class FurtherTestImages:
    """A further test set: the test images of a subset after a condition blended some of them.

    Attributes:
        name: Name of the condition.
        images: ``(test_size, channels, height, width)``, with dtype and range of the test images.
        is_blended: ``(test_size,)`` mask of the images that the condition changed. Labels never
            change.
    """

    name: str
    images: NDArray[np.generic]
    is_blended: NDArray[np.bool_]


@dataclass(frozen=True)
class TrialData:
    """The arrays of one subset. All trials and measures of the subset share them read-only.

    Attributes:
        train_images: ``(num_train, channels, height, width)`` uint8 or float32, pixels in
            [0, 255]. The training set of size N is the first N images.
        train_labels: ``(num_train,)`` labels in ``range(num_classes)``.
        test_images: ``(test_size, channels, height, width)``, same dtype and range.
        test_labels: ``(test_size,)`` labels in ``range(num_classes)``.
        num_classes: Number of classes.
        data_fingerprint: Fingerprint of the prepared dataset from which the images come.
        shared_group_share: Share of test images whose group is also in the training set; 0 without
            faults.
        test_rows: ``(test_size,)`` rows of the test images in the prepared dataset; None if
            unknown.
        further_tests: The further test sets that the trial measures.
    """

    train_images: NDArray[np.generic]
    train_labels: Integers
    test_images: NDArray[np.generic]
    test_labels: Integers
    num_classes: int
    data_fingerprint: str
    shared_group_share: float = 0.0
    test_rows: Integers | None = None
    further_tests: tuple[FurtherTestImages, ...] = ()


@dataclass(frozen=True)
class Subset:
    """Rows of a prepared dataset for training and testing.

    Attributes:
        train_order: ``(max_train_size,)`` rows of the training images. The training set of size N
            is the first N rows. With two classes, the class counts of every such set differ by at
            most one. With more classes, every such set has the classes in proportion. Some faults
            of the released code violate this.
        train_labels: ``(max_train_size,)`` labels of these rows, in ``range(num_classes)``.
        test_rows: ``(test_size,)`` rows of the test images, the same for every train size.
        test_labels: ``(test_size,)`` labels of the test images.
        class_names: Name of each class in messages, by label.
        shared_group_share: Share of test images whose group is also in the training set; 0 without
            faults.
    """

    train_order: Integers
    train_labels: Integers
    test_rows: Integers
    test_labels: Integers
    class_names: tuple[str, ...]
    shared_group_share: float = 0.0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def max_train_size(self) -> int:
        """Largest train size that this subset allows."""
        return len(self.train_order)

    def load(self, prepared: PreparedDataset, train_size: int) -> TrialData:
        """Read the first ``train_size`` training images and the test images.

        Raises:
            DataError: The subset has fewer training images.
        """
        if train_size > self.max_train_size:
            raise DataError(
                f"The subset has only {self.max_train_size} training images, but the train size "
                f"is {train_size}",
                hint="Lower the train size, or call make_subset with this max_train_size",
            )
        rows = np.concatenate([self.train_order[:train_size], self.test_rows])
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


class _Candidates(NamedTuple):
    """All images of the subset's classes. Training and test images are chosen from them.

    Attributes:
        rows: ``(num_candidates,)`` rows of the candidates in the prepared dataset.
        labels: ``(num_candidates,)`` labels of the candidates.
        class_names: Name of each class in messages, by label.
        all_groups: ``(num_images,)`` group ids of all images of the prepared dataset.
        all_splits: ``(num_images,)`` given splits of all these images, see :class:`GivenSplit`.
    """

    rows: Integers
    labels: Integers
    class_names: tuple[str, ...]
    all_groups: Integers
    all_splits: NDArray[np.int8]


def make_subset(
    classes: Integers,
    groups: Integers,
    spec: SubsetSpec,
    splits: NDArray[np.int8] | None = None,
    *,
    max_train_size: int | None = None,
    class_names: Sequence[str] = (),
) -> Subset:
    """Split the images of one class pair, or of a whole dataset, by groups.

    The order of the images depends on ``classes``, on the groups and on the subset spec, but not on
    train sizes. Some faults of the released code are an exception: they make the choice depend on
    ``max_train_size``. Then this function must be called once for every train size.

    Args:
        classes: ``(num_images,)`` class index of each image. :class:`PreparedDataset` calls this
            array ``labels``.
        groups: ``(num_images,)`` group ids. Only equality of ids matters.
        spec: The subset spec: the class pair, the size of the test set, the seed and the faults.
        splits: ``(num_images,)`` given splits, see :class:`GivenSplit`; None if there are none.
        max_train_size: The largest train size. The subset must have so many training images.
        class_names: Names of all classes of the dataset, for messages; empty to use indices.

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
    subset_names = tuple(str(class_index) for class_index in subset_classes)
    if class_names:
        subset_names = tuple(class_names[class_index] for class_index in subset_classes)
    candidates = _Candidates(
        rows=rows, labels=labels, class_names=subset_names, all_groups=groups, all_splits=splits
    )
    if spec.prepared.faults:
        subset = _faulty_subset(candidates, spec, max_train_size)
    else:
        rng = np.random.default_rng(derive_seed("subset", spec.split_seed, spec.class_pair))
        balanced = len(subset_names) == 2
        subset = _split_by_group(candidates, groups[rows], spec.test_size, rng, balanced=balanced)
        # This cannot happen if this module is correct. An assert statement would not be checked
        # with python -O.
        if subset.shared_group_share:
            raise AssertionError("a group is on both sides of the split")
    if max_train_size is not None:
        _check_train_size(subset, max_train_size)
    return subset


def _check_classes(classes: Integers, subset_classes: Sequence[int], spec: SubsetSpec) -> None:
    """Raise a DataError if a class of the subset has no images, or if there is only one class."""
    empty = [str(index) for index in subset_classes if not (classes == index).any()]
    if empty:
        raise DataError(
            f"{_name(spec)}: there is no image of class {', '.join(empty)}",
            hint="Choose other classes, or add images",
        )
    if len(subset_classes) < 2:
        raise DataError(
            f"{_name(spec)}: the data have only one class", hint="Add images of a second class"
        )


def _name(spec: SubsetSpec) -> str:
    """Format the dataset and the class pair for messages."""
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
        hint = f"Lower train_sizes to at most {largest}, or lower test_size"
    raise TooFewImagesError(
        f"Train size {train_size} is too large: with {len(subset.test_rows)} test images, at most "
        f"{largest} images are left for training ({images_of_class})",
        hint=hint,
        largest_train_size=largest,
    )


def _split_by_group(
    candidates: _Candidates,
    candidate_groups: Integers,
    test_size: int,
    rng: Generator | None,
    *,
    balanced: bool,
) -> Subset:
    """Split candidates by groups into training and test images.

    Args:
        candidates: The images to split.
        candidate_groups: ``(num_candidates,)`` group ids of the candidates, not of all images.
        test_size: Number of test images.
        rng: Random generator for the order of images and groups; None for stored order (F6).
        balanced: True for equal numbers of images of all classes; False for proportional numbers.
    """
    labels = candidates.labels
    class_names = candidates.class_names
    splits = candidates.all_splits[candidates.rows]
    group_numbers = number_groups(candidate_groups)
    available = np.bincount(labels, minlength=len(class_names))
    quotas = quotas_of(available, test_size, balanced=balanced)
    test = draw_test_or_validation(labels, group_numbers, quotas, splits, rng, class_names)
    in_test_group = np.isin(group_numbers, group_numbers[test])
    trainable = np.flatnonzero(~in_test_group & (splits != GivenSplit.TEST))
    train = stratified_order(labels, trainable, rng, balanced=balanced)
    return _subset_at(candidates, train, test)


def _subset_at(candidates: _Candidates, train: Integers, test: Integers) -> Subset:
    """Return the subset with these training and test images.

    Args:
        candidates: All candidates.
        train: Indices of the training images in ``candidates.rows``.
        test: Indices of the test images in ``candidates.rows``.
    """
    train_rows = candidates.rows[train]
    test_rows = candidates.rows[test]
    is_shared = np.isin(candidates.all_groups[test_rows], candidates.all_groups[train_rows])
    return Subset(
        train_order=train_rows,
        train_labels=candidates.labels[train],
        test_rows=test_rows,
        test_labels=candidates.labels[test],
        class_names=candidates.class_names,
        shared_group_share=float(is_shared.mean()),
    )


def _faulty_subset(candidates: _Candidates, spec: SubsetSpec, max_train_size: int | None) -> Subset:
    """Split with the faults of the released code that the spec switches on.

    The module's docstring explains the faults.
    """
    faults = _relevant_faults(spec)
    is_mispaired = bool(faults & MISPAIRING)
    is_released_split = faults >= RELEASED_SPLIT
    if max_train_size is None:
        if is_mispaired or "test_set_depends_on_size" in faults:
            raise DataError(
                f"With the faults {', '.join(sorted(spec.prepared.faults))}, the subset depends "
                "on the train size",
                hint="Call make_subset with max_train_size, once for every train size",
            )
    elif is_mispaired or is_released_split:
        candidates = _pool(candidates, spec, faults, max_train_size)
    if is_released_split:
        return _released_split(candidates, spec.test_size)
    return _split_with_faults(candidates, spec, faults, max_train_size)


def _relevant_faults(spec: SubsetSpec) -> set[str]:
    """Return the faults of the spec that can occur in its dataset."""
    faults: set[str] = set(spec.prepared.faults)
    dataset = spec.prepared.dataset
    is_listed = dataset in FILE_LISTS
    if not is_listed:
        faults.discard("fixed_imagenet_files")
    # A user's data count as natural.
    is_natural = dataset not in DATASETS or DATASETS[dataset].domain == "natural"
    if is_listed or not is_natural:
        faults.discard("misaligned_labels")
    return faults


def _pool(
    candidates: _Candidates, spec: SubsetSpec, faults: set[str], train_size: int
) -> _Candidates:
    """Return the pool of the released code: the first candidates of each class.

    With F3 or F4 the rows of the pool do not belong to its labels, as in the released code.
    """
    pool_indices = _first_of_each_class(candidates, spec, train_size)
    rows = candidates.rows[pool_indices]
    if "misaligned_labels" in faults:
        rows = candidates.rows[: len(pool_indices)]  # the first images of any class
    elif "fixed_imagenet_files" in faults:
        rows = pool_indices  # an index of a candidate is used as a row of the prepared dataset
    return candidates._replace(rows=rows, labels=candidates.labels[pool_indices])


def _split_with_faults(
    candidates: _Candidates, spec: SubsetSpec, faults: set[str], max_train_size: int | None
) -> Subset:
    """Split by groups, with those of the faults F5, F6 and F7 that are switched on."""
    rng = None
    if "first_k_selection" not in faults:
        seed = ["subset", spec.split_seed, spec.class_pair]
        if "test_set_depends_on_size" in faults:
            seed.append(max_train_size)
        rng = np.random.default_rng(derive_seed(*seed))
    candidate_groups = candidates.all_groups[candidates.rows]
    # A pool with F3 or F4 has exactly the images that are needed. A split by groups would leave out
    # the other images of the test groups, so there would be too few training images.
    if "image_level_split" in faults or faults & MISPAIRING:
        candidate_groups = np.arange(len(candidates.rows))
    balanced = len(candidates.class_names) == 2 and "misaligned_labels" not in faults
    return _split_by_group(candidates, candidate_groups, spec.test_size, rng, balanced=balanced)


def _first_of_each_class(candidates: _Candidates, spec: SubsetSpec, train_size: int) -> Integers:
    """Return the indices of the first candidates of each class, in ascending order."""
    num_classes = len(candidates.class_names)
    needed = (train_size + spec.test_size) // num_classes
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(candidates.labels == label)
        if len(members) < needed:
            raise DataError(
                f"{spec.prepared.dataset} with the faults of the released code: {train_size} "
                f"training and {spec.test_size} test images need {needed} images of each class, "
                f"but one class has only {len(members)}",
                hint="Lower train_sizes or test_size",
            )
        chosen.append(members[:needed])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _released_split(candidates: _Candidates, test_size: int) -> Subset:
    """Split like torch's ``random_split``: permute the images; the last ones are for testing."""
    import torch

    generator = torch.Generator().manual_seed(RELEASED_SEED)
    order = torch.randperm(len(candidates.rows), generator=generator).numpy().astype(np.int64)
    return _subset_at(candidates, order[:-test_size], order[-test_size:])


def split_validation(
    prepared: PreparedDataset, spec: SubsetSpec, train_size: int, validation: ValidationSpec
) -> Subset:
    """Split the training images of a subset by groups, for a learning-rate search.

    Args:
        prepared: The prepared dataset.
        spec: The subset spec. Its test images are not part of the result.
        train_size: Number of training images to split. They are the first ones of the subset.
        validation: The share of validation images, and the index of the random split.

    Returns:
        A subset whose ``test_rows`` are the validation images. Its training images are all from
        other groups.

    Raises:
        DataError: A class has too few groups for two sets. Or faults of the released code are
            switched on, with which test groups can be in the training set.
    """
    if spec.prepared.faults:
        raise DataError(
            f"A search needs corrected data, but {_name(spec)} has the faults "
            f"{', '.join(spec.prepared.faults)}",
            hint="Tune a sweep in data_mode corrected without faults, and use its recipe",
        )
    subset = make_subset(
        prepared.labels, prepared.groups, spec, prepared.splits, max_train_size=train_size
    )
    rows = subset.train_order[:train_size]
    labels = subset.train_labels[:train_size]
    group_numbers = number_groups(prepared.groups[rows])
    num_classes = subset.num_classes
    groups_per_class = []
    for label in range(num_classes):
        groups_per_class.append(len(np.unique(group_numbers[labels == label])))
    image_counts = np.bincount(labels, minlength=num_classes)
    counts = [groups_per_class, image_counts.tolist()]
    if min(groups_per_class) < 2:
        raise _too_few_groups(spec, subset.class_names, *counts)
    balanced = num_classes == 2
    size = max(round(validation.share * len(labels)), num_classes)
    quotas = np.maximum(quotas_of(image_counts, size, balanced=balanced), 1)
    no_splits = np.full(len(rows), GivenSplit.NONE, np.int8)
    rng = np.random.default_rng(derive_seed("validation", spec, train_size, validation))
    chosen = draw_test_or_validation(
        labels, group_numbers, quotas, no_splits, rng, subset.class_names
    )
    trainable = np.flatnonzero(~np.isin(group_numbers, group_numbers[chosen]))
    if np.bincount(labels[trainable], minlength=num_classes).min() < 2:
        raise _too_few_groups(spec, subset.class_names, *counts)
    # Without a random generator: the order of the training images is already random.
    train = stratified_order(labels, trainable, None, balanced=balanced)
    _check_no_shared_group(
        prepared.groups,
        {"training": rows[train], "validation": rows[chosen], "test": subset.test_rows},
    )
    return Subset(
        train_order=rows[train],
        train_labels=labels[train],
        test_rows=rows[chosen],
        test_labels=labels[chosen],
        class_names=subset.class_names,
    )


def _too_few_groups(
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
        f"{_name(spec)}: too few groups among the training images for a validation split "
        f"({'; '.join(counts)})",
        hint="Raise tune.train_size, lower tune.validation_share, or leave this dataset out "
        "of the search",
    )


def _check_no_shared_group(groups: Integers, parts: dict[str, Integers]) -> None:
    """Raise an AssertionError if two sets of a search share a group.

    Args:
        groups: ``(num_images,)`` group ids of all images.
        parts: Rows of each set, by the name of the set.
    """
    for first, second in itertools.combinations(parts, 2):
        if np.isin(groups[parts[first]], groups[parts[second]]).any():
            # An assert statement would not be checked with python -O.
            raise AssertionError(f"a group is on the {first} and the {second} side of a search")


def load_validation(
    prepared: PreparedDataset, spec: SubsetSpec, train_size: int, validation: ValidationSpec
) -> TrialData:
    """Read the images of a :func:`split_validation`. No test image is read.

    Raises:
        DataError: The spec has a condition, which changes training images.
    """
    if spec.condition is not None:
        raise DataError(
            f"A search needs unchanged images, but the condition of {spec.dataset} changes "
            "training images",
            hint=f"Tune on the base dataset {spec.prepared.dataset}, and use its recipe",
        )
    split = split_validation(prepared, spec, train_size, validation)
    return split.load(prepared, split.max_train_size)


def draw_test_or_validation(
    labels: Integers,
    group_numbers: Integers,
    quotas: Integers,
    splits: NDArray[np.int8],
    rng: Generator | None,
    class_names: Sequence[str],
) -> Integers:
    """Draw test or validation images from the first groups of a random order.

    The first groups are a share of :data:`MIN_TEST_GROUP_SHARE` of all groups. More groups are used
    only if a quota needs them, or if the data have a test split. For each class, one image of each
    of these groups is drawn first, then a second image of each, until the quota is met. Groups
    without a drawn image can be used for training.

    Args:
        labels: ``(num_images,)`` labels.
        group_numbers: ``(num_images,)`` group numbers, from 0.
        quotas: ``(num_classes,)`` number of images to draw for each label.
        splits: ``(num_images,)`` given splits. If there is a test split, only its images are drawn.
        rng: Random generator for the order of groups and images; None for stored order.
        class_names: Name of each class in messages, by label.

    Returns:
        Ascending indices of the drawn images.

    Raises:
        DataError: A class has too few images that may be test images.
    """
    has_test_split = bool((splits == GivenSplit.TEST).any())
    num_groups = int(group_numbers.max()) + 1
    rank_of_group = np.arange(num_groups)
    image_order = np.arange(len(labels))
    if rng is not None:
        rank_of_group = rng.permutation(num_groups)
        image_order = rng.permutation(len(labels))
    ranks = rank_of_group[group_numbers]
    image_order = image_order[np.argsort(ranks[image_order], kind="stable")]
    image_order = image_order[_may_be_tested(group_numbers, splits)[image_order]]
    min_groups = int(np.ceil(MIN_TEST_GROUP_SHARE * num_groups))
    if has_test_split:
        min_groups = num_groups
    chosen = []
    for label, quota in enumerate(quotas.tolist()):
        class_images = image_order[labels[image_order] == label]
        if len(class_images) < quota:
            raise _too_few_images(class_names[label], quota, len(class_images), splits)
        chosen.append(_one_per_group_first(class_images, ranks, min_groups, quota))
    return np.sort(np.concatenate(chosen))


def _may_be_tested(group_numbers: Integers, splits: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Return a mask of the images that may be test images, ``(num_images,)``.

    A group with an image of a given training split is a training group. If there is a given test
    split, only its images may be test images.
    """
    training_groups = group_numbers[splits == GivenSplit.TRAIN]
    is_allowed = ~np.isin(group_numbers, training_groups)
    is_test = splits == GivenSplit.TEST
    if is_test.any():
        is_allowed &= is_test
    return is_allowed


def _one_per_group_first(
    class_images: Integers, ranks: Integers, min_groups: int, quota: int
) -> Integers:
    """Return ``quota`` images: one of each group, then a second one of each group, and so on.

    Args:
        class_images: Indices of the images of one class, in the order of their groups' ranks.
        ranks: ``(num_images,)`` rank of the group of each image, from 0.
        min_groups: Number of groups from which images are chosen; more if the quota needs more.
        quota: Number of images to choose.
    """
    if quota == 0:
        return class_images[:0]
    last_needed_rank = int(ranks[class_images[quota - 1]])
    num_groups_used = max(min_groups, last_needed_rank + 1)
    usable = class_images[ranks[class_images] < num_groups_used]
    index_in_group = count_earlier(ranks[usable])
    return usable[np.argsort(index_in_group, kind="stable")[:quota]]


def _too_few_images(
    class_name: str, quota: int, num_allowed: int, splits: NDArray[np.int8]
) -> TooFewImagesError:
    """Return the error for a class with too few images that may be test images."""
    hint = "Lower test_size, or add images"
    if (splits == GivenSplit.TRAIN).any():
        hint += (
            ". isweep uses no image of your training split, and no image of its groups, for "
            "testing. Move groups to your test split, or leave the split out"
        )
    return TooFewImagesError(
        f"Class {class_name} needs {plural(quota, 'test image')}, but {num_allowed} of its "
        "images may be used for testing",
        hint=hint,
    )


def stratified_order(
    labels: Integers, trainable: Integers, rng: Generator | None, *, balanced: bool
) -> Integers:
    """Order images so that every prefix contains all classes in proportion.

    Images are sorted by a key. The j-th image of a class, from 0, has the key (j + 1/2) / weight.
    The weight of a class is its number of images. If ``balanced``, all weights are 1, so the
    classes alternate.

    Args:
        labels: ``(num_images,)`` labels.
        trainable: Indices of the images that may be used.
        rng: Random generator for the order in each class; None for the order of ``trainable``.
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
    # Images with equal keys are in the order of their labels.
    return shuffled[np.lexsort((used_labels, keys))]
