import json
import os
from typing import ClassVar

import pytest

from orchestrator.machine.locks import lock_file
from orchestrator.planning.workspace import Workspace
from orchestrator.results.records import FailureRecord, TrialFailure, TrialRecord
from orchestrator.results.store import Event, FileKind, ResultStore
from orchestrator.results.stored_results import StoredResults
from orchestrator.running.messages import TrialReport
from orchestrator.running.progress import Progress, read_live_state
from search_spaces.errors import CorruptStoreError, NewerRecordError, SetupError
from search_spaces.fingerprint import fingerprint
from tasks.sources.base import hash_key
from tests.damage import dangle, directory, endless, fifo, loop
from tests.unit.orchestrator.results.examples import (
    diverged,
    failure_record,
    measure_record,
    trial_record,
    trial_result,
)

RECORD = trial_record(diverged(), trial_id="a")


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    if request.param == "s3":
        return ResultStore(f"{request.getfixturevalue('bucket').url}/{tmp_path.name}")
    return ResultStore(str(tmp_path / "sweep"))


@pytest.mark.parametrize("record", [trial_record(), measure_record(), failure_record()], ids=type)
def test_a_saved_record_of_every_kind_is_read_back(store, record):
    assert store.read(type(record), record.record_id) is None
    assert store.scan(type(record)).records == {}
    store.save(record)
    assert store.read(type(record), record.record_id) == record
    assert store.scan(type(record)).records == {record.record_id: record}
    store.save(trial_record())  # a result replaces its failure
    assert store.scan(FailureRecord).records == {}


@pytest.mark.long
def test_every_damage_of_a_record_is_detected(tmp_path):
    """Each single-byte change and each truncation of a file is refused or changes nothing."""
    store = ResultStore(str(tmp_path))
    store.save(RECORD)
    path = tmp_path / "trials" / "a" / "result.json"
    content = path.read_bytes()
    for position in range(len(content)):
        for damaged in (
            content[:position],
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :],
        ):
            path.write_bytes(damaged)
            try:
                assert store.read(TrialRecord, "a") == RECORD  # damage to white space only
            except CorruptStoreError as error:
                assert str(path) in str(error)  # noqa: PT017
    path.write_bytes(content)
    assert store.read(TrialRecord, "a") == RECORD


def store_changed(folder, change, record=RECORD):
    """Store a record with changed content and a matching checksum, as another program would."""
    store = ResultStore(str(folder))
    store.save(record)
    path = folder / record.folder / record.record_id / record.file
    plain = change(json.loads(path.read_text())["record"])
    path.write_text(json.dumps({"sha256": fingerprint(plain), "record": plain}))
    return store


def remove_field(name):
    return lambda plain: {key: value for key, value in plain.items() if key != name}


@pytest.mark.parametrize("record", [RECORD, measure_record(), failure_record()], ids=type)
def test_a_record_of_a_newer_version_is_refused_and_not_replaced(tmp_path, record):
    store = store_changed(tmp_path, lambda plain: {**plain, "schema_version": 99, "new": 1}, record)
    with pytest.raises(
        NewerRecordError,
        match=r"newer version of isweep: it has schema version 99, but this version of isweep reads 2\. Update isweep",
    ) as caught:
        store.read(type(record), record.record_id)
    assert "replaced" not in str(caught.value)
    stored = StoredResults.read(str(tmp_path))
    with pytest.raises(
        NewerRecordError,
        match=r"A newer version of isweep wrote .*\. Update isweep, or choose another --root",
    ):
        stored.check_writable()


