"""What a preparation keeps per image: millions of small images must fit beside the few that are read."""

from __future__ import annotations

import tracemalloc

import numpy as np

from search_spaces.specs import PreparedSpec
from tasks.prepared.parts import DIGEST, Part
from tasks.prepared.table import content_fingerprint, distinct, gather, select

NUM_PARTS, ROWS = 24, 4096


def make_part(seed: int) -> Part:
    rng = np.random.default_rng(seed)
    digests = np.frombuffer(rng.bytes(DIGEST.itemsize * ROWS), DIGEST).copy()
    digests[:2] = np.zeros(2, DIGEST)  # images equal to one another, over all parts
    return Part(
        num_items=ROWS,
        items=np.arange(ROWS, dtype=np.int32),
        labels=rng.integers(0, 2, ROWS),
        groups=rng.integers(-(2**62), 2**62, ROWS),
        patients=np.zeros(ROWS, np.int64),
        splits=np.zeros(ROWS, np.int8),
        digests=digests,
    )


def test_at_most_200_bytes_per_image_are_kept():
    tracemalloc.start()
    try:
        parts = [make_part(seed) for seed in range(NUM_PARTS)]
        tracemalloc.reset_peak()
        images = select(gather(parts), PreparedSpec(dataset="mine", image_size=8, channels=1))
        content_fingerprint(images, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert images.num_duplicates == 2 * NUM_PARTS - 1
    assert peak / (NUM_PARTS * ROWS) <= 200


def test_groups_of_equal_images_become_one_and_others_stay():
    parts = [make_part(seed) for seed in range(3)]
    before = np.concatenate([part.groups for part in parts])
    twins = np.concatenate([np.arange(2) + ROWS * part for part in range(3)])
    images = select(gather(parts), PreparedSpec(dataset="mine", image_size=8, channels=1))
    assert set(images.groups[twins]) == {before[twins].min()}
    others = np.delete(np.arange(len(before)), twins)
    np.testing.assert_array_equal(images.groups[others], before[others])


def test_distinct_is_numpys_unique():
    values = np.random.default_rng(0).integers(0, 5000, 20_000)
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(distinct(values)[0], first)
    np.testing.assert_array_equal(distinct(values)[1], inverse)
