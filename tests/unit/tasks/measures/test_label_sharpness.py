import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from search_spaces.errors import DataError
from tasks.measures.measure import measure_array, measure_nested
from tasks.measures.records import MeasureSettings
from tasks.measures.sharpness import (
    SharpnessScale,
    conversion_factor,
    count_pairs,
    stratified_samples,
)
from tasks.sources.demo import digits
from tests import reference


def sharpness(images, labels, **settings):
    return measure_nested(
        images, labels, [len(images)], settings=MeasureSettings(**settings)
    ).label_sharpness


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (80, 1, 6, 6), dtype=np.uint8)


def test_samples_match_brute_force_and_give_an_interval(images):
    labels = np.arange(80) % 2
    record = sharpness(images, labels, sharpness_sample=30, sharpness_seeds=(3, 4, 5))
    masks, _ = stratified_samples(labels, [80], 30, (3, 4, 5))
    expected = [reference.label_sharpness(images[mask], labels[mask]) for mask in masks]
    assert record.sample_values == pytest.approx(expected, rel=1e-6)
    assert record.value == pytest.approx(np.mean(expected), rel=1e-6)
    assert record.sample_range == pytest.approx([min(expected), max(expected)], rel=1e-6)
    assert record.pair_value == pytest.approx(reference.label_sharpness(images, labels), rel=1e-6)
    assert record.pair_value >= max(record.sample_values)
    assert record.num_images == 30
    assert record.num_pairs == 15 * 15


def test_samples_contain_the_classes_in_proportion():
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    masks, slices = stratified_samples(labels, [40, 100], 50, (0, 1))
    assert slices == [slice(0, 0), slice(0, 2)]
    for mask in masks:
        assert np.bincount(labels[mask]).tolist() == [35, 10, 5]
    assert (masks[0] != masks[1]).any()


def test_small_sets_use_all_images_where_the_released_code_raises(images):
    record = sharpness(images, np.arange(80) % 2, sharpness_sample=1000)
    assert record.num_images == 80
    assert record.sample_range is None


