"""A prepared dataset does not depend on how its images are cut into shards and blocks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.datasets import dataset_spec
from search_spaces.specs import PreparedSpec
from tasks.prepared import blocks, store
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset
from tasks.remote import InlineExecutor
from tasks.sources import demo


def prepare_digits(
    chunk_rows: int, shard_rows: int, block_rows: int, folder: Path
) -> PreparedDataset:
    spec = PreparedSpec(dataset="digits", image_size=4, channels=1, max_images_per_class=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "CHUNK_BYTES", 16 * chunk_rows)
        patch.setattr(store, "SHARD_BYTES", 16 * shard_rows)
        patch.setattr(blocks, "BLOCK_BYTES", 16 * block_rows)
        prepare_dataset(
            spec, dataset_spec("digits"), raw=None, destination=folder, executor=InlineExecutor()
        )
    return PreparedDataset.open(folder)


@pytest.fixture(scope="module")
def in_one_shard(tmp_path_factory):
    return prepare_digits(10_000, 10_000, 10_000, tmp_path_factory.mktemp("digits") / "one")


@settings(max_examples=8)
@given(
    chunk_rows=st.integers(5, 300),
    shard_rows=st.integers(20, 600),
    block_rows=st.integers(9, 300),
    rows=st.lists(st.integers(0, 199), max_size=30),
)
def test_fingerprint_and_rows_do_not_depend_on_the_partition(
    in_one_shard, chunk_rows, shard_rows, block_rows, rows
):
    with tempfile.TemporaryDirectory() as folder:
        in_parts = prepare_digits(chunk_rows, shard_rows, block_rows, Path(folder) / "parts")
        assert in_one_shard.fingerprint == in_parts.fingerprint
        assert in_one_shard.num_images == 200
        np.testing.assert_array_equal(in_one_shard.read_rows(rows), in_parts.read_rows(rows))
        np.testing.assert_array_equal(in_one_shard.classes, in_parts.classes)


def test_fingerprint_depends_on_pixels_labels_and_groups(monkeypatch, tmp_path):
    base = prepare_digits(100, 100, 100, tmp_path / "base").fingerprint
    original = demo.packaged.list_items

    def list_grouped_items(request):
        listing = original(request)
        from dataclasses import replace

        return replace(
            listing,
            items=[
                replace(item, group=str(position % 90))
                for position, item in enumerate(listing.items)
            ],
        )

    monkeypatch.setattr(demo, "packaged", demo.Source(list_grouped_items, demo.packaged.reader))
    assert prepare_digits(100, 100, 100, tmp_path / "groups").fingerprint != base
