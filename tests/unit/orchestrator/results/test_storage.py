"""Test storage in folders and object stores: equal behavior, and messages for failures."""

import errno
import os
import re

import pytest
from obstore.exceptions import GenericError, PermissionDeniedError

from orchestrator.results import storage
from orchestrator.results.records import TrialRecord
from orchestrator.results.storage import Bucket, RetryWithBackoff, StorageAway, open_storage
from orchestrator.results.store import FileKind, ResultStore
from orchestrator.results.stored_results import StoredResults
from search_spaces.errors import ConfigError, SetupError
from tests.object_store import KEYS, object_store
from tests.steady_clock import SteadyClock
from tests.unit.orchestrator.results.examples import trial_record


@pytest.fixture
def short_tries(monkeypatch):
    monkeypatch.setattr(storage, "TRIES", 1)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.001)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (
            "memory://x",
            r"support the kind of storage in `--storage memory://…`\. Use a path, or a URL",
        ),
        (
            "http://me:hunter2@host/x",
            "isweep does not support the kind of storage in `--storage http://…`",
        ),
        (
            "s3://key:hunter2@b/x",
            r"--storage s3://…@b contains a password.*\. Set AWS_ACCESS_KEY_ID",
        ),
        (
            "s3://b/x?secret_key=hunter2",
            r"--storage s3://b/… has a query or a fragment \(\? or #\) after the path",
        ),
        ("s3://", r"s3://… has no bucket or host"),
        ("s3://[", r"s3://… has no bucket or host"),
    ],
)
def test_urls_that_cannot_store_results_are_refused_without_their_passwords(url, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        open_storage(url)
    assert "hunter2" not in str(caught.value)


def test_paths_and_file_urls_are_folders(tmp_path):
    stores = [ResultStore(url) for url in (str(tmp_path), f"file://{tmp_path}")]
    stores[0].save(trial_record())
    assert stores[1].scan(TrialRecord).records == {trial_record().trial_id: trial_record()}
    assert stores[0].lock == stores[1].lock


def test_a_store_in_a_bucket_keeps_its_identity_weights_and_checkpoints(bucket):
    url = f"{bucket.url}/weights"
    files = ResultStore(url)
    assert files.store_id() is None
    assert files.store_id(create=True) == files.store_id()
    key = files.put(FileKind.WEIGHTS, "a", b"numbers")
    assert files.get(FileKind.WEIGHTS, "a", key) == b"numbers"
    assert files.checkpoint("a") is None
    files.put(FileKind.CHECKPOINT, "a", b"so far")
    assert files.checkpoint("a") == b"so far"
    files.remove_checkpoint("a")
    files.remove_checkpoint("a")
    assert files.checkpoint("a") is None


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_write_returns_the_stamp_that_a_listing_has(place, bucket, tmp_path):
    files = ResultStore(str(tmp_path) if place == "folder" else f"{bucket.url}/stamps")
    first = files.save(trial_record())
    second = files.save(trial_record(attempt=2))
    stamps = {entry.stamp for entry in files.listing(TrialRecord).values()}
    assert second in stamps
    assert first not in stamps


def test_a_bucket_that_does_not_answer_is_never_taken_for_an_empty_one(short_tries):
    """The listing of fsspec is empty then, so every trial would be trained again."""
    with object_store() as store:
        stored = StoredResults.read(store.url)
        stored.save(trial_record())
        identity = stored.store.store_id(create=True)
        store.stop()
        again = ResultStore(store.url)
        message = (
            r"s3://results/lab\S* cannot be read: .*error sending request.*the connection, and run"
        )
        for read in (
            again.store_id,
            lambda: again.scan(TrialRecord),
            lambda: again.read(TrialRecord, "a"),
        ):
            with pytest.raises(StorageAway, match=message):
                read()
        store.start()
        assert again.store_id() == identity
        assert len(again.scan(TrialRecord).records) == 1


def test_a_result_waits_for_a_bucket_that_does_not_answer(short_tries):
    messages = []
    with object_store() as store:
        stored = StoredResults.read(store.url)
        clock = SteadyClock()
        clock.sleep = lambda _: store.start()
        stored.retry = RetryWithBackoff(messages.append, clock=clock)
        store.stop()
        stored.save(trial_record())
        assert ResultStore(store.url).read(TrialRecord, trial_record().trial_id) == trial_record()
    assert len(messages) == 2
    assert "Paused: s3://results/lab/trials/" in messages[0]
    assert not any(secret in " ".join(messages) for secret in KEYS.values())


def test_a_bucket_that_does_not_exist_is_never_taken_for_an_empty_one(bucket):
    assert ResultStore("s3://results/nothing-yet").scan(TrialRecord).records == {}
    with pytest.raises(
        SetupError,
        match=r"The bucket s3://another does not exist\. Create the bucket, or correct --storage",
    ):
        ResultStore("s3://another/lab").scan(TrialRecord)
    with pytest.raises(SetupError, match="The bucket s3://another does not exist") as caught:
        ResultStore("s3://another/lab").save(trial_record())
    assert not isinstance(caught.value, StorageAway)  # a sweep would wait for that one


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (GenericError("PUT: HTTP error: error sending request"), True),
        (GenericError("PUT: Server returned non-2xx status code: 503 Slow Down"), True),
        (GenericError("PUT: Server returned non-2xx status code: 429 Too Many Requests"), True),
        (GenericError("PUT: Server returned non-2xx status code: 301 Moved"), False),
        (PermissionDeniedError("PUT: 403 Forbidden"), False),
    ],
)
def test_the_kind_of_a_storage_error_decides_whether_to_wait(error, waits, monkeypatch):
    def fail_to_put(*_, **__):
        raise error

    monkeypatch.setattr("obstore.put", fail_to_put)
    with pytest.raises(SetupError, match="s3://b/k cannot be written: PUT") as caught:
        Bucket(None, "b", "s3://").write("b/k", b"")
    assert isinstance(caught.value, StorageAway) == waits


