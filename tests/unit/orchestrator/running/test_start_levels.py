"""Test the start level of a network if other processes use the memory of its GPUs."""

import pytest

from orchestrator.running.recovery.start_levels import MAX_IGNORED_FAILURES_BY_OTHERS, NetworkLevels

NEEDED, CROWDED = 1, 3
"""Levels of the network in these tests."""


def network_after(*events):
    """Return a network with needed level NEEDED after results and failures by others.

    Args:
        events: the level of each result, or "failures" for as many failures by others as switch
            the crowded level on in a network without earlier failures.
    """
    network = NetworkLevels(NEEDED)
    for event in events:
        if event == "failures":
            for _ in range(MAX_IGNORED_FAILURES_BY_OTHERS + 1):
                network.failed_by_others(CROWDED)
        else:
            network.finished(event)
    return network


def test_the_first_failures_by_others_change_nothing_and_the_next_one_raises_the_level():
    network = NetworkLevels(NEEDED)
    start_levels = []
    for _ in range(MAX_IGNORED_FAILURES_BY_OTHERS + 1):
        network.failed_by_others(next_level=CROWDED)
        start_levels.append(network.start_level)
    assert start_levels == [NEEDED] * MAX_IGNORED_FAILURES_BY_OTHERS + [CROWDED]


@pytest.mark.parametrize(
    ("events", "next_level", "start_level"),
    [
        (("failures",), 4, 4),
        (("failures",), 2, CROWDED),
        (("failures",), None, CROWDED),
        (("failures", CROWDED), 4, 4),
        (("failures", CROWDED), 2, CROWDED),
        (("failures", CROWDED), None, CROWDED),
    ],
)
def test_once_crowded_every_failure_by_others_raises_trials_to_the_highest_crowded_level(
    events, next_level, start_level
):
    network = network_after(*events)
    network.failed_by_others(next_level)
    assert network.start_level == start_level


def test_failures_by_others_without_a_next_level_change_no_start_level():
    network = NetworkLevels(NEEDED)
    for _ in range(MAX_IGNORED_FAILURES_BY_OTHERS + 1):
        network.failed_by_others(next_level=None)
    assert network.start_level == NEEDED
    network.failed_by_others(CROWDED)
    assert network.start_level == CROWDED


@pytest.mark.parametrize(
    ("events", "start_level", "level_after_one_failure"),
    [
        ((NEEDED,), NEEDED, NEEDED),
        ((5,), NEEDED, NEEDED),
        (("failures", CROWDED), NEEDED, CROWDED),
        (("failures", 5), NEEDED, CROWDED),
        (("failures", 2), NEEDED, NEEDED),
        (("failures", 0), 0, 0),  # the attempt started before the needed level rose
        (("failures", CROWDED, CROWDED), NEEDED, CROWDED),
        (("failures", CROWDED, NEEDED), NEEDED, NEEDED),
    ],
)
def test_only_a_result_below_the_crowded_level_shows_that_the_others_have_ended(
    events, start_level, level_after_one_failure
):
    network = network_after(*events)
    assert network.start_level == start_level
    network.failed_by_others(CROWDED)
    assert network.start_level == level_after_one_failure


def test_after_the_others_have_ended_their_failures_are_counted_from_0_again():
    network = network_after("failures", NEEDED)
    for _ in range(MAX_IGNORED_FAILURES_BY_OTHERS):
        network.failed_by_others(CROWDED)
    assert network.start_level == NEEDED
    network.failed_by_others(CROWDED)
    assert network.start_level == CROWDED


@pytest.mark.parametrize("events", [("failures",), ("failures", CROWDED)])
def test_every_result_ends_a_crowded_level_that_the_needed_level_has_reached(events):
    network = network_after(*events)
    network.raise_needed_level(CROWDED)
    assert network.start_level == CROWDED
    network.finished(CROWDED)
    assert network.start_level == CROWDED
    network.failed_by_others(5)
    assert network.start_level == CROWDED
