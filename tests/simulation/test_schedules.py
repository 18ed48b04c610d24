"""A hundred schedules of faults: every trial one sealed result, every failure told once, every
end reached.

``pytest tests/simulation --seed N`` runs one schedule again; ``make simulate`` runs ten thousand.
"""

import json
from pathlib import Path

import pytest

from tests.integration import chaos
from tests.simulation.schedules import NAMED, REAL, run_named, run_seed

NUM_SEEDS, CHUNK = 30, 10


@pytest.mark.parametrize("first", range(0, NUM_SEEDS, CHUNK))
def test_what_must_hold_holds(first, request):
    if (asked := request.config.getoption("--seed")) is not None:
        pytest.skip(f"--seed {asked} is asked for")
    for seed in range(first, first + CHUNK):
        run_seed(seed)


@pytest.mark.parametrize("name", NAMED)
def test_what_is_broken_for_real_or_was_found_is_simulated_too(name):
    assert run_named(name, seed=0).outside.met.total() > 0


def test_every_long_run_on_real_processes_has_a_schedule_of_its_name():
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.json"
    ran = set(json.loads(path.read_text(encoding="utf-8"))) - {"environment"}
    assert set(REAL) == set(chaos.CASES) == ran


def test_the_seed_that_is_asked_for(request):
    asked = request.config.getoption("--seed")
    if asked is None:
        pytest.skip("no --seed is asked for")
    run_seed(asked)
