"""Training and test images of a prepared dataset: class pairs, group-wise split, nested sizes.

Test images are drawn first, from groups in a seeded order. The other groups are for training: no
group is on both sides. The training images are put in one order, and the training set of size N is
its first N images.

A *class* is an index into all classes of the prepared dataset. A *label* is an index into the
classes of the subset, in ``range(num_classes)``; networks are trained on labels. For the class pair
(3, 8) images of class 3 have label 0, and images of class 8 label 1.

A spec can switch on faults of the released code (F3 to F7, see ``docs/faults.md``):

- ``misaligned_labels`` (F3, natural sets held in memory): Surplus images of the class that fills
  first are removed from the labels but not from the images. So image i gets another image's label.
- ``fixed_imagenet_files`` (F4, ImageNet): An index into the pair's images is used as an index into
  all images. So the images are the first files, whatever the pair is.
- ``image_level_split`` (F5): Groups are ignored.
- ``first_k_selection`` (F6): Images are taken in stored order, instead of a seeded one.
- ``test_set_depends_on_size`` (F7): The split depends on N, so every N has another test set.

F5, F6 and F7 together are the split of the released code. With F3, with F4 and with the released
split, the images come from a *pool*: the first images of each class, as many as N training images
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
"""Natural-image datasets that the released code reads by file name. Fault F4 concerns them, and F3
the other natural-image datasets."""
MISPAIRING = frozenset({"misaligned_labels", "fixed_imagenet_files"})
"""Faults by which images have labels that are not theirs (F3), or a pair other images (F4)."""
RELEASED_SPLIT = frozenset({"image_level_split", "first_k_selection", "test_set_depends_on_size"})
"""Faults F5, F6 and F7, which together are the split of the released code."""
MIN_TEST_GROUP_SHARE = 0.3
"""Smallest share of the groups from which test images are drawn (750 of 2,500 in the study). The
test set must not consist of a few large groups (volumes)."""


@dataclass(frozen=True)
class FurtherTestImages:
    """A further test set: the test images of a subset after a condition moved some of them.

    Attributes:
        name: Name of the condition.
        images: ``(test_size, channels, height, width)``, with dtype and range of the test images.
        is_blended: ``(test_size,)`` whether the condition moved an image. Labels never change.
    """

    name: str
    images: NDArray[np.generic]
    is_blended: NDArray[np.bool_]


@dataclass(frozen=True)
class TrialData:
    """The arrays of one subset, shared read-only by all trials and measures of that subset.

    Attributes:
        train_images: ``(num_train, channels, height, width)`` uint8 or float32, pixels in
            [0, 255], in nested order: the training set of size N is the first N rows.
        train_labels: ``(num_train,)`` in ``range(num_classes)``.
        test_images: ``(test_size, channels, height, width)``, same range.
        test_labels: ``(test_size,)`` in ``range(num_classes)``.
        num_classes: Number of classes.
        data_fingerprint: Fingerprint of the prepared dataset that they come from.
        shared_group_share: Share of test images whose group is also in training; 0 without faults.
        test_rows: ``(test_size,)`` indices of the test images in the prepared dataset; None if
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
    """Rows of a prepared dataset to train and test on.

    Attributes:
        train_order: ``(max_train_size,)`` rows; the training set of size N is the first N. With two
            classes, every prefix is balanced: class counts differ by at most one. With more,
            every prefix has the classes in proportion. Some faults break this.
        train_labels: ``(max_train_size,)`` labels of these rows, in ``range(num_classes)``.
        test_rows: ``(test_size,)`` rows, the same for every train size.
        test_labels: ``(test_size,)`` labels of these rows.
        class_names: Name of each class in messages.
        shared_group_share: Share of test images whose group is also in training; 0 without faults.
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
                f"The subset has {self.max_train_size} training images, but {train_size} are to "
                "be read",
                hint="Choose a smaller train size, or make the subset with this max_train_size",
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
    """The images of the subset's classes, from which training and test images are chosen.

    Attributes:
        rows: ``(num_candidates,)`` rows of the candidates in the prepared dataset.
        labels: ``(num_candidates,)`` labels of the candidates.
        class_names: Name of each label's class in messages.
        all_groups: ``(num_images,)`` group ids of all images of the prepared dataset.
        all_splits: ``(num_images,)`` codes of given splits of all these images.
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
    label_names: Sequence[str] = (),
) -> Subset:
    """Split one class pair, or a whole dataset, by groups.

    The order of the images depends only on ``classes``, on which images share a group, and on the
    subset spec, but not on train sizes. There is one exception: some faults of the released code
    make the choice depend on ``max_train_size``. Such a subset must be made again for every size.

    Args:
        classes: ``(num_images,)`` class of each image: the labels of :class:`PreparedDataset`.
        groups: ``(num_images,)`` group ids; their values do not matter.
        spec: The subset spec: the class pair, the size of the test set, seed and faults.
        splits: ``(num_images,)`` codes of given splits; None if there are none.
        max_train_size: The largest train size in use, for which the subset must have enough images.
        label_names: Names of all classes in messages; indices if empty.

    Raises:
        DataError: A class has no images, or there are too few images.
    """
    subset_classes = spec.class_pair or tuple(range(int(classes.max(initial=-1)) + 1))
    empty = [str(index) for index in subset_classes if not (classes == index).any()]
    if empty or len(subset_classes) < 2:
        problem = "there is one class only"
        if empty:
            problem = f"there is no image of class {', '.join(empty)}"
        raise DataError(f"{_name(spec)}: {problem}")
    rows = np.flatnonzero(np.isin(classes, subset_classes)).astype(np.int64)
    labels = np.zeros(len(rows), np.int64)
    for label, index in enumerate(subset_classes):
        labels[classes[rows] == index] = label
    if splits is None:
        splits = np.zeros(len(classes), np.int8)
    names = tuple(label_names[index] if label_names else str(index) for index in subset_classes)
    candidates = _Candidates(rows, labels, names, groups, splits)
    if spec.prepared.faults:
        subset = _faulty_subset(candidates, spec, max_train_size)
    else:
        rng = np.random.default_rng(derive_seed("subset", spec.split_seed, spec.class_pair))
        balanced = len(names) == 2
        subset = _split_by_group(candidates, groups[rows], spec.test_size, rng, balanced=balanced)
        if subset.shared_group_share:  # raised, so that python -O checks it too
            raise AssertionError("a group is on both sides of the split")
    if max_train_size is not None:
        _check_train_size(subset, max_train_size)
    return subset


