"""The validation split: whole groups of the training images, and never a test image."""

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
from tasks.prepared import subsets
from tasks.prepared.subsets import load_validation, make_subset, split_validation
from tasks.prepared.table import number_groups

SHARE = ValidationSpec(share=0.25)


@dataclass
class Toy:
    """What is asked of a prepared dataset; every image is its own row number."""

    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    splits: NDArray[np.int8] | None = None
    fingerprint: str = "f"
    read: tuple[int, ...] = ()

    def read_rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        self.read += tuple(rows.tolist())
        return np.asarray(rows, np.float32).reshape(-1, 1, 1, 1)


def spec(faults=(), class_pair=None, test_size=20) -> SubsetSpec:
    prepared = PreparedSpec(dataset="toy", image_size=8, channels=1, faults=faults)
    return SubsetSpec(prepared=prepared, class_pair=class_pair, test_size=test_size)


def toy(num_images=200, per_group=1, num_classes=2) -> Toy:
    places = np.arange(num_images)
    return Toy((places // per_group) % num_classes, places // per_group * 31)


@st.composite
def toys(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size, per_group = draw(st.integers(80, 300)), draw(st.integers(1, 5))
    num_classes = draw(st.integers(2, 4))
    labels = rng.permutation(np.arange(size) % num_classes).astype(np.int64)
    return Toy(labels, rng.permutation(np.arange(size) // per_group).astype(np.int64) * 7919)


@settings(max_examples=100)
@given(toys(), st.floats(0.1, 0.5), st.integers(20, 60))
def test_groups_are_on_one_side_and_rows_are_the_sweeps_training_rows(data, share, size):
    try:
        split = split_validation(data, spec(), size, ValidationSpec(share=share))
        subset = make_subset(data.labels, data.groups, spec(), max_train_size=size)
    except DataError:
        assume(False)
    groups = [set(data.groups[rows]) for rows in (split.train_order, split.test_rows, subset.test_rows)]
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & groups[2]
    assert {*split.train_order, *split.test_rows} <= set(subset.train_order[:size])
    np.testing.assert_array_equal(data.labels[split.train_order], split.train_labels)
    np.testing.assert_array_equal(data.labels[split.test_rows], split.test_labels)
    assert set(split.test_labels) == set(split.train_labels) == set(range(split.num_classes))


def test_the_share_is_kept_and_classes_are_balanced():
    split = split_validation(toy(), spec(), 120, SHARE)
    assert (len(split.test_rows), len(split.train_order)) == (30, 90)
    assert np.bincount(split.test_labels).tolist() == [15, 15]
    assert np.bincount(split.train_labels).tolist() == [45, 45]


def test_no_test_image_is_read():
    data = toy()
    found = load_validation(data, spec(), 120, SHARE)
    test_rows = make_subset(data.labels, data.groups, spec()).test_rows
    assert len(data.read) == 120
    assert not set(data.read) & set(test_rows)
    np.testing.assert_array_equal(data.labels[found.test_images.ravel().astype(int)], found.test_labels)
    assert len(found.train_images) == 90


def test_the_split_depends_on_the_data_and_the_spec_alone():
    first, again = (split_validation(toy(), spec(), 120, SHARE) for _ in range(2))
    np.testing.assert_array_equal(first.test_rows, again.test_rows)
    other = split_validation(toy(), spec(), 120, ValidationSpec(share=0.3))
    assert set(other.test_rows) != set(first.test_rows)


def test_a_class_of_one_group_is_refused_by_name():
    # The first 120 images are given for training, and all of class 1 among them are of one patient.
    data, places = toy(200), np.arange(200)
    data.splits = np.where(places < 120, 1, 2).astype(np.int8)
    data.groups = np.where((data.labels == 1) & (places < 120), 999, places)
    with pytest.raises(DataError, match=r"enough groups among the training images.*class 1: 1 groups"):
        split_validation(data, spec(test_size=10), 60, SHARE)


def test_faults_that_let_test_groups_be_trained_on_are_refused():
    with pytest.raises(DataError, match="needs corrected data; found: toy with faults image_level_split"):
        split_validation(toy(), spec(faults=("image_level_split",)), 60, SHARE)


@pytest.mark.parametrize(
    ("right", "message"),
    [(0, "on both sides of the split"), (1, "on the training and the validation side")],
)
def test_a_group_on_two_sides_never_passes(monkeypatch, right, message):
    """The product's own checks, met with a split that is wrong: the sweep's, or only the search's."""
    calls = itertools.count()
    monkeypatch.setattr(
        subsets,
        "number_groups",
        lambda groups: number_groups(groups) if next(calls) < right else np.arange(len(groups)),
    )
    with pytest.raises(AssertionError, match=f"a group is {message}"):
        split_validation(toy(per_group=4), spec(), 100, SHARE)


def test_poisoned_labels_of_test_images_change_nothing():
    """Of a source with a test set of its own, whose labels are shuffled: same split, same labels."""
    clean, poisoned = toy(), toy()
    clean.splits = poisoned.splits = np.where(np.arange(200) < 140, 1, 2).astype(np.int8)
    poisoned.labels = clean.labels.copy()
    poisoned.labels[140:] = np.random.default_rng(0).permutation(clean.labels[140:])
    assert (poisoned.labels != clean.labels).sum() > 10
    first, second = (split_validation(data, spec(), 120, SHARE) for data in (clean, poisoned))
    for name in ("train_order", "train_labels", "test_rows", "test_labels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert not np.isin(np.concatenate([first.train_order, first.test_rows]), np.arange(140, 200)).any()


@pytest.mark.parametrize("train_size", [8, 10])
def test_fewer_images_than_two_per_class_is_refused(train_size):
    with pytest.raises(DataError, match="needs enough groups among the training images") as caught:
        split_validation(toy(num_classes=10), spec(), train_size, SHARE)
    assert "raise tune.train_size" in str(caught.value)
