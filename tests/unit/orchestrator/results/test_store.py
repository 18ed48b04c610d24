import errno
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.results.records import FailureRecord, MeasureRecord, TrialRecord
from orchestrator.results.state import StoredResults
from orchestrator.results.store import ResultStore
from search_spaces.errors import CorruptStoreError, NewerRecordError, SetupError
from search_spaces.fingerprint import fingerprint
from tests.object_store import object_store
from tests.unit.orchestrator.results.examples import (
    dimension,
    diverged,
    failure_record,
    measure_record,
    trial_record,
    trial_result,
)

RECORD = trial_record(diverged(), trial_id="a")


@pytest.fixture(scope="module")
def bucket():
    with object_store() as running:
        yield running


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    if request.param == "s3":
        return ResultStore(f"{request.getfixturevalue('bucket').url}/{tmp_path.name}")
    return ResultStore(str(tmp_path / "sweep"))


def test_what_is_saved_is_read_back(store):
    assert store.scan(TrialRecord).records == {}
    assert store.read(TrialRecord, "a") is None
    store.save(RECORD)
    assert store.read(TrialRecord, "a") == RECORD
    assert store.scan(TrialRecord).records == {"a": RECORD}


@pytest.mark.parametrize("record", [trial_record(), measure_record(), failure_record()], ids=type)
def test_every_kind_of_record_survives(store, record):
    store.save(record)
    assert store.scan(type(record)).records == {record.record_id: record}


def test_a_result_replaces_its_failure(store):
    failure = failure_record()
    store.save(failure)
    assert list(store.scan(FailureRecord).records) == [failure.trial_id]
    store.save(trial_record())
    assert store.scan(FailureRecord).records == {}


def test_a_measure_leaves_failures_alone(store):
    store.save(failure_record())
    store.save(measure_record(measure_id=failure_record().trial_id))
    assert len(store.scan(FailureRecord).records) == len(store.scan(MeasureRecord).records) == 1


def test_every_damage_is_found(tmp_path):
    """Each single-byte change and each truncation of a sealed file is refused or changes nothing."""
    store = ResultStore(str(tmp_path))
    store.save(RECORD)
    path = tmp_path / "trials" / "a" / "result.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        for damaged in (
            whole[:position],
            whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :],
        ):
            path.write_bytes(damaged)
            try:
                assert store.read(TrialRecord, "a") == RECORD  # damage to white space only
            except CorruptStoreError as error:
                assert str(path) in str(error)  # noqa: PT017
    path.write_bytes(whole)
    assert store.read(TrialRecord, "a") == RECORD


def test_damaged_files_are_listed_and_left_out(tmp_path):
    store = ResultStore(str(tmp_path))
    store.save(RECORD)
    store.save(trial_record(diverged(), trial_id="b"))
    (tmp_path / "trials" / "b" / "result.json").write_bytes(b"")
    scan = store.scan(TrialRecord)
    assert list(scan.records) == ["a"]
    assert len(scan.unreadable) == 1
    assert scan.unreadable[0].reason.endswith("truncated or not a sealed record")


def reseal(folder, change, record=RECORD):
    """Store a record whose content is changed and sealed again, as another program would have written it."""
    store = ResultStore(str(folder))
    store.save(record)
    path = folder / record.folder / record.record_id / record.file
    plain = change(json.loads(path.read_text())["record"])
    path.write_text(json.dumps({"sha256": fingerprint(plain), "record": plain}))
    return store


def without(name):
    return lambda plain: {key: value for key, value in plain.items() if key != name}


@pytest.mark.parametrize("record", [RECORD, measure_record(), failure_record()], ids=type)
def test_a_record_of_a_newer_version_says_so_and_stays(tmp_path, record):
    store = reseal(tmp_path, lambda plain: {**plain, "schema_version": 99, "new": 1}, record)
    with pytest.raises(
        NewerRecordError, match=r"newer isweep \(schema version 99, this one reads 2\); update isweep"
    ) as caught:
        store.read(type(record), record.record_id)
    assert "replaced" not in str(caught.value)
    stored = StoredResults.read(str(tmp_path))
    with pytest.raises(NewerRecordError, match=r"newer isweep .*update isweep, or keep these results apart"):
        stored.check_writable()


