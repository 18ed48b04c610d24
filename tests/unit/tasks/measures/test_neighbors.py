import tracemalloc

import numpy as np
import pytest

from search_spaces.errors import CorruptStoreError
from tasks.measures import duplicates, tile_blocks, tile_search
from tasks.measures.distances import ArraySource, Precision, estimate_center, squared_distances
from tasks.measures.duplicates import check_rows
from tasks.measures.neighbors import nested_neighbors
from tasks.measures.tile_search import plan_tiles
from tasks.remote import InlineExecutor
from tests import reference

SIZES = [60, 90, 150]


def cases():
    rng = np.random.default_rng(0)
    repeated_rows = np.repeat(rng.random((50, 40)), 3, axis=0)
    return {
        "uint8 images": rng.integers(0, 256, (150, 3, 9, 9), dtype=np.uint8),
        "uint16 images": rng.integers(0, 65536, (150, 1, 9, 9), dtype=np.uint16),
        "thin sheet": np.c_[rng.random((150, 2)), np.zeros((150, 5))],
        "near duplicates": repeated_rows + 1e-7 * rng.random((150, 40)),
        "far from the origin": (rng.normal(size=(150, 300)) * 1e-3 + 100).astype(np.float32),
        "two tight clusters": rng.normal(size=(150, 30)) * 1e-4
        + np.where(np.arange(150) % 2, 50, -50)[:, None],
        "one far outlier": np.r_[rng.random((149, 20)), np.full((1, 20), 1e6)],
        "huge values": rng.normal(size=(150, 20)) * 1e25,
        "tiny values": (rng.normal(size=(150, 20)) * 1e-30).astype(np.float32),
        "one feature": rng.random((150, 1)),
    }


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("exact_bytes", [True, False])
def test_distances_of_every_size_match_brute_force(name, dtype, exact_bytes):
    rows = cases()[name]
    labels = np.random.default_rng(1).integers(0, 3, 150)
    precision = Precision(dtype=dtype, chunk_features=128, exact_bytes=exact_bytes)
    search = nested_neighbors(rows, labels, SIZES, 10, block_rows=64, precision=precision)
    tolerance = 1e-5 if dtype == "float32" else 1e-7
    for size, table in zip(SIZES, search.tables, strict=True):
        np.testing.assert_allclose(
            table.distances, reference.neighbor_distances(rows[:size], 10), rtol=tolerance
        )
        np.testing.assert_allclose(
            table.other_label_distances,
            reference.nearest_opposite(rows[:size], labels[:size]),
            rtol=tolerance,
        )


def test_many_close_pairs_switch_to_float64_and_are_noted():
    sheet = np.random.default_rng(0).random((1000, 1))
    search = nested_neighbors(sheet, None, [1000], 5, block_rows=300)
    assert search.arithmetic == "float64"
    np.testing.assert_allclose(
        search.tables[0].distances, reference.neighbor_distances(sheet, 5), rtol=1e-7
    )
    assert nested_neighbors(cases()["far from the origin"], None, [150], 5).arithmetic == "float32"


def test_distances_of_long_rows_are_exact_to_five_digits():
    # 50,000 similar features: their products have one sign, so rounding errors add up most.
    rng = np.random.default_rng(0)
    rows = (rng.random((40, 50_000)) * 0.5 + rng.random(50_000)).astype(np.float32)
    distances = nested_neighbors(rows, None, [40], 5).tables[0].distances
    np.testing.assert_allclose(distances, reference.neighbor_distances(rows, 5), rtol=1e-5)


@pytest.mark.parametrize("num_workers", [1, 2, 7])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 1000, 40_000, 300_000])
def test_tiles_cover_each_pair_once(num_rows, num_workers):
    tiles = plan_tiles(num_rows, num_workers)
    pairs = 0
    for rows, columns in tiles:
        num_rows_of_tile = rows.stop - rows.start
        if rows == columns:
            pairs += num_rows_of_tile * (num_rows_of_tile + 1) // 2
        else:
            assert rows.stop <= columns.start
            pairs += num_rows_of_tile * (columns.stop - columns.start)
    assert pairs == num_rows * (num_rows + 1) // 2
    longest = max(rows.stop - rows.start for rows, _ in tiles)
    assert longest <= (262_144 if num_workers == 1 else 16_384)
    if num_workers == 1:
        assert (len(tiles) == 1) == (num_rows <= 262_144)