def _name(spec: SubsetSpec) -> str:
    """Return dataset and class pair as messages show them."""
    return f"{spec.prepared.dataset} {pair_name(spec.class_pair)}".strip()


def _check_train_size(subset: Subset, train_size: int) -> None:
    """Raise a TooFewImagesError if a subset has too few training images."""
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
        f"Train size {train_size} is too large: beside {len(subset.test_rows)} test images at "
        f"most {largest} are left ({images_of_class})",
        hint=hint,
        largest_train_size=largest,
    )


def _split_by_group(
    candidates: _Candidates,
    groups: Integers,
    test_size: int,
    rng: Generator | None,
    *,
    balanced: bool,
) -> Subset:
    """Split candidates by groups into training and test images.

    Args:
        candidates: The images.
        groups: ``(num_candidates,)`` group ids of the candidates, not of all images.
        test_size: Number of test images.
        rng: Draws images and groups; None takes them in stored order (F6).
        balanced: Give all classes equally many images, instead of in proportion.
    """
    labels = candidates.labels
    class_names = candidates.class_names
    splits = candidates.all_splits[candidates.rows]
    group_numbers = number_groups(groups)
    available = np.bincount(labels, minlength=len(class_names))
    quotas = quotas_of(available, test_size, balanced=balanced)
    test = draw_test_or_validation(labels, group_numbers, quotas, splits, rng, class_names)
    in_test_group = np.isin(group_numbers, group_numbers[test])
    free = np.flatnonzero(~in_test_group & (splits != GivenSplit.TEST))
    train = stratified_order(labels, free, rng, balanced=balanced)
    return _subset_at(candidates, train, test)


def _subset_at(candidates: _Candidates, train: Integers, test: Integers) -> Subset:
    """Return the subset of these candidates, given as indices into ``candidates.rows``."""
    train_rows = candidates.rows[train]
    test_rows = candidates.rows[test]
    is_shared = np.isin(candidates.all_groups[test_rows], candidates.all_groups[train_rows])
    return Subset(
        train_rows,
        candidates.labels[train],
        test_rows,
        candidates.labels[test],
        candidates.class_names,
        shared_group_share=float(is_shared.mean()),
    )


def _faulty_subset(candidates: _Candidates, spec: SubsetSpec, train_size: int | None) -> Subset:
    """Split with the faults of the released code that the spec switches on.

    The module's docstring explains the faults.
    """
    faults = _faults_in_force(spec)
    is_mispaired = bool(faults & MISPAIRING)
    if train_size is None and (is_mispaired or "test_set_depends_on_size" in faults):
        raise DataError(
            "The subset depends on the train size with the faults "
            f"{', '.join(sorted(spec.prepared.faults))}",
            hint="Pass max_train_size, one train size at a time",
        )
    is_released_split = faults >= RELEASED_SPLIT
    if train_size is not None and (is_mispaired or is_released_split):
        candidates = _pool(candidates, spec, faults, train_size)
    if is_released_split:
        return _released_split(candidates, spec.test_size)
    return _split_with_faults(candidates, spec, faults, train_size)