def test_a_record_from_before_an_optional_field_existed_is_read_with_its_default(tmp_path):
    store = store_changed(tmp_path, remove_field("measured_at"))
    assert store.read(TrialRecord, "a") == RECORD


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda plain: {**plain, "loudness": 1.0}, "loudness"),
        (lambda plain: change_result(loudness=1.0)(plain), "result.loudness"),
    ],
    ids=["of the record", "of the result"],
)
def test_a_record_with_a_newer_optional_field_is_neither_used_nor_replaced(tmp_path, change, field):
    """A new optional field keeps the schema version, so an older isweep reads an unknown field."""
    store = store_changed(tmp_path, change)
    with pytest.raises(
        NewerRecordError, match=f"this version of isweep does not know the field {field}"
    ):
        store.read(TrialRecord, "a")
    with pytest.raises(NewerRecordError, match="Update isweep, or choose another --root"):
        StoredResults.read(str(tmp_path)).check_writable()


class NextTrialRecord(TrialRecord):
    """A record with a higher version, of a program that still reads the version before."""

    version: ClassVar[int] = 3
    oldest_version: ClassVar[int | None] = 2


@pytest.mark.parametrize(("version", "is_read"), [(1, False), (2, True), (3, True)])
def test_a_kind_of_record_declares_which_earlier_versions_are_read(tmp_path, version, is_read):
    store = store_changed(tmp_path, lambda plain: {**plain, "schema_version": version})
    if is_read:
        record = store.read(NextTrialRecord, "a")
        assert record is not None
        assert record.result == RECORD.result
    else:
        with pytest.raises(CorruptStoreError, match="but this version of isweep reads 2 to 3"):
            store.read(NextTrialRecord, "a")


def change_result(**changes):
    return lambda plain: {**plain, "result": {**plain["result"], **changes}}


@pytest.mark.parametrize(
    ("record", "change", "reason"),
    [
        (RECORD, remove_field("schema_version"), "it has no schema version"),
        (
            RECORD,
            lambda plain: {**plain, "schema_version": 0},
            "the schema version is 0, but this version of isweep reads 2",
        ),
        (RECORD, change_result(status="done"), "result: a trial that is done must have scores"),
        (
            trial_record(),
            change_result(status="diverged"),
            "result: a trial that diverged must have no scores",
        ),
        (
            measure_record(),
            change_result(sizes=[]),
            "result.sizes: a measure must have at least one train size",
        ),
    ],
)
def test_records_that_contradict_themselves_are_refused(tmp_path, record, change, reason):
    store = store_changed(tmp_path, change, record)
    with pytest.raises(CorruptStoreError, match=f"{reason}. Run the sweep again"):
        store.read(type(record), record.record_id)