def test_other_damage_is_no_reason_not_to_run(tmp_path):
    reseal(tmp_path, without("attempt"))
    stored = StoredResults.read(str(tmp_path))
    assert len(stored.unreadable) == 1
    stored.check_writable()


@pytest.mark.parametrize(
    ("record", "change", "reason"),
    [
        (RECORD, without("schema_version"), "it has no schema version"),
        (RECORD, lambda plain: {**plain, "schema_version": 0}, "schema version 0, this program reads 2"),
        (
            RECORD,
            lambda plain: {**plain, "result": {**plain["result"], "status": "done"}},
            "result: a trial that is done must have scores",
        ),
        (
            trial_record(),
            lambda plain: {**plain, "result": {**plain["result"], "status": "diverged"}},
            "result: a trial that diverged must have no scores",
        ),
        (
            measure_record(),
            lambda plain: {**plain, "result": {**plain["result"], "sizes": []}},
            "result.sizes: a measure must have at least one train size",
        ),
    ],
)
def test_records_that_contradict_themselves_are_not_believed(tmp_path, record, change, reason):
    store = reseal(tmp_path, change, record)
    with pytest.raises(CorruptStoreError, match=f"{reason}; run the sweep again"):
        store.read(type(record), record.record_id)


def test_a_sealed_file_of_another_kind_is_refused(tmp_path):
    store = ResultStore(str(tmp_path))
    store.save(RECORD)
    (tmp_path / "trials" / "a" / "failure.json").write_bytes(
        (tmp_path / "trials" / "a" / "result.json").read_bytes()
    )
    with pytest.raises(CorruptStoreError, match="failure: Field required"):
        store.read(FailureRecord, "a")


@pytest.mark.parametrize("record", [trial_record(), measure_record(), failure_record()], ids=type)
def test_the_record_of_another_cell_is_refused(tmp_path, record):
    store = ResultStore(str(tmp_path))
    store.save(record)
    (tmp_path / record.folder / record.record_id).rename(tmp_path / record.folder / "another")
    scan = store.scan(type(record))
    assert scan.records == {}
    assert scan.unreadable[0].reason.endswith(f"the record of another cell, {record.record_id}")
    with pytest.raises(CorruptStoreError, match="the record of another cell"):
        store.read(type(record), "another")


def test_a_file_nested_too_deep_is_refused(tmp_path):
    path = tmp_path / "trials" / "a" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text("[" * 100_000)
    assert ResultStore(str(tmp_path)).scan(TrialRecord).unreadable[0].reason


def test_numbers_that_are_not_finite_are_refused(store):
    unsound = trial_result()
    object.__setattr__(unsound.d_repr["mle"], "value", float("nan"))
    with pytest.raises(TypeError, match="only finite numbers"):
        store.save(trial_record(unsound))


@given(
    st.text(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False) | st.none(),
)
@settings(max_examples=50)
def test_any_record_survives(tmp_path_factory, text, loss, value):
    store = ResultStore(str(tmp_path_factory.mktemp("store")))
    result = trial_result(loss).model_copy(update={"reason": text, "d_repr": {"mle": dimension(text, value)}})
    record = trial_record(result, trial_id="a", sweep=text)
    store.save(record)
    assert store.read(TrialRecord, "a") == record


def test_a_full_disk_is_a_clear_message(tmp_path, monkeypatch):
    store = ResultStore(str(tmp_path))

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        SetupError,
        match=r"(?s)must be writable.*bytes needed.*No space left.*bytes free.*what is done is kept",
    ):
        store.save(RECORD)