FEW = np.random.default_rng(0).integers(0, 256, (80, 6), dtype=np.uint8)
UNDEFINED = {
    "at least two classes, but there is only 1 class in 80 distinct images": (
        FEW,
        np.zeros(80, int),
    ),
    "the other classes are too rare": (FEW, np.eye(80, dtype=int)[5]),
    "labels have the distance 0 after rounding": (np.array([[0.0], [1e-200], [1.0]]), [0, 1, 1]),
    "the squared distance between images with different labels is too large for a float": (
        np.array([[1e200, 0.0], [0.0, 1e200], [3.0, 4.0]]),
        [0, 1, 0],
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reason", UNDEFINED)
def test_undefined_label_sharpness_has_a_reason(reason):
    record = sharpness(*UNDEFINED[reason], sharpness_sample=10)
    assert record.value is None
    assert reason in record.to_json()["reason"]


def test_a_class_that_no_sample_contains_leaves_the_maximum_over_all_images_defined():
    labels = np.eye(80, dtype=int)[5]
    record = sharpness(FEW, labels, sharpness_sample=10)
    distances = np.linalg.norm(np.delete(FEW, 5, axis=0).astype(float) - FEW[5], axis=1)
    assert record.value is None
    assert record.pair_value == pytest.approx(1 / distances.min())


def test_pair_counts_do_not_overflow():
    assert count_pairs(np.array([0, 1], np.uint8)) == 1
    assert count_pairs(np.repeat([0, 1], 2_000_000)) == 4_000_000_000_000


def test_conventions_are_recorded(images):
    assert sharpness(images, np.arange(80) % 2).convention == SharpnessScale(
        (0.0, 255.0), (6, 6), 1, 1000
    )
    wide = sharpness(images.astype(np.uint16), np.arange(80) % 2)
    assert wide.convention.pixel_range == (0.0, 65535.0)
    unknown = measure_array(images / 255.0, np.arange(80) % 2)
    assert unknown.label_sharpness.convention.pixel_range is None
    assert "pixel range of these images is not known" in unknown.notes[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda images: (images / 255, {"pixel_range": (0.0, 1.0)}),
        lambda images: (np.repeat(images, 3, axis=1), {}),
        lambda images: (images.repeat(2, axis=2).repeat(2, axis=3), {}),
    ],
    ids=["range", "repeated channels", "repeated pixels"],
)
def test_conversion_is_exact_for_what_changes_no_image(images, change):
    labels = np.arange(80) % 2
    changed_images, options = change(images)
    original, changed = sharpness(images, labels), sharpness(changed_images, labels, **options)
    factor = conversion_factor(original.convention, changed.convention)
    assert original.value * factor == pytest.approx(changed.value, rel=1e-6)
    assert original.percentiles["mean"] * factor == pytest.approx(
        changed.percentiles["mean"], rel=1e-5
    )
    assert original.permuted * factor == pytest.approx(changed.permuted, rel=1e-5)


def test_conversion_between_incompatible_conventions_is_refused(images):
    labels = np.arange(80) % 2
    sampled, full = sharpness(images, labels), sharpness(images, labels, sharpness_sample=None)
    with pytest.raises(
        DataError, match="samples of 1000 images cannot be converted to samples of all images"
    ):
        conversion_factor(sampled.convention, full.convention)
    points = sharpness(images.reshape(80, -1), labels)
    with pytest.raises(DataError, match="can be converted only if pixel_range and side are known"):
        conversion_factor(points.convention, sampled.convention)


def permuted_by_brute_force(images, labels, masks, num_permutations):
    """Return the mean over random labels of 1/distance of each sample's closest unlike pair."""
    rng = np.random.default_rng(1)
    values = []
    for mask in masks:
        inside = reference.pairwise_distances(images[mask])
        for _ in range(num_permutations):
            shuffled = rng.permutation(labels[mask])
            is_unlike = shuffled[:, None] != shuffled[None, :]
            values.append(1 / inside[is_unlike].min())
    return np.mean(values), np.std(values)


class TestPermuted:
    @pytest.mark.parametrize("sample", [None, 40])
    def test_it_is_the_mean_over_permutations(self, images, sample):
        labels = (np.arange(80) % 4 == 0).astype(int)
        record = sharpness(images, labels, sharpness_sample=sample)
        masks, _ = stratified_samples(labels, [80], sample, range(10))
        if sample is None:
            masks = np.ones((1, 80), bool)
        mean, spread = permuted_by_brute_force(images, labels, masks, 1000 // len(masks))
        # Five standard errors of a mean of 100 permutations.
        assert record.permuted == pytest.approx(mean, abs=5 * spread / np.sqrt(100))

    @pytest.mark.long
    @pytest.mark.parametrize("kind", ["bytes", "floats"])
    def test_a_small_sample_of_unevenly_dense_images_is_not_biased(self, kind):
        """Half of the images are dense: the closest pairs of a sample are not among the 20 nearest
        neighbors in the whole dataset."""
        rng = np.random.default_rng(0)
        centres = np.repeat([[64.0], [128.0]], [1000, 1000], axis=0)
        width = np.repeat([[20.0], [60.0]], [1000, 1000], axis=0)
        images = np.rint(centres + width * (rng.random((2000, 6)) - 0.5)).astype(np.uint8)
        images = np.unique(images, axis=0)
        images = rng.permutation(images)
        labels = np.arange(len(images)) % 2
        measured_images = images if kind == "bytes" else images + np.float32(0.3)
        record = sharpness(measured_images, labels, sharpness_sample=40)
        masks, _ = stratified_samples(labels, [len(images)], 40, range(10))
        mean, spread = permuted_by_brute_force(images, labels, masks, 300)
        # 1,000 permutations in ten samples, the same as in the expected mean.
        assert record.permuted == pytest.approx(mean, abs=5 * spread / np.sqrt(1000))

    def test_it_does_not_depend_on_blocks(self, images):
        labels = np.arange(80) % 2
        options = {"sharpness_sample": 20}
        in_one_block = sharpness(images, labels, **options)
        assert sharpness(images, labels, block_rows=7, **options) == in_one_block

    def test_it_is_missing_if_the_closest_unlike_pair_is_not_known(self, images, monkeypatch):
        monkeypatch.setattr("tasks.measures.closest_pairs.PAIRS_PER_SAMPLE", 1)
        labels = (np.arange(80) < 4).astype(int)
        record = sharpness(images, labels, sharpness_sample=40)
        assert record.value > 0
        assert record.permuted is None


def test_the_closest_of_many_nearly_equal_pairs_is_found():
    """All 100 pairs are closer to the smallest distance than float32 resolves."""
    first, second = np.arange(0, 200, 2), np.arange(1, 200, 2)
    rows = np.zeros((200, 200))
    rows[first, first] = rows[second, first] = 1.5
    rows[second, second] = 1 + 2e-7 * np.arange(100, 0, -1)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(200, 200)))[0]
    rows = rows @ turn
    distances = np.linalg.norm(rows[first] - rows[second], axis=1)
    record = sharpness(rows, np.arange(200) % 2)
    assert record.value == pytest.approx(1 / distances.min(), rel=1e-12)
    assert record.pair == (198, 199)


