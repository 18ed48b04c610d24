"""What must hold for any data: the promises of the measures, over many small random sets."""

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.measures import tile_blocks
from tasks.measures.closest_pairs import ClosestPairs
from tasks.measures.distances import ArraySource, Precision, as_bytes
from tasks.measures.estimators import ESTIMATORS, estimate
from tasks.measures.measure import measure_nested
from tasks.measures.neighbors import nested_neighbors
from tasks.measures.other_label import update_nearest
from tasks.measures.products import blas_product, is_exact, numkong_product, torch_product
from tasks.measures.records import MeasureSettings
from tasks.measures.sharpness import count_pairs
from tasks.measures.tile_blocks import Span
from tasks.measures.tile_results import SpanResult
from tests import reference

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=5)


class ManyWorkers:
    """Inline, but work is cut as for several workers, and done in another order."""

    def __init__(self, num_workers, seed):
        self.num_workers, self.seed = num_workers, seed

    def share(self, value):
        return value

    def map_unordered(self, function, argument_tuples, *, spread=False):
        items = list(enumerate(argument_tuples))
        np.random.default_rng(self.seed).shuffle(items)
        for index, arguments in items:
            yield index, function(*arguments)


def points_of(seed, num_points=60, num_features=6):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-3, 3)
    return scale * (rng.normal(size=(num_points, num_features)) + rng.uniform(-5, 5, num_features))


def values_of(points, num_neighbors=8):
    table = nested_neighbors(points, None, [len(points)], num_neighbors).tables[0]
    records = estimate(table, num_neighbors=num_neighbors, estimators=[*ESTIMATORS])
    return np.array([records[name].value for name in ESTIMATORS])


def sharpness_of(points, labels):
    return measure_nested(points, labels, [len(points)]).label_sharpness.value


@quick
@given(
    seeds,
    st.integers(1, 70),
    st.integers(1, 9),
    st.lists(st.integers(2, 60), min_size=1, max_size=4),
)
def test_partition_does_not_matter(seed, block_rows, num_workers, sizes):
    sizes = sorted({*sizes, 60})
    points, labels = points_of(seed), np.arange(60) % 3

    whole = nested_neighbors(points, labels, sizes, 7)
    parts = nested_neighbors(
        points, labels, sizes, 7, block_rows=block_rows, executor=ManyWorkers(num_workers, seed)
    )
    for one, other in zip(whole.tables, parts.tables, strict=True):
        np.testing.assert_allclose(other.distances, one.distances, rtol=1e-5)
        np.testing.assert_allclose(
            other.other_label_distances, one.other_label_distances, rtol=1e-5
        )


NUM_BYTE_ROWS = 40
byte_types = st.sampled_from(["uint8", "int8", "int64", "float32", "float64", "quotients"])


def byte_rows_of(seed, num_features, levels):
    """Few levels and few features make many equal distances, so that ties are put to the test."""
    rng = np.random.default_rng(seed)
    return rng.choice(np.linspace(0, 255, levels).astype(np.uint8), (NUM_BYTE_ROWS, num_features))


def as_type(rows, kind):
    if kind == "quotients":
        return as_bytes(ArraySource(rows.astype(np.float32) / np.float32(255)))
    if kind == "int8":
        return (rows.astype(int) - 128).astype(np.int8)
    return as_bytes(ArraySource(rows.astype(kind)))


