"""Choose training and test images with the faults of the study's released code.

The code that was published with the study chooses images wrongly in some cases. To reproduce
the study's results, a subset spec can switch on these faults. ``docs/faults.md`` lists all
faults by number. This module repeats F3 to F7:

- ``misaligned_labels`` (F3, natural-image datasets that the code reads into memory): If a
  class has more images than needed, the code deletes the labels of the surplus images, but not
  the images themselves. The following images then get the labels of other images.
- ``fixed_imagenet_files`` (F4, ImageNet): The code numbers the images of the class pair,
  beginning with 0. It then uses these numbers as indices into the list of all images. So it
  reads the first images of ImageNet for every class pair.
- ``image_level_split`` (F5): Images of one group may be in the training set and in the test
  set.
- ``first_k_selection`` (F6): Images are chosen in stored order, and not in a random order.
- ``test_set_depends_on_size`` (F7): The split depends on the train size N, so every N has a
  different test set.

Images are chosen only from a *pool* if F3 or F4 is switched on, or if F5, F6 and F7 are all
switched on. The pool contains the first images of each class, N + ``test_size`` images in
total. The released code does not read given splits. So if a user's data have a given split,
isweep does not choose images from a pool, and raises an error. The example shows F3 with a
pool of two images per class. Image 5 is not in the pool, because the pool is already full::

    images of the class pair    1  2  3  4  5
    true labels                 0  0  0  1  1
    labels in the code          0  0  1  1        the label of image 3 was deleted
    pool                        1  2  3  4        so image 3 has the wrong label 1
"""

from __future__ import annotations

import numpy as np

from search_spaces.datasets import DATASETS
from search_spaces.errors import DataError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import RELEASED_SEED, PreparedSpec, SubsetSpec
from tasks.array_types import Int8Array, Int64Array
from tasks.prepared.group_split import Candidates, GroupSplit, split_by_group
from tasks.sources.own.splits import GivenSplit

READ_BY_FILE_NAME = ("imagenet",)
"""Natural-image datasets whose images the released code reads by file name. Fault F4 occurs
only in these datasets. Fault F3 occurs only in the other natural-image datasets."""
WRONG_LABEL_FAULTS = frozenset({"misaligned_labels", "fixed_imagenet_files"})
"""The faults F3 and F4. A dataset has at most one of these two faults. Each of them assigns
the labels of other images to some images."""
RELEASED_SPLIT_FAULTS = frozenset(
    {"image_level_split", "first_k_selection", "test_set_depends_on_size"}
)
"""The faults F5, F6 and F7. If all three faults are switched on, images are split as in the
released code, at random and without groups."""


def split_with_faults(
    candidates: Candidates, spec: SubsetSpec, max_train_size: int | None
) -> GroupSplit:
    """Split candidates with the faults of the released code that the spec switches on.

    Args:
        candidates: All images of the subset's classes.
        spec: The subset spec: the faults, the size of the test set and the seed.
        max_train_size: The train size N. It may be None if no fault makes the images depend on
            N.

    Raises:
        DataError: A fault makes the images depend on N, but ``max_train_size`` is None. Or the
            images come from a pool, but the user's data have a given split. Or there are too
            few images.
    """
    faults = _relevant_faults(spec.prepared)
    has_pool = bool(_pool_faults(faults))
    if not has_pool and "test_set_depends_on_size" not in faults:
        return _split_by_group_with_faults(candidates, spec, faults, train_size=None)
    if max_train_size is None:
        raise DataError(
            f"With the faults {', '.join(sorted(spec.prepared.faults))}, the subset depends "
            "on the train size",
            hint="Call make_subset with max_train_size, once for every train size",
        )
    if has_pool:
        check_no_given_split(spec.prepared, candidates.splits)
        candidates = _read_pool(candidates, spec, faults, max_train_size)
    if faults >= RELEASED_SPLIT_FAULTS:
        return _released_split(candidates, spec.test_size)
    return _split_by_group_with_faults(candidates, spec, faults, max_train_size)


def _relevant_faults(spec: PreparedSpec) -> set[str]:
    """Return the faults of the spec that concern this dataset in the released code."""
    faults: set[str] = set(spec.faults)
    dataset = spec.dataset
    is_read_by_name = dataset in READ_BY_FILE_NAME
    if not is_read_by_name:
        faults.discard("fixed_imagenet_files")
    # The data of a user are treated as natural images.
    is_natural = dataset not in DATASETS or DATASETS[dataset].domain == "natural"
    if is_read_by_name or not is_natural:
        faults.discard("misaligned_labels")
    return faults


def _pool_faults(faults: set[str]) -> set[str]:
    """Return the faults because of which images are chosen only from a pool.

    The set is empty if there is no pool.
    """
    pool_faults = faults & WRONG_LABEL_FAULTS
    if not pool_faults and faults >= RELEASED_SPLIT_FAULTS:
        return set(RELEASED_SPLIT_FAULTS)
    return pool_faults


