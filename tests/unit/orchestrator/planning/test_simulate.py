"""The replay against schedules worked out by hand and against bounds that hold for any list schedule."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planning.estimate import LOOK_AHEAD, Job, longest_first, replay


def jobs(*pairs):
    return [Job(f"{index:03d}", seconds, share) for index, (seconds, share) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("pairs", "num_gpus", "makespan", "at_once"),
    [
        ([(4, 0.5)] * 3, 1, 8, 2),
        ([(5, 0.6)] * 3, 2, 10, 2),  # two run, the third waits although 0.8 GPUs are free
        ([(2, 0.5), (3, 1.0), (2, 0.5)], 1, 5, 2),  # a small one goes past a large one that must wait
        ([(1, 1), (1, 1), (1, 1), (1, 1), (4, 1)], 2, 6, 2),
        ([(4, 1), (1, 1), (1, 1), (1, 1), (1, 1)], 2, 4, 2),  # the longest first
        ([(1, 0.1)] * 20, 1, 2, 10),
        ([], 3, 0, 0),
    ],
)
def test_schedules_worked_out_by_hand(pairs, num_gpus, makespan, at_once):
    found = replay(jobs(*pairs), num_gpus)
    assert (found.makespan, found.most_at_once) == (pytest.approx(makespan), at_once)
    work = sum(seconds * share for seconds, share in pairs)
    longest = max((seconds for seconds, _ in pairs), default=0)
    assert found.lower_bound == pytest.approx(max(work / num_gpus, longest))
    assert found.utilisation * makespan * num_gpus == pytest.approx(work)


@settings(max_examples=60)
@given(
    st.lists(st.floats(0.1, 100), min_size=1, max_size=40),
    st.integers(1, 6),
)
def test_longest_first_keeps_grahams_bound(seconds, num_gpus):
    """Graham 1969: at most 4/3 - 1/(3m) of the best schedule, which is no better than the lower bound."""
    work = longest_first(jobs(*((value, 1.0) for value in seconds)))
    found = replay(work, num_gpus)
    assert found.makespan >= found.lower_bound - 1e-9
    # The best schedule may itself be above the lower bound; any list schedule is within 2 - 1/m of it.
    assert found.makespan <= (2 - 1 / num_gpus) * found.lower_bound + 1e-6
    assert 0 < found.utilisation <= 1 + 1e-9


def test_a_short_job_goes_before_those_that_fit_nowhere_only_as_far_as_trials_are_offered():
    large = [Job(f"large {i:02}", 10.0, 0.6) for i in range(LOOK_AHEAD + 1)]
    near, far = Job("near", 1.0, 0.4), Job("far", 1.0, 0.4)
    found = replay([*large[:2], near, *large[2:], far], 1)
    assert found.starts["near"] == 0
    # The first runs and all others wait: as many as are offered, until one more of them has begun.
    assert found.starts["far"] == 10.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([25, 33, 34, 50, 66, 100])), max_size=25),
    st.integers(1, 4),
)
def test_a_replay_equals_a_slow_one_in_whole_numbers(pairs, num_gpus):
    work = longest_first(jobs(*((float(seconds), share / 100) for seconds, share in pairs)))
    found, waiting, running, expected, now = replay(work, num_gpus), list(work), [], {}, 0
    while waiting or running:
        passed_over = 0
        for job in list(waiting):
            if passed_over == LOOK_AHEAD:
                break
            share = round(100 * job.share)
            used = [sum(other[2] for other in running if other[1] == gpu) for gpu in range(num_gpus)]
            fit = [gpu for gpu in range(num_gpus) if used[gpu] + share <= 100]
            if not fit:
                passed_over += 1
                continue
            running.append((now + job.seconds, max(fit, key=lambda gpu: (used[gpu], -gpu)), share))
            expected[job.name] = now
            waiting.remove(job)
        now = min(end for end, _, _ in running)
        running = [other for other in running if other[0] > now]
    assert (found.makespan, found.starts) == (now, expected)
    assert replay(work, 100_000).starts == dict.fromkeys(expected, 0.0)


def test_a_replay_of_many_trials_on_many_gpus_looks_at_few_of_them_for_each():
    """A hundred thousand trials and GPUs may be planned for: calls, of generators too, are counted here."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    work = jobs(*[(1.0, 1.0)] * 1000)
    sys.setprofile(count)
    try:
        found = replay(work, 500)
    finally:
        sys.setprofile(None)
    assert found.makespan == 2
    assert calls < 30 * len(work)
