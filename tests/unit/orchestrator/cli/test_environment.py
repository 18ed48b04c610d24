"""How ``isweep doctor`` ends."""

import pytest

from orchestrator.cli.environment import node_table
from orchestrator.machine import doctor
from orchestrator.machine.gpu_problems import Problem

OK = {"name": "python", "ok": True, "detail": "3.11", "fix": ""}
NO_DISK = {"name": "root", "ok": False, "detail": "full", "fix": "free some"}
MISTAKE = {
    "name": "launch file a.yaml",
    "ok": False,
    "detail": "a.yaml: no keys",
    "fix": "begin with another",
}


@pytest.mark.parametrize(
    ("checks", "code"), [([OK], 0), ([OK, MISTAKE], 2), ([OK, NO_DISK], 3), ([NO_DISK, MISTAKE], 3)]
)
def test_a_mistake_in_a_launch_file_is_the_users_anything_else_the_machines(
    run, monkeypatch, checks, code
):
    monkeypatch.setattr(doctor, "run_checks", lambda *_: checks)
    assert run("doctor", "--launch", "a.yaml")[0] == code


def test_the_checks_of_a_launch_file_are_named_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "connect", None)
    *_, found = doctor.run_checks(str(tmp_path), None, None, launch=tmp_path / "absent.yaml")
    assert found["name"].startswith(doctor.LAUNCH_FILE)
    assert not found["ok"]


def test_what_a_silent_node_did_not_say_is_no_number():
    node = {"NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 4.0}}
    answers = (
        doctor.NodeAnswer(silence=Problem("silent", "look")),
        doctor.NodeAnswer(versions=doctor.versions_here()),
    )
    silent, sound = (doctor.checked_node(answer, node)["node"] for answer in answers)
    table = node_table([sound, silent])
    assert [*table.columns[-1].cells] == ["0 GiB", "?"]
