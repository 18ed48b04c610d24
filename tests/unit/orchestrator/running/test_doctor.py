"""What ``isweep doctor`` finds in a result store, and says of this machine beside a cluster."""

import pytest

from orchestrator.running import doctor
from orchestrator.running.gpus import Gpu, NodeGpus
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
        assert "must exist; found: s3://no-such-bucket; make it" in missing["detail"]


@pytest.mark.parametrize(
    ("address", "mode", "ok", "told"),
    [
        (None, None, True, "private clusters are on loopback with a token of their own"),
        (None, "disabled", False, "RAY_AUTH_MODE=disabled: anyone who reaches the ports runs code"),
        ("10.0.0.1:6379", "token", True, "10.0.0.1:6379 is asked with the cluster's token"),
        ("10.0.0.1:6379", None, False, "RAY_AUTH_MODE=not set: anyone who reaches the ports runs code"),
    ],
)
def test_who_may_run_code_is_said_of_the_cluster_that_was_asked_for(
    tmp_path, monkeypatch, address, mode, ok, told
):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    found = doctor._found("ray access", lambda: doctor._ray_access(address))
    assert (found["ok"], found["detail"]) == (ok, told)
    assert bool(found["fix"]) != ok


def test_gpus_of_this_machine_are_not_taken_for_those_of_a_cluster(monkeypatch):
    monkeypatch.setattr(doctor, "gpus_here", list)
    assert doctor._gpus(None)[1] == "none: trials run on CPUs"
    assert doctor._gpus("10.0.0.1:6379")[1] == "none on this machine"


def test_a_driver_whose_gpus_torch_does_not_reach_is_not_taken_for_a_machine_without(monkeypatch):
    here = NodeGpus("a", driver="550.54", torch="2.13.0", cuda="13.0")
    monkeypatch.setattr(doctor, "gpus_here", lambda: [Gpu("NVIDIA L4", "GPU-1", 2**34)])
    monkeypatch.setattr(doctor, "describe", lambda visible: here)
    ok, found, way_out = doctor._gpus(None)
    assert not ok
    assert "offers 1 GPUs, torch 2.13.0 built for CUDA 13.0 reaches 0 with NVIDIA driver 550.54" in found
    assert "needs a driver of branch 580 or later" in way_out


def test_a_root_that_a_run_would_refuse_is_told(tmp_path):
    (tmp_path / "session_1").mkdir()
    (tmp_path / "session_latest").symlink_to(tmp_path / "session_1")
    found = doctor._found("root", lambda: doctor._root(str(tmp_path / "session_1/root")))
    assert not found["ok"]
    assert "The root must outlive the cluster" in found["detail"]
    assert found["fix"].startswith("name another with --root, absolute")
