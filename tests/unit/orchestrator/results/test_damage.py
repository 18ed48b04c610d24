"""Any state file may be damaged: one message that names it, and everything else goes on."""

import json
import os

import pytest

from orchestrator.planning.plan import Workspace
from orchestrator.results.store import ResultStore, _seal
from orchestrator.running.locks import exclusive
from orchestrator.running.progress import Progress, running_trials
from search_spaces.errors import CorruptStoreError, SetupError
from search_spaces.fingerprint import fingerprint
from tasks.sources.base import hash_key
from tests.damage import directory, fifo, loop
from tests.unit.orchestrator.results.examples import failure_record, measure_record, trial_record

NESTED = b"[" * 100_000 + b"]" * 100_000


def sealed(record):
    return json.dumps({"sha256": fingerprint(record), "record": record}).encode()


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a number": lambda path: path.write_bytes(b"3"),
    "NaN": lambda path: path.write_bytes(b'{"sha256": "0", "record": {"a": NaN}}'),
    "deep": lambda path: path.write_bytes(NESTED),
    "a directory": directory,
    "a link to itself": loop,
    "a pipe that nobody writes to": fifo,
    "sealed and empty": lambda path: path.write_bytes(sealed({})),
    "sealed and a list": lambda path: path.write_bytes(sealed([])),
}


@pytest.mark.parametrize("record", [trial_record(), measure_record(), failure_record()], ids=type)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path, record, damage):
    store, good = ResultStore(str(tmp_path)), record.model_copy(update={record.id_field: "good"})
    store.save(record)
    store.save(good)
    path = tmp_path / record.folder / record.record_id / record.file
    DAMAGES[damage](path)
    scan = store.scan(type(record))
    assert scan.records == {"good": good}
    assert [item.path for item in scan.unreadable] == [str(path)]
    with pytest.raises(CorruptStoreError, match="A stored record must be whole"):
        store.read(type(record), record.record_id)


@pytest.mark.parametrize("damage", ["empty", "cut", "not text", "a number", "deep", "a directory"])
def test_a_damaged_store_id_is_refused_with_the_way_out(tmp_path, damage):
    store = ResultStore(str(tmp_path))
    assert store.identity() is None
    made = store.identity(make=True)
    assert store.identity(make=True) == store.identity() == made
    DAMAGES[damage](tmp_path / "store.json")
    with pytest.raises(CorruptStoreError, match=r"own id must be whole.*store\.json.*delete the file"):
        store.identity(make=True)


@pytest.mark.parametrize("damage", [name for name in DAMAGES if not name.startswith("sealed")])
def test_damaged_progress_of_a_live_driver_counts_for_nothing(root, damage):
    workspace = Workspace.open("smoke", root)
    path = workspace.sweep_paths.progress
    path.parent.mkdir(parents=True)
    with exclusive(workspace.paths.lock, "isweep run smoke"):
        progress = Progress(path=path)
        progress.trial_started("a")
        progress.save()
        assert running_trials(workspace) == ["a"]
        DAMAGES[damage](path)
        assert running_trials(workspace) == []


@pytest.mark.parametrize("damage", ["a directory", "a link to itself"])
def test_a_lock_that_cannot_be_taken_is_a_message(tmp_path, damage):
    path = tmp_path / "driver.lock"
    path.touch()
    DAMAGES[damage](path)
    with (
        pytest.raises(SetupError, match=r"lock of a root must be a file .*driver\.lock"),
        exclusive(path, "test"),
    ):
        pass


def test_a_file_system_without_locks_has_its_own_words(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with (
        pytest.raises(SetupError, match=r"must have locks.*No locks available"),
        exclusive(tmp_path / "driver.lock", "test"),
    ):
        pass


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64])
def test_a_damaged_hash_key_is_refused(tmp_path, content):
    (tmp_path / ".hash_key").write_bytes(content)
    with pytest.raises(SetupError, match=r"hides patient ids must be whole, with 16 characters"):
        hash_key(tmp_path)


def test_two_roots_on_one_storage_are_one_at_a_time(tmp_path):
    from orchestrator.running.locks import locked

    storage = f"file://{tmp_path}/store"
    first, second = (Workspace.open("smoke", str(tmp_path / name), storage) for name in "ab")
    for workspace in (first, second):
        workspace.paths.make()
    with (
        locked(first, "isweep run smoke"),
        pytest.raises(SetupError, match="Only one isweep command may work on a storage at a time"),
        locked(second, "isweep run smoke"),
    ):
        pass


@pytest.mark.parametrize("record", [trial_record(), measure_record(), failure_record()], ids=type)
def test_the_seal_of_parsed_json_is_the_fingerprint(record):
    plain = record.plain()
    assert _seal(json.loads(json.dumps(plain))) == fingerprint(plain)
