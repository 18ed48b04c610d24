"""Preparation: the store is complete or missing, equal for all workers, resumable, and reports skips."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from search_spaces.datasets import dataset_spec, user_dataset_spec
from search_spaces.errors import DataError
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import UserSourceSpec
from tasks.prepared import blocks, publish
from tasks.prepared.parts import prepare_and_save_block
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset, flush_and_hash
from tasks.remote import InlineExecutor
from tasks.sources import SOURCES, SourceRow
from tasks.sources.base import Item, Listing, Sample, SkipItem
from tests.unit.tasks.sources.conftest import assert_equal, write_tree

SPEC = PreparedSpec(dataset="digits", image_size=8, channels=1)


class Toy:
    """Forty random images, two per group, two classes; item 3 cannot be read."""

    reads: ClassVar[list[str]] = []
    broken: frozenset[int] = frozenset()

    def list_items(self, request):
        items = [Item(f"secret-{row}", row % 2, f"patient-{row // 2}") for row in range(40)]
        return Listing(items, ("a", "b"), block_size=7)

    def reader(self, request):
        def read(item):
            row = int(item.locator.split("-")[1])
            self.reads.append(item.locator)
            if row in self.broken:
                raise SkipItem("not an image")
            return (Sample(np.random.default_rng(row).integers(0, 256, (8, 8)).astype(np.uint8)),)

        return read


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(SOURCES, "toy", SourceRow(f"{__name__}:Toy"))
    monkeypatch.setattr(Toy, "reads", [])
    monkeypatch.setattr(Toy, "broken", frozenset())
    return dataset_spec("digits").model_copy(update={"source": "toy"})


class Shuffled(InlineExecutor):
    """An executor that finishes calls in reverse order."""

    def map_unordered(self, function, argument_tuples):
        numbered_calls = list(enumerate(argument_tuples))
        for index, arguments in numbered_calls[::-1]:
            yield index, function(*arguments)


class Forgetful(InlineExecutor):
    """An executor that loses the result of the last call."""

    def map_unordered(self, function, argument_tuples):
        if function in (publish.write_shard, flush_and_hash):
            argument_tuples = list(argument_tuples)[:-1]
        yield from super().map_unordered(function, argument_tuples)


def run(dataset, destination: Path, *, spec=SPEC, executor=None, **options):
    executor = executor or InlineExecutor()
    return prepare_dataset(
        spec, dataset, raw=None, destination=destination, executor=executor, **options
    )


def leftovers(folder: Path, destination: Path) -> list[str]:
    return [
        path.name for path in folder.iterdir() if path not in (destination, folder / ".hash_key")
    ]


def test_a_finished_preparation_is_returned_without_reading_again(toy, tmp_path):
    progress = []
    record = run(toy, tmp_path / "out", on_progress=lambda *counts: progress.append(counts))
    assert (progress[0], progress[-1]) == ((0, 40), (40, 40))
    assert (record.num_images, record.num_groups) == (40, 20)
    assert record.num_images_per_label == {"a": 20, "b": 20}
    assert run(toy, tmp_path / "out") == record
    assert len(Toy.reads) == 40
    assert leftovers(tmp_path, tmp_path / "out") == []


def test_content_does_not_depend_on_completion_order_or_hash_key(toy, tmp_path, monkeypatch):
    first = run(toy, tmp_path / "a" / "out")
    monkeypatch.setenv("ISWEEP_HASH_KEY", "another key of 16 letters")
    second = run(toy, tmp_path / "b" / "out", executor=Shuffled())
    assert first.fingerprint == second.fingerprint
    first_store, second_store = (PreparedDataset.open(tmp_path / name / "out") for name in "ab")
    np.testing.assert_array_equal(first_store.read(0, 40), second_store.read(0, 40))
    assert not np.array_equal(first_store.groups, second_store.groups)


def test_a_kill_before_the_marker_leaves_no_store_and_a_damaged_store_is_made_again(
    toy, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(publish, "write_marker", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(toy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    record = run(toy, tmp_path / "out")
    (tmp_path / "out" / "complete.json").unlink()
    assert run(toy, tmp_path / "out").fingerprint == record.fingerprint
    PreparedDataset.open(tmp_path / "out").verify()
    assert leftovers(tmp_path, tmp_path / "out") == []


def test_other_files_at_the_destination_are_never_replaced(toy, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(
        DataError,
        match="contains files that isweep did not write",
    ):
        run(toy, tmp_path / "out")
    run(toy, tmp_path / "other")
    with pytest.raises(DataError, match=r"contains the prepared dataset .* is requested"):
        run(toy, tmp_path / "other", spec=SPEC.model_copy(update={"image_size": 16}))


def test_several_writers_at_once_end_with_one_undamaged_store(toy, tmp_path):
    with ThreadPoolExecutor(4) as threads:
        records = list(threads.map(lambda _: run(toy, tmp_path / "out"), range(4)))
    assert len({record.fingerprint for record in records}) == 1
    PreparedDataset.open(tmp_path / "out").verify()


@pytest.mark.parametrize(
    ("broken", "allowed", "message"),
    [
        (
            {3},
            0.0,
            r"40 items cannot be used \(not an image: 1\), but at most 0 \(0\.00%\) may",
        ),
        (
            {3, 4},
            0.001,
            r"40 items cannot be used \(not an image: 2\), but at most 1 \(0\.10%\) may",
        ),
        (
            range(30),
            0.01,
            r"40 items cannot be used \(not an image: 30\), but at most 1 \(1\.00%\) may",
        ),
    ],
)
def test_too_many_skips_stop_with_the_list(toy, tmp_path, monkeypatch, broken, allowed, message):
    monkeypatch.setattr(Toy, "broken", frozenset(broken))
    with pytest.raises(DataError, match=message) as caught:
        run(toy, tmp_path / "out", max_skipped_share=allowed)
    assert "secret" not in str(caught.value)


def test_the_limit_per_class_keeps_whole_groups_and_reads_no_others(toy, tmp_path):
    record = run(toy, tmp_path / "out", spec=SPEC.model_copy(update={"max_images_per_class": 6}))
    assert record.num_images_per_label == {"a": 6, "b": 6}
    assert (record.num_groups, len(Toy.reads)) == (6, 12)


def test_identical_images_join_their_groups_and_conflicts_need_permission(
    toy, tmp_path, monkeypatch
):
    original = Toy.reader

    def twins(self, request):
        read = original(self, request)
        return lambda item: read(
            replace(item, locator="secret-0") if item.locator == "secret-5" else item
        )

    monkeypatch.setattr(Toy, "reader", twins)
    with pytest.raises(
        DataError,
        match=r"2 of 40 images are equal to an image with another label, but the limit is 0\.10%",
    ):
        run(toy, tmp_path / "out")
    assert run(toy, tmp_path / "measured", for_training=False).num_conflicts == 2
    record = run(toy, tmp_path / "out", max_skipped_share=0.05)
    groups = PreparedDataset.open(tmp_path / "out").groups
    assert (record.num_duplicates, record.num_conflicts, record.num_groups) == (1, 2, 19)
    assert groups[0] == groups[5] == groups[4]


@pytest.mark.ray
def test_ray_tasks_make_the_same_store_as_one_process(ray_local, tmp_path):
    from tasks.remote import RayExecutor

    spec = PreparedSpec(dataset="mri_lesion", image_size=24, channels=1, max_images_per_class=100)
    row = dataset_spec("mri_lesion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 24 * 24 * 25)
        records = [
            prepare_dataset(spec, row, raw=None, destination=tmp_path / name, executor=executor)
            for name, executor in (("inline", InlineExecutor()), ("ray", RayExecutor()))
        ]
    assert records[0].fingerprint == records[1].fingerprint


def test_a_store_with_a_missing_shard_is_never_committed(toy, tmp_path):
    with pytest.raises(RuntimeError, match="a shard is missing, so the store is not complete"):
        run(toy, tmp_path / "out", executor=Forgetful())
    assert not (tmp_path / "out").exists()


def test_an_image_without_a_label_is_refused_with_the_name_of_its_source(
    toy, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        Toy, "list_items", lambda *_: Listing([Item("secret-0", None, "")], ("a", "b"))
    )
    with pytest.raises(DataError, match="the source toy returned an image without a label"):
        run(toy, tmp_path / "out")


LESIONS = PreparedSpec(dataset="mri_lesion", image_size=48, channels=1, max_images_per_class=150)
KILLED = """
import sys
from pathlib import Path
from search_spaces.datasets import dataset_spec
from search_spaces.specs import PreparedSpec
from tasks.prepared import blocks, store
from tasks.prepared.prepare import prepare_dataset
from tasks.remote import InlineExecutor
blocks.BLOCK_BYTES = 48 * 48 * 20
store.SHARD_BYTES, store.CHUNK_BYTES = 48 * 48 * 40, 48 * 48 * 10
spec = PreparedSpec.model_validate_json(sys.argv[1])
prepare_dataset(spec, dataset_spec(spec.dataset), raw=None, destination=Path(sys.argv[2]),
                executor=InlineExecutor(), on_progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.parametrize("read", [40, pytest.param(300, marks=pytest.mark.long)])
def test_a_killed_preparation_resumes_with_the_remaining_images(tmp_path, monkeypatch, read):
    """No incomplete store is used after SIGKILL, and the next run reads the remaining images."""
    destination = tmp_path / "out"
    progress, reads = [], []
    command = [sys.executable, "-c", KILLED, LESIONS.model_dump_json(), str(destination)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[4]
    )
    assert process.stdout is not None
    while read not in progress:
        progress.append(int(process.stdout.readline()))
    time.sleep(0.05 * (read == 300))  # all is read: now inside writing and publishing
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    num_parts = len(list(tmp_path.glob(".out.parts/*.json")))
    if destination.exists():
        assert read == 300
        PreparedDataset.open(destination).verify()
        return
    assert num_parts >= read // 20
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 48 * 48 * 20)
    monkeypatch.setattr(
        blocks,
        "prepare_and_save_block",
        lambda *block: reads.append(1) or prepare_and_save_block(*block),
    )
    run(dataset_spec("mri_lesion"), destination, spec=LESIONS)
    data = PreparedDataset.open(destination)
    data.verify()
    assert data.num_images == 300
    assert len(reads) == 15 - num_parts


