"""A search whose driver is killed continues: each trial is trained and tracked exactly once."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest

from tests.integration.killed_search import SEARCHED
from tests.integration.sweeps import write_sweep
from tests.isolation import AVAILABLE, REASON, isolated

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


@pytest.mark.skipif(not AVAILABLE, reason=REASON)
def test_a_killed_search_goes_on_as_an_unbroken_one(tmp_path):
    """Here one training runs at a time; ``docs/tuning.md`` has runs with more, killed more often."""
    sweep = write_sweep(tmp_path, SEARCHED)
    script = [
        sys.executable,
        "-m",
        "tests.integration.killed_search",
        sweep,
        str(tmp_path / "root"),
        "1",
        "5",
    ]
    process = subprocess.run(isolated(*script), capture_output=True, text=True, check=True)
    report = json.loads(process.stdout)
    check(report)
    assert report["starts"][-1]["asked"] == report["unbroken"]["asked"]
    assert report["recipe"] == report["unbroken"]["recipe"]


def check(report):
    """Check what holds also if several trainings run at the same time."""
    *killed, finished = report["starts"]
    assert {start["exit"] for start in killed} == {-9}
    assert finished["exit"] == 0, finished["stderr"]
    for earlier, later in pairwise(report["starts"]):
        assert earlier["stored"].items() <= later["stored"].items()
        # Trials that were requested before a kill are requested in the same order after it.
        assert later["asked"][: len(earlier["asked"])] == earlier["asked"]
    assert killed[0]["stored"].items() < finished["stored"].items()
    assert {trial_id for trial_id, *_ in finished["asked"]} == finished["stored"].keys()
    assert report["tracked"]["sweep"] == ["FINISHED"]
    # A trial that ran at a kill was trained again: each has one run, and none was given up.
    assert report["tracked"]["trials"] == {name: ["FINISHED"] for name in finished["stored"]}
    assert set(report["tracked"]["tags"]) <= {"complete", "diverged"}
