"""Promises of every dataset: each row of ``datasets.toml``, and each kind of a user's own data.

A row whose source also reads users' data needs nothing else: the tests write a small download of it.
A row of another source needs a small raw tree in ``tests/raw_trees``, unless an existing tree has the
same source and layout. The failing test names the missing one.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from search_spaces.datasets import (
    DATASETS,
    GENERATED,
    generated_dataset_spec,
    read_table,
    row_of,
    user_dataset_spec,
)
from search_spaces.errors import ConfigError, DataError
from search_spaces.specs import DatasetSpec, PreparedSpec
from search_spaces.sweeps import ControlledDatasetSpec, UserSourceSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.remote import InlineExecutor
from tasks.sources import (
    OWN_KINDS,
    OWN_OPTIONS,
    SOURCES,
    current_name,
    needs_download,
    source_for,
)
from tasks.sources.base import Item, Listing, RawRequest, Sample, SkipItem, Source
from tests.contracts.rows import check_one_row
from tests.raw_trees import WRITERS, write_raw_tree
from tests.raw_trees.own import FORMS, OWN_WRITERS

OWN = [f"own {kind}" for kind in OWN_KINDS]
NAMES = sorted([*DATASETS, *GENERATED, *OWN])
MAX_ITEMS_READ = 12
CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


def dataset_of(name: str) -> DatasetSpec:
    """Return the dataset of a row, or a user's dataset of a kind."""
    if name in DATASETS:
        return DATASETS[name]
    if name in GENERATED:
        return generated_dataset_spec("made", ControlledDatasetSpec(kind=name))
    kind = name.removeprefix("own ")
    return user_dataset_spec("mine", UserSourceSpec(kind=kind, path="x", domain="natural"))


def write_download(dataset: DatasetSpec, folder: Path) -> Path | None:
    """Write a small raw download of a dataset, or return None if its source reads none."""
    row = SOURCES[dataset.source]
    if dataset.name not in DATASETS and row.own_kind is not None:
        if dataset.source not in OWN_WRITERS:
            pytest.fail(f"kind {dataset.source} needs a writer in tests/raw_trees/own.py")
        return OWN_WRITERS[dataset.source](folder / "own")
    if row.download == "none":
        return None
    # Several rows may read one download: another task on it has the same layout.
    for name in WRITERS:
        writer = DATASETS[name]
        if (writer.source, writer.raw_layout) == (dataset.source, dataset.raw_layout):
            return write_raw_tree(name, folder)
    if dataset.source == "npz":
        return write_arrays_of_row(dataset, folder)
    if dataset.source in FORM_OF_SOURCE:
        return write_files_of_row(dataset, folder)
    pytest.fail(
        f"dataset {dataset.name} needs a writer in WRITERS of tests/raw_trees/__init__.py: its source "
        f"{dataset.source} reads a layout of its own"
    )


FORM_OF_SOURCE = {"folder": "folder", "hdf5": "hdf5", "table": "csv", "webdataset": "webdataset"}
"""Source of users' data -> form of file in which the tests write the download of a row."""


def write_files_of_row(dataset: DatasetSpec, folder: Path) -> Path:
    """Write the download of a row with eight images of each class, in a form of users' data."""
    # If the row has a label_map, the files contain other labels than the names of the classes.
    name_in_files = {name: label for label, name in dict(dataset.label_map).items()}
    classes = [name_in_files.get(name, name) for name in dataset.label_names for _ in range(8)]
    columns = {"label": classes}
    if len(dataset.label_columns) == 1:
        columns = {dataset.label_columns[0]: classes}
    elif dataset.label_columns:
        columns = {
            column: [int(name == own) for name in classes]
            for column, own in zip(dataset.label_columns, dataset.label_names, strict=True)
        }
    _, write = FORMS[FORM_OF_SOURCE[dataset.source]]
    return write(folder / "own", columns)


