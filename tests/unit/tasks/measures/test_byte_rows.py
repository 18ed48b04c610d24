import tracemalloc

import numpy as np
import pytest

from tasks.measures.byte_rows import (
    INT32_FEATURES,
    ByteRows,
    as_bytes,
    row_products,
    squared_norms,
    to_squared_distances,
)
from tasks.measures.distances import ArraySource
from tasks.measures.products import MAX_FEATURES, to_signed
from tasks.measures.tile_blocks import no_pair_value
from tests.unit.tasks.measures.test_products import PRODUCTS


def some_bytes(num_rows=30, num_features=70):
    rows = np.random.default_rng(0).integers(0, 256, (num_rows, num_features), np.uint8)
    rows[0], rows[1] = 0, 255
    return rows


def as_quotients(levels, dtype):
    return (levels.astype(np.dtype(dtype).newbyteorder("=")) / np.dtype(dtype).type(255)).astype(
        dtype
    )


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i2", "u2", "i4", "i8"])
def test_whole_numbers_up_to_255_are_bytes_in_any_type(dtype):
    rows = some_bytes()
    source = as_bytes(ArraySource(rows.astype(dtype)))
    assert source.unit == 1
    np.testing.assert_array_equal(source.read(3, 9), rows[3:9])


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", ">f8"])
def test_bytes_divided_by_255_are_bytes(dtype):
    rows = some_bytes()
    source = as_bytes(ArraySource(as_quotients(rows, dtype)))
    assert source.unit == 1 / 255
    np.testing.assert_array_equal(source.read(0, 30), rows)


def test_rows_that_do_not_lie_one_after_another_are_read_without_a_copy_of_them_all():
    images = np.asfortranarray(some_bytes(400, 1024).astype(np.float64).reshape(400, 4, 16, 16))
    tracemalloc.start()
    source = as_bytes(ArraySource(images))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < images.size + images.nbytes / 4
    np.testing.assert_array_equal(source.read(0, 400), images)


def test_dividing_in_float64_and_rounding_to_float32_gives_the_same_quotients():
    source = as_bytes(ArraySource((np.arange(256) / 255).astype(np.float32)[None]))
    assert source == ByteRows(source.source, 1 / 255)


def test_black_and_white_only_is_whole_numbers_first():
    assert as_bytes(ArraySource(np.array([[0.0, 1.0]]))).unit == 1


@pytest.mark.parametrize(
    "value",
    [256, -1, 0.5, np.nan, np.inf, -np.inf, 1e30, 254.99999, 255.00002, 2.0**32, -(2.0**63)],
)
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_with_one_other_value_are_no_bytes(value, place, dtype):
    rows = some_bytes().astype(dtype)
    rows.flat[place] = value
    source = ArraySource(rows)
    assert as_bytes(source) is source


@pytest.mark.parametrize(
    "rows",
    [
        # Multiplying by the float nearest to 1/255 does not give the floats nearest to level/255.
        np.arange(256, dtype=np.float32)[None] * np.float32(1 / 255),
        np.arange(256, dtype=np.float32)[None] * np.float32(1 / 256),
        (some_bytes() / 255 - 0.5) / 0.5,
        (some_bytes() / 255).astype(np.float16),
        np.full((3, 3), 256, np.int16),
        np.zeros((0, 3)),
        np.zeros((3, 0)),
    ],
    ids=[
        "times 1/255",
        "256 levels",
        "normalised",
        "half precision",
        "integers",
        "no rows",
        "no features",
    ],
)
def test_other_scalings_stay_as_they_are(rows):
    source = ArraySource(rows)
    assert as_bytes(source) is source


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.bool_])
def test_conversion_to_signed_bytes_keeps_differences(dtype):
    rows = some_bytes().view(np.int8) if dtype == np.int8 else some_bytes().astype(dtype)
    signed_rows = to_signed(rows)
    assert signed_rows.dtype == np.int8
    assert not np.shares_memory(signed_rows, rows)
    signed_values, original_values = signed_rows.astype(int), rows.astype(int)
    np.testing.assert_array_equal(
        signed_values - signed_values[0], original_values - original_values[0]
    )


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    "num_features", [INT32_FEATURES, INT32_FEATURES + 1, MAX_FEATURES, MAX_FEATURES + 1]
)
def test_black_against_white_is_exact_at_every_limit(product, num_features):
    rows = np.zeros((3, num_features), np.uint8)
    rows[1] = 255
    rows[2, ::2] = 255
    norms = squared_norms(rows, product)
    squared_distances = to_squared_distances(row_products(rows, rows[:], product), norms, norms)
    all_differ, half_differ = 255**2 * num_features, 255**2 * ((num_features + 1) // 2)
    assert squared_distances.tolist() == [
        [0, all_differ, half_differ],
        [all_differ, 0, all_differ - half_differ],
        [half_differ, all_differ - half_differ, 0],
    ]
    assert squared_distances.dtype == (np.int32 if num_features <= INT32_FEATURES else np.int64)
    assert squared_distances.max() < no_pair_value(squared_distances.dtype)
