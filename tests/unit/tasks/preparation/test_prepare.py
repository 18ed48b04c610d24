"""Prepare: whole or absent, the same whatever the workers, resumable, honest about skips."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks.prepared.prepare as publish_module
from search_spaces.datasets import dataset_spec
from search_spaces.errors import DataError
from search_spaces.specs import PreparedSpec
from tasks.prepared import prepare
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset, stamp_file
from tasks.prepared.table import _join
from tasks.remote import InlineExecutor
from tasks.sources import SOURCES
from tasks.sources.base import Item, Listing, Sample, SkipItem

SPEC = PreparedSpec(dataset="digits", image_size=8, channels=1)


class Toy:
    """Forty random images, two per group, two classes; item 3 cannot be read."""

    reads: ClassVar[list[str]] = []
    broken: frozenset[int] = frozenset()
    stop_at: int | None = None

    def list_items(self, request):
        items = [Item(f"secret-{row}", row % 2, f"patient-{row // 2}") for row in range(40)]
        return Listing(items, ("a", "b"), block_size=7)

    def reader(self, request):
        def read(item):
            row = int(item.locator.split("-")[1])
            if row == self.stop_at:
                raise KeyboardInterrupt
            self.reads.append(item.locator)
            if row in self.broken:
                raise SkipItem("not an image")
            return (Sample(np.random.default_rng(row).integers(0, 256, (8, 8)).astype(np.uint8)),)

        return read


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(SOURCES, "toy", f"{__name__}:Toy")
    monkeypatch.setattr(Toy, "reads", [])
    monkeypatch.setattr(Toy, "broken", frozenset())
    monkeypatch.setattr(Toy, "stop_at", None)
    return dataset_spec("digits").model_copy(update={"source": "toy"})


class Shuffled(InlineExecutor):
    """Finishes calls in another order than they were asked for."""

    def map_unordered(self, function, argument_tuples, *, num_cpus=1.0):
        todo = list(enumerate(argument_tuples))
        for index, arguments in todo[::-1]:
            yield index, function(*arguments)


def run(dataset, destination: Path, *, spec=SPEC, executor=None, **options):
    executor = executor or InlineExecutor()
    return prepare_dataset(spec, dataset, raw=None, destination=destination, executor=executor, **options)


def leftovers(folder: Path, destination: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path not in (destination, folder / ".hash_key")]


def test_prepares_once_and_returns_at_once_afterwards(toy, tmp_path):
    record = run(toy, tmp_path / "out")
    assert record.num_images == 40
    assert record.num_groups == 20
    assert record.num_images_per_label == {"a": 20, "b": 20}
    assert run(toy, tmp_path / "out") == record
    assert len(Toy.reads) == 40
    assert leftovers(tmp_path, tmp_path / "out") == []


def test_content_does_not_depend_on_completion_order_or_hash_key(toy, tmp_path, monkeypatch):
    first = run(toy, tmp_path / "a" / "out")
    monkeypatch.setenv("ISWEEP_HASH_KEY", "another key of 16 letters")
    second = run(toy, tmp_path / "b" / "out", executor=Shuffled())
    assert first.fingerprint == second.fingerprint
    one, two = (PreparedDataset.open(tmp_path / name / "out") for name in "ab")
    np.testing.assert_array_equal(one.read(0, 40), two.read(0, 40))
    assert not np.array_equal(one.groups, two.groups)


def test_goes_on_after_an_interruption_without_reading_twice(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "stop_at", 30)
    with pytest.raises(KeyboardInterrupt):
        run(toy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Toy, "stop_at", None)
    run(toy, tmp_path / "out")
    # Blocks of 7: rows 28 and 29 were read in the block that did not finish.
    assert len(Toy.reads) == 42


def test_a_kill_before_the_marker_leaves_nothing_believed(toy, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(publish_module, "seal", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(toy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run(toy, tmp_path / "out").num_images == 40


def test_a_damaged_destination_is_made_again(toy, tmp_path):
    record = run(toy, tmp_path / "out")
    (tmp_path / "out" / "complete.json").unlink()
    assert run(toy, tmp_path / "out").fingerprint == record.fingerprint
    PreparedDataset.open(tmp_path / "out").verify()
    assert leftovers(tmp_path, tmp_path / "out") == []


def test_a_folder_of_the_user_is_never_replaced(toy, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="must be a prepared dataset or not exist"):
        run(toy, tmp_path / "out")


def test_another_spec_in_the_destination_is_refused(toy, tmp_path):
    run(toy, tmp_path / "out")
    other = SPEC.model_copy(update={"image_size": 16})
    with pytest.raises(DataError, match="must hold prepared dataset"):
        run(toy, tmp_path / "out", spec=other)


def test_two_writers_at_once_end_with_one_whole_store(toy, tmp_path):
    records, errors = [], []

    def work():
        try:
            records.append(run(toy, tmp_path / "out"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len({record.fingerprint for record in records}) == 1
    PreparedDataset.open(tmp_path / "out").verify()


def test_skips_are_counted_and_hashed(toy, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Toy, "broken", frozenset({3}))
    record = run(toy, tmp_path / "out", max_skipped_share=0.05)
    assert record.skipped == {"not an image": 1}
    assert record.num_images == 39
    assert len(record.skipped_items) == 1
    text = caplog.text + str(record.model_dump())
    assert "secret" not in text
    assert "patient" not in text


@pytest.mark.parametrize(("allowed", "taken"), [(0.001, True), (0.0, False)])
def test_one_damaged_file_does_not_refuse_a_set(toy, tmp_path, monkeypatch, allowed, taken):
    monkeypatch.setattr(Toy, "broken", frozenset({3}))
    if taken:
        assert run(toy, tmp_path / "out", max_skipped_share=allowed).num_skipped == 1
        return
    with pytest.raises(DataError, match=r"at most 0 of 40 items .*found: 1 \(not an image: 1\)"):
        run(toy, tmp_path / "out", max_skipped_share=allowed)


def test_too_many_skips_stop_with_the_list(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "broken", frozenset({3, 4}))
    with pytest.raises(
        DataError, match=r"at most 1 of 40 items \(0\.10%\).*found: 2 \(not an image: 2\), first"
    ) as caught:
        run(toy, tmp_path / "out")
    assert "secret" not in str(caught.value)


def test_keeps_whole_groups_up_to_the_limit(toy, tmp_path):
    spec = SPEC.model_copy(update={"max_images_per_class": 6})
    record = run(toy, tmp_path / "out", spec=spec)
    assert record.num_images_per_label == {"a": 6, "b": 6}
    assert record.num_groups == 6
    assert len(Toy.reads) == 12


def test_groups_of_identical_images_are_joined(toy, tmp_path, monkeypatch):
    original = Toy.reader

    def twins(self, request):
        read = original(self, request)
        return lambda item: read(replace(item, locator="secret-0") if item.locator == "secret-5" else item)

    monkeypatch.setattr(Toy, "reader", twins)
    with pytest.raises(DataError, match="may equal an image with another label; found: 2 of 40"):
        run(toy, tmp_path / "out")
    assert run(toy, tmp_path / "measured", for_training=False).num_conflicts == 2
    record = run(toy, tmp_path / "out", max_skipped_share=0.05)
    groups = PreparedDataset.open(tmp_path / "out").groups
    assert (record.num_duplicates, record.num_conflicts) == (1, 2)
    assert groups[0] == groups[5] == groups[4]
    assert record.num_groups == 19


def test_progress_reaches_the_total(toy, tmp_path):
    seen = []
    run(toy, tmp_path / "out", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 40)
    assert seen[-1] == (40, 40)


@pytest.mark.ray
def test_ray_tasks_make_the_same_store_as_one_process(ray_local, tmp_path):
    from tasks.remote import RayExecutor

    spec = PreparedSpec(dataset="mri_lesion", image_size=24, channels=1, max_images_per_class=100)
    row = dataset_spec("mri_lesion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "BLOCK_BYTES", 24 * 24 * 25)
        records = [
            prepare_dataset(spec, row, raw=None, destination=tmp_path / name, executor=executor)
            for name, executor in (("inline", InlineExecutor()), ("ray", RayExecutor()))
        ]
    assert records[0].fingerprint == records[1].fingerprint


class Forgetful(InlineExecutor):
    """Loses the result of the last call."""

    def map_unordered(self, function, argument_tuples, *, num_cpus=1.0):
        if function in (publish_module.write_shard, stamp_file):
            argument_tuples = list(argument_tuples)[:-1]
        yield from super().map_unordered(function, argument_tuples, num_cpus=num_cpus)


def test_a_store_with_a_missing_shard_is_never_sealed(toy, tmp_path):
    with pytest.raises(RuntimeError, match="write_shard: 0 results came back of 1 calls"):
        run(toy, tmp_path / "out", executor=Forgetful())
    assert not (tmp_path / "out").exists()


def test_shards_are_written_when_python_leaves_asserts_out(tmp_path):
    program = """
