"""Helpers to prepare small raw folders as a user would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from search_spaces.datasets import dataset_spec, own_dataset_spec
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset
from tasks.remote import InlineExecutor
from tests.raw_trees.pictures import png

__all__ = ["picture", "png"]


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)


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
        own = OwnSourceSpec(kind=kind, path=str(raw), domain="natural", **options)
        destination = tmp_path / "prepared" / f"{kind}-{name}"
        prepare_dataset(
            PreparedSpec(dataset=name, image_size=image_size, channels=channels),
            own_dataset_spec(name, own),
            raw=raw,
            destination=destination,
            executor=InlineExecutor(),
            max_skipped_share=max_skipped_share,
            for_training=for_training,
        )
        return PreparedDataset.open(destination)

    return run


@pytest.fixture
def official(tmp_path):
    """Prepare a download of the table from ``raw``; returns the opened dataset."""

    def run(name: str, raw: Path, *, out: Path | None = None, **options) -> PreparedDataset:
        row = dataset_spec(name)
        spec = PreparedSpec(dataset=name, task=row.task, image_size=16, channels=1)
        destination = (out or tmp_path / "prepared") / name
        strict = {"max_skipped_share": 0.0} | options
        prepare_dataset(spec, row, raw=raw, destination=destination, executor=InlineExecutor(), **strict)
        return PreparedDataset.open(destination)

    return run


@pytest.fixture
def class_folder(tmp_path) -> Path:
    """Ten good pictures, five per class."""
    for index in range(10):
        folder = tmp_path / "raw" / ("cat" if index < 5 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(png(picture(index)))
    return tmp_path / "raw"