def _faults_in_force(spec: SubsetSpec) -> set[str]:
    """Return the faults of the spec without those that do not concern its dataset."""
    faults: set[str] = set(spec.prepared.faults)
    dataset = spec.prepared.dataset
    is_listed = dataset in FILE_LISTS
    if not is_listed:
        faults.discard("fixed_imagenet_files")
    # A user's own data count as natural.
    is_natural = dataset not in DATASETS or DATASETS[dataset].domain == "natural"
    if is_listed or not is_natural:
        faults.discard("misaligned_labels")
    return faults


def _pool(
    candidates: _Candidates, spec: SubsetSpec, faults: set[str], train_size: int
) -> _Candidates:
    """Return the first candidates of each class; faults F3 and F4 give them other images."""
    first = _first_of_each_class(candidates, spec, train_size)
    rows = candidates.rows[first]
    if "misaligned_labels" in faults:
        rows = candidates.rows[: len(first)]  # the first images, whatever their class
    elif "fixed_imagenet_files" in faults:
        rows = first  # indices of candidates, used as rows of the prepared dataset
    return candidates._replace(rows=rows, labels=candidates.labels[first])


def _split_with_faults(
    candidates: _Candidates, spec: SubsetSpec, faults: set[str], train_size: int | None
) -> Subset:
    """Split by groups, or with faults F5 to F7 in part."""
    rng = None
    if "first_k_selection" not in faults:
        seed = ["subset", spec.split_seed, spec.class_pair]
        if "test_set_depends_on_size" in faults:
            seed.append(train_size)
        rng = np.random.default_rng(derive_seed(*seed))
    groups = candidates.all_groups[candidates.rows]
    # A mispaired pool has just enough images of each class, so it cannot be split by groups.
    if "image_level_split" in faults or faults & MISPAIRING:
        groups = np.arange(len(candidates.rows))
    balanced = len(candidates.class_names) == 2 and "misaligned_labels" not in faults
    return _split_by_group(candidates, groups, spec.test_size, rng, balanced=balanced)


def _first_of_each_class(candidates: _Candidates, spec: SubsetSpec, train_size: int) -> Integers:
    """Return the first candidates of each class, as ascending indices: the released pool."""
    num_classes = len(candidates.class_names)
    needed = (train_size + spec.test_size) // num_classes
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(candidates.labels == label)
        if len(members) < needed:
            raise DataError(
                f"{spec.prepared.dataset}, as released: {train_size} training and "
                f"{spec.test_size} test images need {needed} images of each class, but one class "
                f"has {len(members)}",
                hint="Lower train_sizes or test_size",
            )
        chosen.append(members[:needed])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _released_split(candidates: _Candidates, test_size: int) -> Subset:
    """Split by the permutation of torch's ``random_split``: training images come first."""
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
        spec: The subset spec. No test image of this subset is on either side.
        train_size: Number of training images to split, the first ones.
        validation: The share of the validation images.

    Returns:
        A subset whose ``test_rows`` are the validation images, in whole groups.

    Raises:
        DataError: A class has too few groups to be on both sides, or faults of the released code
            are on, which let test groups be trained on.
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
    too_few = _too_few_groups(spec, subset.class_names, groups_per_class, image_counts.tolist())
    if min(groups_per_class) < 2:
        raise too_few
    balanced = num_classes == 2
    size = max(round(validation.share * len(labels)), num_classes)
    quotas = np.maximum(quotas_of(image_counts, size, balanced=balanced), 1)
    no_splits = np.zeros(len(rows), np.int8)
    rng = np.random.default_rng(derive_seed("validation", spec, train_size, validation))
    chosen = draw_test_or_validation(
        labels, group_numbers, quotas, no_splits, rng, subset.class_names
    )
    free = np.flatnonzero(~np.isin(group_numbers, group_numbers[chosen]))
    if np.bincount(labels[free], minlength=num_classes).min() < 2:
        raise too_few
    train = stratified_order(labels, free, None, balanced=balanced)
    _check_no_shared_group(
        prepared.groups,
        {"training": rows[train], "validation": rows[chosen], "test": subset.test_rows},
    )
    return Subset(rows[train], labels[train], rows[chosen], labels[chosen], subset.class_names)


