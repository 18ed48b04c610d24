"""What ``isweep doctor`` finds in a result store, of this machine, and on the nodes of a
cluster."""

from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest
import ray

from orchestrator.machine import doctor
from orchestrator.machine.doctor import NodeAnswer, check_nodes
from orchestrator.machine.gpus import Gpu, NodeGpus
from tests.object_store import object_store

GIB = 2**30
HERE = doctor.versions_here()
RELEASE = metadata.version("isweep")
L4 = NodeGpus(
    "b", (Gpu("NVIDIA L4", "GPU-1", 22 * GIB),), driver="580.1", torch="2.13.0", cuda="13.0"
)
SOUND: dict[str, Any] = {"gpus": L4, "versions": HERE, "free_disk_bytes": 80 * GIB}
NODE = {"NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 16.0, "GPU": 1.0}}


def problems(**changes: Any) -> list[str]:
    found = doctor.checked_node(NodeAnswer(**{**SOUND, **changes}), NODE)
    assert found["ok"] == (not found["fix"])
    return [] if found["ok"] else [f"{found['detail']}. {found['fix']}"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"gpus": replace(L4, gpus=(), driver="")},
            "built for CUDA 13.0, can use 0 without an NVIDIA driver. Install NVIDIA's driver",
        ),
        ({"gpus": replace(L4, gpus=(), cuda="")}, "driver 580.1. Install a torch with CUDA"),
        ({"versions": HERE | {"ray": "2.56.0"}}, "the node has ray 2.56.0, but this machine has"),
        ({"versions": HERE | {"isweep": "absent"}}, "has isweep absent, but this machine has"),
        (
            {"versions": HERE | {"isweep": f"{RELEASE}+0"}},
            f"has isweep {RELEASE}+0, but this machine has {RELEASE}",
        ),
        (
            {"free_disk_bytes": 2 * GIB},
            "the disk has 2.0 GiB of free space. Free some space: a sweep needs 5 GiB",
        ),
        (
            {"free_disk_bytes": 0},
            "has 0.0 GiB of free space. Free some space: a sweep needs 5 GiB, or mount the disk",
        ),
    ],
)
def test_each_fault_is_said_with_its_way_out(changes, said):
    (problem,) = problems(**changes)
    assert said in problem


def test_a_disk_that_takes_nothing_has_no_room(tmp_path, monkeypatch):
    assert doctor.writable_bytes(tmp_path) > 0
    monkeypatch.setattr(
        doctor.os, "access", lambda *_: False
    )  # as on a read-only disk, also for root
    assert doctor.writable_bytes(tmp_path) == 0


def test_a_sound_node_has_no_problem_and_logical_gpus_are_none():
    assert problems() == problems(gpus=NodeGpus("b", logical=True)) == []


@pytest.mark.ray
def test_every_node_of_a_cluster_reports_or_is_told(ray_local, monkeypatch):
    (found,) = check_nodes()
    node = found["node"]
    assert (node["head"], node["versions"]) == (True, HERE)
    assert node["num_cpus"] == ray.cluster_resources()["CPU"]
    assert node["free_disk_bytes"] > 0

    def look_there() -> None:
        raise ModuleNotFoundError("No module named 'orchestrator'")

    monkeypatch.setattr(doctor, "look_here", look_there)
    (found,) = check_nodes()
    assert (
        found["detail"]
        == "the check fails on the node: ModuleNotFoundError: No module named 'orchestrator'"
    )
    assert "run `make wheel` and `ray up`" in found["fix"]
    monkeypatch.setattr(doctor, "ANSWER_TIMEOUT_S", 0.0)
    (found,) = check_nodes()
    assert found["detail"] == "the node did not answer within 0 s"
    assert found["fix"].startswith("Run the same check again")


def store_check(url):
    return doctor._checked("result store", lambda: doctor._result_store(str(url)))


@pytest.mark.parametrize("name", [".", "not/made/yet"])
def test_a_folder_that_can_be_written_is_good_and_nothing_is_left(tmp_path, name):
    assert store_check(tmp_path / name)["ok"]
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_made_or_keeps_nothing_is_told(tmp_path):
    (tmp_path / "file").touch()
    for url, told in (
        (tmp_path / "file" / "results", "cannot be written"),
        ("memory://x", "memory"),
    ):
        found = store_check(url)
        assert (found["ok"], told in found["detail"], bool(found["fix"])) == (False, True, True)


def test_a_bucket_is_written_and_left_as_it_was_and_a_missing_one_is_told():
    with object_store() as store:
        found = store_check(store.url)
        assert found["detail"] == f"{store.url} can be written and listed"
        assert store_check(store.url)["ok"]
        missing = store_check("s3://no-such-bucket/lab")
        assert not missing["ok"]
        assert "s3://no-such-bucket" in missing["detail"]
        assert missing["fix"]


@pytest.mark.parametrize(
    ("address", "mode", "ok", "told"),
    [
        (
            None,
            None,
            True,
            "a private cluster accepts connections only from this machine, and each run has a new token",
        ),
        (
            None,
            "disabled",
            False,
            "RAY_AUTH_MODE is disabled, so anyone who can connect to the ports can run code",
        ),
        ("10.0.0.1:6379", "token", True, "requests to 10.0.0.1:6379 carry the cluster's token"),
        (
            "10.0.0.1:6379",
            None,
            False,
            "RAY_AUTH_MODE is not set, so anyone who can connect to the ports can run code",
        ),
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
    found = doctor._checked("ray access", lambda: doctor._ray_access(address))
    assert (found["ok"], found["detail"]) == (ok, told)
    assert bool(found["fix"]) != ok


def test_a_machine_without_gpus_is_told_from_one_whose_torch_does_not_reach_them(monkeypatch):
    monkeypatch.setattr(doctor, "gpus_here", list)
    assert doctor._gpus(None).detail == "no GPU on this machine, so trials run on CPUs"
    assert doctor._gpus("10.0.0.1:6379").detail == "no GPU on this machine"
    here = NodeGpus("a", driver="550.54", torch="2.13.0", cuda="13.0")
    monkeypatch.setattr(doctor, "gpus_here", lambda: [Gpu("NVIDIA L4", "GPU-1", 2**34)])
    monkeypatch.setattr(doctor, "describe", lambda visible: here)
    outcome = doctor._gpus(None)
    assert not outcome.ok
    assert (
        "Ray offers 1 GPU, but torch 2.13.0, built for CUDA 13.0, can use 0 with the NVIDIA driver "
        "550.54" in outcome.detail
    )
    assert "Install a driver of branch 580 or later" in outcome.fix


@pytest.mark.parametrize("kind", ["nfs4", "smbfs", "beegfs", "fuse.glusterfs", "virtiofs"])
def test_a_root_on_a_network_file_system_is_a_problem(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(doctor, "_file_system", lambda folder: kind)
    outcome = doctor._root(str(tmp_path))
    assert not outcome.ok
    assert f"is on a network file system ({kind})" in outcome.detail


def test_a_root_that_a_run_would_refuse_is_told(tmp_path):
    (tmp_path / "session_1").mkdir()
    (tmp_path / "session_latest").symlink_to(tmp_path / "session_1")
    found = doctor._checked("root", lambda: doctor._root(str(tmp_path / "session_1/root")))
    assert not found["ok"]
    assert "cannot be the root: it is in a session folder of Ray" in found["detail"]
    assert found["fix"].startswith("With --root, give the absolute path of a folder outside")
