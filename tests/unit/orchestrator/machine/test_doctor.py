"""Test the checks of ``isweep doctor`` on a result store, this machine, and nodes of a cluster."""

from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest
import ray

from orchestrator.machine import doctor
from orchestrator.machine.cluster import RayStartError
from orchestrator.machine.doctor import NodeReport, check_nodes
from orchestrator.machine.gpus.records import Gpu, NodeGpus
from tests.object_store import object_store

GIB = 2**30
VERSIONS_HERE = doctor.versions_here()
RELEASE = metadata.version("isweep")
L4 = NodeGpus(
    "b", (Gpu("NVIDIA L4", "GPU-1", 22 * GIB),), driver="580.1", torch="2.13.0", cuda="13.0"
)
SOUND: dict[str, Any] = {"gpus": L4, "versions": VERSIONS_HERE, "free_disk_bytes": 80 * GIB}
NODE = {"NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 16.0, "GPU": 1.0}}


def problems(**changes: Any) -> list[str]:
    check = doctor.check_node(NodeReport(**{**SOUND, **changes}), NODE)
    assert check["ok"] == (not check["fix"])
    return [] if check["ok"] else [f"{check['detail']}. {check['fix']}"]


def test_doctor_does_not_advise_to_run_doctor_if_ray_does_not_start(monkeypatch):
    @contextmanager
    def fail(*_, **__):
        raise RayStartError("Ray did not start on this machine: x", hint="Run `isweep doctor`")
        yield

    monkeypatch.setattr(doctor, "connect", fail)
    check = doctor._run_check("ray cluster", doctor._check_cluster, None, [])
    assert not check["ok"]
    assert check["detail"] == "Ray did not start on this machine: x"
    assert "doctor" not in check["fix"]
    assert check["fix"].startswith("Fix the other checks of this command that failed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"gpus": replace(L4, gpus=(), driver="")},
            "built for CUDA 13.0, can use 0 without an NVIDIA driver. Install NVIDIA's driver",
        ),
        ({"gpus": replace(L4, gpus=(), cuda="")}, "driver 580.1. Install a torch with CUDA"),
        (
            {"versions": VERSIONS_HERE | {"ray": "2.56.0"}},
            "the node has ray 2.56.0, but this machine has",
        ),
        (
            {"versions": VERSIONS_HERE | {"isweep": "absent"}},
            "has isweep absent, but this machine has",
        ),
        (
            {"versions": VERSIONS_HERE | {"isweep": f"{RELEASE}+0"}},
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
def test_each_problem_of_a_node_has_a_hint(changes, message):
    (problem,) = problems(**changes)
    assert message in problem


def test_a_disk_that_cannot_be_written_has_no_free_space(tmp_path, monkeypatch):
    assert doctor.writable_bytes(tmp_path) > 0
    # As on a read-only disk, where even the root user cannot write.
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert doctor.writable_bytes(tmp_path) == 0


def test_a_node_without_problems_and_a_node_with_logical_gpus_pass():
    assert problems() == []
    assert problems(gpus=NodeGpus("b", logical=True)) == []


@pytest.mark.parametrize("resources", [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 0.0}])
def test_a_gpu_that_ray_does_not_offer_is_no_problem(resources):
    """As after `ray start --num-gpus=0`, or with an empty CUDA_VISIBLE_DEVICES."""
    old = Gpu("Tesla K80", "GPU-1", 12 * GIB, capability=3.7, has_kernels=False)
    report = NodeReport(**{**SOUND, "gpus": replace(L4, gpus=(old,))})
    assert not doctor.check_node(report, NODE)["ok"]
    assert doctor.check_node(report, NODE | {"Resources": resources})["ok"]
    without_torch = replace(report, gpus=replace(report.gpus, error="No module named 'torch'"))
    check = doctor.check_node(without_torch, NODE | {"Resources": resources})
    assert "torch did not list the GPUs: No module named 'torch'" in check["detail"]


@pytest.mark.ray
def test_every_node_of_a_cluster_is_checked_or_has_a_reason(ray_local, monkeypatch):
    (check,) = check_nodes()
    node = check["node"]
    assert (node["head"], node["versions"]) == (True, VERSIONS_HERE)
    assert node["num_cpus"] == ray.cluster_resources()["CPU"]
    assert node["free_disk_bytes"] > 0

    def fail_to_report() -> None:
        raise ModuleNotFoundError("No module named 'orchestrator'")

    monkeypatch.setattr(doctor, "report_this_node", fail_to_report)
    (check,) = check_nodes()
    assert (
        check["detail"]
        == "the check fails on the node: ModuleNotFoundError: No module named 'orchestrator'"
    )
    assert "run `make wheel` and `ray up`" in check["fix"]
    monkeypatch.setattr(doctor, "ANSWER_TIMEOUT_S", 0.0)
    (check,) = check_nodes()
    assert check["detail"] == "the node did not answer within 0 s"
    assert check["fix"].startswith("Run the same check again")


def store_check(url):
    return doctor._run_check("result store", doctor._check_result_store, str(url))


@pytest.mark.parametrize("name", [".", "not/made/yet"])
def test_a_writable_folder_passes_and_the_check_leaves_no_file(tmp_path, name):
    assert store_check(tmp_path / name)["ok"]
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_written_has_a_reason_and_a_hint(tmp_path):
    (tmp_path / "file").touch()
    for url, reason in (
        (tmp_path / "file" / "results", "cannot be written"),
        ("memory://x", "memory"),
    ):
        check = store_check(url)
        assert not check["ok"]
        assert reason in check["detail"]
        assert check["fix"]


def test_a_bucket_passes_without_changes_and_a_missing_bucket_has_a_hint():
    with object_store() as store:
        check = store_check(store.url)
        assert check["detail"] == f"isweep can write and list files in {store.url}"
        assert store_check(store.url)["ok"]
        missing = store_check("s3://no-such-bucket/lab")
        assert not missing["ok"]
        assert "s3://no-such-bucket" in missing["detail"]
        assert missing["fix"]


@pytest.mark.parametrize(
    ("address", "mode", "ok", "detail"),
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
            "RAY_AUTH_MODE is disabled, so anyone who can connect to Ray's ports can run code",
        ),
        ("10.0.0.1:6379", "token", True, "requests to 10.0.0.1:6379 carry the cluster's token"),
        (
            "10.0.0.1:6379",
            None,
            False,
            "RAY_AUTH_MODE is not set, so anyone who can connect to Ray's ports can run code",
        ),
    ],
)
def test_the_check_of_ray_access_depends_on_address_and_token_mode(
    tmp_path, monkeypatch, address, mode, ok, detail
):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    check = doctor._run_check("ray access", doctor._check_ray_access, address)
    assert (check["ok"], check["detail"]) == (ok, detail)
    assert bool(check["fix"]) != ok


