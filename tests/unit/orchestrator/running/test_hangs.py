"""What counts as a hang: a trial past its limit, and no driver that stood still."""

from types import SimpleNamespace

import pytest

from orchestrator.running.failures import HangWatch
from tests.steady_clock import SteadyClock
from tests.unit.orchestrator.results.examples import trial_spec


@pytest.fixture
def clock():
    return SteadyClock()


@pytest.fixture
def killed():
    return []


def running(cell):
    return [SimpleNamespace(config={"cell": {"trial_id": cell.trial_id}})]


def look(watch, cell, clock, seconds):
    """Look every ten seconds for so long."""
    for _ in range(seconds // 10):
        clock.now += 10
        watch.end_hung(running(cell))


def test_a_trial_past_its_limit_is_ended_once(clock, killed):
    cell, said = trial_spec(), []
    watch = HangWatch(said.append, lambda trial: lambda: killed.append("actor"), clock)
    watch.started(cell.trial_id, 100.0)
    watch.heard(cell.trial_id)
    look(watch, cell, clock, 100)
    assert killed == []
    look(watch, cell, clock, 40)
    assert killed == ["actor"]
    assert "neither a result nor an epoch in 100 s" in watch.failure(cell.trial_id).message


def test_a_trial_that_tells_of_epochs_lives_however_slow_it_is(clock, killed):
    cell, said = trial_spec(), []
    watch = HangWatch(said.append, lambda trial: lambda: killed.append("actor"), clock)
    watch.heard("a trial of an earlier attempt")
    watch.started(cell.trial_id, 100.0)
    watch.heard(cell.trial_id)
    for _ in range(5):
        look(watch, cell, clock, 90)
        watch.heard(cell.trial_id)
    assert killed == []
    look(watch, cell, clock, 120)
    assert killed == ["actor"]


def test_time_in_which_the_driver_stood_still_is_no_trials(clock, killed):
    cell, said = trial_spec(), []
    watch = HangWatch(said.append, lambda trial: lambda: killed.append("actor"), clock)
    watch.started(cell.trial_id, 100.0)
    watch.heard(cell.trial_id)
    look(watch, cell, clock, 50)
    clock.now += 3600  # a full disk, a closed laptop
    look(watch, cell, clock, 50)
    assert killed == []
    look(watch, cell, clock, 20)
    assert killed == ["actor"]


def test_a_worker_that_does_not_answer_is_said_and_ended_within_a_minute(clock, killed):
    cell, said = trial_spec(), []
    watch = HangWatch(said.append, lambda trial: lambda: killed.append("actor"), clock)
    watch.started(cell.trial_id, 600.0)
    look(watch, cell, clock, 60)
    assert killed == []
    look(watch, cell, clock, 10)
    assert killed == ["actor"]
    assert said == [f"{cell.trial_id}: its worker did not answer for 60 s and was ended"]
    assert watch.failure(cell.trial_id).kind == "worker_crash"


def test_a_worker_that_freezes_between_two_cells_is_ended_too(clock, killed):
    """Tune asks it to take the next cell, and does not say that this trial has started."""
    watch = HangWatch([].append, lambda trial: lambda: killed.append("actor"), clock)
    look(watch, trial_spec(), clock, 80)
    assert killed == ["actor"]
