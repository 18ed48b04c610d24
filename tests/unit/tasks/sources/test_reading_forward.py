"""What grows with a file's size must not grow with its square: nothing is unpacked or gathered again."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from search_spaces.datasets import own_dataset_spec
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.sources import source_for
from tasks.sources.base import RawRequest
from tests.unit.tasks.sources.conftest import picture, png

IMAGES = np.random.default_rng(0).integers(0, 256, (6000, 8, 8)).astype(np.uint8)


def request_for(kind: str, path: Path) -> RawRequest:
    row = own_dataset_spec("mine", OwnSourceSpec(kind=kind, path=str(path), domain="natural"))
    return RawRequest(row, PreparedSpec(dataset="mine", image_size=8, channels=1), path)


def test_a_block_of_packed_arrays_goes_on_where_the_last_one_ended(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", images=IMAGES, labels=np.arange(6000) % 2)
    request, unpacked = request_for("npz", tmp_path / "a.npz"), []
    items = source_for("npz").list_items(request).items
    read1 = zipfile.ZipExtFile._read1

    def counted(file, size):
        unpacked.append(len(body := read1(file, size)))
        return body

    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", counted)
    for start in (0, 2000, 1000, 4000):
        read = source_for("npz").reader(request)
        for item in items[start : start + 1000]:
            np.testing.assert_array_equal(read(item)[0].pixels, IMAGES[int(item.locator)])
    assert IMAGES[:5000].nbytes < sum(unpacked) < 1.5 * IMAGES.nbytes + IMAGES[:3000].nbytes


def test_arrays_that_were_replaced_are_not_served_from_the_stream_of_the_old(tmp_path):
    path = tmp_path / "a.npz"
    for images in (IMAGES[:10], 255 - IMAGES[:12]):
        np.savez(path, images=images, labels=np.arange(len(images)) % 2)
        request = request_for("npz", path)
        items = source_for("npz").list_items(request).items
        np.testing.assert_array_equal(source_for("npz").reader(request)(items[9])[0].pixels, images[9])


def test_a_large_chunk_of_hdf5_stays_unpacked(tmp_path):
    h5py = pytest.importorskip("h5py")
    from tasks.sources.arrays import MAX_CHUNK_BYTES, open_hdf5

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=IMAGES, chunks=IMAGES.shape, compression="gzip")
    with open_hdf5(tmp_path / "a.h5", "mine") as file:
        images = file["images"]
        assert images.id.get_access_plist().get_chunk_cache()[1] == MAX_CHUNK_BYTES


def test_a_block_of_parquet_starts_at_its_row_group(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [picture(row, (8, 8)) for row in range(12)]
    rows = {"image": [png(image) for image in images], "label": [row % 2 for row in range(12)]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet", row_group_size=5)
    request, asked = request_for("parquet", tmp_path / "a.parquet"), []
    items = source_for("parquet").list_items(request).items
    iter_batches = pq.ParquetFile.iter_batches

    def noted(file, **options):
        asked.append(options["row_groups"])
        return iter_batches(file, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    read = source_for("parquet").reader(request)
    for row in (7, 11, 2, 10):
        np.testing.assert_array_equal(read(items[row])[0].pixels, images[row])
    assert [list(groups) for groups in asked] == [[1, 2], [0, 1, 2]]