def write_arrays_of_row(dataset: DatasetSpec, folder: Path) -> Path:
    """Write the ``.npz`` with the name of a row, with eight images of each class."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(8 * len(dataset.label_names)) % len(dataset.label_names)
    shape = (len(labels), 20, 20)
    if dataset.channels == 3:
        shape = (*shape, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(folder / f"{dataset.name}.npz", images=images, labels=labels)
    return folder


@pytest.fixture(scope="module", params=NAMES)
def request_of(request, tmp_path_factory) -> RawRequest:
    """A request for a small raw download of the dataset."""
    dataset = dataset_of(request.param)
    raw = write_download(dataset, tmp_path_factory.mktemp("raw"))
    spec = PreparedSpec(
        dataset=dataset.name, task=dataset.task, image_size=16, channels=1, max_images_per_class=40
    )
    return RawRequest(dataset, spec, raw, key="k")


def spread(items):
    """Return at most :data:`MAX_ITEMS_READ` items, evenly spaced over a listing."""
    rows = np.unique(np.linspace(0, len(items) - 1, MAX_ITEMS_READ).astype(int))
    return [items[row] for row in rows]


def read(reader, item):
    """Return the samples of an item, or the reason why the reader skips it."""
    try:
        return list(reader(item))
    except SkipItem as skip:
        return skip.reason


def test_each_item_without_a_group_has_a_locator_of_its_own(request_of):
    """Images of equal locators are one group, which a split does not divide."""
    items = source_for(request_of.dataset.source).list_items(request_of).items
    locators = [item.locator for item in items if not item.group]
    num_repeats = len(locators) - len(set(locators))
    assert num_repeats == 0, (
        f"{num_repeats} items of {request_of.dataset.name} have the locator of another item, so all "
        "of them are one group. Make the locators differ, for example `images.npy::3` for row 3"
    )


def test_listing_twice_gives_the_same_items(request_of):
    source = source_for(request_of.dataset.source)
    first = source.list_items(request_of)
    second = source.list_items(request_of)
    assert list(first.items) == list(second.items)
    assert first.items
    assert first.label_names == second.label_names
    assert first.block_size >= 1


def test_items_are_distinct_labelled_and_below_the_raw_folder(request_of):
    listing = source_for(request_of.dataset.source).list_items(request_of)
    names = list(listing.label_names)
    assert len(set(names)) == len(names) >= 2
    if request_of.dataset.label_names:
        assert tuple(names) == request_of.dataset.label_names
    assert len({(item.locator, item.details) for item in listing.items}) == len(listing.items)
    for item in listing.items:
        assert item.label is None or 0 <= item.label < len(names), (
            f"an item has the label {item.label}, but labels are 0 to {len(names) - 1}"
        )
        assert item.split in ("", "train", "test")
        assert not Path(item.locator).is_absolute()


def test_a_source_of_users_data_applies_label_map(request_of):
    if current_name(request_of.dataset.source) not in OWN_KINDS:
        pytest.skip("reads no users' data")
    source = source_for(request_of.dataset.source)
    original = source.list_items(request_of).label_names[0]
    label_map = {label: name for label, name in request_of.dataset.label_map if name != original}
    label_map[original] = "renamed"
    dataset = request_of.dataset.model_copy(update={"label_map": tuple(label_map.items())})
    renamed = source.list_items(replace(request_of, dataset=dataset)).label_names
    assert "renamed" in renamed, "use own_listing of tasks/sources/own/listing.py"


def test_an_item_does_not_depend_on_the_order_of_reading(request_of):
    source = source_for(request_of.dataset.source)
    listing = source.list_items(request_of)
    items = spread(listing.items)
    first_reader = source.reader(request_of)
    second_reader = source.reader(request_of)
    forwards = [read(first_reader, item) for item in items]
    backwards = [read(second_reader, item) for item in items[::-1]]
    backwards.reverse()
    assert any(not isinstance(samples, str) for samples in forwards)
    largest = 0
    for item, samples, same_samples in zip(items, forwards, backwards, strict=True):
        if isinstance(samples, str):
            assert samples == same_samples
            assert item.locator not in samples, "a reason names no file"
            continue
        for sample, same in zip(samples, same_samples, strict=True):
            np.testing.assert_array_equal(sample.pixels, same.pixels)
            assert sample.label == same.label
            label = item.label if sample.label is None else sample.label
            assert 0 <= label < len(listing.label_names)
            pixels = sample.pixels
            assert pixels.ndim == 2 or pixels.shape[2:] == (3,), (
                f"pixels have the shape {pixels.shape} instead of (height, width) or (height, width, 3)"
            )
            assert pixels.dtype in (np.uint8, np.float32), "pixels must be uint8 or float32"
            assert np.isfinite(pixels).all()
            assert 0 <= pixels.min() <= pixels.max() <= 255
            largest = max(largest, pixels.max())
    assert largest > 1, "no pixel is above 1, but pixels are in [0, 255], not in [0, 1]"


MESSAGES = {
    "none": "from its raw download, but --raw is not set",
    "absent": "was not found",
    "empty": "Missing from the download|not all of these files were found|folder",
}


@pytest.mark.parametrize("download", MESSAGES)
def test_a_missing_download_is_reported_and_writes_nothing(request_of, tmp_path, download):
    if request_of.raw is None:
        pytest.skip("reads no download")
    if download == "none" and not needs_download(request_of.dataset):
        pytest.skip("fetches its download, or has the path of a sweep file")
    raw = None if download == "none" else tmp_path / "raw"
    if download == "empty":
        raw.mkdir()
    with pytest.raises(DataError, match=MESSAGES[download]):
        prepare_dataset(
            request_of.spec,
            request_of.dataset,
            raw=raw,
            destination=tmp_path / "out",
            executor=InlineExecutor(),
        )
    assert not (tmp_path / "out").exists()


LISTING = Listing((Item("a", 0), Item("b", 1)), ("cat", "dog"))


def source_of(listing=LISTING, samples=()) -> Source:
    """Return a source with a fixed listing, whose reader returns the same samples of each item."""
    return Source(lambda request: listing, lambda request: lambda item: samples)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            source_of([Item("a", 0)]),
            "`list_items` of the source digits returned an object of type list",
        ),
        (source_of(Listing(("a",))), "returned a Listing whose items are of type str"),
        (
            source_of(samples=1),
            "the reader of the source digits returned an object of type int instead",
        ),
        (
            source_of(samples=np.zeros((2, 8, 8))),
            "returned an object of type ndarray instead of a Sample",
        ),
        (
            source_of(samples=[Sample(np.zeros((3, 8, 8), np.uint8))]),
            r"the shape \(3, 8, 8\) and the dtype uint8, which isweep cannot use\. Return an array of shape \(height,",
        ),
        (
            source_of(samples=[Sample(np.zeros((8, 8)))]),
            r"the shape \(8, 8\) and the dtype float64, which isweep cannot use\. Return .* uint8 or float32 values in",
        ),
        (source_of(samples=[Sample([[1, 2]])]), "type list with the shape .* and the dtype None"),
    ],
)
def test_a_source_that_returns_something_else_is_named(monkeypatch, tmp_path, source, message):
    for module in ("listings", "parts"):
        monkeypatch.setattr(f"tasks.prepared.{module}.source_for", lambda name: source)
    dataset = DATASETS["digits"].model_copy(update={"source": "digits"})
    with pytest.raises(DataError, match=message):
        prepare_dataset(
            PreparedSpec(dataset="digits", image_size=16, channels=1),
            dataset,
            raw=None,
            destination=tmp_path / "out",
            executor=InlineExecutor(),
        )


def contributing_dataset() -> DatasetSpec:
    """Return the dataset of the example row in ``CONTRIBUTING.md``."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    example = re.search("```toml\n(.*?)```", text, re.DOTALL)[1]
    (name, row), *_ = tomllib.loads(example).items()
    return DatasetSpec.model_validate_json(json.dumps({"name": name, **row}))


