"""The table of images: quotas, joined groups, memory, and traits that predict the label."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.specs import PreparedSpec
from tasks.prepared.parts import FORMAT_TRAIT, METADATA_DTYPE, PartMetadata, TraitCount
from tasks.prepared.record import channel_conversions, size_flags, trait_flags
from tasks.prepared.table import (
    choose_images,
    class_counts_for,
    content_fingerprint,
    join_groups,
    join_parts,
)

SPEC = PreparedSpec(dataset="mine", image_size=8, channels=1)


@pytest.mark.parametrize(
    ("available", "size", "expected"),
    [  # worked by hand: floors first, the rest to the largest remainders
        ([6, 3, 1], 10, [6, 3, 1]),
        ([1, 1, 1], 2, [1, 1, 0]),
        ([47, 16, 15, 22], 10, [5, 2, 1, 2]),
    ],
)
def test_quotas_are_those_of_the_largest_remainder(available, size, expected):
    assert class_counts_for(np.array(available), size, balanced=False).tolist() == expected


@given(
    groups=st.lists(st.integers(-3, 3).map(lambda g: g * 2**60), min_size=1, max_size=30),
    seed=st.integers(0, 100),
)
def test_joined_groups_are_the_connected_ones(groups, seed):
    """Two groups are joined if a chain of shared images links them."""
    image_ids = np.random.default_rng(seed).integers(0, 8, len(groups))
    joined = join_groups(np.array(groups), np.unique(image_ids, return_inverse=True)[1])
    linked = np.equal.outer(groups, groups) | np.equal.outer(image_ids, image_ids)
    for _ in groups:
        linked = linked @ linked
    np.testing.assert_array_equal(np.equal.outer(joined, joined), linked)
    assert set(joined.tolist()) <= set(groups)


def test_equal_images_join_their_groups_with_at_most_200_bytes_per_image():
    """The tables of millions of small images must fit into memory."""
    num_parts, size = 24, 4096

    def part(seed: int) -> PartMetadata:
        rng = np.random.default_rng(seed)
        rows = np.frombuffer(rng.bytes(METADATA_DTYPE.itemsize * size), METADATA_DTYPE).copy()
        rows["label"], rows["patient"] = rng.integers(0, 2, size), 0
        rows["digest"][:2] = np.zeros(2, "V32")  # equal to one another, over all parts
        return PartMetadata(num_items=size, rows=rows)

    before = np.concatenate([part(seed).rows["group"] for seed in range(num_parts)])
    tracemalloc.start()
    try:
        parts = [part(seed) for seed in range(num_parts)]
        tracemalloc.reset_peak()
        images = choose_images(join_parts(parts), SPEC)
        content_fingerprint(images, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / (num_parts * size) <= 200
    twins = (np.arange(2) + size * np.arange(num_parts)[:, None]).ravel()
    assert images.num_duplicates == len(twins) - 1
    assert set(images.groups[twins]) == {before[twins].min()}
    np.testing.assert_array_equal(np.delete(images.groups, twins), np.delete(before, twins))


def part(*traits: tuple[int, str, str, int]) -> PartMetadata:
    return PartMetadata(traits=list(traits))


def test_a_trait_that_predicts_the_label_is_flagged_with_its_mutual_information():
    """Two sites, 30 and 10 of class 0, 10 and 30 of class 1: I = 1 - H(1/4) bits."""
    flags = trait_flags(
        [
            part((0, "site", "a", 30), (0, "site", "b", 10)),
            part((1, "site", "a", 10), (1, "site", "b", 30)),
        ]
    )
    assert flags == {"site predicts the label (right for 75%, 0.19 of 1.00 bits)": 60}


def test_traits_with_rare_values_or_a_weak_association_are_not_flagged():
    rare = [(row % 2, FORMAT_TRAIT, f"size {row}", 1) for row in range(40)]
    weak = [(0, "site", "a", 21), (0, "site", "b", 19), (1, "site", "a", 19), (1, "site", "b", 21)]
    assert trait_flags([part(*rare), part(*weak)]) == {}
    assert trait_flags([]) == {}
    assert trait_flags([part((0, "site", "a", 3), (1, "site", "b", 3))]) == {}


@pytest.mark.parametrize(
    ("sizes", "side", "expected"),
    [
        ({"28x28": 30}, 32, {}),
        ({"28x28": 30}, 224, {"enlarged to 224 pixels": 30}),
        ({"64x64": 30, "32x32": 10}, 32, {"raw images differ in size, 32x32 to 64x64": 10}),
        ({"64x128": 30}, 32, {"stretched to a square": 30}),
    ],
)
def test_images_of_other_sizes_are_flagged(sizes, side, expected):
    part = PartMetadata(num_items=40)
    part.traits = [
        TraitCount(0, FORMAT_TRAIT, f"grey {size}", number) for size, number in sizes.items()
    ]
    flags = {flag: number for flag, number in size_flags([part], side).items() if number}
    assert list(flags.values()) == list(expected.values())
    assert all(flag.startswith(beginning) for flag, beginning in zip(flags, expected, strict=True))


@pytest.mark.parametrize(
    ("channels", "conversion"),
    [(1, "color to gray (`channels: 1`)"), (3, "gray to 3 equal channels (`channels: 3`)")],
)
def test_images_with_another_number_of_channels_are_counted_as_converted(channels, conversion):
    part = PartMetadata()
    part.traits = [
        TraitCount(0, FORMAT_TRAIT, "grey 8x8", 2),
        TraitCount(0, FORMAT_TRAIT, "colour 8x8 mode P converted", 2),
        TraitCount(1, "site", "colour", 5),
    ]
    assert channel_conversions([part], channels) == {conversion: 2}
