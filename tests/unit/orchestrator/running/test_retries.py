"""Who is tried again: a death counts against a trial only when it dies again and again while others live."""

import random

import pytest

from orchestrator.results.records import FailureKind
from orchestrator.running.failures import LONGEST_PAUSE_S, MOST_DEATHS, MOST_IN_VAIN, Retries
from orchestrator.running.queue import CellQueue
from search_spaces.errors import SweepError

CRASH, LOST = FailureKind.WORKER_CRASH, FailureKind.LOST_NODE


def test_a_trial_that_dies_alone_is_given_up_after_the_third_time():
    retries = Retries()
    decisions = []
    for _ in range(3):
        decisions.append(retries.failed("poison", CRASH, died=True))
        retries.finished("good")
    assert [decision.pause_s for decision in decisions] == [1.0, 2.0, None]
    assert decisions[0].reason == "attempt 2 of 3 in 1 s: other trials live"
    assert decisions[-1].reason == "other trials live"


def test_where_others_die_too_a_trial_gets_more_attempts_but_not_for_ever():
    retries = Retries()
    for other in range(40):
        retries.failed(f"other {other}", CRASH, died=True)
        retries.finished("good")
    pauses = [retries.failed("mine", CRASH, died=True).pause_s for _ in range(MOST_DEATHS)]
    assert None not in pauses[:-1]
    assert pauses[-1] is None


def test_a_node_whose_memory_others_take_costs_no_trial_its_attempts():
    retries, memory = Retries(), FailureKind.OUT_OF_MEMORY
    for _ in range(4):
        for cell in ("a", "b", "c"):
            assert retries.failed(cell, memory, died=True).pause_s is not None
    assert (
        retries.failed("a", memory, died=True).reason
        == "attempt 6 of 9 in 16 s: other trials died 8 times too"
    )
    alone = Retries()
    for cell in ("b", "c") * 4:  # these caught it themselves
        alone.failed(cell, memory)
    decisions = [alone.failed("a", memory, died=True) for _ in range(5)]
    assert [decision.pause_s is None for decision in decisions] == [False] * 4 + [True]


def test_a_lost_node_never_counts():
    retries = Retries()
    for _ in range(MOST_IN_VAIN):
        decision = retries.failed("a", LOST, died=True)
        assert decision.pause_s is not None
        assert decision.pause_s <= LONGEST_PAUSE_S
    retries.finished("b")
    assert retries.failed("a", LOST, died=True).pause_s == LONGEST_PAUSE_S


def test_where_nothing_ever_works_the_sweep_ends():
    retries = Retries()
    for number in range(MOST_IN_VAIN):
        assert retries.failed(f"cell {number}", LOST, died=True).pause_s is not None
    assert (
        retries.failed("one more", LOST, died=True).reason
        == f"{MOST_IN_VAIN} attempts in a row failed, of all trials"
    )


def test_lost_nodes_do_not_use_up_the_attempts_of_a_crash():
    retries = Retries()
    for _ in range(20):
        retries.failed("a", LOST, died=True)
    assert retries.failed("a", CRASH, died=True).pause_s is not None


def test_a_bug_is_not_tried_again():
    decision = Retries().failed("a", FailureKind.CODE_ERROR)
    assert (decision.pause_s, decision.reason) == (None, "code_error would come again")


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("seed", range(20))
def test_random_kills_end_no_good_trial_and_spare_no_bad_one(rate, seed):
    """60 cells on two workers; each attempt is killed with probability ``rate``; one cell always dies."""
    chance, retries = random.Random(seed), Retries()
    queue = CellQueue.of(["poison", *map(str, range(60))])
    now, done, given_up = 0.0, set(), set()
    while not queue.empty:
        now += 1
        taken = queue.take(now)
        if taken is None:
            continue
        if taken == "poison" or chance.random() < rate:
            decision = retries.failed(taken, CRASH, died=True)
            if decision.pause_s is None:
                queue.settle(taken)
                given_up.add(taken)
            else:
                queue.again(taken, now + decision.pause_s)
        else:
            retries.finished(taken)
            queue.settle(taken)
            done.add(taken)
    assert given_up == {"poison"}
    assert len(done) == 60


class TestCellQueue:
    def test_waiting_cells_go_before_those_that_failed(self):
        queue = CellQueue.of(["a", "b"])
        assert queue.take(0.0) == "a"
        queue.again("a", 1.0)
        assert queue.take(2.0) == "b"
        assert queue.take(2.0) == "a"

    def test_a_cell_waits_its_time_and_the_queue_is_not_empty_meanwhile(self):
        queue = CellQueue.of(["a"])
        queue.take(0.0)
        queue.again("a", 5.0)
        assert queue.take(4.9) is None
        assert not queue.empty
        assert queue.take(5.0) == "a"
        queue.settle("a")
        assert queue.empty

    def test_a_closed_queue_gives_nothing_out(self):
        queue = CellQueue.of(["a"])
        queue.error = SweepError("The disk must have room")
        assert queue.take(0.0) is None
        assert queue.empty
