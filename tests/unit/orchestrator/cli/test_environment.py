"""How ``isweep doctor`` ends."""

import pytest

from orchestrator.running import doctor

OK = {"name": "python", "ok": True, "detail": "3.11", "fix": ""}
NO_DISK = {"name": "root", "ok": False, "detail": "full", "fix": "free some"}
MISTAKE = {
    "name": "launch file a.yaml",
    "ok": False,
    "detail": "a.yaml: no keys",
    "fix": "begin with another",
}


@pytest.mark.parametrize(
    ("checks", "code"),
    [([OK], 0), ([OK, MISTAKE], 2), ([OK, NO_DISK], 3), ([NO_DISK, MISTAKE], 3)],
)
def test_a_mistake_in_a_launch_file_is_the_users_anything_else_the_machines(run, monkeypatch, checks, code):
    monkeypatch.setattr(doctor, "run_checks", lambda *_: checks)
    assert run("doctor", "--launch", "a.yaml")[0] == code


def test_the_checks_of_a_launch_file_are_named_as_such(tmp_path):
    (found,) = doctor._launch(tmp_path / "absent.yaml")
    assert found["name"].startswith(doctor.LAUNCH_FILE)
    assert not found["ok"]
