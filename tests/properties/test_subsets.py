"""Subsets over a range of datasets: nested, disjoint by group, stratified, unmoved by the sizes
asked for.

The validation split of a search likewise: whole groups of the training images, and never a test
image."""

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
class Toy:
    """What is asked of a prepared dataset; every image is its own row number."""

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


def toy(num_images=200, per_group=1, num_classes=2) -> Toy:
    places = np.arange(num_images)
    return Toy((places // per_group) % num_classes, places // per_group * 31)


TWO_TO_SIX = st.integers(2, 6)


@st.composite
def toys(draw, num_classes=TWO_TO_SIX):
    """Labels and groups of 60 to 300 images; groups of 1 to 6 images with mixed labels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size, classes, per_group = (
        draw(st.integers(60, 300)),
        draw(num_classes),
        draw(st.integers(1, 6)),
    )
    labels = rng.permutation(np.arange(size) % classes).astype(np.int64)
    return Toy(labels, rng.permutation(np.arange(size) // per_group).astype(np.int64) * 7919)


def made(make):
    try:
        return make()
    except DataError:
        assume(False)


@settings(max_examples=200)
@given(toys(), st.integers(2, 30), st.integers(0, 5), st.booleans())
def test_promises(data, test_size, seed, whole):
    subset = made(lambda: data.subset(subset_spec(None if whole else (1, 0), test_size, seed)))
    both = np.concatenate([subset.train_rows, subset.test_rows])
    assert len(np.unique(both)) == len(both)
    assert len(subset.test_rows) == test_size
    assert not set(data.groups[subset.train_rows]) & set(data.groups[subset.test_rows])
    names = np.array([int(name) for name in subset.class_names])
    targets = np.concatenate([subset.train_labels, subset.test_labels])
    np.testing.assert_array_equal(data.classes[both], names[targets])
    share = np.bincount(subset.train_labels, minlength=subset.num_classes) / max(
        1, subset.max_train_size
    )
    for size in range(1, subset.max_train_size + 1):
        counts = np.bincount(subset.train_labels[:size], minlength=subset.num_classes)
        if subset.num_classes == 2:
            assert np.ptp(counts) <= 1
        else:
            assert np.abs(counts - size * share).max() <= 1.5
    assert subset.num_classes > 2 or np.ptp(np.bincount(subset.test_labels, minlength=2)) <= 1


@settings(max_examples=50)
@given(toys(), st.integers(0, 5), st.integers(1, 2**31), st.integers(1, 20))
def test_only_who_shares_a_group_matters_and_no_size_that_is_asked_for(data, seed, salt, size):
    spec = subset_spec((0, 1), 8, seed)
    first = made(lambda: data.subset(spec))
    assume(size <= first.max_train_size)
    second = Toy(data.classes, (data.groups + 1) * salt).subset(spec, max_train_size=size)
    np.testing.assert_array_equal(first.train_rows, second.train_rows)
    np.testing.assert_array_equal(first.test_rows, second.test_rows)


@settings(max_examples=50)
@given(toys(st.just(2)), st.integers(0, 5))
def test_given_splits_are_kept(data, seed):
    numbers = np.unique(data.groups, return_inverse=True)[1]
    given_test = numbers < numbers.max() // 2
    data.splits = np.where(given_test, 2, 1).astype(np.int8)
    subset = made(lambda: data.subset(subset_spec(None, 6, seed)))
    assert given_test[subset.test_rows].all()
    assert not given_test[subset.train_rows].any()


def test_seeds_draw_different_images_and_the_pairs_order_names_the_classes():
    data = toy(400, num_classes=4)
    one, two = (data.subset(subset_spec((3, 1), 10, seed)) for seed in (1, 2))
    assert not np.array_equal(one.train_rows, two.train_rows)
    assert one.class_names == ("3", "1")
    np.testing.assert_array_equal(data.classes[one.test_rows], np.where(one.test_labels == 0, 3, 1))


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
    labels, groups = np.arange(600) % 2, np.arange(600) // 30
    subset = make_subset(labels, groups, subset_spec(None, 20))
    assert len(np.unique(groups[subset.test_rows])) == 6


@settings(max_examples=100)
@given(toys(st.integers(2, 4)), st.floats(0.1, 0.5), st.integers(20, 60))
def test_a_validation_is_whole_groups_of_the_sweeps_training_rows(data, share, size):
    spec = subset_spec(test_size=20)
    split = made(lambda: split_validation(data, spec, size, ValidationSpec(share=share)))
    subset = data.subset(spec, max_train_size=size)
    sides = [
        set(data.groups[rows]) for rows in (split.train_rows, split.test_rows, subset.test_rows)
    ]
    assert not sides[0] & sides[1]
    assert not (sides[0] | sides[1]) & sides[2]
    assert {*split.train_rows, *split.test_rows} <= set(subset.train_rows[:size])
    np.testing.assert_array_equal(data.classes[split.train_rows], split.train_labels)
    np.testing.assert_array_equal(data.classes[split.test_rows], split.test_labels)
    assert set(split.test_labels) == set(split.train_labels) == set(range(split.num_classes))


def test_the_share_is_kept_classes_are_balanced_and_no_test_image_is_read():
    data, spec = toy(), subset_spec(test_size=20)
    found = load_validation(data, spec, 120, SHARE)
    assert np.bincount(found.test_labels).tolist() == [15, 15]
    assert np.bincount(found.train_labels).tolist() == [45, 45]
    np.testing.assert_array_equal(
        data.classes[found.test_images.ravel().astype(int)], found.test_labels
    )
    assert (len(found.train_images), len(data.read)) == (90, 120)
    assert not set(data.read) & set(data.subset(spec).test_rows)


def test_a_validation_depends_on_the_data_and_the_spec_alone():
    spec = subset_spec(test_size=20)
    first, again = (split_validation(toy(), spec, 120, SHARE) for _ in range(2))
    np.testing.assert_array_equal(first.test_rows, again.test_rows)
    other = split_validation(toy(), spec, 120, ValidationSpec(share=0.3))
    assert set(other.test_rows) != set(first.test_rows)


def one_group() -> Toy:
    """The first 120 images are given for training, and all of class 1 among them are of one
    patient."""
    data, places = toy(200), np.arange(200)
    data.splits = np.where(places < 120, 1, 2).astype(np.int8)
    data.groups = np.where((data.classes == 1) & (places < 120), 999, places)
    return data


ENOUGH = "the training images have too few groups .patients. for a validation split.*"


@pytest.mark.parametrize(
    ("data", "faults", "size", "message"),
    [
        (one_group(), (), 60, f"{ENOUGH}class 1: 1 group,"),
        (toy(num_classes=10), (), 8, f"{ENOUGH}Raise tune.train_size"),
        (toy(num_classes=10), (), 10, f"{ENOUGH}Raise tune.train_size"),
        (
            toy(),
            ("image_level_split",),
            60,
            "A search needs corrected data, but toy has the faults image_level_split",
        ),
    ],
)
def test_what_has_no_honest_validation_is_refused(data, faults, size, message):
    with pytest.raises(DataError, match=message):
        split_validation(data, subset_spec(faults=faults), size, SHARE)


@pytest.mark.parametrize(
    ("right", "message"),
    [(0, "training set and the test set"), (1, "training and the validation set of a search")],
)
def test_a_group_on_two_sides_never_passes(monkeypatch, right, message):
    """The product's own checks, met with a split that is wrong: the sweep's, or only the
    search's."""
    calls = itertools.count()

    def wrong_numbers(groups):
        return number_groups(groups) if next(calls) < right else np.arange(len(groups))

    for module in (group_split, subsets):
        monkeypatch.setattr(module, "number_groups", wrong_numbers)
    with pytest.raises(AssertionError, match=f"the {message} share a group"):
        split_validation(toy(per_group=4), subset_spec(test_size=20), 100, SHARE)


def test_poisoned_labels_of_test_images_change_nothing():
    """Of a source with a test set of its own, whose labels are shuffled: same split, same
    labels."""
    clean, poisoned = toy(), toy()
    clean.splits = poisoned.splits = np.where(np.arange(200) < 140, 1, 2).astype(np.int8)
    poisoned.classes[140:] = np.random.default_rng(0).permutation(clean.classes[140:])
    assert (poisoned.classes != clean.classes).sum() > 10
    spec = subset_spec(test_size=20)
    first, second = (split_validation(data, spec, 120, SHARE) for data in (clean, poisoned))
    for name in ("train_rows", "train_labels", "test_rows", "test_labels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert not np.isin(
        np.concatenate([first.train_rows, first.test_rows]), np.arange(140, 200)
    ).any()


def test_loading_more_training_images_than_a_subset_has_is_refused():
    data = toy()
    subset = data.subset(subset_spec())
    too_many = subset.max_train_size + 1
    message = f"has only {subset.max_train_size} training images, but the train size is {too_many}"
    with pytest.raises(DataError, match=message):
        subset.load(data, too_many)
    assert data.read == ()
