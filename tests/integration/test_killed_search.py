"""A search whose driver is killed goes on: nothing is trained twice, all is told once, none runs
for ever."""

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
    """With one training at a time; by hand with more, and at more moments: ``docs/tuning.md``."""
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
    done = subprocess.run(isolated(*script), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    check(found)
    assert found["starts"][-1]["asked"] == found["unbroken"]["asked"]
    assert found["recipe"] == found["unbroken"]["recipe"]


def check(found):
    """What holds with several trainings at the same time too."""
    *killed, finished = found["starts"]
    assert {start["exit"] for start in killed} == {-9}
    assert finished["exit"] == 0, finished["stderr"]
    for earlier, later in pairwise(found["starts"]):
        assert earlier["stored"].items() <= later["stored"].items()
        # What was asked for before a kill is trained in the same order after it.
        assert later["asked"][: len(earlier["asked"])] == earlier["asked"]
    assert killed[0]["stored"].items() < finished["stored"].items()
    assert {trial_id for trial_id, *_ in finished["asked"]} == finished["stored"].keys()
    assert found["tracked"]["sweep"] == ["FINISHED"]
    # What was being trained at a kill was trained again: one run each, and none that was given up.
    assert found["tracked"]["trials"] == {name: ["FINISHED"] for name in finished["stored"]}
    assert set(found["tracked"]["tags"]) <= {"complete", "diverged"}
