"""Arrays in the object store: there when a trial needs them, gone when none does."""

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


def data(key):
    images = np.full((10, 1, 10, 10), ord(key), np.uint8)
    labels = np.zeros(10, np.int64)
    return TrialData(images, labels, images[:0], labels[:0], 2, key)


@pytest.fixture
def shelf(ray_local):
    loaded = []
    references = start_beside_driver(IsweepArrays)
    shelf = ArrayCache(
        lambda key: loaded.append(key) or data(key), 2500, references, Counter("aabbc")
    )
    shelf.loaded = loaded
    yield shelf
    shelf.close()


def start(shelf, key):
    shelf.add_trial(f"{key}{len(shelf._array_by_trial)}", key)


def end(shelf, key):
    trial = next(trial for trial, array in shelf._array_by_trial.items() if array == key)
    shelf.remove_trial(trial, key, for_good=True)


def taken(shelf, key):
    (reference,) = ray.get(shelf.actor.take.remote(key))
    return ray.get(reference)


def test_an_array_is_there_for_the_trial_that_starts_and_loaded_once(shelf):
    start(shelf, "a")
    start(shelf, "a")
    assert taken(shelf, "a").train_images[0, 0, 0, 0] == ord("a")
    assert shelf.loaded == ["a"]


def test_a_trial_that_asks_before_the_array_is_there_waits_for_it(shelf):
    early = shelf.actor.take.remote("b")
    assert ray.wait([early], timeout=0.2)[0] == []
    start(shelf, "b")
    (reference,) = ray.get(early)
    assert ray.get(reference).data_fingerprint == "b"


def test_an_array_leaves_with_the_last_trial_that_needs_it(shelf):
    start(shelf, "c")
    shelf.remove_trial("c0", "c", for_good=False)
    assert shelf.num_bytes == 1000  # it is tried again
    start(shelf, "c")
    end(shelf, "c")
    assert shelf.num_bytes == 0


def test_idle_arrays_make_room_and_come_back_and_running_ones_stay(shelf):
    start(shelf, "a")
    start(shelf, "b")
    end(shelf, "a")
    start(shelf, "c")  # 3,000 bytes would not fit: a is idle and goes
    assert shelf.num_bytes == 2000
    start(shelf, "a")  # all three run now: the budget gives way, the trials do not
    assert (shelf.num_bytes, len(shelf.loaded)) == (3000, 4)
    assert taken(shelf, "a").data_fingerprint == "a"


@pytest.mark.parametrize("kind", [DataError, SetupError])
def test_an_array_that_cannot_be_read_lets_no_trial_wait(ray_local, kind):
    """Of bad data its own cells die, with its message; anything else ends the sweep."""

    def broken(key):
        raise kind("Half of an array is missing", hint="Prepare the array again")

    shelf = ArrayCache(broken, 1, start_beside_driver(IsweepArrays))
    if kind is DataError:
        start(shelf, "a")
    else:
        with pytest.raises(SetupError, match="Half of an array is missing"):
            start(shelf, "a")
    (reason,) = ray.get(shelf.actor.take.remote("a"))
    assert str(reason) == "Half of an array is missing. Prepare the array again."
    shelf.close()


def killed(actor):
    """Kill an actor's process, as Ray's memory killer does, and wait until it is gone."""
    pid = ray.get(actor.pid.remote())
    os.kill(pid, signal.SIGKILL)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)


class WithPid(IsweepArrays):
    async def pid(self):
        return os.getpid()


def test_trials_get_their_arrays_again_when_the_actor_that_hands_them_out_was_killed(
    ray_local, monkeypatch
):
    """Each further trial of that start failed, up to twenty times, and nobody said why."""
    monkeypatch.setattr("orchestrator.running.arrays.CHECK_INTERVAL_S", 0.0)
    actor = start_beside_driver(WithPid, max_restarts=-1, max_task_retries=-1)
    cache = ArrayCache(data, 5000, actor, Counter("aab"))
    start(cache, "a")
    early = actor.take.remote("b")
    killed(actor)
    late = actor.take.remote("a")
    while not ray.wait([late], timeout=0.1)[0]:
        cache.check_actor()
    assert ray.get(ray.get(late)[0]).data_fingerprint == "a"
    start(cache, "b")
    assert ray.get(ray.get(early)[0]).data_fingerprint == "b"
    cache.close()


def test_a_trial_learns_that_its_array_cannot_be_read_also_from_an_actor_that_was_killed(
    ray_local, monkeypatch
):
    monkeypatch.setattr("orchestrator.running.arrays.CHECK_INTERVAL_S", 0.0)
    actor = start_beside_driver(WithPid, max_restarts=-1, max_task_retries=-1)

    def broken(key):
        raise DataError("Half of an array is missing")

    cache = ArrayCache(broken, 1, actor)
    start(cache, "a")
    killed(actor)
    late = actor.take.remote("a")
    while not ray.wait([late], timeout=0.1)[0]:
        cache.check_actor()
    assert isinstance(ray.get(late)[0], DataError)
    cache.close()