# Other nodes read blocks only if their files equal the listed ones, with the same result.

NUM_BLOCKS = 4


class Elsewhere(InlineExecutor):
    """A node with a disk of its own: the raw download's path leads into ``disk`` there, and no
    root."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self.num_calls = self.num_refused = 0

    def map_unordered(self, function, argument_tuples, *, spread=False):
        assert spread
        for index, (preparation, *more_arguments) in enumerate(argument_tuples):
            request = replace(preparation.request, raw=self.disk)
            result = function(replace(preparation, request=request), *more_arguments)
            self.num_calls += 1
            self.num_refused += result is None
            yield index, result


CHANGES = {
    "nothing": (lambda disk: None, 0),
    "content": (lambda disk: (disk / "a" / "0.png").write_bytes(b"other"), 1),
    "time": (lambda disk: os.utime(disk / "a" / "0.png", ns=(0, 0)), 1),
    "a file gone": (lambda disk: (disk / "a" / "0.png").unlink(), 1),
    "all gone": (shutil.rmtree, NUM_BLOCKS),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_block_is_read_on_another_node_only_if_its_files_are_the_same(
    tmp_path, change, caplog, monkeypatch
):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 8 * 5)
    raw = write_tree(tmp_path / "raw", *(f"{'ab'[row % 2]}/{row}.png" for row in range(20)))
    disk = Path(shutil.copytree(raw, tmp_path / "disk"))
    apply_change, refused = CHANGES[change]
    apply_change(disk)
    row = user_dataset_spec("mine", UserSourceSpec(kind="folder", path=str(raw), domain="natural"))
    spec, stores = SPEC.model_copy(update={"dataset": "mine"}), []
    for name, readers in (("spread", Elsewhere(disk)), ("here", None)):
        options = {"executor": InlineExecutor(), "other_nodes": readers}
        prepare_dataset(spec, row, raw=raw, destination=tmp_path / name, **options)
        stores.append(PreparedDataset.open(tmp_path / name))
        if readers:
            assert (readers.num_calls, readers.num_refused) == (NUM_BLOCKS, refused)
    assert_equal(*stores)
    assert stores[0].fingerprint == stores[1].fingerprint
    warning = (
        f"{refused} blocks of images could not be read on other nodes, because these nodes do not have "
        "the same raw files"
    )
    assert (warning in caplog.text) == (refused > 0)
