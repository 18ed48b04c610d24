import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.results.store import ResultStore
from search_spaces.errors import CorruptStoreError, SetupError

RECORD = {"trial_id": "a", "metrics": {"test_loss": 0.1, "big": 1e-300}, "count": 3, "name": "é"}


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    if request.param == "memory":
        import fsspec

        fsspec.filesystem("memory").store.clear()
        return ResultStore("memory://bucket/sweep")
    return ResultStore(str(tmp_path / "sweep"))


def test_what_is_saved_is_read_back(store):
    assert store.results("trials").records == {}
    assert store.result("trials", "a") is None
    store.save_result("trials", "a", RECORD)
    assert store.result("trials", "a") == RECORD
    assert store.results("trials").records == {"a": RECORD}


def test_a_result_replaces_its_failure(store):
    store.save_failure("trials", "a", {"kind": "code_error"})
    assert list(store.failures("trials").records) == ["a"]
    store.save_result("trials", "a", RECORD)
    assert store.failures("trials").records == {}


def test_every_damage_is_found(tmp_path):
    """Each single-byte change and each truncation of a sealed file is refused or changes nothing."""
    store = ResultStore(str(tmp_path))
    store.save_result("trials", "a", RECORD)
    path = tmp_path / "trials" / "a" / "result.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        for damaged in (
            whole[:position],
            whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :],
        ):
            path.write_bytes(damaged)
            try:
                assert store.result("trials", "a") == RECORD  # damage to white space only
            except CorruptStoreError as error:
                assert str(path) in str(error)  # noqa: PT017
    path.write_bytes(whole)
    assert store.result("trials", "a") == RECORD


def test_damaged_files_are_listed_and_left_out(tmp_path):
    store = ResultStore(str(tmp_path))
    store.save_result("trials", "a", RECORD)
    store.save_result("trials", "b", RECORD)
    (tmp_path / "trials" / "b" / "result.json").write_bytes(b"")
    scan = store.results("trials")
    assert list(scan.records) == ["a"]
    assert len(scan.unreadable) == 1
    assert scan.unreadable[0].reason.endswith("truncated or not a sealed record")


def test_results_of_another_schema_are_refused(tmp_path):
    store = ResultStore(str(tmp_path))
    store.save_result("trials", "a", RECORD)
    path = tmp_path / "trials" / "a" / "result.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(CorruptStoreError, match="schema version 99, this program reads 1"):
        store.result("trials", "a")


def test_numbers_that_are_not_finite_are_refused(store):
    with pytest.raises(TypeError, match="only finite numbers"):
        store.save_result("trials", "a", {"loss": float("nan")})


@given(
    st.dictionaries(
        st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(), max_size=5
    )
)
@settings(max_examples=50)
def test_any_record_survives(tmp_path_factory, record):
    store = ResultStore(str(tmp_path_factory.mktemp("store")))
    store.save_result("trials", "a", record)
    assert store.result("trials", "a") == record


def test_a_full_disk_is_a_clear_message(tmp_path, monkeypatch):
    store = ResultStore(str(tmp_path))

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        SetupError,
        match=r"(?s)must be writable.*bytes needed.*No space left.*bytes free.*what is done is kept",
    ):
        store.save_result("trials", "a", RECORD)
