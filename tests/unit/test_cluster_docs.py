"""Every command of docs/cluster.md has a mark, and commands marked as run in the lab were run there."""

import json
import re
from pathlib import Path

import pytest

from orchestrator.planning.sweep_file import load_sweep
from tests.lab.cluster import sweep_text

ROOT = Path(__file__).parents[2]
MARKS = {"[lab]", "[slurm]", "[offline]", "[not tried]"}
IGNORED_OPTIONS = (" -y", " --json", " --no-wait")
"""Options by which the lab's commands may differ: nobody answers or reads there."""
CHECKS_OF_THE_LAB = ("curl ", "isweep plan ")
"""Commands of the lab that are its own checks, so the document need not have them."""
OFFLINE = {
    "isweep doctor --launch cluster.yaml": "orchestrator/machine/test_launch.py",
    "isweep doctor --launch clusters/gcp.yaml": "orchestrator/machine/test_launch.py",
    "ray up cluster.yaml": "orchestrator/machine/test_aws_launch.py",
    "kubectl apply -f clusters/rayjob.yaml": "orchestrator/machine/test_launch_files.py",
    "systemctl --user enable --now isweep@paper": "orchestrator/machine/test_launch_files.py",
    "systemctl --user enable --now mlflow": "orchestrator/machine/test_launch_files.py",
    "sky launch clusters/skypilot.yaml": "orchestrator/machine/test_launch_files.py",
}


def normalized(command: str) -> str:
    for option in IGNORED_OPTIONS:
        command = command.replace(option, "")
    return " ".join(command.split())


def marked_commands() -> list[tuple[str, str]]:
    """Return every command of the document with its mark.

    A mark on a line of its own holds for the following commands of its block.
    """
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    commands = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        block_mark = ""
        for line in block.replace("\\\n", " ").splitlines():
            command, _, comment = line.partition("# ")
            mark = re.match(r"\[[a-z ]+\]", comment)
            if command.strip():
                commands.append((normalized(command), mark.group() if mark else block_mark))
            elif mark:
                block_mark = mark.group()
    return commands


@pytest.fixture(scope="module")
def lab() -> dict[str, list[str]]:
    """The result of the last committed run of the lab."""
    path = ROOT / "tests/lab/result.json"
    if not path.is_file():
        pytest.skip("no run of the lab is committed: make cluster-test")
    result: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return result


def test_every_command_has_a_mark():
    assert len(marked_commands()) > 25
    assert [command for command, mark in marked_commands() if mark not in MARKS] == []


def test_commands_marked_lab_were_run_in_the_lab(lab):
    run_commands = {normalized(command) for command in lab["commands"]}
    marked_lab = {command for command, mark in marked_commands() if mark == "[lab]"}
    assert "cluster-test: wheel" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert marked_lab - run_commands == {"make wheel"}


def test_commands_of_the_lab_are_in_the_document(lab):
    run_commands = {
        normalized(command)
        for command in lab["commands"]
        if not command.startswith(CHECKS_OF_THE_LAB)
    }
    text = " ".join((ROOT / "docs/cluster.md").read_text(encoding="utf-8").split())
    assert [command for command in run_commands if command not in normalized(text)] == []


def test_commands_marked_slurm_were_run_under_slurm():
    result = json.loads((ROOT / "tests/lab/slurm.json").read_text(encoding="utf-8"))
    slurm_commands = {command for command, mark in marked_commands() if mark == "[slurm]"}
    assert slurm_commands == set(result["commands"])
    assert result["cases"]["ends_in_the_middle"]["trials"] == 24
    assert "slurm-test: wheel" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_commands_marked_offline_have_a_test():
    offline = {command for command, mark in marked_commands() if mark == "[offline]"}
    assert offline == set(OFFLINE)
    for test in OFFLINE.values():
        assert (ROOT / "tests/unit" / test).is_file()


def test_the_lab_sweeps_can_be_planned(tmp_path):
    (tmp_path / "pictures").mkdir()
    path = tmp_path / "lab.yaml"
    text = sweep_text(name="lab", seeds="[0, 1]", epochs=40, pictures=tmp_path / "pictures")
    path.write_text(text, encoding="utf-8")
    assert load_sweep(path).name == "lab"


ANY_PORT = {
    "ray::DashboardAgent": ("gRPC port of the agent", "**metrics** of the agent"),
    "ray::RuntimeEnvAgent": ("any free port for runtime environments",),
    "raylet": ("raylet and its objects (2 ports)",),
}
"""Program that listens on any free port -> texts by which the table of ports names it."""


def test_every_port_of_the_lab_is_in_the_table_of_ports(lab):
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    table = text.partition("## Ports of a shared cluster")[2].partition("\n## ")[0]
    ports_in_use = [port for ports in lab["ports"].values() for port in ports]
    assert len(ports_in_use) > 20
    for port in ports_in_use:
        names = ANY_PORT.get(port["program"], ())
        assert re.search(rf"\b{port['port']}\b", table) or names, port
        assert all(words in table for words in names), port
    open_ports = [port for port in ports_in_use if port["answer"] == "200"]
    assert len(open_ports) == 5
    assert "five ports answer without a token" in table
    programs = {port["program"] for port in open_ports}
    assert programs == {"ray::DashboardAgent", "monitor.py", "dashboard/dashboard"}
    (jobs,) = {port["address"] for port in ports_in_use if port["port"] == 8265}
    assert jobs == "127.0.0.1"
