"""Prepare small raw folders as a user would have them, and compare what the user then reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search_spaces.datasets import dataset_spec, user_dataset_spec
from search_spaces.errors import SweepError
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import UserSourceSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset
from tasks.remote import InlineExecutor
from tasks.sources.base import RawRequest
from tests.raw_trees import write_raw_tree
from tests.raw_trees.pictures import png

Verdict = str | dict[str, object]
"""The words of a refusal, as a regular expression; or entries of a prepared set's :func:`summary`."""

TREE_OF = {
    "chexpert_edema": "chexpert",
    "rsna_subarachnoid": "rsna",
    "prostate_severe": "prostate",
}
"""Datasets that are read from the download of another one."""


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)


def write_tree(root: Path, *names: str) -> Path:
    """Write pictures, no two alike, and other files; ``cat/`` is a folder of three pictures."""
    for number, name in enumerate(names):
        files = [f"{name}{image}.png" for image in range(3)] if name.endswith("/") else [name]
        for image, path in enumerate(root / file for file in files):
            path.parent.mkdir(parents=True, exist_ok=True)
            is_picture = path.suffix.lower() == ".png"
            path.write_bytes(png(picture(10 * number + image)) if is_picture else b"no image")
    return root


def request_for(kind: str, path: Path) -> RawRequest:
    row = user_dataset_spec("mine", UserSourceSpec(kind=kind, path=str(path), domain="natural"))
    return RawRequest(row, PreparedSpec(dataset="mine", image_size=8, channels=1), path)


def summary(data: PreparedDataset) -> dict[str, object]:
    """Return what a user can read of a prepared set."""
    record = data.record
    return {
        "classes": data.label_names,
        "labels": data.classes.tolist(),
        "splits": data.splits.tolist(),
        "images": record.num_images,
        "groups": record.num_groups,
        "duplicates": record.num_duplicates,
        **{name: getattr(record, name) for name in ("excluded", "flags", "skipped", "conversions")},
    }


def check_verdict(verdict: Verdict, run: Callable[[], PreparedDataset]) -> str:
    """Check that ``run`` gives this verdict. Returns the message of a refusal, else nothing."""
    if isinstance(verdict, str):
        with pytest.raises(SweepError, match=verdict) as caught:
            run()
        return str(caught.value)
    entries = summary(run())
    assert {name: entries[name] for name in verdict} == verdict
    return ""


def assert_equal(actual: PreparedDataset, expected: PreparedDataset) -> None:
    """Check that two stores hold the same images, labels and number of groups."""
    assert actual.record.num_images == expected.record.num_images > 0
    assert actual.record.num_groups == expected.record.num_groups
    np.testing.assert_array_equal(actual.classes, expected.classes)
    rows = actual.record.num_images
    np.testing.assert_array_equal(actual.read(0, rows), expected.read(0, rows))


@pytest.fixture
def prepare(tmp_path):
    """Prepare ``raw`` as own data of ``kind``; returns the opened dataset."""

    def run(
        kind: str,
        raw: Path,
        *,
        image_size=8,
        channels=1,
        max_skipped_share=0.0,
        name="mine",
        for_training=True,
        **options,
    ) -> PreparedDataset:
        source = UserSourceSpec(kind=kind, path=str(raw), domain="natural", **options)
        destination = tmp_path / "prepared" / f"{kind}-{name}"
        prepare_dataset(
            PreparedSpec(dataset=name, image_size=image_size, channels=channels),
            user_dataset_spec(name, source),
            raw=raw,
            destination=destination,
            executor=InlineExecutor(),
            max_skipped_share=max_skipped_share,
            for_training=for_training,
        )
        return PreparedDataset.open(destination)

    return run


@pytest.fixture
def tree(tmp_path) -> Callable[[str], Path]:
    """Write the raw tree of a download, which the test may change."""
    return lambda name: write_raw_tree(TREE_OF.get(name, name), tmp_path)


def prepare_download(
    name: str, raw: Path | None, out: Path, *, strict: bool = True, **spec: Any
) -> PreparedDataset:
    """Prepare a download of the table into ``out/name``, and open the dataset."""
    row = dataset_spec(name)
    prepared_spec = PreparedSpec(
        **{"dataset": name, "task": row.task, "image_size": 16, "channels": 1, **spec}
    )
    options = {"max_skipped_share": 0.0} if strict else {}
    prepare_dataset(
        prepared_spec, row, raw=raw, destination=out / name, executor=InlineExecutor(), **options
    )
    return PreparedDataset.open(out / name)


@pytest.fixture
def official(tmp_path):
    """Prepare a download of the table from ``raw``; returns the opened dataset."""

    def run(name: str, raw: Path | None, *, out: Path | None = None, **spec) -> PreparedDataset:
        return prepare_download(name, raw, out or tmp_path / "prepared", **spec)

    return run


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """Return the dataset of a drawn download as it was drawn, prepared once for a whole file."""

    @cache
    def prepared(name: str) -> PreparedDataset:
        folder = tmp_path_factory.mktemp(name)
        raw = write_raw_tree(TREE_OF.get(name, name), folder / "raw")
        return prepare_download(name, raw, folder, strict=False)

    return prepared


@pytest.fixture
def class_folder(tmp_path) -> Path:
    """Write ten valid pictures, five per class."""
    for index in range(10):
        folder = tmp_path / "raw" / ("cat" if index < 5 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(png(picture(index)))
    return tmp_path / "raw"