def test_a_machine_without_gpus_passes_and_one_whose_torch_cannot_use_them_fails(monkeypatch):
    monkeypatch.setattr(doctor, "gpus_here", list)
    assert doctor._check_gpus(None).detail == "no GPU on this machine, so trials run on CPUs"
    assert doctor._check_gpus("10.0.0.1:6379").detail == "no GPU on this machine"
    without_usable_gpu = NodeGpus("a", driver="550.54", torch="2.13.0", cuda="13.0")
    monkeypatch.setattr(doctor, "gpus_here", lambda: [Gpu("NVIDIA L4", "GPU-1", 2**34)])
    monkeypatch.setattr(doctor, "describe", lambda visible: without_usable_gpu)
    outcome = doctor._check_gpus(None)
    assert not outcome.ok
    assert (
        "Ray offers 1 GPU, but torch 2.13.0, built for CUDA 13.0, can use 0 with the NVIDIA driver "
        "550.54" in outcome.detail
    )
    assert "Install a driver of branch 580 or later" in outcome.fix


@pytest.mark.parametrize("kind", ["nfs4", "smbfs", "beegfs", "fuse.glusterfs", "virtiofs"])
def test_a_root_on_a_network_file_system_is_a_problem(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(doctor, "_file_system", lambda folder: kind)
    outcome = doctor._check_root(str(tmp_path))
    assert not outcome.ok
    assert f"is on a network file system ({kind})" in outcome.detail


def test_a_root_that_a_run_would_refuse_fails_the_check(tmp_path):
    (tmp_path / "session_1").mkdir()
    (tmp_path / "session_latest").symlink_to(tmp_path / "session_1")
    check = doctor._run_check("root", doctor._check_root, str(tmp_path / "session_1/root"))
    assert not check["ok"]
    assert "cannot be the root: it is in a session folder of Ray" in check["detail"]
    assert check["fix"].startswith("With --root, give the absolute path of a folder outside")
