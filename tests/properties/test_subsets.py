"""Subsets over a range of datasets: nested, disjoint by group, stratified, unmoved by the sizes asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from search_spaces.errors import DataError
from search_spaces.specs import PreparedSpec, SubsetSpec
from tasks.prepared.subsets import make_subset


def subset_spec(class_pair=None, test_size=10, split_seed=1) -> SubsetSpec:
    prepared = PreparedSpec(dataset="toy", image_size=8, channels=1)
    return SubsetSpec(prepared=prepared, class_pair=class_pair, test_size=test_size, split_seed=split_seed)


TWO_TO_SIX = st.integers(2, 6)


@st.composite
def datasets(draw, num_classes=TWO_TO_SIX):
    """Labels and groups of 60 to 300 images; groups of 1 to 6 images with mixed labels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size, classes, per_group = draw(st.integers(60, 300)), draw(num_classes), draw(st.integers(1, 6))
    labels = rng.permutation(np.arange(size) % classes).astype(np.int64)
    groups = rng.permutation(np.arange(size) // per_group).astype(np.int64) * 7919
    return labels, groups


def made(labels, groups, spec):
    try:
        return make_subset(labels, groups, spec)
    except DataError:
        assume(False)


@settings(max_examples=150)
@given(datasets(), st.integers(2, 30), st.integers(0, 5), st.booleans())
def test_promises(data, test_size, seed, whole):
    labels, groups = data
    spec = subset_spec(None if whole else (1, 0), test_size, seed)
    subset = made(labels, groups, spec)
    both = np.concatenate([subset.train_order, subset.test_rows])
    assert len(np.unique(both)) == len(both)
    assert len(subset.test_rows) == test_size
    assert not set(groups[subset.train_order]) & set(groups[subset.test_rows])
    names = [int(name) for name in subset.class_names]
    for rows, targets in (
        (subset.train_order, subset.train_labels),
        (subset.test_rows, subset.test_labels),
    ):
        np.testing.assert_array_equal(labels[rows], np.array(names)[targets])
    if subset.num_classes == 2:
        for size in range(subset.max_train_size + 1):
            counts = subset.class_counts(size)
            assert max(counts) - min(counts) <= 1
        counts = np.bincount(subset.test_labels, minlength=2)
        assert counts.max() - counts.min() <= 1


@settings(max_examples=50)
@given(datasets(st.integers(3, 6)), st.integers(0, 5))
def test_prefixes_of_whole_sets_are_proportional(data, seed):
    labels, groups = data
    subset = made(labels, groups, subset_spec(None, 12, seed))
    share = np.bincount(subset.train_labels, minlength=subset.num_classes) / subset.max_train_size
    for size in range(1, subset.max_train_size + 1):
        assert np.abs(np.array(subset.class_counts(size)) - size * share).max() <= 1.5


@settings(max_examples=50)
@given(datasets(), st.integers(0, 5), st.integers(1, 2**31))
def test_only_who_shares_a_group_matters(data, seed, salt):
    labels, groups = data
    first = made(labels, groups, subset_spec((0, 1), 8, seed))
    second = made(labels, (groups + 1) * salt, subset_spec((0, 1), 8, seed))
    np.testing.assert_array_equal(first.train_order, second.train_order)
    np.testing.assert_array_equal(first.test_rows, second.test_rows)


@settings(max_examples=50)
@given(datasets(), st.integers(0, 5), st.integers(1, 20))
def test_asking_for_a_size_changes_nothing(data, seed, size):
    labels, groups = data
    spec = subset_spec((0, 1), 8, seed)
    first = made(labels, groups, spec)
    assume(size <= first.max_train_size)
    second = make_subset(labels, groups, spec, max_train_size=size)
    np.testing.assert_array_equal(first.train_order, second.train_order)
    np.testing.assert_array_equal(first.test_rows, second.test_rows)


@settings(max_examples=50)
@given(datasets(st.just(2)), st.integers(0, 5), st.data())
def test_given_splits_are_kept(data, seed, draw):
    labels, groups = data
    numbers = np.unique(groups, return_inverse=True)[1]
    given_test = numbers < numbers.max() // 2
    splits = np.where(given_test, 2, 1).astype(np.int8)
    try:
        subset = make_subset(labels, groups, subset_spec(None, 6, seed), splits)
    except DataError:
        assume(False)
    assert given_test[subset.test_rows].all()
    assert not given_test[subset.train_order].any()


def test_seeds_and_pairs_draw_different_images():
    labels = np.arange(400) % 4
    groups = np.arange(400)
    one, two = (make_subset(labels, groups, subset_spec((0, 1), 10, seed)) for seed in (1, 2))
    assert not np.array_equal(one.train_order, two.train_order)


def test_pair_order_names_the_classes():
    labels = np.arange(400) % 4
    subset = make_subset(labels, np.arange(400), subset_spec((3, 1), 10))
    assert subset.class_names == ("3", "1")
    np.testing.assert_array_equal(labels[subset.test_rows], np.where(subset.test_labels == 0, 3, 1))


@pytest.mark.parametrize(
    ("labels", "spec", "message"),
    [
        ([0] * 50, subset_spec(None), "one class only"),
        ([0, 1] * 20, subset_spec((0, 5)), "none of class 5"),
        ([0] * 50 + [1], subset_spec(None), "Class 1 needs 5 test images; found: 1"),
        ([0, 1] * 20, subset_spec(None, 60), "Class 0 needs 30 test images; found: 20"),
    ],
)
def test_too_few_images_are_refused_with_the_numbers(labels, spec, message):
    with pytest.raises(DataError, match=message):
        make_subset(np.array(labels), np.arange(len(labels)), spec)


def test_a_train_size_beyond_the_data_is_refused_with_the_way_out():
    with pytest.raises(DataError, match=r"at most 90 .*lower train_sizes to at most 90"):
        make_subset(np.arange(100) % 2, np.arange(100), subset_spec(None), max_train_size=91)


def test_test_images_are_spread_over_groups():
    # 20 volumes of 30 slices: 20 test slices come from 6 volumes, not from one.
    labels, groups = np.arange(600) % 2, np.arange(600) // 30
    subset = make_subset(labels, groups, subset_spec(None, 20))
    assert len(np.unique(groups[subset.test_rows])) == 6