@quick
@given(
    seeds,
    st.integers(1, 50),
    st.integers(2, 256),
    st.lists(st.integers(2, NUM_BYTE_ROWS), min_size=1, max_size=4),
    st.integers(1, NUM_BYTE_ROWS + 3),
    st.integers(1, 9),
    byte_types,
    st.sampled_from([blas_product, torch_product, numkong_product]),
)
def test_bytes_give_the_tables_of_python_integers_to_the_last_bit(
    seed, num_features, levels, sizes, block_rows, num_workers, kind, product
):
    if not is_exact(product.__name__, product):
        product = blas_product
    sizes = sorted({*sizes, NUM_BYTE_ROWS})
    rows, labels = byte_rows_of(seed, num_features, levels), np.arange(NUM_BYTE_ROWS) % 3
    members = np.random.default_rng(seed).random((3, NUM_BYTE_ROWS)) < [[0.2], [0.5], [0.9]]
    with mock.patch.object(tile_blocks, "choose_product", return_value=product):
        search = nested_neighbors(
            as_type(rows, kind),
            labels,
            sizes,
            5,
            block_rows=block_rows,
            executor=ManyWorkers(num_workers, seed),
            samples=members,
        )
    assert search.precision == "exact integer"
    unit = 1.0
    if kind == "quotients" and set(np.unique(rows)) <= {0, 255}:
        rows = rows // 255  # quotients of 0 and 255 are whole numbers as they stand
    elif kind == "quotients":
        unit = 1 / 255
    squared = reference.whole_squared_distances(rows)
    for size, table in zip(sizes, search.tables, strict=True):
        for i, nearest in enumerate(reference.whole_neighbors(squared, size, 5)):
            padding = 5 - len(nearest)
            assert table.neighbor_positions[i].tolist() == [j for _, j in nearest] + [-1] * padding
            expected = [np.sqrt(float(d)) * unit for d, _ in nearest] + [np.inf] * padding
            assert table.distances[i].tolist() == expected
        for i, opposite in reference.whole_opposite(squared, labels, range(size)).items():
            distance, j = opposite or (np.inf, -1)
            assert table.other_label_positions[i] == j
            assert table.other_label_distances[i] == np.sqrt(float(distance)) * unit
    for number, chosen in enumerate(members):
        nearest = reference.whole_opposite(squared, labels, np.flatnonzero(chosen).tolist())
        for i in range(NUM_BYTE_ROWS):
            distance, j = nearest.get(i) or (np.inf, -1)
            assert search.sample_other_label_positions[number, i] == j
            assert search.sample_other_label_distances[number, i] == np.sqrt(float(distance)) * unit


@quick
@given(seeds, st.integers(1, 30), st.integers(1, 50), st.integers(1, 9), byte_types)
def test_records_of_bytes_are_equal_to_the_last_bit(
    seed, num_features, block_rows, num_workers, kind
):
    rows, labels = byte_rows_of(seed, num_features, 5), np.arange(NUM_BYTE_ROWS) % 2
    chosen = MeasureSettings(num_neighbors=5, sharpness_sample=10, pixel_range=(0.0, 255.0))
    whole = measure_nested(rows, labels, [15, NUM_BYTE_ROWS], settings=chosen).to_json()
    parts = measure_nested(
        as_type(rows, kind),
        labels,
        [15, NUM_BYTE_ROWS],
        executor=ManyWorkers(num_workers, seed),
        settings=replace(chosen, block_rows=block_rows),
    ).to_json()
    del whole["settings"], parts["settings"]
    if kind != "quotients":  # other unit, same dimension
        assert parts == whole
    assert parts["duplicates"] == whole["duplicates"]
    if whole["d_data"]["mle"]["value"] is not None:
        expected = whole["d_data"]["mle"]["value"]
        assert parts["d_data"]["mle"]["value"] == pytest.approx(expected, rel=1e-12)


@quick
@given(seeds)
def test_order_rotation_and_translation_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    points = points_of(seed)
    labels = np.arange(60) % 2
    order = rng.permutation(60)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    shift = np.abs(points).max() * rng.uniform(-3, 3, 6)
    for moved, their_labels in (
        (points[order], labels[order]),
        (points @ rotation, labels),
        (points + shift, labels),
    ):
        np.testing.assert_allclose(values_of(moved), values_of(points), rtol=2e-4)
        assert sharpness_of(moved, their_labels) == pytest.approx(
            sharpness_of(points, labels), rel=1e-5
        )


@quick
@given(seeds, st.floats(1e-3, 1e3))
def test_scaling_divides_sharpness_and_leaves_dimension(seed, scale):
    points, labels = points_of(seed), np.arange(60) % 2
    assert sharpness_of(scale * points, labels) == pytest.approx(
        sharpness_of(points, labels) / scale, rel=1e-5
    )
    np.testing.assert_allclose(values_of(scale * points), values_of(points), rtol=2e-4)


@quick
@given(seeds, st.lists(st.integers(2, 60), min_size=2, max_size=6, unique=True), st.integers(2, 5))
def test_sharpness_never_falls_as_images_are_added(seed, sizes, num_classes):
    labels = np.arange(60) % num_classes
    record = measure_nested(points_of(seed), labels, sizes)
    values = [size.label_sharpness.value for size in record.sizes]
    assert values == sorted(values)


