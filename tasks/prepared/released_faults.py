"""Splits with the faults of the released code that a spec switches on.

The faults F3 to F7 (see ``docs/faults.md``) change the choice of images:

- ``misaligned_labels`` (F3, natural datasets that the released code reads into memory): If one
  class has too many images, the surplus is removed from the labels but not from the images. So
  image i has the label of another image.
- ``fixed_imagenet_files`` (F4, ImageNet): An index into the images of the class pair is used as an
  index into all images. So the images are always the first files, for every class pair.
- ``image_level_split`` (F5): Groups are ignored.
- ``first_k_selection`` (F6): Images are chosen in stored order, instead of a seeded order.
- ``test_set_depends_on_size`` (F7): The split depends on the train size N, so every N has another
  test set.

F5, F6 and F7 together are the *released split*.

In three cases (F3, F4 and the released split), images are chosen only from a *pool*. The pool is
the first (N + ``test_size``) / ``num_classes`` images of each class, rounded down.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.datasets import DATASETS
from search_spaces.errors import DataError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import RELEASED_SEED, SubsetSpec
from tasks.prepared.group_split import Candidates, GroupSplit, split_by_group

Integers = NDArray[np.int64]
READ_BY_FILE_NAME = ("imagenet",)
"""Natural-image datasets that the released code reads by file name. Fault F4 occurs only in these
datasets. Fault F3 occurs only in the other natural-image datasets."""
WRONG_PAIRING_FAULTS = frozenset({"misaligned_labels", "fixed_imagenet_files"})
"""Faults that combine images with wrong labels (F3), or class pairs with wrong images (F4)."""
RELEASED_SPLIT_FAULTS = frozenset(
    {"image_level_split", "first_k_selection", "test_set_depends_on_size"}
)
"""Faults F5, F6 and F7. Together they are the split of the released code."""


def split_with_faults(
    candidates: Candidates, spec: SubsetSpec, max_train_size: int | None
) -> GroupSplit:
    """Split candidates with the faults of the released code that the spec switches on.

    Args:
        candidates: All images of the subset's classes.
        spec: The subset spec: the faults, the size of the test set and the seed.
        max_train_size: The train size N; None if no fault needs it.

    Raises:
        DataError: A fault makes the images depend on N, but ``max_train_size`` is None. Or there
            are too few images.
    """
    faults = _relevant_faults(spec)
    has_wrong_pairing = not faults.isdisjoint(WRONG_PAIRING_FAULTS)
    is_released_split = faults >= RELEASED_SPLIT_FAULTS
    # The released split includes test_set_depends_on_size, so it needs a train size too.
    needs_train_size = has_wrong_pairing or "test_set_depends_on_size" in faults
    if max_train_size is None:
        if needs_train_size:
            raise DataError(
                f"With the faults {', '.join(sorted(spec.prepared.faults))}, the subset depends "
                "on the train size",
                hint="Call make_subset with max_train_size, once for every train size",
            )
        return _split_by_spec(candidates, spec, faults, max_train_size)
    if has_wrong_pairing or is_released_split:
        candidates = _pool(candidates, spec, faults, max_train_size)
    if is_released_split:
        return _released_split(candidates, spec.test_size)
    return _split_by_spec(candidates, spec, faults, max_train_size)


def _relevant_faults(spec: SubsetSpec) -> set[str]:
    """Return the faults of the spec that can occur in its dataset."""
    faults: set[str] = set(spec.prepared.faults)
    dataset = spec.prepared.dataset
    is_read_by_name = dataset in READ_BY_FILE_NAME
    if not is_read_by_name:
        faults.discard("fixed_imagenet_files")
    # A user's data count as natural.
    is_natural = dataset not in DATASETS or DATASETS[dataset].domain == "natural"
    if is_read_by_name or not is_natural:
        faults.discard("misaligned_labels")
    return faults


def _pool(
    candidates: Candidates, spec: SubsetSpec, faults: set[str], train_size: int
) -> Candidates:
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


def _first_of_each_class(candidates: Candidates, spec: SubsetSpec, train_size: int) -> Integers:
    """Return the indices of the pool's candidates, in ascending order."""
    num_classes = len(candidates.class_names)
    # Rounded down, as in the released code.
    num_per_class = (train_size + spec.test_size) // num_classes
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(candidates.labels == label)
        if len(members) < num_per_class:
            raise DataError(
                f"{spec.prepared.dataset} with the faults of the released code: {train_size} "
                f"training and {spec.test_size} test images need {num_per_class} images of each "
                f"class, but one class has only {len(members)}",
                hint="Lower train_sizes or test_size",
            )
        chosen.append(members[:num_per_class])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _split_by_spec(
    candidates: Candidates, spec: SubsetSpec, faults: set[str], max_train_size: int | None
) -> GroupSplit:
    """Split by groups, with those of the faults F5, F6 and F7 that are switched on."""
    rng = None
    if "first_k_selection" not in faults:
        seed = ["subset", spec.split_seed, spec.class_pair]
        if "test_set_depends_on_size" in faults:
            seed.append(max_train_size)
        rng = np.random.default_rng(derive_seed(*seed))
    groups = candidates.groups
    # A pool with F3 or F4 has exactly the images that are needed. A split by groups would leave out
    # the other images of the test groups, so there would be too few training images.
    if "image_level_split" in faults or not faults.isdisjoint(WRONG_PAIRING_FAULTS):
        groups = np.arange(len(candidates.rows))
    # With F3, the classes of the pool have equal counts. If the size of the test set is odd, one
    # class has one training image more. Proportional numbers use this image too.
    balanced = len(candidates.class_names) == 2 and "misaligned_labels" not in faults
    return split_by_group(candidates, spec.test_size, rng, groups=groups, balanced=balanced)


def _released_split(candidates: Candidates, test_size: int) -> GroupSplit:
    """Split like torch's ``random_split``: permute the images; the last ones are for testing.

    The seed is always :data:`RELEASED_SEED`, as in the released code. The seed of the spec has no
    effect.
    """
    import torch

    generator = torch.Generator().manual_seed(RELEASED_SEED)
    order = torch.randperm(len(candidates.rows), generator=generator).numpy().astype(np.int64)
    return GroupSplit(candidates, train=order[:-test_size], test=order[-test_size:])
