"""Choose training and test images with the faults of the study's released code.

The code that was published with the study chooses images wrongly in some cases. To reproduce
the study's results, a subset spec can switch on these faults. ``docs/faults.md`` lists all
faults by number. This module repeats F3 to F7:

- ``misaligned_labels`` (F3, natural-image datasets that the code reads into memory): If a
  class has more images than needed, the code deletes the labels of the surplus images, but not
  these images. The next labels then belong to the wrong images.
- ``fixed_imagenet_files`` (F4, ImageNet): The code numbers the images of the class pair
  from 0. It then uses these numbers as indices into the list of all images. So it always reads
  the first images of ImageNet, for every class pair.
- ``image_level_split`` (F5): Images of one group may be in the training set and in the test
  set.
- ``first_k_selection`` (F6): Images are chosen in stored order, instead of a random order.
- ``test_set_depends_on_size`` (F7): The split depends on the train size N, so every N has a
  different test set.

With F3, with F4, or with F5, F6 and F7 together, images are chosen only from a *pool*. The pool has
the first images of each class, N + ``test_size`` in total. The released code does not read a split
that the data state. isweep therefore rejects a user's data with such a split. The example shows F3
with a pool of two images per class. The pool is full before image 5::

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
"""Natural-image datasets that the released code reads by file name. Fault F4 occurs only in
these datasets. Fault F3 occurs only in the other natural-image datasets."""
WRONG_LABEL_FAULTS = frozenset({"misaligned_labels", "fixed_imagenet_files"})
"""The faults F3 and F4. A dataset has at most one of them. With each of them, some images have the
labels of other images."""
RELEASED_SPLIT_FAULTS = frozenset(
    {"image_level_split", "first_k_selection", "test_set_depends_on_size"}
)
"""The faults F5, F6 and F7. If all three are switched on, the split is the random split of the
released code."""


def split_with_faults(
    candidates: Candidates, spec: SubsetSpec, max_train_size: int | None
) -> GroupSplit:
    """Split candidates with the faults of the released code that the spec switches on.

    Args:
        candidates: All images of the subset's classes.
        spec: The subset spec: the faults, the size of the test set and the seed.
        max_train_size: The train size N. It may be None if no fault needs it.

    Raises:
        DataError: A fault makes the images depend on N, but ``max_train_size`` is None. Or the
            images come from a pool, but the user's data state a split. Or there are too few
            images.
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
    """Return the faults of the spec that the released code has for this dataset."""
    faults: set[str] = set(spec.faults)
    dataset = spec.dataset
    is_read_by_name = dataset in READ_BY_FILE_NAME
    if not is_read_by_name:
        faults.discard("fixed_imagenet_files")
    # A user's data are treated as natural images.
    is_natural = dataset not in DATASETS or DATASETS[dataset].domain == "natural"
    if is_read_by_name or not is_natural:
        faults.discard("misaligned_labels")
    return faults


def _pool_faults(faults: set[str]) -> set[str]:
    """Return the faults that limit the choice of images to a pool; empty if there is no pool."""
    pool_faults = faults & WRONG_LABEL_FAULTS
    if not pool_faults and faults >= RELEASED_SPLIT_FAULTS:
        return set(RELEASED_SPLIT_FAULTS)
    return pool_faults


def check_no_given_split(spec: PreparedSpec, splits: Int8Array) -> None:
    """Check that the faults of the spec would not ignore a split that a user's data state.

    Args:
        spec: The prepared dataset, with its faults.
        splits: ``(num_images,)`` :class:`GivenSplit` of each image.

    Raises:
        DataError: The data state a split, and the images come from a pool.
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
    """Return the images of the pool as the released code reads them.

    The labels belong to the first images of each class. With F3 or F4, the rows belong to other
    images, so some labels are wrong. The groups always belong to the rows.
    """
    pool_indices = _pool_indices(candidates, spec, train_size)
    if "misaligned_labels" in faults:
        rows = candidates.rows[: len(pool_indices)]  # F3: the first images, of any class
    elif "fixed_imagenet_files" in faults:
        # F4: an index in the class pair is used as an index in the whole dataset.
        rows = pool_indices
    else:
        rows = candidates.rows[pool_indices]
    return candidates._replace(rows=rows, labels=candidates.labels[pool_indices])


def _pool_indices(candidates: Candidates, spec: SubsetSpec, train_size: int) -> Int64Array:
    """Return the indices of the first candidates of each class, in ascending order.

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
    """Split with :func:`split_by_group`, changed by the faults that are switched on.

    ``train_size`` has an effect only with F7.
    """
    rng = None  # F6: stored order
    if "first_k_selection" not in faults:
        seed_parts = ["subset", spec.split_seed, spec.class_pair]
        if "test_set_depends_on_size" in faults:
            seed_parts.append(train_size)
        rng = np.random.default_rng(derive_seed(*seed_parts))
    # With F3 or F4, the pool has exactly N + test_size images, so every image must be used:
    # - Groups are ignored, because a split by groups leaves out images of the test groups.
    # - Classes are not balanced, because that leaves out an image if test_size is odd.
    uses_all_images = not faults.isdisjoint(WRONG_LABEL_FAULTS)
    groups = candidates.groups
    if uses_all_images or "image_level_split" in faults:
        groups = np.arange(len(candidates.rows))  # each image is a group
    balanced = len(candidates.class_names) == 2 and not uses_all_images
    return split_by_group(candidates, spec.test_size, rng, groups=groups, balanced=balanced)


def _released_split(candidates: Candidates, test_size: int) -> GroupSplit:
    """Split as torch's ``random_split`` does: permute the images, and use the last images for
    testing.

    The seed is :data:`RELEASED_SEED`, as in the released code, and not the seed of the spec.
    """
    import torch

    generator = torch.Generator().manual_seed(RELEASED_SEED)
    order = torch.randperm(len(candidates.rows), generator=generator).numpy().astype(np.int64)
    return GroupSplit(candidates, train=order[:-test_size], test=order[-test_size:])
