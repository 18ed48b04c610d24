"""Reading takes time in proportion to a file's size: nothing is unpacked or gathered again."""

from __future__ import annotations

import zipfile

import h5py
import numpy as np
import pyarrow.parquet as pq

from tasks.sources import source_for
from tasks.sources.arrays.files import MAX_CHUNK_BYTES, open_hdf5
from tests.raw_trees.own import image_cells, pictures, save_parquet
from tests.unit.tasks.sources.conftest import request_for

IMAGES = np.random.default_rng(0).integers(0, 256, (6000, 8, 8)).astype(np.uint8)


def test_a_block_of_packed_arrays_goes_on_where_the_last_one_ended(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", images=IMAGES, labels=np.arange(6000) % 2)
    request = request_for("npz", tmp_path / "a.npz")
    unpacked = []
    items = source_for("npz").list_items(request).items
    read1 = zipfile.ZipExtFile._read1

    def counted(file, size):
        body = read1(file, size)
        unpacked.append(len(body))
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
        np.testing.assert_array_equal(
            source_for("npz").reader(request)(items[9])[0].pixels, images[9]
        )


def test_a_large_chunk_of_hdf5_stays_unpacked(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=IMAGES, chunks=IMAGES.shape, compression="gzip")
    with open_hdf5(tmp_path / "a.h5", "mine") as file:
        assert file["images"].id.get_access_plist().get_chunk_cache()[1] == MAX_CHUNK_BYTES


def test_a_block_of_parquet_starts_at_its_row_group(tmp_path, monkeypatch):
    path = save_parquet(tmp_path / "a.parquet", {"image": image_cells(), "label": [0, 1] * 6})
    request = request_for("parquet", path)
    row_groups = []
    items = source_for("parquet").list_items(request).items
    iter_batches = pq.ParquetFile.iter_batches

    def noted(file, **options):
        row_groups.append(options["row_groups"])
        return iter_batches(file, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    read = source_for("parquet").reader(request)
    for row in (7, 11, 2, 10):
        np.testing.assert_array_equal(read(items[row])[0].pixels, pictures()[row])
    assert [list(groups) for groups in row_groups] == [[1, 2], [0, 1, 2]]