@quick
@given(seeds, st.integers(1, 5))
def test_sharpness_is_brute_force(seed, num_classes):
    rng = np.random.default_rng(seed)
    images = rng.integers(
        0, 4, (40, 3), dtype=np.uint8
    )  # few values: many duplicates and conflicts
    labels = rng.integers(0, num_classes, 40)
    record = measure_nested(images, labels, [40])
    _, first = np.unique(images, axis=0, return_index=True)
    kept = np.sort(first)
    assert record.sizes[0].num_duplicates == 40 - len(kept)
    if len(np.unique(labels[kept])) < 2:
        assert record.label_sharpness.value is None
    else:
        expected = reference.label_sharpness(images[kept], labels[kept])
        assert record.label_sharpness.value == pytest.approx(expected, rel=1e-6)


@quick
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_pairs_are_counted_as_in_the_loop(labels):
    expected = sum(a != b for i, a in enumerate(labels) for b in labels[:i])
    assert count_pairs(np.array(labels)) == expected


def partial_of(seed):
    rng = np.random.default_rng(seed)
    job = SimpleNamespace(
        num_sizes=1,
        num_neighbors=4,
        samples=(),
        max_pairs_by_size=(6,),
        is_exact=False,
        precision=Precision(),
    )
    partial = SpanResult(job, Span(0, 5))
    for _ in range(3):
        columns = int(rng.integers(1, 6))
        squared = rng.integers(0, 4, (5, columns)).astype(float)  # few values: many ties
        partial.neighbors[0].update(slice(0, 5), int(rng.integers(0, 100)) * 10, squared)
        update_nearest(
            partial.other_label_by_size[0],
            np.arange(5),
            np.arange(squared.shape[1]),
            squared,
        )
    return partial


@quick
@given(seeds, seeds, seeds)
def test_merging_is_associative_and_commutative(a, b, c):
    def merged(*order):
        first, *rest = [partial_of(seed) for seed in order]
        for other in rest:
            first.merge(other)
        return first

    tail = merged(b, c)
    nested = partial_of(a)
    nested.merge(tail)
    for other in (nested, merged(c, b, a)):
        one = merged(a, b, c)
        for results in ("neighbors", "other_label_by_size"):
            expected = getattr(one, results)[0]
            merged_otherwise = getattr(other, results)[0]
            np.testing.assert_array_equal(merged_otherwise.squared, expected.squared)
            np.testing.assert_array_equal(merged_otherwise.positions, expected.positions)


@quick
@given(seeds, st.integers(1, 12), st.integers(1, 40), st.integers(1, 4))
def test_closest_pairs_are_those_of_all_pairs_however_blocks_are_cut(seed, step, capacity, parts):
    rng = np.random.default_rng(seed)
    num_rows = 12
    squared = rng.integers(1, 20, (num_rows, num_rows)).astype(np.int32)  # few values: many ties
    squared = np.triu(squared, 1) + np.triu(squared, 1).T
    np.fill_diagonal(squared, 2**31 - 1)  # "no pair", as in a search

    collections = [ClosestPairs(capacity) for _ in range(parts)]
    for row in range(0, num_rows, step):
        for column in range(row, num_rows, step):
            block = squared[row : row + step, column : column + step]
            collections[rng.integers(parts)].update(block, row, column)
    total = ClosestPairs(capacity)
    for collection in rng.permutation(np.array(collections, object)):
        total.merge(collection)

    first, second = np.triu_indices(num_rows, 1)
    values = np.sort(squared[first, second])
    limit = values[capacity] if capacity < len(values) else np.inf
    expected = {(i, j) for i, j in zip(first, second, strict=True) if squared[i, j] < limit}
    pairs = total.pairs
    assert {(i, j) for i, j in zip(pairs["first"], pairs["second"], strict=True)} == expected
    assert len(pairs) == len(expected)
    assert (pairs["squared"] == squared[pairs["first"], pairs["second"]]).all()


@quick
@given(seeds, st.integers(1, 30), st.sampled_from([np.uint8, np.float32, np.float64]))
def test_record_is_always_finite_json(seed, num_images, dtype):
    import json

    rng = np.random.default_rng(seed)
    images = (rng.random((num_images, 1, 2, 2)) * rng.integers(1, 200)).astype(dtype)
    settings = MeasureSettings(num_neighbors=3, sharpness_sample=10)
    record = measure_nested(images, rng.integers(0, 2, num_images), [num_images], settings=settings)
    json.dumps(record.to_json(), allow_nan=False)
