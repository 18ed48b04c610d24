"""A sweep on a cluster of several nodes that share no folder, with GPU shares and access tokens."""

import json
import secrets
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from tests.integration.several_nodes import NUM_AT_ONCE, SHARE, WORKERS, environment
from tests.integration.sweeps import SWEEP, write_sweep
from tests.isolation import AVAILABLE, REASON, isolated

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,  # minutes of two cores
    pytest.mark.skipif(not AVAILABLE, reason=REASON),
]

NUM_TRIALS = 4
ON_GPUS = SWEEP.replace("[0, 1, 2]", "[0]") + "resources: {num_cpus: 1, num_gpus: 1}\n"
"""A sweep with one trial per GPU, so that both workers get trials. Probes test shares of a GPU."""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict[str, Any]:
    """The report of ``tests.integration.several_nodes``: one cluster for all tests."""
    sweep = write_sweep(tmp_path_factory.mktemp("sweep"), ON_GPUS)
    root = tmp_path_factory.mktemp("root")
    process = subprocess.run(
        isolated(sys.executable, "-m", "tests.integration.several_nodes", sweep, str(root)),
        capture_output=True,
        text=True,
        check=False,
        env=environment(secrets.token_hex(32)),
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_a_sweep_joins_a_running_cluster(report):
    run = report["run"]
    assert run["exit"] == 0, run["stderr"]
    assert f"{NUM_TRIALS} of {NUM_TRIALS} trials done" in run["stderr"]
    assert "Running on a cluster of 3 nodes: 4 CPUs, 3 GPUs" in run["stderr"]
    assert run["stdout"].endswith("report.html\n")
    assert len(report["results"]) == NUM_TRIALS
    assert "Traceback" not in run["stderr"]  # Tune would raise one per trial if it saved trials


def test_nodes_need_no_shared_folder(report):
    # Workers see an empty root. A task or trial that opened prepared data there would fail.
    assert report["left_on_workers"] == {"one_gpu": [], "two_gpus": []}
    assert report["file_task_nodes"] == [report["head"]]
    assert set(report["block_task_nodes"]) == {report["head"], *report["workers"].values()}


def test_reading_spreads_over_the_nodes_that_see_the_files(report):
    workers = sorted(report["workers"].values())
    assert report["see_root"] == [report["head"]]
    assert report["see_python"] == sorted([report["head"], *workers])
    assert report["reading_nodes"] == workers


def test_actors_that_every_trial_asks_run_on_the_drivers_node(report):
    assert report["actor_nodes"] == [report["head"]]


def test_files_are_measured_on_the_node_that_has_them(report):
    measured = report["measured"]
    assert measured["exit"] == 0, measured["stderr"]
    assert json.loads(measured["stdout"])["num_images"] > 0


def test_shares_pack_as_planned(report):
    trials = report["probes"]
    assert len(trials) == NUM_AT_ONCE + 1
    # Each trial has a share of one GPU, and none runs on the head, which has no GPU.
    assert {len(trial["gpus"]) for trial in trials} == {1}
    assert {trial["node"] for trial in trials} == set(report["workers"].values())
    per_gpu = int(1 / SHARE)
    max_trials = max_trials_at_once(trials)
    gpus = {
        (report["workers"][name], str(gpu))
        for name, num_gpus in WORKERS.items()
        for gpu in range(num_gpus)
    }
    assert max_trials == dict.fromkeys(gpus, per_gpu)


def max_trials_at_once(trials: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """Return, for each GPU, the most trials that ran on it at one time."""
    events = []
    for trial in trials:
        gpu = (trial["node"], trial["gpus"][0])
        events.append((trial["start"], 1, gpu))
        events.append((trial["end"], -1, gpu))
    running: Counter[tuple[str, str]] = Counter()
    max_trials: Counter[tuple[str, str]] = Counter()
    for _, step, gpu in sorted(events):
        running[gpu] += step
        max_trials[gpu] = max(max_trials[gpu], running[gpu])
    return dict(max_trials)


@pytest.mark.parametrize("environment_change", ["other_token", "other_mode"])
def test_a_driver_without_the_token_is_refused(report, environment_change):
    refused = report[environment_change]
    assert refused["exit"] == 3
    message = " ".join(refused["stderr"].split())
    assert (
        "refused this machine's token, or this machine has no token. Set RAY_AUTH_MODE=token"
        in message
    )
    assert "Traceback" not in message