class Recorder(InlineExecutor):
    """An executor that runs tasks in this process and records whether they were spread."""

    def map_unordered(self, function, argument_tuples, *, spread=False):
        self.spread = spread
        return super().map_unordered(function, argument_tuples, spread=spread)


@pytest.mark.parametrize(("min_multiply_adds", "spread"), [(0, True), (1e11, False)])
def test_long_searches_are_spread_over_the_nodes(monkeypatch, min_multiply_adds, spread):
    monkeypatch.setattr(tile_search, "MIN_MULTIPLY_ADDS_TO_SPREAD", min_multiply_adds)
    executor = Recorder()
    nested_neighbors(cases()["one feature"], None, [150], 5, executor=executor)
    assert executor.spread == spread


@pytest.mark.parametrize("in_memory", [True, False])
def test_bytes_are_held_in_parts_and_streamed_in_pieces_of_bounded_size(monkeypatch, in_memory):
    rows = cases()["uint8 images"]
    for name, limit in {"PIECE_BYTES": 3 * 243, "HELD_BYTES": 7 * 243}.items():
        monkeypatch.setattr(tile_blocks, name, limit)
    source = reference.Stream(rows)
    table = nested_neighbors(rows if in_memory else source, None, [150], 5).tables[0]
    assert in_memory or {*source.reads} == {1, 3, 6}
    assert table.distances.tolist() == reference.neighbor_distances(rows, 5).tolist()


def test_an_error_while_reading_ahead_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(tile_blocks, "HELD_BYTES", 1)
    monkeypatch.setattr(tile_blocks, "PIECE_ROWS", 16)

    with pytest.raises(CorruptStoreError, match="Shard 3 does not match its checksum"):
        nested_neighbors(reference.CorruptFrom(np.zeros((150, 4), np.uint8), 100), None, [150], 2)


def test_torch_gives_the_same_distances_as_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.random((30, 500), dtype=np.float32), rng.random((20, 500), dtype=np.float32)
    centre = estimate_center(ArraySource(a))
    for second_rows in (None, b):
        numpy_distances, _ = squared_distances(
            a, second_rows, centre, Precision(chunk_features=128)
        )
        torch_distances, _ = squared_distances(
            a, second_rows, centre, Precision(chunk_features=128, device="cpu:0")
        )
        np.testing.assert_allclose(torch_distances, numpy_distances, rtol=2e-5)


def test_integer_rows_get_a_whole_numbered_centre():
    centre = estimate_center(
        ArraySource(np.random.default_rng(0).integers(0, 9, (30, 4), dtype=np.uint8))
    )
    assert (centre == np.rint(centre)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.bool_, np.int16])
@pytest.mark.parametrize("num_features", [1, 7, 64])
def test_duplicates_are_found_exactly(dtype, num_features):
    rng = np.random.default_rng(0)
    values = rng.random((40, num_features))
    rows = values > 0.5 if dtype == np.bool_ else (values * 200).astype(dtype)
    rows[[5, 30]] = rows[2]
    row_check = check_rows(ArraySource(rows), np.arange(40))
    expected = [next(j for j in range(40) if (rows[j] == rows[i]).all()) for i in range(40)]
    assert row_check.distinct_rows().tolist() == sorted(set(expected))
    assert set(row_check.conflicts) == {
        (i, first) for i, first in enumerate(expected) if i != first
    }
    assert check_rows(ArraySource(rows), np.zeros(40)).conflicts == []


def test_rows_with_equal_keys_are_compared_without_loading_all_of_them(monkeypatch):
    monkeypatch.setattr(duplicates, "KEY_VALUES", 1)
    rows = np.zeros((400, 5000))  # the one value of the key is zero in all
    rows[:, 4000:4008] = np.random.default_rng(0).integers(0, 3, (400, 8)) - 1
    rows[7], rows[9] = 0.0, -0.0

    monkeypatch.setattr(duplicates, "PIECE_BYTES", rows.nbytes // 20)
    tracemalloc.start()
    checked_rows = check_rows(reference.Stream(rows), np.arange(400))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    first_row_of_values = {}
    expected = [first_row_of_values.setdefault(tuple(row), i) for i, row in enumerate(rows)]
    assert dict(checked_rows.conflicts) == {
        i: first_row for i, first_row in enumerate(expected) if i != first_row
    }
    assert checked_rows.distinct_rows().tolist() == sorted(set(expected))
    assert peak_bytes < rows.nbytes / 5
