"""Folders and object stores: the same words, and what each says when it cannot."""

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
            r"--storage memory://… is a kind of storage that isweep does not support\. Use a path, or a URL",
        ),
        (
            "http://me:hunter2@host/x",
            "--storage http://… is a kind of storage that isweep does not support",
        ),
        (
            "s3://key:hunter2@b/x",
            r"--storage s3://…@b has a password.*\. Set AWS_ACCESS_KEY_ID",
        ),
        (
            "s3://b/x?secret_key=hunter2",
            r"--storage s3://b/… has a query or a fragment \(\? or #\) after the path",
        ),
        ("s3://", r"s3://… has no bucket or host"),
        ("s3://[", r"s3://… has no bucket or host"),
    ],
)
def test_urls_that_hold_no_results_are_refused_without_their_secrets(url, reason):
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
    kept = files.put(FileKind.WEIGHTS, "a", b"numbers")
    assert files.get(FileKind.WEIGHTS, "a", kept) == b"numbers"
    assert files.checkpoint("a") is None
    files.put(FileKind.CHECKPOINT, "a", b"so far")
    assert files.checkpoint("a") == b"so far"
    files.remove_checkpoint("a")
    files.remove_checkpoint("a")
    assert files.checkpoint("a") is None


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_what_a_write_says_of_a_file_is_what_a_listing_says(where, bucket, tmp_path):
    files = ResultStore(str(tmp_path) if where == "folder" else f"{bucket.url}/stamps")
    first = files.save(trial_record())
    second = files.save(trial_record(attempt=2))
    assert {first, second} - {found.stamp for found in files.listing(TrialRecord).values()} == {
        first
    }


def test_a_bucket_that_does_not_answer_is_never_taken_for_an_empty_one(short_tries):
    """fsspec's own listing answers "nothing" then, and every cell would be trained again."""
    with object_store() as store:
        stored = StoredResults.read(store.url)
        stored.save(trial_record())
        identity = stored.store.store_id(create=True)
        store.stop()
        again = ResultStore(store.url)
        message = (
            r"s3://results/lab\S* cannot be read: .*error sending request.*the connection, and run"
        )
        for ask in (
            again.store_id,
            lambda: again.scan(TrialRecord),
            lambda: again.read(TrialRecord, "a"),
        ):
            with pytest.raises(StorageAway, match=message):
                ask()
        store.start()
        assert again.store_id() == identity
        assert len(again.scan(TrialRecord).records) == 1


def test_a_bucket_that_is_away_holds_a_result_up_until_it_is_back(short_tries):
    said = []
    with object_store() as store:
        stored = StoredResults.read(store.url)
        clock = SteadyClock()
        clock.sleep = lambda _: store.start()
        stored.retry = RetryWithBackoff(said.append, clock=clock)
        store.stop()
        stored.save(trial_record())
        assert ResultStore(store.url).read(TrialRecord, trial_record().trial_id) == trial_record()
    assert len(said) == 2
    assert "Paused: s3://results/lab/trials/" in said[0]
    assert not any(secret in " ".join(said) for secret in KEYS.values())


def test_a_bucket_that_is_not_there_is_never_taken_for_an_empty_one(bucket):
    assert ResultStore("s3://results/nothing-yet").scan(TrialRecord).records == {}
    with pytest.raises(
        SetupError,
        match=r"The bucket s3://another does not exist\. Create the bucket, or correct --storage",
    ):
        ResultStore("s3://another/lab").scan(TrialRecord)
    with pytest.raises(SetupError, match="The bucket s3://another does not exist") as caught:
        ResultStore("s3://another/lab").save(trial_record())
    assert not isinstance(caught.value, StorageAway)  # for which a sweep would wait


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
def test_what_a_store_says_decides_whether_to_wait(error, waits, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("obstore.put", fails)
    with pytest.raises(SetupError, match="s3://b/k cannot be written: PUT") as caught:
        Bucket(None, "b", "s3://").write("b/k", b"")
    assert isinstance(caught.value, StorageAway) == waits


# Storage that is full or away: the write is repeated, what waiting does not mend is raised.


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_a_record_waits_for_room_and_it_is_said_once(tmp_path, monkeypatch, number):
    said, left, real = [], [5], os.fsync

    def fsync(descriptor):
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    stored, record = StoredResults.read(str(tmp_path)), trial_record()
    stored.retry = RetryWithBackoff(said.append)
    if number == errno.EACCES:  # which waiting does not mend
        with pytest.raises(SetupError, match="Permission denied") as caught:
            stored.save(record)
        assert (type(caught.value), said, stored.trials) == (SetupError, [], {})
        return
    stored.save(record)
    assert ResultStore(str(tmp_path)).read(TrialRecord, record.trial_id) == record
    paused, goes_on = said
    place = str(tmp_path / "trials" / record.trial_id / "result.json")
    assert paused.startswith(f"Paused: {place} cannot be written: {os.strerror(number)} (")
    assert re.search(r"\([\d,]+ bytes needed, [\d,]+ bytes free\)", paused)
    assert goes_on.startswith("The storage accepts results again")


def test_any_write_may_be_repeated_and_a_long_pause_is_said_again(monkeypatch):
    said, tries = [], []

    def write():
        tries.append(1)
        if len(tries) % 4:
            raise OSError(errno.ENOSPC, "No space left on device", "/r/report.html")
        return "written"

    for remind_after, num_said in ((600.0, 2), (0.0, 4)):
        monkeypatch.setattr(storage, "REMIND_AFTER_S", remind_after)
        assert RetryWithBackoff(said.append).until_done(write) == "written"
        assert said[0].startswith("Paused: /r/report.html: No space left on device.")
        assert len(said) == num_said
        said.clear()