def _too_few_groups(
    spec: SubsetSpec,
    class_names: Sequence[str],
    groups_per_class: Sequence[int],
    images_per_class: Sequence[int],
) -> DataError:
    """Return the error of a class with too few groups for a validation split."""
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
    """Raise an AssertionError if two parts of a search (name -> rows) share a group."""
    for first, second in itertools.combinations(parts, 2):
        if np.isin(groups[parts[first]], groups[parts[second]]).any():
            # Raised, so that python -O checks it too.
            raise AssertionError(f"a group is on the {first} and the {second} side of a search")


def load_validation(
    prepared: PreparedDataset, spec: SubsetSpec, train_size: int, validation: ValidationSpec
) -> TrialData:
    """Read the images of a :func:`split_validation`. No test image is read.

    Raises:
        DataError: The spec's condition changes training images. A search does not tune for that.
    """
    if spec.condition is not None:
        raise DataError(
            f"A search tunes on images as they were prepared, but {spec.dataset} moves training "
            "images",
            hint=f"Tune on its base, {spec.prepared.dataset}, and use that recipe",
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
    """Draw test or validation images: one of each group in a seeded order, then a second one.

    The images come from the first groups, a share of :data:`MIN_TEST_GROUP_SHARE`. More groups are
    used only if a quota needs them, or if the data give a test split. Groups without a drawn image
    stay free for training.

    Args:
        labels: ``(num_images,)`` labels.
        group_numbers: ``(num_images,)`` numbers from 0.
        quotas: ``(num_classes,)`` images to draw of each class.
        splits: ``(num_images,)`` codes of given splits. If any is test, only those are used.
        rng: Draws groups and images; None takes them in stored order.
        class_names: For messages.

    Returns:
        Indices of the chosen images, ascending.

    Raises:
        DataError: A class has too few images that may be tested on.
    """
    is_given = bool((splits == GivenSplit.TEST).any())
    is_allowed = splits == GivenSplit.TEST if is_given else splits != GivenSplit.TRAIN
    # A group with an image given for training is a training group.
    is_allowed &= ~np.isin(group_numbers, group_numbers[splits == GivenSplit.TRAIN])
    num_groups = int(group_numbers.max()) + 1
    group_rank = np.arange(num_groups)
    order = np.arange(len(labels))
    if rng is not None:
        group_rank = rng.permutation(num_groups)
        order = rng.permutation(len(labels))
    rank_of_image = group_rank[group_numbers]
    order = order[np.argsort(rank_of_image[order], kind="stable")]
    order = order[is_allowed[order]]
    min_groups = num_groups if is_given else int(np.ceil(MIN_TEST_GROUP_SHARE * num_groups))
    chosen = []
    for label, quota in enumerate(quotas.tolist()):
        class_candidates = order[labels[order] == label]
        if len(class_candidates) < quota:
            raise _too_few_images(class_names[label], quota, len(class_candidates), splits)
        if quota == 0:
            continue
        last_needed = class_candidates[quota - 1]
        num_groups_used = max(min_groups, int(rank_of_image[last_needed]) + 1)
        class_candidates = class_candidates[rank_of_image[class_candidates] < num_groups_used]
        # The first image of every group comes first, then the second of every group, and so on.
        index_in_group = count_earlier(group_numbers[class_candidates])
        chosen.append(class_candidates[np.argsort(index_in_group, kind="stable")[:quota]])
    return np.sort(np.concatenate(chosen))


def _too_few_images(
    class_name: str, quota: int, num_allowed: int, splits: NDArray[np.int8]
) -> TooFewImagesError:
    """Return the error of a class whose quota of test images cannot be met."""
    hint = "Lower test_size, or add images"
    if (splits == GivenSplit.TRAIN).any():
        hint += (
            ". Images that are given for training, and their groups, are not tested on: give more "
            "images for testing, or name no split"
        )
    return TooFewImagesError(
        f"Class {class_name} needs {plural(quota, 'test image')}, but {num_allowed} may be used "
        "for testing",
        hint=hint,
    )


def stratified_order(
    labels: Integers, free: Integers, rng: Generator | None, *, balanced: bool
) -> Integers:
    """Interleave the shuffled classes so that every prefix has them in proportion.

    The j-th image of a class, from 0, gets the key (j + 1/2) / weight. Images are sorted by key.
    The weight of a class is its number of images; if ``balanced``, 1, which alternates the classes.

    Args:
        labels: ``(num_images,)`` labels.
        free: Indices of the images that may be used.
        rng: Shuffles them; None keeps their order.
        balanced: Use equally many images of each class.

    Returns:
        Indices of the used images, in order.
    """
    shuffled = free if rng is None else rng.permutation(free)
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
    return shuffled[np.lexsort((used_labels, keys))]  # ties: the lower label first
