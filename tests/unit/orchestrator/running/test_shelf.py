"""Test the arrays in the object store: each is there while a trial needs it, and removed after."""

import os
import signal
import time
from collections import Counter

import numpy as np
import psutil
import pytest
import ray

from orchestrator.running.actors import IsweepArrays, start_beside_driver
from orchestrator.running.arrays import ArrayCache
from search_spaces.errors import DataError, SetupError
from tasks.prepared.subsets import TrialData

pytestmark = pytest.mark.ray


def trial_data(key):
    images = np.full((10, 1, 10, 10), ord(key), np.uint8)
    labels = np.zeros(10, np.int64)
    return TrialData(images, labels, images[:0], labels[:0], 2, key)


@pytest.fixture
def cache(ray_local):
    loaded = []
    references = start_beside_driver(IsweepArrays)
    cache = ArrayCache(
        lambda key: loaded.append(key) or trial_data(key), 2500, references, Counter("aabbc")
    )
    cache.loaded = loaded
    yield cache
    cache.close()


def start_trial(cache, key):
    cache.add_trial(f"{key}{len(cache._array_by_trial)}", key)


def end_trial(cache, key):
    trial = next(trial for trial, array in cache._array_by_trial.items() if array == key)
    cache.remove_trial(trial, key, for_good=True)


def take_array(cache, key):
    (reference,) = ray.get(cache.actor.take.remote(key))
    return ray.get(reference)


def test_an_array_is_loaded_once_for_all_trials_that_start(cache):
    start_trial(cache, "a")
    start_trial(cache, "a")
    assert take_array(cache, "a").train_images[0, 0, 0, 0] == ord("a")
    assert cache.loaded == ["a"]


def test_a_trial_that_starts_before_its_array_is_loaded_waits_for_it(cache):
    early = cache.actor.take.remote("b")
    assert ray.wait([early], timeout=0.2)[0] == []
    start_trial(cache, "b")
    (reference,) = ray.get(early)
    assert ray.get(reference).data_fingerprint == "b"


def test_an_array_is_removed_with_the_last_trial_that_needs_it(cache):
    start_trial(cache, "c")
    cache.remove_trial("c0", "c", for_good=False)
    assert cache.num_bytes == 1000  # the trial will be retried
    start_trial(cache, "c")
    end_trial(cache, "c")
    assert cache.num_bytes == 0


def test_idle_arrays_are_removed_for_new_ones_and_arrays_in_use_stay(cache):
    start_trial(cache, "a")
    start_trial(cache, "b")
    end_trial(cache, "a")
    start_trial(cache, "c")  # 3,000 bytes would not fit: a is idle and is removed
    assert cache.num_bytes == 2000
    start_trial(cache, "a")  # all three run now: the budget is exceeded, no trial waits
    assert (cache.num_bytes, len(cache.loaded)) == (3000, 4)
    assert take_array(cache, "a").data_fingerprint == "a"


@pytest.mark.parametrize("kind", [DataError, SetupError])
def test_no_trial_waits_for_an_array_that_cannot_be_read(ray_local, kind):
    """A DataError fails only the trials of this array. Any other error ends the sweep."""

    def fail_to_load(key):
        raise kind("Half of an array is missing", hint="Prepare the array again")

    cache = ArrayCache(fail_to_load, 1, start_beside_driver(IsweepArrays))
    if kind is DataError:
        start_trial(cache, "a")
    else:
        with pytest.raises(SetupError, match="Half of an array is missing"):
            start_trial(cache, "a")
    (reason,) = ray.get(cache.actor.take.remote("a"))
    assert str(reason) == "Half of an array is missing. Prepare the array again."
    cache.close()


def kill_process(actor):
    """Kill the process of an actor, like Ray if memory is short, and wait until it has ended."""
    pid = ray.get(actor.pid.remote())
    os.kill(pid, signal.SIGKILL)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)


class ArraysWithPid(IsweepArrays):
    async def pid(self):
        return os.getpid()


def test_trials_get_their_arrays_after_the_actor_of_arrays_was_killed(ray_local, monkeypatch):
    """Each further trial of that start once failed up to twenty times without a reason."""
    monkeypatch.setattr("orchestrator.running.arrays.CHECK_INTERVAL_S", 0.0)
    actor = start_beside_driver(ArraysWithPid, max_restarts=-1, max_task_retries=-1)
    cache = ArrayCache(trial_data, 5000, actor, Counter("aab"))
    start_trial(cache, "a")
    early = actor.take.remote("b")
    kill_process(actor)
    late = actor.take.remote("a")
    while not ray.wait([late], timeout=0.1)[0]:
        cache.check_actor()
    assert ray.get(ray.get(late)[0]).data_fingerprint == "a"
    start_trial(cache, "b")
    assert ray.get(ray.get(early)[0]).data_fingerprint == "b"
    cache.close()


def test_a_trial_gets_the_error_of_its_array_after_the_actor_was_killed(ray_local, monkeypatch):
    monkeypatch.setattr("orchestrator.running.arrays.CHECK_INTERVAL_S", 0.0)
    actor = start_beside_driver(ArraysWithPid, max_restarts=-1, max_task_retries=-1)

    def fail_to_load(key):
        raise DataError("Half of an array is missing")

    cache = ArrayCache(fail_to_load, 1, actor)
    start_trial(cache, "a")
    kill_process(actor)
    late = actor.take.remote("a")
    while not ray.wait([late], timeout=0.1)[0]:
        cache.check_actor()
    assert isinstance(ray.get(late)[0], DataError)
    cache.close()
