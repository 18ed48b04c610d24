"""Seventy-five schedules of faults: each trial gets one stored result, each failure is reported once,
and each sweep ends.

``pytest tests/simulation --seed N`` runs one schedule again; ``make simulate`` runs ten thousand.
"""

import json
from pathlib import Path

import pytest

from tests.integration import chaos
from tests.simulation.schedules import NAMED, REAL, run_named, run_seed

NUM_SEEDS = 30
CHUNK = 10


@pytest.mark.parametrize(
    "first",
    [0, *(pytest.param(first, marks=pytest.mark.long) for first in range(CHUNK, NUM_SEEDS, CHUNK))],
)
def test_seeded_schedules_break_no_promise(first, request):
    requested_seed = request.config.getoption("--seed")
    if requested_seed is not None:
        pytest.skip(f"--seed {requested_seed} is asked for")
    for seed in range(first, first + CHUNK):
        run_seed(seed)


@pytest.mark.parametrize("name", NAMED)
def test_named_schedules_meet_their_faults_and_break_no_promise(name):
    assert run_named(name, seed=0).outside.met.total() > 0


def test_every_long_run_on_real_processes_has_a_schedule_of_its_name():
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.json"
    measured_cases = set(json.loads(path.read_text(encoding="utf-8"))) - {"environment"}
    assert set(REAL) == set(chaos.CASES) == measured_cases


def test_the_requested_seed_breaks_no_promise(request):
    requested_seed = request.config.getoption("--seed")
    if requested_seed is None:
        pytest.skip("no --seed is asked for")
    run_seed(requested_seed)
