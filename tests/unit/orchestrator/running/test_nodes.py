"""What ``isweep doctor --address`` finds on the nodes of a cluster."""

from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest
import ray

from orchestrator.running import doctor
from orchestrator.running.doctor import look_at_nodes
from orchestrator.running.gpus import Gpu, NodeGpus

GIB = 2**30
HERE = doctor.versions_here()
RELEASE = metadata.version("isweep")
L4 = NodeGpus("b", (Gpu("NVIDIA L4", "GPU-1", 22 * GIB),), driver="580.1", torch="2.13.0", cuda="13.0")
SOUND: dict[str, Any] = {
    "gpus": L4,
    "versions": HERE,
    "free_disk_bytes": 80 * GIB,
    "free_spill_bytes": 500 * GIB,
}
NODE = {"NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 16.0, "GPU": 1.0}}


def problems(**changes: Any) -> list[str]:
    found = doctor._checked({**SOUND, **changes}, NODE)
    assert found["ok"] == (not found["fix"])
    return [] if found["ok"] else [f"{found['detail']}; {found['fix']}"]


def test_a_sound_node_has_no_problem():
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"gpus": replace(L4, gpus=(), driver="")},
            "CUDA 13.0 reaches 0 with NVIDIA driver absent",
        ),
        ({"gpus": replace(L4, gpus=(), cuda="")}, "driver 580.1; install a torch with CUDA"),
        ({"versions": HERE | {"ray": "2.56.0"}}, "has ray 2.56.0, the driver"),
        ({"versions": HERE | {"isweep": "absent"}}, "has isweep absent, the driver"),
        ({"versions": HERE | {"isweep": f"{RELEASE}+0"}}, f"has isweep {RELEASE}+0, the driver {RELEASE}"),
        ({"free_disk_bytes": 2 * GIB}, "disk: 2.0 GiB free; free some: 5 GiB are wanted"),
        ({"free_spill_bytes": GIB}, "spill space: 1.0 GiB free"),
        ({"free_disk_bytes": 0}, "disk: 0.0 GiB free; free some: 5 GiB are wanted, or mount it for writing"),
    ],
)
def test_each_fault_is_said_with_its_way_out(changes, said):
    (problem,) = problems(**changes)
    assert said in problem


def test_a_disk_that_takes_nothing_has_no_room(tmp_path, monkeypatch):
    assert doctor._room(tmp_path) > 0
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)  # as on a read-only disk, also for root
    assert doctor._room(tmp_path) == 0


def test_logical_gpus_are_no_fault_where_they_are_asked_for():
    assert problems(gpus=NodeGpus("b", logical=True)) == []


@pytest.mark.ray
def test_every_node_of_a_cluster_reports(ray_local):
    (found,) = look_at_nodes()
    node = found["node"]
    assert (node["head"], node["versions"]) == (True, HERE)
    assert node["num_cpus"] == ray.cluster_resources()["CPU"]
    assert node["free_disk_bytes"] > 0


@pytest.mark.ray
def test_a_node_that_does_not_answer_is_told(ray_local, monkeypatch):
    monkeypatch.setattr(doctor, "ANSWER_TIMEOUT_S", 0.01)
    (found,) = look_at_nodes()
    assert found["detail"] == "gives no answer within 0.01 s"
    assert found["fix"].startswith("ask again")


@pytest.mark.ray
def test_a_node_without_isweep_is_told_by_what_it_lacks(ray_local, monkeypatch):
    def look_there() -> None:
        raise ModuleNotFoundError("No module named 'orchestrator'")

    monkeypatch.setattr(doctor, "look_here", look_there)
    (found,) = look_at_nodes()
    assert found["detail"] == "cannot look at itself: ModuleNotFoundError: No module named 'orchestrator'"
    assert found["fix"].startswith("install the same everywhere")