def test_a_report_of_a_worker_is_read_back_unless_it_has_an_infinite_number():
    for outcome in (trial_result(), TrialFailure(kind="lost_node", message="gone")):
        report = TrialReport(started_at=1.0, finished_at=2.0, outcome=outcome)
        assert TrialReport.model_validate_json(report.text()) == report
    with_infinity = trial_result()
    object.__setattr__(with_infinity.d_repr["mle"], "value", float("inf"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        TrialReport(started_at=1.0, finished_at=2.0, outcome=with_infinity).text()


# The event log of a trial, which only people read


def event(kind="started", attempt=1, **fields):
    return Event(at=1000.0, what=kind, attempt=attempt, **fields)


def test_an_event_log_continues_after_a_killed_run(store):
    events = [event(), event(attempt=2, node="10.0.0.1"), event("finished", 2, said="done")]
    for early_event in events[:2]:
        store.log_event("a", early_event)
    next_run = ResultStore(store.url)
    next_run.log_event("a", events[2], "first\nlast\n")
    assert next_run.events("a") == events
    assert next_run.attempt_log("a", 2) == "first\nlast\n"
    assert next_run.attempt_log("a", 1) is None
    assert next_run.events("b") == []


@pytest.mark.parametrize("damage", [b"", b"[", b"{}", b'[{"at": 1}]', b"[" * 50_000, b"\xff\xfe"])
def test_a_damaged_event_log_is_reported_and_replaced(tmp_path, damage):
    store = ResultStore(str(tmp_path))
    store.log_event("a", event())
    (tmp_path / "trials" / "a" / "history.json").write_bytes(damage)
    with pytest.raises(
        CorruptStoreError,
        match=r"The history of a trial in .*history\.json is damaged: .*\. Delete the file",
    ):
        store.events("a")
    store.log_event("a", event(attempt=2))
    assert store.events("a") == [event(attempt=2)]


def test_an_event_log_that_cannot_be_written_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "trials").write_text("in the way")
    ResultStore(str(tmp_path)).log_event("a", event(), "log")
    assert "The history of trial a cannot be stored" in caplog.text


def test_an_event_log_keeps_the_newest_events(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.results.store.MAX_EVENTS", 3)
    store = ResultStore(str(tmp_path))
    for attempt in range(1, 6):
        store.log_event("a", event("failed", attempt))
    assert [entry.attempt for entry in store.events("a")] == [3, 4, 5]


NESTED = b"[" * 100_000 + b"]" * 100_000


def with_checksum(record):
    return json.dumps({"sha256": fingerprint(record), "record": record}).encode()


def replace_by_another(path):
    """Replace a record by that of another trial."""
    path.write_bytes((path.parent.parent / "good" / path.name).read_bytes())


DAMAGES = {
    "of another cell": replace_by_another,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a number": lambda path: path.write_bytes(b"3"),
    "NaN": lambda path: path.write_bytes(b'{"sha256": "0", "record": {"a": NaN}}'),
    "deep": lambda path: path.write_bytes(NESTED),
    "a directory": directory,
    "a link to itself": loop,
    "a link to nothing": dangle,
    "a link to a file without end": endless,
    "a pipe that nobody writes to": fifo,
    "sealed and empty": lambda path: path.write_bytes(with_checksum({})),
    "sealed and a list": lambda path: path.write_bytes(with_checksum([])),
}


@pytest.mark.parametrize("record", [trial_record(), measure_record(), failure_record()], ids=type)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path, record, damage):
    store = ResultStore(str(tmp_path))
    good = record.model_copy(update={record.id_field: "good"})
    store.save(record)
    store.save(good)
    path = tmp_path / record.folder / record.record_id / record.file
    DAMAGES[damage](path)
    scan = store.scan(type(record))
    assert scan.records == {"good": good}
    assert [item.path for item in scan.unreadable] == [str(path)]
    why = "the record of good" if damage == "of another cell" else ""
    with pytest.raises(CorruptStoreError, match=f"The stored record .* is damaged: .*{why}"):
        store.read(type(record), record.record_id)
    store.save(record)  # the trial is done again, which replaces the damaged record
    assert store.read(type(record), record.record_id) == record
    DAMAGES[damage](path)
    store.save(trial_record(trial_id=record.record_id))
    assert store.scan(FailureRecord).unreadable == []


@pytest.mark.parametrize("kind", FileKind)
def test_a_folder_in_the_place_of_a_stored_file_is_replaced(tmp_path, kind):
    store = ResultStore(str(tmp_path))
    key = store.put(kind, "a", b"kept")
    (path,) = (tmp_path / kind).iterdir()
    directory(path)
    (path / "within").touch()
    assert store.checkpoint("a") is None
    with pytest.raises(CorruptStoreError, match="cannot be read: Is a directory"):
        store.get(kind, "a", key)
    assert store.put(kind, "a", b"kept") == key
    assert [*(tmp_path / kind).iterdir()] == [path]
    assert path.read_bytes().endswith(b"kept")


def test_a_file_in_the_place_of_a_result_folder_is_named_with_a_hint(tmp_path):
    store = ResultStore(str(tmp_path))
    record = trial_record()
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / record.trial_id).touch()  # a file in the place of a folder
    with pytest.raises(
        SetupError,
        match=rf"/result.json cannot be written, because (\S+/{record.trial_id}) is not a folder. "
        r"Remove or rename \1, and run",
    ):
        store.save(record)


