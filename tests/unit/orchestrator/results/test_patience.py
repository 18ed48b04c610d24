"""Storage that is full or away: the write is repeated, what waiting does not mend is raised."""

import errno
import os

import pytest

from orchestrator.results import storage
from orchestrator.results.records import TrialRecord
from orchestrator.results.state import StoredResults
from orchestrator.results.storage import Patience, StorageAway
from orchestrator.results.store import ResultStore
from search_spaces.errors import SetupError
from tests.unit.orchestrator.results.examples import trial_record


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def failing(monkeypatch):
    """The disk says so many times what it is told to say."""

    def fail(number, times):
        left = [times]
        real = os.fsync

        def fsync(descriptor):
            if left[0]:
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_record_waits_for_room_and_it_is_said_once(tmp_path, failing, number):
    said = []
    stored = StoredResults.read(str(tmp_path))
    stored.patience = Patience(said.append)
    failing(number, 5)
    record = trial_record()
    stored.save(record)
    assert ResultStore(str(tmp_path)).read(TrialRecord, record.trial_id) == record
    paused, goes_on = said
    place = str(tmp_path / "trials" / record.trial_id / "result.json")
    assert paused.startswith(f"Paused: {place} (")
    assert f"bytes needed): {os.strerror(number)}; " in paused
    assert "bytes free" in paused
    assert goes_on.startswith("Storage takes results again")


def test_without_patience_the_error_says_what_is_missing(tmp_path, failing):
    failing(errno.ENOSPC, 1)
    with pytest.raises(
        StorageAway, match=r"bytes needed\): No space left on device; [\d,]+ bytes free; free"
    ):
        StoredResults.read(str(tmp_path)).save(trial_record())


def test_what_waiting_does_not_mend_is_raised(tmp_path, failing):
    said = []
    stored = StoredResults.read(str(tmp_path))
    stored.patience = Patience(said.append)
    failing(errno.EACCES, 1)
    with pytest.raises(SetupError, match="Permission denied") as caught:
        stored.save(trial_record())
    assert not isinstance(caught.value, StorageAway)
    assert said == []
    assert stored.trials == {}


def test_any_write_may_be_repeated():
    said, tries = [], []

    def write():
        tries.append(1)
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device", "/r/report.html")
        return "written"

    assert Patience(said.append).until_done(write) == "written"
    assert said[0].startswith("Paused: /r/report.html: No space left on device.")


def test_a_long_pause_is_said_again(monkeypatch):
    said, tries = [], []
    monkeypatch.setattr(storage, "REMIND_AFTER_S", 0.0)

    def write():
        tries.append(1)
        if len(tries) < 4:
            raise OSError(errno.ENOSPC, "No space left on device", "/r")

    Patience(said.append).until_done(write)
    assert len(said) == 4
