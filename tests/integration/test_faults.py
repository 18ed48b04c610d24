"""Real faults, judged by the store: every cell done once, failures known for what they are."""

import json
import secrets
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.several_nodes import environment
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
    found = run_case("memory_hog", tmp_path)
    check_all_done(found)
    assert {kind for _, kind, _, _ in found["told"]} == {"out_of_memory"}
