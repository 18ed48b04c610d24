"""Test the states of a network whose trials fail because other processes use the GPU memory."""

import pytest

from orchestrator.running.recovery.start_levels import (
    MAX_REPEATS_AFTER_OTHERS,
    NetworkLevels,
    NetworkState,
)

NEEDED, RAISED = 1, 3
"""Levels of the network in these tests."""


def network_in(state, num_failures=MAX_REPEATS_AFTER_OTHERS):
    raised_level = 0 if state == "NORMAL" else RAISED
    return NetworkLevels(NEEDED, raised_level, NetworkState[state], num_failures)


def test_the_first_failures_by_others_change_nothing_and_the_next_one_raises_the_level():
    network = network_in("NORMAL", num_failures=0)
    states = []
    for _ in range(MAX_REPEATS_AFTER_OTHERS + 1):
        network.failed_by_others(next_level=RAISED)
        states.append((network.state.name, network.start_level))
    assert states == [("NORMAL", NEEDED)] * MAX_REPEATS_AFTER_OTHERS + [("RAISED", RAISED)]


@pytest.mark.parametrize(
    ("state", "next_level", "start_level"),
    [
        ("RAISED", 4, 4),
        ("RAISED", 2, RAISED),
        ("RAISED", None, RAISED),
        ("RECHECK", 4, 4),
        ("RECHECK", 2, RAISED),
        ("RECHECK", None, RAISED),
        ("NORMAL", None, NEEDED),
    ],
)
def test_after_a_failure_by_others_trials_start_at_the_highest_raised_level(
    state, next_level, start_level
):
    network = network_in(state)
    network.failed_by_others(next_level)
    assert (network.state.name, network.start_level) == ("RAISED", start_level)


@pytest.mark.parametrize(
    ("state", "level", "next_state", "start_level"),
    [
        ("NORMAL", NEEDED, "NORMAL", NEEDED),
        ("NORMAL", 5, "NORMAL", NEEDED),
        ("RAISED", RAISED, "RECHECK", NEEDED),
        ("RAISED", 5, "RECHECK", NEEDED),
        ("RAISED", 2, "NORMAL", NEEDED),
        ("RAISED", 0, "NORMAL", 0),  # the attempt started before the needed level rose
        ("RECHECK", RAISED, "RECHECK", NEEDED),
        ("RECHECK", NEEDED, "NORMAL", NEEDED),
    ],
)
def test_only_a_result_below_the_raised_level_shows_that_the_others_have_ended(
    state, level, next_state, start_level
):
    network = network_in(state)
    network.finished(level)
    assert (network.state.name, network.start_level) == (next_state, start_level)
    if next_state == "NORMAL":
        assert (network.raised_level, network.num_since_result) == (0, 0)


@pytest.mark.parametrize("state", ["RAISED", "RECHECK"])
def test_every_result_ends_a_raised_level_that_the_needed_level_has_reached(state):
    network = network_in(state)
    network.raise_needed_level(RAISED)
    assert network.start_level == RAISED
    network.finished(RAISED)
    assert (network.state.name, network.start_level) == ("NORMAL", RAISED)