# Storage that is full or does not answer: the write is repeated. Other errors are raised at once.


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_a_record_waits_for_free_space_with_one_message(tmp_path, monkeypatch, number):
    messages = []
    errors = iter([OSError(number, os.strerror(number))] * 5)
    real_fsync = os.fsync

    def fsync(descriptor):
        error = next(errors, None)
        if error is not None:
            raise error
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    stored = StoredResults.read(str(tmp_path))
    record = trial_record()
    stored.retry = RetryWithBackoff(messages.append)
    if number == errno.EACCES:  # waiting does not help
        with pytest.raises(SetupError, match="Permission denied") as caught:
            stored.save(record)
        assert (type(caught.value), messages, stored.trials) == (SetupError, [], {})
        return
    stored.save(record)
    assert ResultStore(str(tmp_path)).read(TrialRecord, record.trial_id) == record
    paused, resumed = messages
    place = str(tmp_path / "trials" / record.trial_id / "result.json")
    assert paused.startswith(f"Paused: {place} cannot be written: {os.strerror(number)} (")
    assert re.search(r"\([\d,]+ bytes needed, [\d,]+ bytes free\)", paused)
    assert resumed.startswith("The storage accepts results again")


def test_any_write_is_repeated_and_a_long_pause_is_reported_again(monkeypatch):
    messages = []
    num_tries = 0

    def write():
        """Fail three times, then succeed."""
        nonlocal num_tries
        num_tries += 1
        if num_tries % 4:
            raise OSError(errno.ENOSPC, "No space left on device", "/r/report.html")
        return "written"

    for remind_after, num_messages in ((600.0, 2), (0.0, 4)):
        monkeypatch.setattr(storage, "REMIND_AFTER_S", remind_after)
        assert RetryWithBackoff(messages.append).until_done(write) == "written"
        assert messages[0].startswith("Paused: /r/report.html: No space left on device.")
        assert len(messages) == num_messages
        messages.clear()
