"""What every registered source promises. A new one is tested by its row in ``SOURCES`` and a raw
tree."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from search_spaces.datasets import DATASETS, MADE, made_dataset_spec, own_dataset_spec
from search_spaces.errors import DataError
from search_spaces.interventions import MadeSpec
from search_spaces.specs import DatasetSpec, PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.remote import InlineExecutor
from tasks.sources import FROM_RAW, OWN_KINDS, SOURCES, source_for
from tasks.sources.base import RawRequest, SkipItem
from tests.raw_trees import WRITERS, write_raw_tree
from tests.raw_trees.own import OWN_WRITERS

NO_DOWNLOAD = "nothing to download"
MOST_READ = 12


def dataset_of(name: str) -> DatasetSpec:
    """The first dataset of the table that this source reads, or own data of that kind."""
    if name in OWN_KINDS:
        return own_dataset_spec("mine", OwnSourceSpec(kind=name, path="x", domain="natural"))
    if name in MADE:
        return made_dataset_spec("made", MadeSpec(from_=name))
    rows = [row for row in DATASETS.values() if row.source == name]
    if not rows:
        pytest.fail(
            f"source {name} needs a row in search_spaces/datasets.toml, or one in OWN_KINDS or MADE"
        )
    return next((row for row in rows if row.name in WRITERS), rows[0])


@pytest.fixture(scope="module", params=sorted(SOURCES))
def request_of(request, tmp_path_factory) -> RawRequest:
    """A request for a small raw tree of the source."""
    dataset = dataset_of(request.param)
    folder = tmp_path_factory.mktemp("raw")
    if request.param in OWN_KINDS:
        if request.param not in OWN_WRITERS:
            pytest.fail(f"kind {request.param} needs a writer in tests/raw_trees/own.py")
        raw: Path | None = OWN_WRITERS[request.param](folder / "own")
    elif dataset.raw_layout.startswith(NO_DOWNLOAD):
        raw = None
    elif dataset.name not in WRITERS:
        pytest.fail(f"dataset {dataset.name} needs a writer in tests/raw_trees/__init__.py")
    else:
        raw = write_raw_tree(dataset.name, folder)
    spec = PreparedSpec(
        dataset=dataset.name, task=dataset.task, image_size=16, channels=1, max_images_per_class=40
    )
    return RawRequest(dataset, spec, raw, key="k")


def some(items):
    """At most ``MOST_READ`` items, from all over the listing."""
    places = np.unique(np.linspace(0, len(items) - 1, MOST_READ).astype(int))
    return [items[place] for place in places]


def read(reader, item):
    """The samples of an item, or why there are none."""
    try:
        return list(reader(item))
    except SkipItem as skip:
        return skip.reason


class TestSource:
    def test_the_listing_is_the_same_every_time(self, request_of):
        source = source_for(request_of.dataset.source)
        first, second = source.list_items(request_of), source.list_items(request_of)
        assert list(first.items) == list(second.items)
        assert first.items
        assert first.label_names == second.label_names
        assert first.block_size >= 1

    def test_items_are_named_labelled_and_point_below_the_raw_folder(self, request_of):
        listing = source_for(request_of.dataset.source).list_items(request_of)
        names = list(listing.label_names)
        assert len(set(names)) == len(names) >= 2
        if request_of.dataset.label_names:
            assert tuple(names) == request_of.dataset.label_names
        assert len({(item.locator, item.details) for item in listing.items}) == len(listing.items)
        for item in listing.items:
            assert item.label is None or 0 <= item.label < len(names)
            assert item.split in ("", "train", "test")
            assert not Path(item.locator).is_absolute()

    def test_reading_depends_on_the_item_alone(self, request_of):
        source = source_for(request_of.dataset.source)
        listing = source.list_items(request_of)
        items = some(listing.items)
        one, other = (
            source.reader(request_of),
            source_for(request_of.dataset.source).reader(request_of),
        )
        forwards = [read(one, item) for item in items]
        backwards = [read(other, item) for item in items[::-1]][::-1]
        assert any(not isinstance(found, str) for found in forwards)
        for item, found, again in zip(items, forwards, backwards, strict=True):
            if isinstance(found, str):
                assert found == again
                assert item.locator not in found, "a reason names no file"
                continue
            for sample, same in zip(found, again, strict=True):
                np.testing.assert_array_equal(sample.pixels, same.pixels)
                assert sample.label == same.label
                label = item.label if sample.label is None else sample.label
                assert 0 <= label < len(listing.label_names)
                assert np.isfinite(sample.pixels.astype(float)).all()

    @pytest.mark.parametrize("what", ["none", "absent", "empty"])
    def test_a_raw_download_that_is_not_there_is_one_clear_message(
        self, request_of, tmp_path, what
    ):
        if request_of.raw is None or (what == "none" and request_of.dataset.source not in FROM_RAW):
            pytest.skip("needs no download, or fetches it")
        raw = None if what == "none" else tmp_path / "raw"
        if what == "empty":
            raw.mkdir()
        messages = {"none": "expected: ", "absent": "must exist", "empty": "must (hold|be)|needs"}
        with pytest.raises(DataError, match=messages[what]):
            prepare_dataset(
                request_of.spec,
                request_of.dataset,
                raw=raw,
                destination=tmp_path / "out",
                executor=InlineExecutor(),
            )
        assert not (tmp_path / "out").exists()


def test_every_kind_has_a_row_in_the_documents():
    text = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    assert [kind for kind in OWN_KINDS if f"| `{kind}` |" not in text] == []


@pytest.mark.parametrize(
    "name", [name for name in SOURCES if name not in MADE and name != "manifold"]
)
def test_every_reader_says_what_its_layout_was_taken_from(name):
    """A document, a public reader or a format's standard."""
    module = import_module(SOURCES[name].partition(":")[0])
    assert re.search(r"Layout|Format", module.__doc__)
