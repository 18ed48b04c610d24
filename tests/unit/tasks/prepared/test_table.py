"""Rows of images: their order, quotas and groups, and what a preparation keeps and shows of them."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.specs import PreparedSpec
from tasks.prepared.parts import DIGEST, FORM, Part
from tasks.prepared.record import preparation_lines, telling_traits
from tasks.prepared.subsets import stratified_order
from tasks.prepared.table import (
    _join,
    content_fingerprint,
    gather,
    number_groups,
    occurrence,
    quotas_of,
    select,
)
from tests.unit.tasks.sources.conftest import picture, png, prepare  # noqa: F401

SPEC = PreparedSpec(dataset="mine", image_size=8, channels=1)


def in_order(labels, seed, *, balanced=False):
    rng = None if seed is None else np.random.default_rng(seed)
    return stratified_order(labels, np.arange(len(labels)), rng, balanced=balanced)


def test_prefixes_of_the_order_hold_classes_in_proportion():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    order = in_order(labels, 0)
    assert sorted(order) == list(range(100))
    for size in (10, 37, 80):
        counts = np.bincount(labels[order[:size]], minlength=3)
        assert np.abs(counts - size * np.array([0.6, 0.3, 0.1])).max() <= 1
    assert (in_order(labels, 1) != order).any()


def test_a_balanced_order_alternates_and_without_a_generator_rows_keep_their_order():
    labels = np.repeat([0, 1], [30, 12])
    assert labels[in_order(labels, 0, balanced=True)].tolist() == [0, 1] * 12
    labels = np.array([1, 0, 0, 1, 0, 1])
    order = in_order(labels, None)
    assert [[row for row in order if labels[row] == label] for label in (0, 1)] == [[1, 2, 4], [0, 3, 5]]


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


@given(
    groups=st.lists(st.integers(-3, 3).map(lambda g: g * 2**60), min_size=1, max_size=30),
    seed=st.integers(0, 100),
)
def test_joined_groups_are_the_connected_ones(groups, seed):
    """Against the definition: two groups are one when a chain of shared images links them."""
    same = np.random.default_rng(seed).integers(0, 8, len(groups))
    joined = _join(np.array(groups), np.unique(same, return_inverse=True)[1])
    linked = np.equal.outer(groups, groups) | np.equal.outer(same, same)
    for _ in groups:
        linked = linked @ linked
    np.testing.assert_array_equal(np.equal.outer(joined, joined), linked)
    assert set(joined.tolist()) <= set(groups)


def test_equal_images_join_their_groups_and_at_most_200_bytes_per_image_are_kept():
    """Millions of small images must fit beside the few that are read."""
    num_parts, size = 24, 4096

    def part(seed: int) -> Part:
        rng = np.random.default_rng(seed)
        digests = np.frombuffer(rng.bytes(DIGEST.itemsize * size), DIGEST).copy()
        digests[:2] = np.zeros(2, DIGEST)  # equal to one another, over all parts
        return Part(
            num_items=size,
            items=np.arange(size, dtype=np.int32),
            labels=rng.integers(0, 2, size),
            groups=rng.integers(-(2**62), 2**62, size),
            patients=np.zeros(size, np.int64),
            splits=np.zeros(size, np.int8),
            digests=digests,
        )

    before = np.concatenate([part(seed).groups for seed in range(num_parts)])
    tracemalloc.start()
    try:
        parts = [part(seed) for seed in range(num_parts)]
        tracemalloc.reset_peak()
        images = select(gather(parts), SPEC)
        content_fingerprint(images, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / (num_parts * size) <= 200
    twins = (np.arange(2) + size * np.arange(num_parts)[:, None]).ravel()
    assert images.num_duplicates == len(twins) - 1
    assert set(images.groups[twins]) == {before[twins].min()}
    np.testing.assert_array_equal(np.delete(images.groups, twins), np.delete(before, twins))


def test_everything_that_was_taken_is_shown(prepare, tmp_path):  # noqa: F811
    raw = tmp_path / "raw"
    for number in range(8):
        path = raw / ("cat", "dog")[number % 2] / f"p{number // 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"junk" if number == 7 else png(picture(number, (20, 30))))
    (raw / "cat" / "notes.txt").touch()
    (raw / "horse").mkdir()
    record = prepare("folder", raw, layout="class/group", max_skipped_share=0.5, for_training=False).record
    lines = preparation_lines(record)
    text = "\n".join(lines)
    assert lines[0] == "mine: 7 images, 2 classes, 2 groups"
    assert "  class cat: 4 images, 2 groups" in lines
    assert "  class dog: 3 images, 2 groups" in lines
    assert any(line.startswith("  made 8x8, 1 channel: 8 bits as stored") for line in lines)
    assert "  left out: not an image by its ending, 1" in lines
    assert "  skipped: not an image, 1" in lines
    assert "  doubtful: class folder without an image: horse, 1" in lines
    assert record.skipped_items[0][0] in text
    assert "isweep locate HASH --raw DIR" in text
    assert "7.png" not in text


def part(*traits: tuple[int, str, str, int]) -> Part:
    return Part(traits=list(traits))


def test_information_is_that_of_the_formula():
    """Two sites, 30 and 10 of class 0, 10 and 30 of class 1: I = 1 - H(1/4) bits."""
    found = telling_traits(
        [part((0, "site", "a", 30), (0, "site", "b", 10)), part((1, "site", "a", 10), (1, "site", "b", 30))]
    )
    assert found == {"site tells the label (75% by it alone, 0.19 of 1.00 bits)": 60}


def test_rare_values_and_weak_ties_are_left_alone():
    alone = [(row % 2, FORM, f"size {row}", 1) for row in range(40)]
    weak = [(0, "site", "a", 21), (0, "site", "b", 19), (1, "site", "a", 19), (1, "site", "b", 21)]
    assert telling_traits([part(*alone), part(*weak)]) == {}
    assert telling_traits([]) == {}
    assert telling_traits([part((0, "site", "a", 3), (1, "site", "b", 3))]) == {}
