"""Promises of subsets and of the validation split of a search, tested on random datasets.

Subsets are nested, disjoint by group and stratified, and do not depend on the requested sizes. A
validation split is whole groups of the training images, and never has a test image."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from search_spaces.errors import DataError
from search_spaces.specs import PreparedSpec, SubsetSpec
from search_spaces.tuning import ValidationSpec
from tasks.prepared import group_split, subsets
from tasks.prepared.subsets import load_validation, make_subset, split_validation
from tasks.prepared.table import number_groups

SHARE = ValidationSpec(share=0.25)


@dataclass
class ToyDataset:
    """A stand-in for a prepared dataset. The one pixel of an image is its row number."""

    classes: NDArray[np.int64]
    groups: NDArray[np.int64]
    splits: NDArray[np.int8] | None = None
    fingerprint: str = "f"
    read: tuple[int, ...] = ()

    def read_rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        self.read += tuple(rows.tolist())
        return np.asarray(rows, np.float32).reshape(-1, 1, 1, 1)

    def subset(self, spec: SubsetSpec, **options):
        return make_subset(self.classes, self.groups, spec, self.splits, **options)


def subset_spec(class_pair=None, test_size=10, split_seed=1, faults=()) -> SubsetSpec:
    prepared = PreparedSpec(dataset="toy", image_size=8, channels=1, faults=faults)
    return SubsetSpec(
        prepared=prepared, class_pair=class_pair, test_size=test_size, split_seed=split_seed
    )


def regular_toy(num_images=200, per_group=1, num_classes=2) -> ToyDataset:
    rows = np.arange(num_images)
    return ToyDataset((rows // per_group) % num_classes, rows // per_group * 31)


TWO_TO_SIX_CLASSES = st.integers(2, 6)


@st.composite
def random_toys(draw, num_classes=TWO_TO_SIX_CLASSES):
    """Draw labels and groups of 60 to 300 images; groups of 1 to 6 images have mixed labels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(60, 300))
    classes = draw(num_classes)
    per_group = draw(st.integers(1, 6))
    labels = rng.permutation(np.arange(size) % classes).astype(np.int64)
    groups = rng.permutation(np.arange(size) // per_group).astype(np.int64)
    # Group numbers need not be consecutive: 7919 is a prime.
    return ToyDataset(labels, groups * 7919)


def skip_if_refused(create):
    try:
        return create()
    except DataError:
        assume(False)


@settings(max_examples=100)
@given(random_toys(), st.integers(2, 30), st.integers(0, 5), st.booleans())
def test_a_subset_is_disjoint_by_group_nested_and_stratified(data, test_size, seed, all_classes):
    class_pair = None if all_classes else (1, 0)
    spec = subset_spec(class_pair, test_size, seed)
    subset = skip_if_refused(lambda: data.subset(spec))
    used_rows = np.concatenate([subset.train_rows, subset.test_rows])
    assert len(np.unique(used_rows)) == len(used_rows)
    assert len(subset.test_rows) == test_size
    assert not set(data.groups[subset.train_rows]) & set(data.groups[subset.test_rows])
    names = np.array([int(name) for name in subset.class_names])
    targets = np.concatenate([subset.train_labels, subset.test_labels])
    np.testing.assert_array_equal(data.classes[used_rows], names[targets])
    totals = np.bincount(subset.train_labels, minlength=subset.num_classes)
    share = totals / max(1, subset.max_train_size)
    for size in range(1, subset.max_train_size + 1):
        counts = np.bincount(subset.train_labels[:size], minlength=subset.num_classes)
        if subset.num_classes == 2:
            assert np.ptp(counts) <= 1
        else:
            assert np.abs(counts - size * share).max() <= 1.5
    assert subset.num_classes > 2 or np.ptp(np.bincount(subset.test_labels, minlength=2)) <= 1


@settings(max_examples=50)
@given(random_toys(), st.integers(0, 5), st.integers(1, 2**31), st.integers(1, 20))
def test_a_subset_does_not_depend_on_group_numbers_and_requested_sizes(data, seed, salt, size):
    spec = subset_spec((0, 1), 8, seed)
    first = skip_if_refused(lambda: data.subset(spec))
    assume(size <= first.max_train_size)
    second = ToyDataset(data.classes, (data.groups + 1) * salt).subset(spec, max_train_size=size)
    np.testing.assert_array_equal(first.train_rows, second.train_rows)
    np.testing.assert_array_equal(first.test_rows, second.test_rows)


@settings(max_examples=50)
@given(random_toys(st.just(2)), st.integers(0, 5))
def test_the_sources_own_split_is_kept(data, seed):
    numbers = np.unique(data.groups, return_inverse=True)[1]
    given_test = numbers < numbers.max() // 2
    data.splits = np.where(given_test, 2, 1).astype(np.int8)
    subset = skip_if_refused(lambda: data.subset(subset_spec(None, 6, seed)))
    assert given_test[subset.test_rows].all()
    assert not given_test[subset.train_rows].any()


def test_seeds_draw_different_images_and_the_pairs_order_names_the_classes():
    data = regular_toy(400, num_classes=4)
    first, second = (data.subset(subset_spec((3, 1), 10, seed)) for seed in (1, 2))
    assert not np.array_equal(first.train_rows, second.train_rows)
    assert first.class_names == ("3", "1")
    expected_classes = np.where(first.test_labels == 0, 3, 1)
    np.testing.assert_array_equal(data.classes[first.test_rows], expected_classes)


@pytest.mark.parametrize(
    ("labels", "spec", "size", "message"),
    [
        ([0] * 50, subset_spec(None), None, "toy: the data have only one class"),
        ([0, 1] * 20, subset_spec((0, 5)), None, r"toy 0-5: there are no images of the class 5\."),
        (
            [0] * 50 + [1],
            subset_spec(None),
            None,
            "Class 1 needs 5 test images, but 1 of its images may be used for testing",
        ),
        (
            [0, 1] * 20,
            subset_spec(None, 60),
            None,
            "Class 0 needs 30 test images, but 20 of its images may be used for testing",
        ),
        (
            [0, 1] * 50,
            subset_spec(None),
            91,
            r"large: with 10 test images, at most 90 images are left for training \(class 0: 45, class",
        ),
    ],
)
def test_too_few_images_are_refused_with_the_numbers_and_the_hint(labels, spec, size, message):
    with pytest.raises(DataError, match=message):
        make_subset(np.array(labels), np.arange(len(labels)), spec, max_train_size=size)


def test_test_images_are_spread_over_groups():
    # 20 volumes of 30 slices: 20 test slices come from 6 volumes, not from one.
    labels = np.arange(600) % 2
    groups = np.arange(600) // 30
    subset = make_subset(labels, groups, subset_spec(None, 20))
    assert len(np.unique(groups[subset.test_rows])) == 6


@settings(max_examples=100)
@given(random_toys(st.integers(2, 4)), st.floats(0.1, 0.5), st.integers(20, 60))
def test_a_validation_is_whole_groups_of_the_sweeps_training_rows(data, share, size):
    spec = subset_spec(test_size=20)
    split = skip_if_refused(lambda: split_validation(data, spec, size, ValidationSpec(share=share)))
    subset = data.subset(spec, max_train_size=size)
    train_groups = set(data.groups[split.train_rows])
    validation_groups = set(data.groups[split.test_rows])
    test_groups = set(data.groups[subset.test_rows])
    assert not train_groups & validation_groups
    assert not (train_groups | validation_groups) & test_groups
    assert {*split.train_rows, *split.test_rows} <= set(subset.train_rows[:size])
    np.testing.assert_array_equal(data.classes[split.train_rows], split.train_labels)
    np.testing.assert_array_equal(data.classes[split.test_rows], split.test_labels)
    assert set(split.test_labels) == set(split.train_labels) == set(range(split.num_classes))


def test_the_share_is_kept_classes_are_balanced_and_no_test_image_is_read():
    data = regular_toy()
    spec = subset_spec(test_size=20)
    validation = load_validation(data, spec, 120, SHARE)
    assert np.bincount(validation.test_labels).tolist() == [15, 15]
    assert np.bincount(validation.train_labels).tolist() == [45, 45]
    validation_rows = validation.test_images.ravel().astype(int)
    np.testing.assert_array_equal(data.classes[validation_rows], validation.test_labels)
    assert (len(validation.train_images), len(data.read)) == (90, 120)
    assert not set(data.read) & set(data.subset(spec).test_rows)


def test_a_validation_depends_on_the_data_and_the_spec_alone():
    spec = subset_spec(test_size=20)
    first, second = (split_validation(regular_toy(), spec, 120, SHARE) for _ in range(2))
    np.testing.assert_array_equal(first.test_rows, second.test_rows)
    larger_split = split_validation(regular_toy(), spec, 120, ValidationSpec(share=0.3))
    assert set(larger_split.test_rows) != set(first.test_rows)


def toy_with_one_group() -> ToyDataset:
    """Return data whose source gives the first 120 images for training.

    All images of class 1 among them belong to one patient.
    """
    data = regular_toy(200)
    rows = np.arange(200)
    data.splits = np.where(rows < 120, 1, 2).astype(np.int8)
    data.groups = np.where((data.classes == 1) & (rows < 120), 999, rows)
    return data


TOO_FEW_GROUPS = "the training images have too few groups .patients. for a validation split.*"


@pytest.mark.parametrize(
    ("data", "faults", "size", "message"),
    [
        (toy_with_one_group(), (), 60, f"{TOO_FEW_GROUPS}class 1: 1 group,"),
        (regular_toy(num_classes=10), (), 8, f"{TOO_FEW_GROUPS}Raise `tune.train_size"),
        (regular_toy(num_classes=10), (), 10, f"{TOO_FEW_GROUPS}Raise `tune.train_size"),
        (
            regular_toy(),
            ("image_level_split",),
            60,
            "A search needs corrected data, but toy has the faults image_level_split",
        ),
    ],
)
def test_data_without_a_valid_validation_split_are_refused(data, faults, size, message):
    with pytest.raises(DataError, match=message):
        split_validation(data, subset_spec(faults=faults), size, SHARE)


@pytest.mark.parametrize(
    ("num_right_calls", "message"),
    [(0, "training set and the test set"), (1, "training and the validation set of a search")],
)
def test_a_group_in_two_splits_is_an_error(monkeypatch, num_right_calls, message):
    """The product checks every split itself. Here the sweep's split is wrong, or only the search's."""
    calls = itertools.count()

    def wrong_numbers(groups):
        return number_groups(groups) if next(calls) < num_right_calls else np.arange(len(groups))

    for module in (group_split, subsets):
        monkeypatch.setattr(module, "number_groups", wrong_numbers)
    with pytest.raises(AssertionError, match=f"the {message} share a group"):
        split_validation(regular_toy(per_group=4), subset_spec(test_size=20), 100, SHARE)


def test_labels_of_test_images_do_not_influence_the_validation_split():
    """The source has a test set. Shuffling its labels changes neither the split nor its labels."""
    clean = regular_toy()
    poisoned = regular_toy()
    clean.splits = poisoned.splits = np.where(np.arange(200) < 140, 1, 2).astype(np.int8)
    poisoned.classes[140:] = np.random.default_rng(0).permutation(clean.classes[140:])
    assert (poisoned.classes != clean.classes).sum() > 10
    spec = subset_spec(test_size=20)
    first, second = (split_validation(data, spec, 120, SHARE) for data in (clean, poisoned))
    for name in ("train_rows", "train_labels", "test_rows", "test_labels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    used_rows = np.concatenate([first.train_rows, first.test_rows])
    assert not np.isin(used_rows, np.arange(140, 200)).any()


def test_loading_more_training_images_than_a_subset_has_is_refused():
    data = regular_toy()
    subset = data.subset(subset_spec())
    too_many = subset.max_train_size + 1
    message = f"has only {subset.max_train_size} training images, but the train size is {too_many}"
    with pytest.raises(DataError, match=message):
        subset.load(data, too_many)
    assert data.read == ()