@pytest.mark.parametrize("raw", ["folder", "file"])
def test_the_row_in_contributing_is_enough_for_a_dataset(tmp_path, monkeypatch, raw):
    dataset = contributing_dataset()
    name = dataset.name
    monkeypatch.setitem(DATASETS, name, dataset)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 3), dtype=np.uint8)
    labels = (np.arange(40) % 9)[:, None]
    np.savez(
        tmp_path / f"{name}.npz",
        train_images=images[:20],
        train_labels=labels[:20],
        test_images=images[20:],
        test_labels=labels[20:],
    )
    record = prepare_dataset(
        PreparedSpec(dataset=name, image_size=16, channels=3),
        dataset,
        raw=tmp_path if raw == "folder" else tmp_path / f"{name}.npz",
        destination=tmp_path / "out",
        executor=InlineExecutor(),
    )
    assert record.num_images == 40
    assert record.label_names == dataset.label_names
    assert needs_download(dataset)


def test_a_row_that_reads_arrays_needs_no_writer(tmp_path, monkeypatch):
    dataset = contributing_dataset()
    monkeypatch.setitem(DATASETS, dataset.name, dataset)
    record = prepare_dataset(
        PreparedSpec(dataset=dataset.name, image_size=16, channels=3),
        dataset,
        raw=write_download(dataset, tmp_path / "raw"),
        destination=tmp_path / "out",
        executor=InlineExecutor(),
    )
    assert record.num_images == 8 * len(dataset.label_names)


@pytest.mark.parametrize("source", FORM_OF_SOURCE)
def test_a_row_with_other_class_names_than_its_files_is_refused(tmp_path, monkeypatch, source):
    changes = {"name": "new", "source": source, "raw_layout": "any"}
    dataset = contributing_dataset().model_copy(update=changes)
    monkeypatch.setitem(DATASETS, "new", dataset)
    raw = write_download(dataset, tmp_path / "raw")
    first, second, *others = dataset.label_names
    for other_names in (("ADY", second, *others), (second, first, *others)):
        row = dataset.model_copy(update={"label_names": other_names})
        monkeypatch.setitem(DATASETS, "new", row)
        message = rf"have the classes ADI, .* has label_names = \['{other_names[0]}', "
        with pytest.raises(DataError, match=message):
            prepare_dataset(
                PreparedSpec(dataset="new", image_size=16, channels=3),
                row,
                raw=raw,
                destination=tmp_path / "out",
                executor=InlineExecutor(),
            )


