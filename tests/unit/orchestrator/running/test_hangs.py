"""What counts as a hang: a trial past its limit, and no driver that stood still."""

from types import SimpleNamespace

import pytest

from orchestrator.running.failures import TrialWatch
from tests.steady_clock import SteadyClock

CELL = [SimpleNamespace(config={"cell": {"trial_id": "cell"}}, status="RUNNING")]
STARTED, HEARD = "started", "heard"


@pytest.mark.parametrize(
    ("events", "told"),
    [
        # Past its limit, once.
        ([STARTED, HEARD, 100, 40], "neither a result nor an epoch in 100 s"),
        # One that tells of epochs lives however slow it is.
        ([STARTED, *[HEARD, 90] * 5, HEARD, 120], "neither a result nor an epoch in 100 s"),
        # A full disk, a closed laptop: the driver stood still.
        ([STARTED, HEARD, 50, -3600, 50, 20], "neither a result nor an epoch in 100 s"),
        ([STARTED, 60, 10], "its worker did not answer for 60 s and was ended"),
        # It freezes between two cells: Tune asks it to take the next, which does not start.
        ([60, 20], "its worker did not answer for 60 s and was ended"),
    ],
)
def test_a_trial_is_ended_at_its_limit_and_not_before(events, told):
    """Events in turn, and seconds in which the driver looks every ten; negative, it does not look."""
    clock, said, killed = SteadyClock(), [], []
    kill = lambda: killed.append(clock.now)  # noqa: E731
    watch = TrialWatch(said.append, lambda trial: kill, lambda: "", ends=False, clock=clock)
    for number, event in enumerate(events, 1):
        if event == STARTED:
            watch.started("cell", 100.0)
        elif event == HEARD:
            watch.heard("cell")
        elif event < 0:
            clock.now -= event
        else:
            for _ in range(event // 10):
                clock.now += 10
                watch.look(CELL, {"cell"})
        assert len(killed) == (number == len(events))
    assert watch.failure("cell").message.startswith(told)
    assert said == ([f"cell: {told}"] if "answer" in told else [])
