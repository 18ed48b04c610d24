"""How images are cut into shards and blocks changes nothing that anybody can see."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.datasets import dataset_spec
from search_spaces.specs import PreparedSpec
from tasks.prepared import blocks
from tasks.prepared import store as arrays
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset
from tasks.remote import InlineExecutor
from tasks.sources import demo


def prepared(chunk_rows: int, shard_rows: int, block_rows: int, folder: Path) -> PreparedDataset:
    spec = PreparedSpec(dataset="digits", image_size=4, channels=1, max_images_per_class=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "CHUNK_BYTES", 16 * chunk_rows)
        patch.setattr(arrays, "SHARD_BYTES", 16 * shard_rows)
        patch.setattr(blocks, "BLOCK_BYTES", 16 * block_rows)
        prepare_dataset(
            spec, dataset_spec("digits"), raw=None, destination=folder, executor=InlineExecutor()
        )
    return PreparedDataset.open(folder)


@settings(max_examples=15)
@given(
    st.integers(5, 300),
    st.integers(20, 600),
    st.integers(9, 300),
    st.lists(st.integers(0, 199), max_size=30),
)
def test_fingerprint_and_rows_do_not_depend_on_the_partition(
    chunk_rows, shard_rows, block_rows, wanted
):
    with tempfile.TemporaryDirectory() as folder:
        one = prepared(10_000, 10_000, 10_000, Path(folder) / "one")
        two = prepared(chunk_rows, shard_rows, block_rows, Path(folder) / "two")
        assert one.fingerprint == two.fingerprint
        assert one.num_images == 200
        np.testing.assert_array_equal(one.read_rows(wanted), two.read_rows(wanted))
        np.testing.assert_array_equal(one.classes, two.classes)


def test_fingerprint_depends_on_pixels_labels_and_groups(monkeypatch, tmp_path):
    base = prepared(100, 100, 100, tmp_path / "base").fingerprint
    original = demo.packaged.list_items

    def joined(request):
        listing = original(request)
        from dataclasses import replace

        return replace(
            listing,
            items=[
                replace(item, group=str(place % 90)) for place, item in enumerate(listing.items)
            ],
        )

    monkeypatch.setattr(demo, "packaged", demo.Source(joined, demo.packaged.reader))
    assert prepared(100, 100, 100, tmp_path / "groups").fingerprint != base
