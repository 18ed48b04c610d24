"""Promises of the measures that hold for any data, tested on many small random sets."""

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.measures import tile_blocks
from tasks.measures.byte_rows import as_bytes
from tasks.measures.closest_pairs import ClosestPairs
from tasks.measures.distances import ArraySource, Precision
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
few_examples = settings(max_examples=5)


class ManyWorkers:
    """An inline executor that cuts work as for several workers, and does it in random order."""

    def __init__(self, num_workers, seed):
        self.num_workers = num_workers
        self.seed = seed

    def share(self, value):
        return value

    def map_unordered(self, function, argument_tuples, *, spread=False):
        items = list(enumerate(argument_tuples))
        np.random.default_rng(self.seed).shuffle(items)
        for index, arguments in items:
            yield index, function(*arguments)


def random_points(seed, num_points=60, num_features=6):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-3, 3)
    return scale * (rng.normal(size=(num_points, num_features)) + rng.uniform(-5, 5, num_features))


def dimension_estimates(points, num_neighbors=8):
    table = nested_neighbors(points, None, [len(points)], num_neighbors).tables[0]
    records = estimate(table, num_neighbors=num_neighbors, estimators=[*ESTIMATORS])
    return np.array([records[name].value for name in ESTIMATORS])


def measured_sharpness(points, labels):
    return measure_nested(points, labels, [len(points)]).label_sharpness.value


@few_examples
@given(
    seeds,
    st.integers(1, 70),
    st.integers(1, 9),
    st.lists(st.integers(2, 60), min_size=1, max_size=4),
)
def test_neighbors_do_not_depend_on_blocks_and_workers(seed, block_rows, num_workers, sizes):
    sizes = sorted({*sizes, 60})
    points = random_points(seed)
    labels = np.arange(60) % 3

    in_one_block = nested_neighbors(points, labels, sizes, 7)
    in_blocks = nested_neighbors(
        points, labels, sizes, 7, block_rows=block_rows, executor=ManyWorkers(num_workers, seed)
    )
    for expected, table in zip(in_one_block.tables, in_blocks.tables, strict=True):
        np.testing.assert_allclose(table.distances, expected.distances, rtol=1e-5)
        np.testing.assert_allclose(
            table.other_label_distances, expected.other_label_distances, rtol=1e-5
        )


NUM_BYTE_ROWS = 40
byte_types = st.sampled_from(["uint8", "int8", "int64", "float32", "float64", "quotients"])


def random_byte_rows(seed, num_features, levels):
    """Return random bytes. Few levels and few features make many ties among the distances."""
    rng = np.random.default_rng(seed)
    return rng.choice(np.linspace(0, 255, levels).astype(np.uint8), (NUM_BYTE_ROWS, num_features))


def converted_rows(rows, kind):
    if kind == "quotients":
        return as_bytes(ArraySource(rows.astype(np.float32) / np.float32(255)))
    if kind == "int8":
        return (rows.astype(int) - 128).astype(np.int8)
    return as_bytes(ArraySource(rows.astype(kind)))


@few_examples
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
    rows = random_byte_rows(seed, num_features, levels)
    labels = np.arange(NUM_BYTE_ROWS) % 3
    members = np.random.default_rng(seed).random((3, NUM_BYTE_ROWS)) < [[0.2], [0.5], [0.9]]
    with mock.patch.object(tile_blocks, "choose_product", return_value=product):
        search = nested_neighbors(
            converted_rows(rows, kind),
            labels,
            sizes,
            5,
            block_rows=block_rows,
            executor=ManyWorkers(num_workers, seed),
            samples=members,
        )
    assert search.arithmetic == "exact integer"
    unit = 1.0
    if kind == "quotients" and set(np.unique(rows)) <= {0, 255}:
        rows = rows // 255  # quotients of 0 and 255 are the whole numbers 0 and 1
    elif kind == "quotients":
        unit = 1 / 255
    squared = reference.whole_squared_distances(rows)
    for size, table in zip(sizes, search.tables, strict=True):
        for row, nearest in enumerate(reference.whole_neighbors(squared, size, 5)):
            padding = 5 - len(nearest)
            positions = [neighbor for _, neighbor in nearest]
            distances = [np.sqrt(float(squared_distance)) * unit for squared_distance, _ in nearest]
            assert table.neighbor_positions[row].tolist() == positions + [-1] * padding
            assert table.distances[row].tolist() == distances + [np.inf] * padding
        for row, opposite in reference.whole_opposite(squared, labels, range(size)).items():
            squared_distance, neighbor = opposite or (np.inf, -1)
            assert table.other_label_positions[row] == neighbor
            assert table.other_label_distances[row] == np.sqrt(float(squared_distance)) * unit
    for sample, member in enumerate(members):
        nearest = reference.whole_opposite(squared, labels, np.flatnonzero(member).tolist())
        for row in range(NUM_BYTE_ROWS):
            squared_distance, neighbor = nearest.get(row) or (np.inf, -1)
            distance = np.sqrt(float(squared_distance)) * unit
            assert search.sample_other_label_positions[sample, row] == neighbor
            assert search.sample_other_label_distances[sample, row] == distance


