"""The released code's choice of images, compared with a plain transcription of that code."""

from __future__ import annotations

import numpy as np
import pytest

from search_spaces.errors import DataError
from search_spaces.recipes import RELEASED_MODELS, released_pairs
from search_spaces.specs import RELEASED_FAULTS, PreparedSpec, SubsetSpec
from tasks.prepared.subsets import make_subset
from tasks.sources.own.splits import GivenSplit

LABELS = (
    np.random.default_rng(5).choice(6, 900, p=[0.1, 0.1, 0.25, 0.1, 0.3, 0.15]).astype(np.int64)
)


def spec(dataset="mnist", faults=RELEASED_FAULTS, pair=(4, 2), test_size=30) -> SubsetSpec:
    mode = "as_released" if faults == RELEASED_FAULTS else "corrected"
    prepared = PreparedSpec(
        dataset=dataset, image_size=8, channels=1, faults=faults, data_mode=mode
    )
    return SubsetSpec(prepared=prepared, class_pair=pair, test_size=test_size)


def chosen(size=None, per_group=1, **options):
    return make_subset(LABELS, np.arange(900) // per_group, spec(**options), max_train_size=size)


def reference(pair, train_size, test_size, *, aligned, files_fixed):
    """Choose images like the released ``NaturalDatasetBinary`` and ``get_datasets``, loop by loop."""
    import torch

    pair_rows = [row for row in range(len(LABELS)) if LABELS[row] in pair]
    entries = []
    for place, row in enumerate(pair_rows):
        label = 0 if LABELS[row] == pair[0] else 1
        entries.append((place if files_fixed else row, label))
    size = train_size + test_size
    counts, labels = [0, 0], []
    for entry in entries:
        if counts[entry[1]] < size // 2:
            labels.append(entry)
            counts[entry[1]] += 1
    images = [entry[0] for entry in labels] if aligned else pair_rows[:size]
    order = torch.randperm(size, generator=torch.Generator().manual_seed(1337)).tolist()
    examples = [(images[place], labels[place][1]) for place in order]
    return examples[:train_size], examples[train_size:]


@pytest.mark.parametrize("train_size", [50, 120, 200])
@pytest.mark.parametrize(
    ("dataset", "aligned", "files_fixed"),
    [("mnist", False, False), ("imagenet", True, True), ("mura", True, False)],
)
def test_equals_the_released_code_image_by_image(dataset, aligned, files_fixed, train_size):
    subset = chosen(train_size, dataset=dataset)
    train, test = reference((4, 2), train_size, 30, aligned=aligned, files_fixed=files_fixed)
    assert list(zip(subset.train_rows.tolist(), subset.train_labels.tolist(), strict=True)) == train
    assert list(zip(subset.test_rows.tolist(), subset.test_labels.tolist(), strict=True)) == test


@pytest.mark.parametrize(
    ("faults", "size"), [(RELEASED_FAULTS, 300), (("misaligned_labels",), 120)]
)
def test_misaligned_labels_are_wrong_for_some_images(faults, size):
    subset = chosen(size, faults=faults)
    assert subset.max_train_size == size
    wrong = subset.train_labels != np.where(LABELS[subset.train_rows] == 4, 0, 1)
    assert 0 < wrong.mean() < 0.5


@pytest.mark.parametrize(
    ("dataset", "fault"), [("mnist", "misaligned_labels"), ("imagenet", "fixed_imagenet_files")]
)
@pytest.mark.parametrize(("train_size", "test_size"), [(121, 29), (120, 30)])
def test_all_images_of_the_pool_are_used_even_if_the_test_size_is_odd(
    dataset, fault, train_size, test_size
):
    subset = chosen(train_size, dataset=dataset, faults=(fault,), test_size=test_size)
    labels = np.concatenate([subset.train_labels, subset.test_labels])
    assert (len(subset.train_rows), len(subset.test_rows)) == (train_size, test_size)
    assert len({*subset.train_rows, *subset.test_rows}) == train_size + test_size
    assert np.bincount(labels).tolist() == [75, 75]


def test_single_faults_do_what_they_say():
    assert chosen(200, 10, dataset="mura", faults=("image_level_split",)).shared_group_share > 0.5
    assert chosen(None, 10, dataset="mura", faults=()).shared_group_share == 0
    small, large = (chosen(size, faults=("test_set_depends_on_size",)) for size in (50, 60))
    assert not np.array_equal(small.test_rows, large.test_rows)
    first = chosen(40, dataset="mura", faults=("first_k_selection",))
    assert max(first.train_rows[:40].max(), first.test_rows.max()) < 250


@pytest.mark.parametrize(
    ("faults", "size", "message"),
    [
        (
            ("test_set_depends_on_size",),
            None,
            "With the faults test_set_depends_on_size, the subset depends on the train size",
        ),
        (RELEASED_FAULTS, 500, "need 265 images of each class"),
        (RELEASED_FAULTS, 121, "must be a multiple of the number of classes, but 121 "),
    ],
)
def test_what_the_released_code_could_not_do_is_refused(faults, size, message):
    with pytest.raises(DataError, match=message):
        chosen(size, faults=faults)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (
            ("misaligned_labels", "unequal_channels"),
            r"^mine: the data state .* for tests\. `faults: \[misaligned_labels\]` would ignore this "
            "split. Remove misaligned_labels from `faults`, or remove the split from the data",
        ),
        (
            ("image_level_split", "first_k_selection", "test_set_depends_on_size"),
            "Remove one of first_k_selection, image_level_split, test_set_depends_on_size from `faults`,",
        ),
        (
            RELEASED_FAULTS,
            "`data_mode: as_released` would ignore this split. Set `data_mode: corrected`, or",
        ),
    ],
)
def test_faults_that_would_ignore_the_split_of_user_data_are_refused(faults, message):
    splits = np.where(np.arange(900) % 3 == 0, GivenSplit.TEST, GivenSplit.TRAIN).astype(np.int8)
    data_with_split = spec(dataset="mine", faults=faults)

    with pytest.raises(DataError, match=message):
        make_subset(LABELS, np.arange(900), data_with_split, splits, max_train_size=60)


@pytest.mark.parametrize(
    "faults", [("image_level_split",), ("image_level_split", "test_set_depends_on_size")]
)
def test_other_faults_use_the_split_of_user_data(faults):
    splits = np.where(np.arange(900) % 3 == 0, GivenSplit.TEST, GivenSplit.TRAIN).astype(np.int8)
    data_with_split = spec(dataset="mine", faults=faults)

    subset = make_subset(LABELS, np.arange(900), data_with_split, splits, max_train_size=60)

    assert (splits[subset.test_rows] == GivenSplit.TEST).all()
    assert (splits[subset.train_rows] == GivenSplit.TRAIN).all()


def test_released_pairs_are_those_recovered_by_the_audit():
    sizes = (500, 750, 1000, 1250, 1500, 1750)
    pairs = released_pairs()
    assert [pairs["vgg13", "mnist", n] for n in sizes] == [
        (9, 8),
        (5, 2),
        (5, 6),
        (5, 4),
        (6, 3),
        (5, 1),
    ]
    assert [pairs["vgg13", "cifar10", n] for n in sizes] == [
        (6, 9),
        (1, 8),
        (5, 6),
        (6, 4),
        (0, 5),
        (9, 1),
    ]
    assert [pairs["vgg13", "svhn", n] for n in sizes] == [
        (7, 3),
        (2, 5),
        (9, 7),
        (9, 4),
        (3, 8),
        (1, 8),
    ]
    assert len(pairs) == len(RELEASED_MODELS) * 4 * 6
