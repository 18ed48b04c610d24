"""Real faults, judged by the store: every cell done once, failures known for what they are."""

import json
import re
import secrets
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.several_nodes import environment
from tests.integration.sweeps import SWEEP, write_sweep
from tests.isolation import AVAILABLE, REASON, isolated

pytestmark = [pytest.mark.ray, pytest.mark.skipif(not AVAILABLE, reason=REASON)]


def run_case(name: str, root, timeout: int = 200, **variables: str) -> dict[str, Any]:
    done = subprocess.run(
        isolated(sys.executable, "-m", "tests.integration.faults", name, str(root)),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**environment(secrets.token_hex(32)), **variables},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_all_done(found: dict[str, Any]) -> None:
    assert found["results"] == {cell: f"found {cell}" for cell in found["planned"]}
    assert found["failures_left"] == []
    assert found["statuses"] == ["FINISHED"]


@pytest.mark.chaos
def test_workers_killed_again_and_again(tmp_path):
    found = run_case("killed_workers", tmp_path)
    check_all_done(found)
    kills = len(found["history"])
    assert kills >= 4
    assert {kind for _, kind, _, _ in found["told"]} == {"worker_crash"}
    assert 1 <= len(found["told"]) <= kills


def test_a_killed_raylet_is_a_lost_node(tmp_path):
    found = run_case("killed_raylet", tmp_path)
    check_all_done(found)
    assert [kind for _, kind, _, _ in found["told"]] == ["lost_node"]


def test_a_memory_hog_is_killed_and_costs_the_others_nothing(tmp_path):
    found = run_case("memory_hog", tmp_path, timeout=300)
    check_all_done(found)
    assert {kind for _, kind, _, _ in found["told"]} == {"out_of_memory"}, found["history"]
    assert {cell for cell, *_ in found["told"]} == {cell for cell in found["planned"] if "-n12-" in cell}


@pytest.mark.chaos
def test_a_full_disk_pauses_the_sweep_until_there_is_room(tmp_path):
    sweep = write_sweep(tmp_path, SWEEP.replace("[0, 1, 2, 3, 4]", "[0, 1, 2]"))
    done = subprocess.run(
        isolated(sys.executable, "-m", "tests.integration.full_disk", sweep, str(tmp_path / "root")),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["alive"], found["stderr"]
    assert found["still"] == found["at_pause"] < 12
    assert re.search(
        r"Paused: \S+ \([\d,]+ bytes needed\): No space left on device; [\d,]+ bytes free", found["stderr"]
    ), found["stderr"]
    assert "Storage takes results again" in found["stderr"]
    assert (found["exit"], len(found["results"])) == (0, 12)
    assert found["runs"] == {"FINISHED": 12 + 2 + 1}
    assert "Traceback" not in found["stderr"]