@pytest.mark.parametrize("source", FORM_OF_SOURCE)
def test_a_row_of_a_source_of_users_data_needs_no_writer(tmp_path, monkeypatch, source):
    changes = {"name": "new", "source": source, "raw_layout": "any"}
    dataset = contributing_dataset().model_copy(update=changes)
    monkeypatch.setitem(DATASETS, "new", dataset)
    record = prepare_dataset(
        PreparedSpec(dataset="new", image_size=16, channels=3),
        dataset,
        raw=write_download(dataset, tmp_path / "raw"),
        destination=tmp_path / "out",
        executor=InlineExecutor(),
    )
    assert record.num_images == 8 * len(dataset.label_names)
    assert record.label_names == dataset.label_names


def test_a_folder_without_a_table_says_how_to_name_the_table(tmp_path):
    dataset = contributing_dataset().model_copy(update={"name": "new", "source": "table"})
    (tmp_path / "labels.csv").write_text("path,label\n")
    spec = PreparedSpec(dataset="new", image_size=16, channels=3)
    message = "Use the path of the table itself, or rename the table to manifest.csv"
    with pytest.raises(DataError, match=message):
        source_for("table").list_items(RawRequest(dataset, spec, tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("channels = 3", "channels = 4", r"row \[pathmnist\]: `channels` is 4"),
        (
            "channels = 3",
            "chanels = 3",
            r"row \[pathmnist\]: these fields are missing: `channels`; there are no such fields: `chanels`",
        ),
        ("title", "of = 'absent'\ntitle", r"row \[pathmnist\], `of`: Unknown row 'absent'"),
        ("title", "of = ['mnist']\ntitle", r"row \[pathmnist\], `of`: Unknown row \"\['mnist'\]\""),
        ("title", "of = 2024-01-01\ntitle", r"row \[pathmnist\], `of`: Unknown row '2024-01-01'"),
        ("channels = 3", "channels = 2024-01-01", r"row \[pathmnist\]: `channels` is '2024-01-01'"),
        ("title", "[pathmnist]\ntitle", r"cannot be read: .*names of all rows must differ"),
        ("[pathmnist]", "title = 1\n[pathmnist]", r": 'title' is not a row"),
        (
            "channels = 3",
            "channels = 3\npixel_range = [0.0]",
            r"row \[pathmnist\]: `pixel_range.1` is \[0.0\]: field required",
        ),
    ],
)
def test_a_message_names_the_row_and_field_of_a_wrong_dataset(old, new, message):
    text = re.search("```toml\n(.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), re.DOTALL)[1]
    with pytest.raises(ConfigError, match=f"^search_spaces/datasets.toml.*{message}"):
        row_of(read_table(text.replace(old, new, 1)), "pathmnist")


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_has_one_row_whose_target_is_a_source(name):
    check_one_row("tasks/sources/__init__.py", "SOURCES", name)
    source = source_for(name)
    assert callable(source.list_items), f"`target` of row {name!r} is no Source"
    assert callable(source.reader), f"`target` of row {name!r} is no Source"


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_a_dataset_or_is_a_kind_of_own_data(name):
    sources = {row.source for row in (*DATASETS.values(), *GENERATED.values())}
    assert name in sources or name in OWN_KINDS, "needs a row in search_spaces/datasets.toml"


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_has_a_source_in_the_table(name):
    assert DATASETS[name].source in SOURCES, "needs a row in SOURCES of tasks/sources/__init__.py"


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_every_kind_is_documented_with_valid_options(kind):
    text = (Path(__file__).parents[2] / "docs/reference/data-formats.md").read_text()
    assert f"| `{kind}` |" in text
    assert set(OWN_KINDS[kind].options) <= set(OWN_OPTIONS) <= UserSourceSpec.model_fields.keys()


@pytest.mark.parametrize(
    "name", [name for name in SOURCES if name not in GENERATED and name != "manifold"]
)
def test_every_reader_names_the_source_of_its_layout(name):
    """The source is a document, a public reader or a format's standard."""
    module = import_module(SOURCES[name].target.partition(":")[0])
    assert re.search(r"layout|format", module.__doc__, re.IGNORECASE), (
        f"{SOURCES[name].target}: say in the module's docstring which layout or file format it reads"
    )
