"""Test the exit codes and tables of ``isweep doctor``."""

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
def test_doctor_has_exit_code_2_for_a_mistake_in_a_launch_file_and_3_for_the_machine(
    run, monkeypatch, checks, code
):
    monkeypatch.setattr(doctor, "run_checks", lambda *_: checks)
    assert run("doctor", "--launch", "a.yaml")[0] == code


def test_the_checks_of_a_launch_file_are_named_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "connect", None)
    *_, check = doctor.run_checks(str(tmp_path), None, None, launch=tmp_path / "absent.yaml")
    assert check["name"].startswith(doctor.LAUNCH_FILE)
    assert not check["ok"]


def test_a_node_that_does_not_answer_has_question_marks_instead_of_numbers():
    node = {"NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 4.0}}
    no_answer = doctor.NodeReport(missing=Problem("silent", "look"))
    answer = doctor.NodeReport(versions=doctor.versions_here())
    silent_node = doctor.check_node(no_answer, node)["node"]
    answering_node = doctor.check_node(answer, node)["node"]
    table = node_table([answering_node, silent_node])
    assert [*table.columns[-1].cells] == ["0 GiB", "?"]
