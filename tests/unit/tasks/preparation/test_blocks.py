"""Blocks read on other nodes: only where the files are the listed ones, and with the same result."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search_spaces.datasets import own_dataset_spec
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.prepared import prepare as blocks
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset
from tasks.remote import InlineExecutor

SPEC = PreparedSpec(dataset="mine", image_size=8, channels=1)
NUM_BLOCKS = 4


class Elsewhere(InlineExecutor):
    """A node with a disk of its own: the raw download's path leads into ``disk`` there, and no root."""

    def __init__(self, disk: Path) -> None:
        self.disk, self.asked, self.refused = disk, 0, 0

    def map_unordered(self, function, argument_tuples, *, num_cpus=1.0, spread=False):
        assert spread
        for index, (request, *rest) in enumerate(argument_tuples):
            assert request.cache is None
            found = function(replace(request, raw=self.disk), *rest)
            self.asked, self.refused = self.asked + 1, self.refused + (found is None)
            yield index, found


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """Two classes of ten pictures each, to be read five at a time."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 8 * 5)
    rng = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "raw" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return tmp_path / "raw"


def prepare(raw: Path, destination: Path, readers: Elsewhere | None = None) -> str:
    own = OwnSourceSpec(kind="folder", path=str(raw), domain="natural")
    record = prepare_dataset(
        SPEC,
        own_dataset_spec("mine", own),
        raw=raw,
        destination=destination,
        executor=InlineExecutor(),
        readers=readers,
    )
    return record.fingerprint


@pytest.fixture
def copy(raw, tmp_path) -> Path:
    """The same files, with their times, on another disk."""
    return Path(shutil.copytree(raw, tmp_path / "copy"))


def test_blocks_read_elsewhere_give_the_same_data(raw, copy, tmp_path):
    readers = Elsewhere(copy)
    found = prepare(raw, tmp_path / "spread", readers)
    assert (readers.asked, readers.refused) == (NUM_BLOCKS, 0)
    assert found == prepare(raw, tmp_path / "here")
    one, other = (PreparedDataset.open(tmp_path / name) for name in ("spread", "here"))
    assert np.array_equal(one.read_rows(np.arange(20)), other.read_rows(np.arange(20)))


def other_content(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def other_time(path: Path) -> None:
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("change", [other_content, other_time, Path.unlink])
def test_a_node_with_another_file_leaves_its_block_to_the_drivers_node(raw, copy, tmp_path, change, caplog):
    change(copy / "a" / "0.png")
    readers = Elsewhere(copy)
    found = prepare(raw, tmp_path / "spread", readers)
    assert (readers.asked, readers.refused) == (NUM_BLOCKS, 1)
    assert found == prepare(raw, tmp_path / "here")
    assert "1 blocks are read on the driver's node: elsewhere files differ" in caplog.text


def test_a_node_without_the_download_reads_nothing(raw, tmp_path):
    readers = Elsewhere(tmp_path / "nothing")
    found = prepare(raw, tmp_path / "spread", readers)
    assert (readers.asked, readers.refused) == (NUM_BLOCKS, NUM_BLOCKS)
    assert found == prepare(raw, tmp_path / "here")
