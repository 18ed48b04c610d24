"""docs/cluster.md: every command has a mark, and what is marked as done in the lab was done
there."""

import json
import re
from pathlib import Path

import pytest

from orchestrator.planning.sweep_file import load_sweep
from tests.lab.cluster import sweep_text

ROOT = Path(__file__).parents[2]
MARKS = {"[lab]", "[slurm]", "[offline]", "[not tried]"}
SAFE = (" -y", " --json", " --no-wait")
"""Options that the lab adds or leaves out since nobody is there to answer or read."""
UNNOTED = ("curl ", "isweep plan ")
"""Commands by which the lab only looks, or checks itself."""
OFFLINE = {
    "isweep doctor --launch cluster.yaml": "orchestrator/machine/test_launch.py",
    "isweep doctor --launch clusters/gcp.yaml": "orchestrator/machine/test_launch.py",
    "ray up cluster.yaml": "orchestrator/machine/test_aws_launch.py",
    "kubectl apply -f clusters/rayjob.yaml": "orchestrator/machine/test_launch_files.py",
    "systemctl --user enable --now isweep@paper": "orchestrator/machine/test_launch_files.py",
    "systemctl --user enable --now mlflow": "orchestrator/machine/test_launch_files.py",
    "sky launch clusters/skypilot.yaml": "orchestrator/machine/test_launch_files.py",
}


def plain(command: str) -> str:
    for option in SAFE:
        command = command.replace(option, "")
    return " ".join(command.split())


def marked() -> list[tuple[str, str]]:
    """Every command of the document with its mark."""
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        told = ""
        for line in block.replace("\\\n", " ").splitlines():
            command, _, comment = line.partition("# ")
            mark = re.match(r"\[[a-z ]+\]", comment)
            if not command.strip():
                told = mark.group() if mark else told
            else:
                found.append((plain(command), mark.group() if mark else told))
    return found


@pytest.fixture(scope="module")
def lab() -> dict[str, list[str]]:
    """What the last committed run of the lab says."""
    path = ROOT / "tests/lab/result.json"
    if not path.is_file():
        pytest.skip("no run of the lab is committed: make cluster-test")
    found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_every_command_has_a_mark():
    assert len(marked()) > 25
    assert [command for command, mark in marked() if mark not in MARKS] == []


def test_what_is_marked_lab_was_typed_there(lab):
    typed = {plain(command) for command in lab["commands"]}
    in_lab = {command for command, mark in marked() if mark == "[lab]"}
    assert "cluster-test: wheel" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert in_lab - typed == {"make wheel"}


def test_what_was_typed_in_the_lab_stands_in_the_document(lab):
    typed = {plain(command) for command in lab["commands"] if not command.startswith(UNNOTED)}
    text = " ".join((ROOT / "docs/cluster.md").read_text(encoding="utf-8").split())
    assert [command for command in typed if command not in plain(text)] == []


def test_what_is_marked_slurm_was_typed_there():
    found = json.loads((ROOT / "tests/lab/slurm.json").read_text(encoding="utf-8"))
    assert {command for command, mark in marked() if mark == "[slurm]"} == set(found["commands"])
    assert found["cases"]["ends_in_the_middle"]["trials"] == 24
    assert "slurm-test: wheel" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_what_is_marked_offline_has_a_test():
    offline = {command for command, mark in marked() if mark == "[offline]"}
    assert offline == set(OFFLINE)
    for test in OFFLINE.values():
        assert (ROOT / "tests/unit" / test).is_file()


def test_the_lab_sweeps_can_be_planned(tmp_path):
    (tmp_path / "pictures").mkdir()
    path = tmp_path / "lab.yaml"
    text = sweep_text(name="lab", seeds="[0, 1]", epochs=40, pictures=tmp_path / "pictures")
    path.write_text(text, encoding="utf-8")
    assert load_sweep(path).name == "lab"


FREE = {
    "ray::DashboardAgent": ("the agent's gRPC", "**metrics** of the agent"),
    "ray::RuntimeEnvAgent": ("a free one for environments",),
    "raylet": ("raylet and its objects, 2 ports",),
}
"""Programs that take any free port, and how the table calls each."""


def test_every_port_that_the_lab_saw_stands_in_the_table_of_ports(lab):
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    table = text.partition("## Ports of a shared cluster")[2].partition("\n## ")[0]
    seen = [port for ports in lab["ports"].values() for port in ports]
    assert len(seen) > 20
    for port in seen:
        known = FREE.get(port["program"], ())
        assert re.search(rf"\b{port['port']}\b", table) or known, port
        assert all(words in table for words in known), port
    stranger = [port for port in seen if port["answer"] == "200"]
    assert len(stranger) == 5
    assert "five ports answer anybody" in table
    assert {port["program"] for port in stranger} == {
        "ray::DashboardAgent",
        "monitor.py",
        "dashboard/dashboard",
    }
    (jobs,) = {port["address"] for port in seen if port["port"] == 8265}
    assert jobs == "127.0.0.1"
