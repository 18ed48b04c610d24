import numpy as np
import pytest

from tasks.prepared.subsets import stratified_order
from tasks.prepared.table import number_groups, occurrence, quotas_of


def in_order(labels, seed, **options):
    rng = None if seed is None else np.random.default_rng(seed)
    return stratified_order(labels, np.arange(len(labels)), rng, **{"balanced": False, **options})


def test_prefixes_of_the_order_hold_classes_in_proportion():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    order = in_order(labels, 0)
    assert sorted(order) == list(range(100))
    for size in (10, 37, 80):
        assert (
            np.abs(np.bincount(labels[order[:size]], minlength=3) - size * np.array([0.6, 0.3, 0.1])).max()
            <= 1
        )
    assert (in_order(labels, 1) != order).any()


def test_a_balanced_order_alternates_the_classes():
    labels = np.repeat([0, 1], [30, 12])
    assert labels[in_order(labels, 0, balanced=True)].tolist() == [0, 1] * 12


def test_without_a_generator_rows_keep_their_order_within_a_class():
    labels = np.array([1, 0, 0, 1, 0, 1])
    order = in_order(labels, None)
    assert [row for row in order if labels[row] == 0] == [1, 2, 4]
    assert [row for row in order if labels[row] == 1] == [0, 3, 5]


@pytest.mark.parametrize(
    ("available", "size", "expected"),
    [  # worked by hand: floors first, the rest to the largest remainders
        ([6, 3, 1], 10, [6, 3, 1]),
        ([1, 1, 1], 2, [1, 1, 0]),
        ([47, 16, 15, 22], 10, [5, 2, 1, 2]),
    ],
)
def test_quotas_by_largest_remainder(available, size, expected):
    assert quotas_of(np.array(available), size, balanced=False).tolist() == expected


def test_occurrence_and_group_numbers_follow_first_appearance():
    assert occurrence(np.array([5, 3, 5, 5, 3])).tolist() == [0, 0, 1, 2, 1]
    assert number_groups(np.array([9, -2, 9, 4])).tolist() == [0, 1, 0, 2]
    assert number_groups(np.array(["b", "\0b", "b", "a"])).tolist() == [0, 1, 0, 2]