def check_no_given_split(spec: PreparedSpec, splits: Int8Array) -> None:
    """Check that no fault of the spec ignores a given split of a user's data.

    Args:
        spec: The prepared dataset, with its faults.
        splits: ``(num_images,)`` :class:`GivenSplit` of each image.

    Raises:
        DataError: The data have a given split, and the images come from a pool.
    """
    pool_faults = _pool_faults(_relevant_faults(spec))
    is_user_data = spec.dataset not in DATASETS
    if not pool_faults or not is_user_data or not (splits != GivenSplit.NONE).any():
        return
    setting = "`data_mode: as_released`"
    hint = "Set `data_mode: corrected`"
    if spec.data_mode != "as_released":
        names = ", ".join(sorted(pool_faults))
        setting = f"`faults: [{names}]`"
        hint = f"Remove {names} from `faults`"
        if len(pool_faults) > 1:
            hint = f"Remove one of {names} from `faults`"
    raise DataError(
        f"{spec.dataset}: the data state which images are for training and which are for "
        f"tests. {setting} would ignore this split",
        hint=f"{hint}, or remove the split from the data",
    )


def _read_pool(
    candidates: Candidates, spec: SubsetSpec, faults: set[str], train_size: int
) -> Candidates:
    """Return the images of the pool with the labels that they have in the released code.

    The labels are the labels of the first images of each class. With F3 or F4, the rows are
    the rows of other images, so some labels are wrong. The groups are always the groups of the
    rows.
    """
    pool_indices = _pool_indices(candidates, spec, train_size)
    if "misaligned_labels" in faults:
        rows = candidates.rows[: len(pool_indices)]  # F3: the first images, of any class
    elif "fixed_imagenet_files" in faults:
        # F4: the index of an image in the class pair is used as an index in the whole dataset.
        rows = pool_indices
    else:
        rows = candidates.rows[pool_indices]
    return candidates._replace(rows=rows, labels=candidates.labels[pool_indices])


def _pool_indices(candidates: Candidates, spec: SubsetSpec, train_size: int) -> Int64Array:
    """Return the indices of the first candidates of each class, which form the pool, ascending.

    Raises:
        DataError: N + ``test_size`` is not a multiple of the number of classes, or a class has
            too few images.
    """
    num_classes = len(candidates.class_names)
    num_images = train_size + spec.test_size
    if num_images % num_classes:
        raise DataError(
            f"{spec.prepared.dataset} with the faults of the released code: train size + test "
            f"size must be a multiple of the number of classes, but {train_size} + "
            f"{spec.test_size} is not a multiple of {num_classes}",
            hint="Change train_sizes or test_size",
        )
    num_per_class = num_images // num_classes
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(candidates.labels == label)
        if len(members) < num_per_class:
            raise DataError(
                f"{spec.prepared.dataset} with the faults of the released code: {train_size} "
                f"training and {spec.test_size} test images need {num_per_class} images of "
                f"each class, but one class has only {len(members)}",
                hint="Lower train_sizes or test_size",
            )
        chosen.append(members[:num_per_class])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _split_by_group_with_faults(
    candidates: Candidates, spec: SubsetSpec, faults: set[str], train_size: int | None
) -> GroupSplit:
    """Split the candidates by groups, with the faults that are switched on.

    Unless F7 is switched on, ``train_size`` has no effect.
    """
    rng = None  # F6: stored order
    if "first_k_selection" not in faults:
        seed_parts = ["subset", spec.split_seed, spec.class_pair]
        if "test_set_depends_on_size" in faults:
            seed_parts.append(train_size)
        rng = np.random.default_rng(derive_seed(*seed_parts))
    # With F3 or F4, the pool has exactly N + test_size images, so every image must be used:
    # - Groups are ignored, because a split by groups leaves out images of the test groups.
    # - Classes are not balanced, because balancing leaves out an image if test_size is odd.
    uses_all_images = not faults.isdisjoint(WRONG_LABEL_FAULTS)
    groups = candidates.groups
    if uses_all_images or "image_level_split" in faults:
        groups = np.arange(len(candidates.rows))  # each image is a group
    balanced = len(candidates.class_names) == 2 and not uses_all_images
    return split_by_group(candidates, spec.test_size, rng, groups=groups, balanced=balanced)


def _released_split(candidates: Candidates, test_size: int) -> GroupSplit:
    """Split at random, as torch's ``random_split`` does.

    The images are permuted, and the last images of the permutation are the test images. The
    seed is :data:`RELEASED_SEED`, as in the released code, and not the seed of the spec.
    """
    import torch

    generator = torch.Generator().manual_seed(RELEASED_SEED)
    order = torch.randperm(len(candidates.rows), generator=generator).numpy().astype(np.int64)
    return GroupSplit(candidates, train=order[:-test_size], test=order[-test_size:])
