"""The lock of a root: only one command runs at a time, even if somebody deletes the lock file."""

import re

import pytest

from orchestrator.machine.locks import InUseError, _LockFile, is_locked, lock_file
from search_spaces.errors import SetupError


@pytest.fixture
def lock(tmp_path):
    lock_file = _LockFile(tmp_path / "driver.lock", "isweep run demo", "root")
    lock_file.take()
    yield lock_file
    lock_file.release()


def test_a_lock_whose_file_was_deleted_is_taken_again(lock, tmp_path, caplog):
    """A second command once trained 53 of 60 trials again."""
    path = tmp_path / "driver.lock"
    assert lock.take_again() is None
    assert caplog.text == ""
    path.unlink()
    assert not is_locked(path)
    assert lock.take_again() is None
    assert is_locked(path)
    assert f"The lock file {path} was deleted" in caplog.text
    with pytest.raises(SetupError, match=r"is in use by process \d+ \(isweep run demo, since"):
        _LockFile(path, "isweep run demo", "root").take()


def test_a_run_ends_if_another_command_took_its_deleted_lock(lock, tmp_path):
    (tmp_path / "driver.lock").unlink()
    with lock_file(tmp_path / "driver.lock", "isweep prepare"):
        error = lock.take_again()
    assert isinstance(error, InUseError)
    assert "isweep prepare" in str(error)


def test_a_run_ends_if_its_root_was_moved(tmp_path):
    """The run once made a new root at the old path and trained its trials again."""
    root = tmp_path / "root"
    lock = _LockFile(root / "driver.lock", "isweep run demo", "root")
    lock.take()
    root.rename(tmp_path / "moved")
    error = lock.take_again()
    assert str(error) == (
        f"{root} was moved to {tmp_path}/moved while this command used it. Give its new path as "
        "--root, and run the same command again. Finished trials are kept."
    )
    assert not root.exists()
    lock.release()


def test_a_lock_is_free_after_its_block(tmp_path):
    path = tmp_path / "driver.lock"
    for _ in range(2):
        with lock_file(path, "isweep run demo"):
            assert is_locked(path)
        assert not is_locked(path)


def test_a_file_in_place_of_the_folder_of_a_lock_is_named(tmp_path):
    (tmp_path / "sweeps").touch()
    message = rf"^{re.escape(str(tmp_path / 'sweeps'))} is a file, but should be a folder"
    with (
        pytest.raises(SetupError, match=message),
        lock_file(tmp_path / "sweeps" / "mine" / "driver.lock", "isweep run mine"),
    ):
        pass
