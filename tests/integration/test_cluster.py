"""A cluster of several nodes that share no folder: the sweep runs, shares pack as planned, tokens
count."""

import json
import secrets
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from tests.integration.several_nodes import AT_ONCE, SHARE, WORKERS, environment
from tests.integration.sweeps import SWEEP, write_sweep
from tests.isolation import AVAILABLE, REASON, isolated

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,  # minutes of two cores
    pytest.mark.skipif(not AVAILABLE, reason=REASON),
]

NUM_TRIALS = 4
ON_GPUS = SWEEP.replace("[0, 1, 2]", "[0]") + "resources: {num_cpus: 1, num_gpus: 1}\n"
"""One trial per GPU, so that both workers get some; how shares pack is looked at with probes."""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    """What the script found; one cluster for all tests."""
    sweep = write_sweep(tmp_path_factory.mktemp("sweep"), ON_GPUS)
    root = tmp_path_factory.mktemp("root")
    done = subprocess.run(
        isolated(sys.executable, "-m", "tests.integration.several_nodes", sweep, str(root)),
        capture_output=True,
        text=True,
        check=False,
        env=environment(secrets.token_hex(32)),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_sweep_joins_a_running_cluster(found):
    run = found["run"]
    assert run["exit"] == 0, run["stderr"]
    assert f"{NUM_TRIALS} of {NUM_TRIALS} trials done" in run["stderr"]
    assert "Running on a cluster of 3 nodes: 4 CPUs, 3 GPUs" in run["stderr"]
    assert run["stdout"].endswith("report.html\n")
    assert len(found["results"]) == NUM_TRIALS
    assert "Traceback" not in run["stderr"]  # Tune, asked to save, would raise one per trial


def test_nodes_need_no_shared_folder(found):
    # Workers saw an empty root: had a task or trial opened prepared data there, the sweep had
    # failed.
    assert found["left_on_workers"] == {"one_gpu": [], "two_gpus": []}
    assert found["file_task_nodes"] == [found["head"]]
    assert set(found["block_task_nodes"]) == {found["head"], *found["workers"].values()}


def test_reading_spreads_over_the_nodes_that_see_the_files(found):
    workers = sorted(found["workers"].values())
    assert found["see_root"] == [found["head"]]
    assert found["see_python"] == sorted([found["head"], *workers])
    assert found["reading_nodes"] == workers


def test_what_every_trial_asks_goes_with_the_drivers_node_alone(found):
    assert found["actor_nodes"] == [found["head"]]


def test_files_are_measured_on_the_node_that_has_them(found):
    measured = found["measured"]
    assert measured["exit"] == 0, measured["stderr"]
    assert json.loads(measured["stdout"])["num_images"] > 0


def test_shares_pack_as_planned(found):
    trials = found["probes"]
    assert len(trials) == AT_ONCE + 1
    # No share of a GPU is put together from two GPUs, and none is given to the head, which has no
    # GPU.
    assert {len(trial["gpus"]) for trial in trials} == {1}
    assert {trial["node"] for trial in trials} == set(found["workers"].values())
    per_gpu = int(1 / SHARE)
    most = most_at_once(trials)
    gpus = {
        (found["workers"][name], str(gpu)) for name, num in WORKERS.items() for gpu in range(num)
    }
    assert most == dict.fromkeys(gpus, per_gpu)


def most_at_once(trials: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """Return, for each GPU, the most trials that ran on it at one time."""
    events = sorted(
        event
        for trial in trials
        for event in (
            (trial["start"], 1, trial["node"], trial["gpus"][0]),
            (trial["end"], -1, trial["node"], trial["gpus"][0]),
        )
    )
    running: Counter[tuple[str, str]] = Counter()
    most: Counter[tuple[str, str]] = Counter()
    for _, step, *gpu in events:
        running[gpu[0], gpu[1]] += step
        most[gpu[0], gpu[1]] = max(most[gpu[0], gpu[1]], running[gpu[0], gpu[1]])
    return dict(most)


@pytest.mark.parametrize("which", ["other_token", "other_mode"])
def test_a_driver_without_the_token_is_refused(found, which):
    refused = found[which]
    assert refused["exit"] == 3
    message = " ".join(refused["stderr"].split())
    assert (
        "refused this machine's token, or this machine has no token. Set RAY_AUTH_MODE=token"
        in message
    )
    assert "Traceback" not in message
