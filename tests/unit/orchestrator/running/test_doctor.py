"""What ``isweep doctor`` finds in a result store."""

import pytest

from orchestrator.running import doctor
from tests.object_store import object_store


def store_check(url):
    return doctor._found("result store", lambda: doctor._result_store(str(url)))


@pytest.mark.parametrize("name", [".", "not/made/yet"])
def test_a_folder_that_can_be_written_is_good_and_nothing_is_left(tmp_path, name):
    assert store_check(tmp_path / name)["ok"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    found = store_check(tmp_path / "file" / "results")
    assert not found["ok"]
    assert "cannot be written" in found["detail"]
    assert found["fix"]


def test_a_store_that_keeps_nothing_is_told():
    assert "must be a folder or a store that keeps results" in store_check("memory://x")["detail"]


def test_a_bucket_is_written_and_left_as_it_was_and_a_missing_one_is_told():
    with object_store() as store:
        found = store_check(store.url)
        assert found["detail"] == f"{store.url} takes and gives files"
        assert store_check(store.url)["ok"]
        missing = store_check("s3://no-such-bucket/lab")
        assert not missing["ok"]
        assert "s3://no-such-bucket/lab" in missing["detail"]