@pytest.mark.parametrize("damage", ["empty", "cut", "not text", "a number", "deep", "a directory"])
def test_a_damaged_store_id_is_refused_with_the_hint(tmp_path, damage):
    store = ResultStore(str(tmp_path))
    assert store.store_id() is None
    store_id = store.store_id(create=True)
    assert store.store_id(create=True) == store.store_id() == store_id
    DAMAGES[damage](tmp_path / "store.json")
    with pytest.raises(
        CorruptStoreError,
        match=r"The id of the result store in .*store\.json is damaged: .*Delete the file",
    ):
        store.store_id(create=True)


def test_a_deleted_store_id_is_written_again_by_the_run_that_knows_it(tmp_path):
    store = ResultStore(str(tmp_path))
    store.keep_id()
    assert store.store_id() is None  # a store without an id gets none
    store_id = store.store_id(create=True)
    (tmp_path / "store.json").unlink()
    store.keep_id()
    assert ResultStore(str(tmp_path)).store_id() == store_id


@pytest.mark.parametrize("damage", [*DAMAGES][1:-2])
def test_damaged_progress_of_a_running_driver_is_ignored(root, damage):
    workspace = Workspace.open("smoke", root)
    path = workspace.sweep_paths.progress
    path.parent.mkdir(parents=True)
    with lock_file(workspace.paths.lock, "isweep run smoke"):
        progress = Progress(path=path)
        progress.trial_started("a")
        progress.save()
        assert read_live_state(workspace).running == {"a"}
        DAMAGES[damage](path)
        assert not read_live_state(workspace).running


def test_a_lock_file_that_cannot_be_locked_is_an_error(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, os.strerror(37))

    for number, damage in enumerate((directory, loop)):
        path = tmp_path / str(number)
        path.touch()
        damage(path)
        message = r"The lock file .*/[01] cannot be opened"
        with pytest.raises(SetupError, match=message), lock_file(path, "test"):
            pass
    path = tmp_path / "2"
    path.touch()
    monkeypatch.setattr("fcntl.flock", no_locks)
    message = "cannot be locked, .*No locks available"
    with pytest.raises(SetupError, match=message), lock_file(path, "test"):
        pass


def test_a_damaged_hash_key_is_refused(tmp_path):
    key = hash_key(tmp_path)
    written = (tmp_path / ".hash_key").read_bytes()
    for content in (b"", b"abc", b"\xff" * 64, written[:20], b"g" + written[1:], written[:-9]):
        (tmp_path / ".hash_key").write_bytes(content)
        with pytest.raises(
            SetupError,
            match=r"\.hash_key has \d+ characters instead of 64|cannot read the file .*codec|"
            r"does not have the checksum that .*\.hash_key contains",
        ):
            hash_key(tmp_path)
    (tmp_path / ".hash_key").write_text(key)  # an older version wrote no checksum
    assert hash_key(tmp_path) == key


def test_a_pipe_as_hash_key_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".hash_key")
    with pytest.raises(SetupError, match=r"\.hash_key has 0 characters instead of 64"):
        hash_key(tmp_path)


def test_a_missing_hash_key_beside_records_is_reported(tmp_path, caplog):
    hash_key(tmp_path)
    assert "is missing" not in caplog.text
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "complete.json").touch()
    (tmp_path / ".hash_key").unlink()
    with pytest.raises(SetupError, match=r"The file .*\.hash_key with the key .* is missing"):
        hash_key(tmp_path, create=False)
    hash_key(tmp_path)
    assert "`isweep locate` finds no file for hashes in older messages" in caplog.text


def test_two_roots_cannot_use_one_storage_at_the_same_time(tmp_path):
    from orchestrator.machine.locks import InUseError, lock_root_and_store

    storage = f"file://{tmp_path}/store"
    first = Workspace.open("smoke", str(tmp_path / "a"), storage)
    second = Workspace.open("smoke", str(tmp_path / "b"), storage)
    for workspace in (first, second):
        workspace.paths.make()
    with (
        lock_root_and_store(first, "isweep run smoke"),
        pytest.raises(InUseError, match="store/smoke is in use by process"),
        lock_root_and_store(second, "isweep run smoke"),
    ):
        pass