@few_examples
@given(seeds, st.integers(1, 30), st.integers(1, 50), st.integers(1, 9), byte_types)
def test_records_of_bytes_are_equal_to_the_last_bit(
    seed, num_features, block_rows, num_workers, kind
):
    rows = random_byte_rows(seed, num_features, 5)
    labels = np.arange(NUM_BYTE_ROWS) % 2
    settings = MeasureSettings(num_neighbors=5, sharpness_sample=10, pixel_range=(0.0, 255.0))
    in_one_block = measure_nested(rows, labels, [15, NUM_BYTE_ROWS], settings=settings).to_json()
    in_blocks = measure_nested(
        converted_rows(rows, kind),
        labels,
        [15, NUM_BYTE_ROWS],
        executor=ManyWorkers(num_workers, seed),
        settings=replace(settings, block_rows=block_rows),
    ).to_json()
    del in_one_block["settings"]
    del in_blocks["settings"]
    if kind != "quotients":  # quotients have another unit, and the same dimension
        assert in_blocks == in_one_block
    assert in_blocks["duplicates"] == in_one_block["duplicates"]
    if in_one_block["d_data"]["mle"]["value"] is not None:
        expected = in_one_block["d_data"]["mle"]["value"]
        assert in_blocks["d_data"]["mle"]["value"] == pytest.approx(expected, rel=1e-12)


@few_examples
@given(seeds)
def test_order_rotation_and_translation_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    points = random_points(seed)
    labels = np.arange(60) % 2
    order = rng.permutation(60)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    shift = np.abs(points).max() * rng.uniform(-3, 3, 6)
    changes = (
        (points[order], labels[order]),
        (points @ rotation, labels),
        (points + shift, labels),
    )
    for changed_points, changed_labels in changes:
        estimates = dimension_estimates(changed_points)
        np.testing.assert_allclose(estimates, dimension_estimates(points), rtol=2e-4)
        sharpness = measured_sharpness(changed_points, changed_labels)
        assert sharpness == pytest.approx(measured_sharpness(points, labels), rel=1e-5)


@few_examples
@given(seeds, st.floats(1e-3, 1e3))
def test_scaling_divides_sharpness_and_leaves_dimension(seed, scale):
    points = random_points(seed)
    labels = np.arange(60) % 2
    expected_sharpness = measured_sharpness(points, labels) / scale
    sharpness = measured_sharpness(scale * points, labels)
    assert sharpness == pytest.approx(expected_sharpness, rel=1e-5)
    estimates = dimension_estimates(scale * points)
    np.testing.assert_allclose(estimates, dimension_estimates(points), rtol=2e-4)


@few_examples
@given(seeds, st.lists(st.integers(2, 60), min_size=2, max_size=6, unique=True), st.integers(2, 5))
def test_sharpness_never_falls_as_images_are_added(seed, sizes, num_classes):
    labels = np.arange(60) % num_classes
    record = measure_nested(random_points(seed), labels, sizes)
    values = [size.label_sharpness.value for size in record.sizes]
    assert values == sorted(values)


@few_examples
@given(seeds, st.integers(1, 5))
def test_sharpness_equals_the_slow_reference(seed, num_classes):
    rng = np.random.default_rng(seed)
    # Few values make many duplicates, also with conflicting labels.
    images = rng.integers(0, 4, (40, 3), dtype=np.uint8)
    labels = rng.integers(0, num_classes, 40)
    record = measure_nested(images, labels, [40])
    _, first_rows = np.unique(images, axis=0, return_index=True)
    kept_rows = np.sort(first_rows)
    assert record.sizes[0].num_duplicates == 40 - len(kept_rows)
    if len(np.unique(labels[kept_rows])) < 2:
        assert record.label_sharpness.value is None
    else:
        expected = reference.label_sharpness(images[kept_rows], labels[kept_rows])
        assert record.label_sharpness.value == pytest.approx(expected, rel=1e-6)


