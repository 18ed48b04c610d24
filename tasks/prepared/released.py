"""How the released code chose training and test images, fault by fault (``docs/faults.md``).

The pool of a training set of N images is (N + test size) / 2 images of each class:

* ``first_k_selection`` (F6): the first of each class in stored order, instead of a seeded choice;
* ``misaligned_labels`` (F3, natural sets held in memory): surplus images of the class that fills first are
dropped
  from the list of labels but not from the array of images, so image i meets the label of another image; the
  pool is then the first of each class, split by image;
* ``fixed_imagenet_files`` (F4, ImageNet): the position in the pair's list is looked up in the list of all
files, so
  the images are the first files whatever the pair is;
* ``test_set_depends_on_size`` (F7): pool and permutation depend on N, so every N has another test set;
* ``image_level_split`` (F5): groups are ignored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.datasets import DATASETS
from search_spaces.errors import DataError
from search_spaces.recipes import RELEASED_SEED
from search_spaces.specs import SubsetSpec

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
