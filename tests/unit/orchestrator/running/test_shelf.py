"""Arrays in the object store: there when a trial needs them, gone when none does."""

from collections import Counter

import numpy as np
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
    shelf.trial_started(f"{key}{len(shelf._array_by_trial)}", key)


def end(shelf, key):
    trial = next(trial for trial, array in shelf._array_by_trial.items() if array == key)
    shelf.trial_ended(trial, key, for_good=True)


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
    shelf.trial_ended("c0", "c", for_good=False)
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
        raise kind("Arrays must be whole", "half of one", "prepare it again")

    shelf = ArrayCache(broken, 1, start_beside_driver(IsweepArrays))
    if kind is DataError:
        start(shelf, "a")
    else:
        with pytest.raises(SetupError, match="half of one"):
            start(shelf, "a")
    (reason,) = ray.get(shelf.actor.take.remote("a"))
    assert str(reason) == "Arrays must be whole; found: half of one; prepare it again."
    shelf.close()