def test_labels_that_follow_clusters_are_smoother_than_exchanged_ones():
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    images = (rng.integers(0, 40, (80, 1, 6, 6)) + 200 * labels[:, None, None, None]).astype(
        np.uint8
    )
    record = sharpness(images, labels)
    assert record.value < record.permuted / 3
    assert record.percentiles["mean"] == pytest.approx(
        (1 / reference.nearest_opposite(images, labels)).mean()
    )


def mean_nearest_enemy_distance(images, labels):
    """Return the mean from all distances of scipy. Only the first of equal images counts."""
    flat = np.asarray(images, dtype=float).reshape(len(images), -1)
    distinct_rows = np.sort(np.unique(flat, axis=0, return_index=True)[1])
    flat, labels = flat[distinct_rows], np.asarray(labels)[distinct_rows]
    distances = cdist(flat, flat)
    distances[labels[:, None] == labels[None, :]] = np.inf
    return distances.min(axis=1).mean()


RNG = np.random.default_rng(38)
KINDS_OF_IMAGES = {
    "bytes": RNG.integers(0, 256, (150, 1, 6, 6), dtype=np.uint8),
    "bytes as floats": RNG.integers(0, 256, (150, 1, 6, 6)) / 255,
    "floats": RNG.normal(size=(150, 1, 6, 6)).astype(np.float32),
    "ties and equal images": RNG.integers(0, 3, (150, 4), dtype=np.uint8),
}


@pytest.mark.parametrize("kind", KINDS_OF_IMAGES)
@pytest.mark.parametrize("num_classes", [2, 10])
def test_mean_unlike_distance_of_every_nested_size_is_brute_force(kind, num_classes):
    images, sizes = KINDS_OF_IMAGES[kind], [40, 41, 90, 150]
    labels = np.random.default_rng(num_classes).integers(0, num_classes, 150)
    settings = MeasureSettings(sharpness_sample=None, block_rows=32)
    result = measure_nested(images, labels, sizes, settings=settings)
    distances = [size.label_sharpness.mean_unlike_distance for size in result.sizes]
    expected = [mean_nearest_enemy_distance(images[:size], labels[:size]) for size in sizes]
    assert distances == pytest.approx(expected, rel=1e-6 if kind == "floats" else 1e-12)


def test_mean_unlike_distance_is_taken_inside_the_samples_of_label_sharpness(images):
    labels = np.arange(80) % 2
    record = sharpness(images, labels, sharpness_sample=30, sharpness_seeds=(3, 4, 5))
    masks, _ = stratified_samples(labels, [80], 30, (3, 4, 5))
    expected = [mean_nearest_enemy_distance(images[mask], labels[mask]) for mask in masks]
    assert record.mean_unlike_distance == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.parametrize("scale", [1 / 255, 3.0])
def test_label_sharpness_times_mean_unlike_distance_has_no_unit(images, scale):
    labels = np.arange(80) % 2
    original, scaled = sharpness(images, labels), sharpness(images * scale, labels)
    assert scaled.mean_unlike_distance == pytest.approx(
        scale * original.mean_unlike_distance, rel=1e-6
    )
    assert scaled.value * scaled.mean_unlike_distance == pytest.approx(
        original.value * original.mean_unlike_distance, rel=1e-6
    )


def test_what_has_no_sharpness_has_no_mean_unlike_distance():
    record = sharpness(FEW, np.zeros(80, int))
    assert record.mean_unlike_distance is None
    assert "mean_unlike_distance" not in record.to_json()


@pytest.mark.long
def test_mean_unlike_distances_of_digits_are_those_of_the_committed_table():
    """The table has five decimals. Its distances use all images of a pair, and pixels from 0 to 1."""
    table = Path(__file__).parents[4] / "benchmarks/results/digit_pairs_tail.csv"
    with table.open(newline="") as file:
        committed = {row["class_pair"]: float(row["nearest"]) for row in csv.DictReader(file)}
    distances = {}
    for name in committed:
        chosen = np.isin(digits().labels, [int(label) for label in name.split("-")])
        pixels, labels = digits().pixels[chosen], digits().labels[chosen]
        record = sharpness(pixels, labels, sharpness_sample=None)
        distances[name] = record.mean_unlike_distance / 255
    assert distances == pytest.approx(committed, rel=5e-5)
