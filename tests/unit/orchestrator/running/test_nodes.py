"""What ``isweep doctor --address`` finds on the nodes of a cluster."""

from importlib import metadata
from typing import Any

import pytest
import ray

from orchestrator.running import doctor
from orchestrator.running.doctor import look_at_nodes

HERE = doctor.versions_here()
RELEASE = metadata.version("isweep")
GIB = 2**30
SOUND: dict[str, Any] = {
    "cards": ("NVIDIA L4",),
    "driver": "570.1",
    "cuda": "13.0",
    "versions": HERE,
    "free_disk_bytes": 80 * GIB,
    "free_spill_bytes": 500 * GIB,
    "logical": False,
    "time": 101.0,
    "answered_at": 103.0,
}
NODE = {"NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 16.0, "GPU": 1.0}}
STARTED = 100.0


def problems(**changes: Any) -> list[str]:
    report = doctor._report({**SOUND, **changes}, NODE, STARTED)
    return [f"{what}; {way_out}" for what, way_out in report.problems]


def test_a_sound_node_has_no_problem():
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cards": (), "driver": ""}, "offers 1 GPUs and torch reaches 0: driver absent"),
        ({"cards": (), "cuda": ""}, "torch built for CUDA none; install a torch with CUDA"),
        ({"versions": HERE | {"ray": "2.56.0"}}, "has ray 2.56.0, the driver"),
        ({"versions": HERE | {"isweep": "absent"}}, "has isweep absent, the driver"),
        ({"versions": HERE | {"isweep": f"{RELEASE}+0"}}, f"has isweep {RELEASE}+0, the driver {RELEASE}"),
        ({"free_disk_bytes": 2 * GIB}, "disk: 2.0 GiB free; free some: 5 GiB are wanted"),
        ({"free_spill_bytes": GIB}, "spill space: 1.0 GiB free"),
        ({"free_disk_bytes": 0}, "disk: 0.0 GiB free; free some: 5 GiB are wanted, or mount it for writing"),
        ({"time": 90.0}, "its clock differs by 10 s or more"),
        ({"time": 110.0}, "its clock differs by 7 s or more"),
    ],
)
def test_each_fault_is_said_with_its_way_out(changes, said):
    (problem,) = problems(**changes)
    assert said in problem


def test_a_disk_that_takes_nothing_has_no_room(tmp_path, monkeypatch):
    assert doctor._room(tmp_path) > 0
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)  # as on a read-only disk, also for root
    assert doctor._room(tmp_path) == 0


def test_a_clock_counts_as_wrong_only_beyond_what_the_wait_explains():
    assert doctor._report({**SOUND, "time": 100.5}, NODE, STARTED).clock_skew_s == 0
    assert doctor._report({**SOUND, "time": 98.0}, NODE, STARTED).clock_skew_s == 2.0


def test_logical_cards_are_no_fault_where_they_are_asked_for():
    assert problems(cards=(), logical=True) == []


@pytest.mark.ray
def test_every_node_of_a_cluster_reports(ray_local):
    (report,) = look_at_nodes()
    assert report.head
    assert report.versions == HERE
    assert report.num_cpus == ray.cluster_resources()["CPU"]
    assert report.free_disk_bytes > 0
    assert report.check()["node"]["versions"] == HERE


@pytest.mark.ray
def test_a_node_that_does_not_answer_is_told(ray_local, monkeypatch):
    monkeypatch.setattr(doctor, "ANSWER_TIMEOUT_S", 0.01)
    (report,) = look_at_nodes()
    ((what, way_out),) = report.problems
    assert what == "gives no answer within 0.01 s"
    assert way_out.startswith("ask again")


@pytest.mark.ray
def test_a_node_without_isweep_is_told_by_what_it_lacks(ray_local, monkeypatch):
    def look_there() -> None:
        raise ModuleNotFoundError("No module named 'orchestrator'")

    monkeypatch.setattr(doctor, "look_here", look_there)
    (report,) = look_at_nodes()
    ((what, way_out),) = report.problems
    assert what == "cannot look at itself: ModuleNotFoundError: No module named 'orchestrator'"
    assert way_out.startswith("install the same everywhere")
