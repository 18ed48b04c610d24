"""Raw files that may have changed: equal content updates the record, other content is refused."""

from __future__ import annotations

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from search_spaces.datasets import user_dataset_spec
from search_spaces.errors import DataError
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import UserSourceSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.record import PreparedRecord
from tasks.remote import InlineExecutor
from tests.raw_trees.pictures import png
from tests.unit.tasks.sources.conftest import picture

NUM_IMAGES = 40


def write_manifest(raw: Path, **columns: list[str]) -> None:
    """Write a table of the images with the given further columns."""
    rows = [["path", "label", "patient_id", *columns]]
    for number in range(NUM_IMAGES):
        cells = [f"{number:02d}.png", "ab"[number % 2], f"p{number // 4}-{number % 2}"]
        rows.append([*cells, *(column[number] for column in columns.values())])
    with (raw / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def raw(tmp_path) -> Path:
    """Write a folder with a table and its images: two classes, and two images per patient."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(NUM_IMAGES):
        (folder / f"{number:02d}.png").write_bytes(png(picture(number)))
    write_manifest(folder)
    return folder


def run(raw: Path, destination: Path, max_images_per_class: int | None = None) -> PreparedRecord:
    source = UserSourceSpec(kind="table", path=str(raw), domain="natural")
    spec = PreparedSpec(
        dataset="mine", image_size=8, channels=1, max_images_per_class=max_images_per_class
    )
    return prepare_dataset(
        spec,
        user_dataset_spec("mine", source),
        raw=raw,
        destination=destination,
        executor=InlineExecutor(),
    )


SCANNERS = [f"scanner {number % 2}" for number in range(NUM_IMAGES)]
NOTES = [f"note {number}" for number in range(NUM_IMAGES)]


@pytest.mark.parametrize(
    ("columns", "doubt"),
    [
        ({"scanner": SCANNERS}, "scanner predicts the label (right for 100%, 1.00 of 1.00 bits)"),
        ({"comment": NOTES}, "columns not used: comment"),
    ],
    ids=["trait", "unused column"],
)
def test_the_doubts_about_a_new_or_removed_column_are_those_of_a_fresh_root(
    raw, tmp_path, columns, doubt
):
    without_column = run(raw, tmp_path / "out" / "mine")
    write_manifest(raw, **columns)
    with_column = run(raw, tmp_path / "out" / "mine")
    fresh = run(raw, tmp_path / "fresh" / "mine")
    assert doubt in fresh.flags
    assert with_column.flags == fresh.flags
    assert with_column.fingerprint == without_column.fingerprint
    write_manifest(raw)
    assert run(raw, tmp_path / "out" / "mine") == without_column


def test_a_damaged_file_is_named_with_the_reason(raw, tmp_path):
    run(raw, tmp_path / "mine")
    (raw / "03.png").write_bytes(b"no image")
    with pytest.raises(
        DataError,
        match=r"1 prepared image not found in the files; 1 item cannot be used, the first is "
        r"\w{16} \(not an image\).*isweep locate HASH",
    ):
        run(raw, tmp_path / "mine")


def test_a_new_file_with_a_limit_per_class_is_counted_in_images(raw, tmp_path):
    run(raw, tmp_path / "mine", max_images_per_class=6)
    for number in range(NUM_IMAGES):
        (raw / f"{number:02d}.png").write_bytes(png(picture(100 + number)))
    with pytest.raises(
        DataError,
        match=r"12 new or changed images, the first in \w{16}; 12 prepared images not found"
        r".*max_images_per_class, isweep chooses other images if you add or remove a file",
    ):
        run(raw, tmp_path / "mine", max_images_per_class=6)


def test_comparisons_write_no_images_and_do_not_disturb_each_other(raw, tmp_path, monkeypatch):
    record = run(raw, tmp_path / "mine")
    os.utime(raw / "00.png", (1, 1))
    monkeypatch.setattr("tasks.prepared.parts.save_part", None)
    with ThreadPoolExecutor(4) as threads:
        records = list(threads.map(lambda _: run(raw, tmp_path / "mine"), range(4)))
    assert {compared.fingerprint for compared in records} == {record.fingerprint}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hash_key", "mine", "raw"]


def test_more_unusable_items_than_allowed_are_refused_also_if_the_images_are_equal(raw, tmp_path):
    run(raw, tmp_path / "mine")
    with (raw / "manifest.csv").open("a", newline="") as file:
        for number in (50, 51):
            (raw / f"{number}.png").write_bytes(b"no image")
            csv.writer(file).writerow([f"{number}.png", "a", "p50"])
    with pytest.raises(DataError, match=r"2 of 42 items cannot be used \(not an image: 2\)"):
        run(raw, tmp_path / "mine")
