"""Who goes on at a rung: all of the first, then the best third of those that came, recomputed by hand."""

import math

import numpy as np

from orchestrator.tuning.search import Rungs, rung_epochs


def test_the_rung_stands_at_a_third():
    assert rung_epochs(90) == (30,)
    assert rung_epochs(100) == (34,)
    assert rung_epochs(1) == ()
    assert rung_epochs(3) == (1,)


def test_a_trial_goes_on_when_it_is_among_the_best_third_so_far():
    losses = np.random.default_rng(0).uniform(size=200)
    rungs = Rungs(before=0)
    for number, loss in enumerate(losses, 1):
        place = sorted(losses[:number]).index(loss)
        assert rungs.come("s", f"t{number}", 3, loss) == (place < math.ceil(number / 3))


def test_nobody_is_stopped_before_enough_came_to_be_compared_with():
    """At the default budget of five trainings nothing stops."""
    rungs = Rungs()
    assert all(rungs.come("s", f"t{number}", 3, float(number)) for number in range(5))
    assert not rungs.come("s", "t5", 3, 5.0)
    assert rungs.come("s", "t6", 3, -1.0)
    assert rungs.come("other", "t7", 3, 9.0)


def test_studies_and_rungs_are_compared_apart():
    rungs = Rungs(before=0)
    assert rungs.come("a", "t1", 3, 0.1)
    assert rungs.come("b", "t2", 3, 0.9)
    assert rungs.come("a", "t1", 9, 0.9)
    assert not rungs.come("a", "t3", 3, 0.2)


def test_an_attempt_that_comes_again_counts_once():
    rungs = Rungs(before=0)
    for _ in range(5):
        assert rungs.come("a", "t1", 3, 0.2)
    assert not rungs.come("a", "t2", 3, 0.3)