@few_examples
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_the_number_of_pairs_equals_a_count_in_a_loop(labels):
    expected = 0
    for first in range(len(labels)):
        for second in range(first):
            expected += labels[first] != labels[second]
    assert count_pairs(np.array(labels)) == expected


def random_span_result(seed):
    rng = np.random.default_rng(seed)
    job = SimpleNamespace(
        train_sizes=(5,),
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
        partial.neighbors_by_size[0].update(slice(0, 5), int(rng.integers(0, 100)) * 10, squared)
        update_nearest(
            partial.other_label_by_size[0],
            np.arange(5),
            np.arange(squared.shape[1]),
            squared,
        )
    return partial


@few_examples
@given(seeds, seeds, seeds)
def test_merging_is_associative_and_commutative(a, b, c):
    def merge_in_order(*order):
        total, *parts = [random_span_result(seed) for seed in order]
        for part in parts:
            total.merge(part)
        return total

    merged_tail = merge_in_order(b, c)
    regrouped = random_span_result(a)
    regrouped.merge(merged_tail)
    for other_order in (regrouped, merge_in_order(c, b, a)):
        in_order = merge_in_order(a, b, c)
        for results in ("neighbors_by_size", "other_label_by_size"):
            expected = getattr(in_order, results)[0]
            merged = getattr(other_order, results)[0]
            np.testing.assert_array_equal(merged.squared, expected.squared)
            np.testing.assert_array_equal(merged.positions, expected.positions)


@few_examples
@given(seeds, st.integers(1, 12), st.integers(1, 40), st.integers(1, 4))
def test_closest_pairs_do_not_depend_on_blocks(seed, step, capacity, num_parts):
    rng = np.random.default_rng(seed)
    num_rows = 12
    squared = rng.integers(1, 20, (num_rows, num_rows)).astype(np.int32)  # few values: many ties
    squared = np.triu(squared, 1) + np.triu(squared, 1).T
    np.fill_diagonal(squared, 2**31 - 1)  # "no pair", as in a search

    collections = [ClosestPairs(capacity) for _ in range(num_parts)]
    for row in range(0, num_rows, step):
        for column in range(row, num_rows, step):
            block = squared[row : row + step, column : column + step]
            collections[rng.integers(num_parts)].update(block, row, column)
    total = ClosestPairs(capacity)
    for collection in rng.permutation(np.array(collections, object)):
        total.merge(collection)

    first, second = np.triu_indices(num_rows, 1)
    values = np.sort(squared[first, second])
    limit = values[capacity] if capacity < len(values) else np.inf
    is_close = squared[first, second] < limit
    expected = set(zip(first[is_close], second[is_close], strict=True))
    pairs = total.pairs
    assert set(zip(pairs["first"], pairs["second"], strict=True)) == expected
    assert len(pairs) == len(expected)
    assert (pairs["squared"] == squared[pairs["first"], pairs["second"]]).all()


@few_examples
@given(seeds, st.integers(1, 30), st.sampled_from([np.uint8, np.float32, np.float64]))
def test_record_is_always_finite_json(seed, num_images, dtype):
    import json

    rng = np.random.default_rng(seed)
    images = (rng.random((num_images, 1, 2, 2)) * rng.integers(1, 200)).astype(dtype)
    settings = MeasureSettings(num_neighbors=3, sharpness_sample=10)
    record = measure_nested(images, rng.integers(0, 2, num_images), [num_images], settings=settings)
    json.dumps(record.to_json(), allow_nan=False)


@few_examples
@given(seeds, st.integers(1, 5), st.integers(1, 30))
def test_closest_pairs_are_complete_below_their_limit_after_every_block(seed, step, capacity):
    rng = np.random.default_rng(seed)
    num_rows = 12
    squared = rng.integers(1, 20, (num_rows, num_rows)).astype(np.int32)  # few values: many ties
    squared = np.triu(squared, 1) + np.triu(squared, 1).T
    np.fill_diagonal(squared, 2**31 - 1)  # "no pair", as in a search

    collection = ClosestPairs(capacity)
    is_added = np.zeros(squared.shape, bool)
    for row in range(0, num_rows, step):
        for column in range(row, num_rows, step):
            block = slice(row, row + step), slice(column, column + step)
            collection.update(squared[block], row, column)
            is_added[block] = True
            pairs = collection.pairs
            is_close = np.triu(is_added & (squared < collection.limit), 1)
            assert set(zip(*np.nonzero(is_close), strict=True)) <= set(
                zip(pairs["first"], pairs["second"], strict=True)
            )
