"""The prepared store: damage is refused by name, and undamaged rows come back exactly."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from search_spaces.datasets import dataset_spec
from search_spaces.errors import CorruptStoreError, DataError
from search_spaces.specs import PreparedSpec
from tasks.prepared import store as store_module
from tasks.prepared.montage import save_montage
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.record import PreparedRecord
from tasks.prepared.sharded_array import ShardedArrayReader
from tasks.prepared.store import (
    MARKER,
    PreparedDataset,
    create_store,
    write_rows,
)
from tasks.remote import InlineExecutor
from tasks.sources.own.splits import GivenSplit

SPEC = PreparedSpec(dataset="digits", image_size=8, channels=1)


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory) -> Path:
    # Small shards, so that the store has several files.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "CHUNK_BYTES", 64 * 100)
        patch.setattr(store_module, "SHARD_BYTES", 64 * 500)
        folder = tmp_path_factory.mktemp("store") / "digits"
        prepare_dataset(
            SPEC, dataset_spec("digits"), raw=None, destination=folder, executor=InlineExecutor()
        )
    return folder


@pytest.fixture
def store(prepared_folder, tmp_path) -> Path:
    return Path(shutil.copytree(prepared_folder, tmp_path / "digits"))


def test_rows_are_those_of_the_source_in_the_order_of_the_indices(prepared_folder):
    from sklearn.datasets import load_digits

    data = PreparedDataset.open(prepared_folder)
    expected = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(data.read(0, data.num_rows)[:, 0], expected)
    np.testing.assert_array_equal(data.classes, load_digits().target)
    assert data.row_shape == (1, 8, 8)
    data.verify()
    indices = np.random.default_rng(0).integers(0, data.num_rows, 300)
    np.testing.assert_array_equal(data.read_rows(indices)[:, 0], expected[indices])
    assert data.read_rows([]).shape == (0, 1, 8, 8)
    with pytest.raises(IndexError, match="a row is not in the range 0 to 1796"):
        data.read_rows([1797])


@settings(max_examples=30)
@given(
    num_rows=st.integers(1, 40),
    chunk_rows=st.integers(1, 9),
    chunks_per_shard=st.integers(1, 4),
    zero_rows=st.sets(st.integers(0, 39)),
    positions=st.lists(st.floats(0, 1, exclude_max=True), max_size=20),
    dtype=st.sampled_from(["uint8", "float32"]),
)
def test_the_reader_returns_the_rows_that_were_written(
    num_rows, chunk_rows, chunks_per_shard, zero_rows, positions, dtype
):
    import zarr  # takes a second of every process that collects tests

    rows = np.random.default_rng(0).integers(1, 256, (num_rows, 3, 2, 2)).astype(dtype)
    rows[sorted(row for row in zero_rows if row < num_rows)] = 0
    # zarr writes no file for a shard of zeros. Prepared images are never constant.
    rows[:: chunk_rows * chunks_per_shard] = 1
    row_bytes = rows[0].nbytes
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "CHUNK_BYTES", chunk_rows * row_bytes)
        patch.setattr(store_module, "SHARD_BYTES", chunk_rows * chunks_per_shard * row_bytes)
        store = Path(folder)
        shard_rows = create_store(
            store, num_images=num_rows, image_shape=rows.shape[1:], dtype=dtype
        )
        write_rows(store, "images", 0, rows)
        array = zarr.open_group(str(store), mode="r")["images"]
        reader = ShardedArrayReader(
            store / "images" / "c",
            num_rows,
            rows.shape[1:],
            np.dtype(dtype),
            array.chunks[0],
            shard_rows,
        )
        indices = np.array([int(position * num_rows) for position in positions], np.int64)
        np.testing.assert_array_equal(reader.read_rows(indices), rows[indices])
        start, stop = sorted(indices[:2]) if len(indices) > 1 else (0, num_rows)
        consecutive = reader.read_rows(range(start, stop))
        np.testing.assert_array_equal(consecutive, rows[start:stop])
        assert consecutive.flags.writeable


@pytest.mark.parametrize("indices", [range(0, 10, 2), range(9, -1, -1)])
def test_a_range_with_a_step_is_read_as_indices_or_refused_by_the_reader(prepared_folder, indices):
    data = PreparedDataset.open(prepared_folder)
    np.testing.assert_array_equal(data.read_rows(indices), data.read(0, 10)[list(indices)])
    with pytest.raises(ValueError, match=r"has the step -?\d, not 1\. Convert it to an array"):
        data._images.read_rows(indices)


def test_pickles_as_its_path_and_its_record_survives_json(prepared_folder):
    data = PreparedDataset.open(prepared_folder)
    assert pickle.loads(pickle.dumps(data)).fingerprint == data.fingerprint
    assert len(pickle.dumps(data)) < 1000
    assert PreparedRecord.model_validate_json(data.record.model_dump_json()) == data.record


def shards(store: Path) -> list[Path]:
    return sorted(path for path in (store / "images" / "c").rglob("*") if path.is_file())


def test_a_flipped_byte_is_found_when_read_and_when_verified(store):
    shard = shards(store)[1]
    body = bytearray(shard.read_bytes())
    body[100] ^= 1
    shard.write_bytes(body)
    data = PreparedDataset.open(store)
    with pytest.raises(CorruptStoreError, match=r"Array images .* images/c/1/0/0/0"):
        data.read(0, data.num_rows)
    with pytest.raises(
        CorruptStoreError,
        match="images/c/1/0/0/0 of prepared dataset digits has changed since it was written",
    ):
        data.verify()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("zarr.json", b"group", b"array"),
        ("images/zarr.json", b"1797", b"1700"),  # whole JSON of another array
        ("labels/zarr.json", b"{", b"x"),
    ],
)
def test_damaged_metadata_of_the_same_size_are_refused_by_name(store, name, old, new):
    body = (store / name).read_bytes()
    assert old in body
    (store / name).write_bytes(body.replace(old, new))
    for read in (lambda data: data.read_rows([0]), lambda data: data.classes):
        with pytest.raises(
            CorruptStoreError,
            match=f"^{name} of prepared dataset digits has changed since it was written",
        ):
            read(PreparedDataset.open(store))


@pytest.mark.parametrize("change", ["written by zarr", "those of the groups"])
def test_changed_labels_with_right_checksums_are_refused_by_name(store, change):
    if change == "written by zarr":
        array = zarr.open_group(str(store), mode="r+")["labels"]
        array[:] = 9 - array[:]
    else:
        shutil.copy(store / "groups" / "c" / "0", store / "labels" / "c" / "0")
    with pytest.raises(
        CorruptStoreError,
        match=r"^labels/c/0 of prepared dataset digits has changed since it was written",
    ):
        _ = PreparedDataset.open(store).classes


def test_splits_that_were_added_later_are_refused_by_name(store):
    """The digits have no given splits. zarr stores no file for an array of zeros."""
    assert not PreparedDataset.open(store).splits.any()
    opened_before = PreparedDataset.open(store)
    zarr.open_group(str(store), mode="r+")["splits"][:] = GivenSplit.TRAIN
    for read in (opened_before.verify, lambda: PreparedDataset.open(store)):
        with pytest.raises(CorruptStoreError, match=r"^splits/c/0 of prepared .* digits was added"):
            read()
    with pytest.raises(CorruptStoreError, match=r"^splits/c/0 of prepared dataset digits has"):
        _ = opened_before.splits
    (store / "images" / "c" / "._0").touch()  # as macOS copies create
    (store / "splits" / "c" / "0").unlink()
    PreparedDataset.open(store)


def test_a_shard_that_vanishes_after_opening_is_not_read_as_zeros(store):
    data = PreparedDataset.open(store)
    shards(store)[0].unlink()
    with pytest.raises(CorruptStoreError, match="FileNotFoundError in images/c/0/0/0/0"):
        data.read_rows([0])


@pytest.mark.parametrize("change", [None, lambda body: body[:-1], lambda body: body + b"0"])
def test_files_of_another_size_are_refused_on_opening(store, change):
    shard = shards(store)[0]
    body = shard.read_bytes()
    shard.unlink()
    if change is not None:
        shard.write_bytes(change(body))
    with pytest.raises(CorruptStoreError, match="images/c/0/0/0/0 of prepared dataset digits is"):
        PreparedDataset.open(store)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"complete\.json of prepared dataset digits is missing, so the preparation did"),
        *(
            (text, r"complete\.json of prepared dataset digits is damaged")
            for text in ("", "{", "[]", '{"schema": 1}')
        ),
        ('{"schema": 99, "sha256": "x"}', "schema 99"),
        (
            '{"schema": 1, "record": {}, "files": {}, "sha256": "x"}',
            r"complete\.json of prepared dataset digits has changed since it was written",
        ),
        (
            "[" * 100_000,
            r"complete\.json of prepared dataset digits is damaged \(RecursionError\)",
        ),
    ],
)
def test_a_damaged_marker_is_refused(store, text, message):
    (store / MARKER).unlink() if text is None else (store / MARKER).write_text(text)
    with pytest.raises(CorruptStoreError, match=message):
        PreparedDataset.open(store)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="The prepared dataset none does not exist"):
        PreparedDataset.open(tmp_path / "none")


def test_a_montage_has_a_row_per_class_and_eight_examples_each(prepared_folder, tmp_path):
    save_montage(PreparedDataset.open(prepared_folder), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 8, 10 * 8)
