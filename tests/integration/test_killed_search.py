"""A search whose driver is killed goes on: nothing is trained twice, all is told once, none runs for ever."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest

from tests.integration.killed_search import SEARCHED
from tests.integration.sweeps import write_sweep
from tests.isolation import AVAILABLE, REASON, isolated

pytestmark = pytest.mark.ray


@pytest.mark.skipif(not AVAILABLE, reason=REASON)
def test_a_killed_search_goes_on(tmp_path):
    """By hand with more moments: ``benchmarks/results/search_kills.json``."""
    sweep = write_sweep(tmp_path, SEARCHED)
    done = subprocess.run(
        isolated(sys.executable, "-m", "tests.integration.killed_search", sweep, str(tmp_path / "root"), "5"),
        capture_output=True,
        text=True,
        timeout=560,
        check=True,
    )
    check(json.loads(done.stdout))


def check(found):
    *killed, finished, again = found["starts"]
    assert {start["exit"] for start in killed} == {-9}
    assert finished["exit"] == 0, finished["stderr"]
    for earlier, later in pairwise(found["starts"]):
        assert earlier["stored"].items() <= later["stored"].items()
    assert killed[0]["stored"].items() < finished["stored"].items()
    assert again["stored"] == finished["stored"]
    assert again["stdout"] == finished["stdout"]
    # Each trial of the search is in its study once; finalists' further runs are told to nobody.
    for points in found["told"].values():
        assert {state for state, *_ in points} <= {"COMPLETE", "PRUNED"}
        assert len({tuple(point) for _, *point in points}) == len(points)
    assert found["tracked"]["sweep"] == ["FINISHED"]
    runs = found["tracked"]["trials"]
    assert all(runs.pop(trial_id) == ["FINISHED"] for trial_id in finished["stored"])
    # A point that was being trained at the kill need not be asked for again: its run is closed, and no other.
    assert set(map(tuple, runs.values())) <= {("KILLED",)}
    assert len(runs) <= 2 * len(killed)  # trainings at the same time
