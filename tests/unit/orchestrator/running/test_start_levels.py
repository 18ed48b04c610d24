"""Test the start level of a network if other processes use the memory of its GPUs."""

import pytest

from orchestrator.running.recovery.start_levels import MAX_REPEATS_AFTER_OTHERS, NetworkLevels

NEEDED, RAISED = 1, 3
"""Levels of the network in these tests."""


def network_after(*events):
    """Return a network with needed level NEEDED after results and failures by others.

    Args:
        events: the level of each result, or "failures" for as many failures by others as raise a
            network without earlier failures.
    """
    network = NetworkLevels(NEEDED)
    for event in events:
        if event == "failures":
            for _ in range(MAX_REPEATS_AFTER_OTHERS + 1):
                network.failed_by_others(RAISED)
        else:
            network.finished(event)
    return network


def test_the_first_failures_by_others_change_nothing_and_the_next_one_raises_the_level():
    network = NetworkLevels(NEEDED)
    start_levels = []
    for _ in range(MAX_REPEATS_AFTER_OTHERS + 1):
        network.failed_by_others(next_level=RAISED)
        start_levels.append(network.start_level)
    assert start_levels == [NEEDED] * MAX_REPEATS_AFTER_OTHERS + [RAISED]


@pytest.mark.parametrize(
    ("events", "next_level", "start_level"),
    [
        (("failures",), 4, 4),
        (("failures",), 2, RAISED),
        (("failures",), None, RAISED),
        (("failures", RAISED), 4, 4),
        (("failures", RAISED), 2, RAISED),
        (("failures", RAISED), None, RAISED),
    ],
)
def test_once_raised_every_failure_by_others_raises_trials_to_the_highest_raised_level(
    events, next_level, start_level
):
    network = network_after(*events)
    network.failed_by_others(next_level)
    assert network.start_level == start_level


def test_failures_by_others_without_a_next_level_change_no_start_level():
    network = NetworkLevels(NEEDED)
    for _ in range(MAX_REPEATS_AFTER_OTHERS + 1):
        network.failed_by_others(next_level=None)
    assert network.start_level == NEEDED
    network.failed_by_others(RAISED)
    assert network.start_level == RAISED


@pytest.mark.parametrize(
    ("events", "start_level", "level_after_one_failure"),
    [
        ((NEEDED,), NEEDED, NEEDED),
        ((5,), NEEDED, NEEDED),
        (("failures", RAISED), NEEDED, RAISED),
        (("failures", 5), NEEDED, RAISED),
        (("failures", 2), NEEDED, NEEDED),
        (("failures", 0), 0, 0),  # the attempt started before the needed level rose
        (("failures", RAISED, RAISED), NEEDED, RAISED),
        (("failures", RAISED, NEEDED), NEEDED, NEEDED),
    ],
)
def test_only_a_result_below_the_raised_level_shows_that_the_others_have_ended(
    events, start_level, level_after_one_failure
):
    network = network_after(*events)
    assert network.start_level == start_level
    network.failed_by_others(RAISED)
    assert network.start_level == level_after_one_failure


def test_after_the_others_have_ended_their_failures_are_counted_from_0_again():
    network = network_after("failures", NEEDED)
    for _ in range(MAX_REPEATS_AFTER_OTHERS):
        network.failed_by_others(RAISED)
    assert network.start_level == NEEDED
    network.failed_by_others(RAISED)
    assert network.start_level == RAISED


@pytest.mark.parametrize("events", [("failures",), ("failures", RAISED)])
def test_every_result_ends_a_raised_level_that_the_needed_level_has_reached(events):
    network = network_after(*events)
    network.raise_needed_level(RAISED)
    assert network.start_level == RAISED
    network.finished(RAISED)
    assert network.start_level == RAISED
    network.failed_by_others(5)
    assert network.start_level == RAISED