import sys
from pathlib import Path
from search_spaces.datasets import dataset_spec
from search_spaces.specs import PreparedSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.remote import InlineExecutor
spec = PreparedSpec(dataset="digits", image_size=8, channels=1)
destination = Path(sys.argv[1])
prepare_dataset(spec, dataset_spec("digits"), raw=None, destination=destination, executor=InlineExecutor())
"""
    root = Path(__file__).parents[4]
    subprocess.run([sys.executable, "-O", "-c", program, str(tmp_path / "fast")], check=True, cwd=root)
    run(dataset_spec("digits"), tmp_path / "plain")
    fast, plain = PreparedDataset.open(tmp_path / "fast"), PreparedDataset.open(tmp_path / "plain")
    np.testing.assert_array_equal(fast.read(0, fast.num_rows), plain.read(0, plain.num_rows))
    assert fast.read(0, fast.num_rows).any()


class Unlabelled(Toy):
    """Forgets to say what an image shows."""

    def list_items(self, request):
        return Listing([Item("x", None, "")], ("a", "b"))


def test_a_source_that_gives_no_label_is_named(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "toy", f"{__name__}:Unlabelled")
    monkeypatch.setattr(Unlabelled, "reader", lambda *_: lambda item: (Sample(np.eye(8, dtype=np.uint8)),))
    with pytest.raises(DataError, match="must give each image a label; found: none from toy"):
        run(toy, tmp_path / "out")


@given(
    groups=st.lists(st.integers(-3, 3).map(lambda g: g * 2**60), min_size=1, max_size=30),
    seed=st.integers(0, 100),
)
def test_joined_groups_are_the_connected_ones(groups, seed):
    """Against the definition: two groups are one when a chain of shared images links them."""
    same = np.random.default_rng(seed).integers(0, 8, len(groups))
    joined = _join(np.array(groups), np.unique(same, return_inverse=True)[1])
    linked = np.equal.outer(groups, groups) | np.equal.outer(same, same)
    for _ in groups:
        linked = linked @ linked
    np.testing.assert_array_equal(np.equal.outer(joined, joined), linked)
    assert set(joined.tolist()) <= set(groups)
