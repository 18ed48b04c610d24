"""Leases: one driver per object store, whoever starts when, and whatever a killed one left."""

import json
import threading
import time

import pytest

from orchestrator.running import locks
from orchestrator.running.locks import Lease
from search_spaces.errors import SetupError
from tests.object_store import object_store


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.02)
    monkeypatch.setattr(locks, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(locks, "EXPIRES_S", 0.5)


def leases(folder):
    return sorted(path.parent.name for path in folder.glob("drivers/*/lease.json"))


def test_a_second_driver_is_refused_by_name_while_the_first_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "EXPIRES_S", 1e9)  # a slow machine makes nobody dead
    said = []
    with Lease(str(tmp_path), "a", "isweep run first"):
        assert leases(tmp_path) == ["a"]
        with (
            pytest.raises(
                SetupError,
                match=r"Only one .* storage.*in use by process \d+ of .* \(isweep run first, since",
            ),
            Lease(str(tmp_path), "b", "isweep run second", said.append),
        ):
            pytest.fail("two hold it")
        assert leases(tmp_path) == ["a"]
    assert leases(tmp_path) == []
    (text,) = said
    assert "isweep run first" in text
    assert "looking for up to 1e+09 s whether that driver lives" in text


def left_behind(folder, name):
    path = folder / "drivers" / name / "lease.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"token": "t", "beat": 7, "holds": True}))


def test_a_killed_driver_s_lease_expires(tmp_path):
    left_behind(tmp_path, "dead")
    said = []
    with Lease(str(tmp_path), "b", "isweep run", said.append):
        assert leases(tmp_path) == ["b"]
    assert "in use by another driver; looking" in said[0]


def test_the_same_root_s_earlier_lease_is_replaced_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "EXPIRES_S", 1e9)
    left_behind(tmp_path, "a")
    with Lease(str(tmp_path), "a", "isweep run"):
        assert leases(tmp_path) == ["a"]


def test_a_lease_that_cannot_be_read_is_somebody_s_and_expires(tmp_path):
    left_behind(tmp_path, "dead")
    (tmp_path / "drivers/dead/lease.json").write_text("[" * 100_000)
    with Lease(str(tmp_path), "b", "isweep run"):
        assert leases(tmp_path) == ["b"]


def test_of_many_that_start_at_once_exactly_one_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "EXPIRES_S", 1e9)  # a slow machine makes nobody dead
    names, held, refused, together = "abcdef", [], [], threading.Barrier(6)
    done = threading.Event()

    def start(name):
        together.wait()
        try:
            with Lease(str(tmp_path), name, f"run {name}"):
                held.append(name)
                done.wait()
        except SetupError:
            refused.append(name)

    threads = [threading.Thread(target=start, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    while len(held) + len(refused) < len(names):
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert leases(tmp_path) == []


def test_a_driver_whose_lease_was_taken_over_ends(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(locks, "end_main_thread", lambda error, event: ended.append(error))
    held = Lease(str(tmp_path), "a", "isweep run")

    def drive():
        with held:
            left_behind(tmp_path, "b")
            while held.lost is None or not ended:
                # Again, since it may be in the middle of renewing.
                (tmp_path / "drivers/a/lease.json").unlink(missing_ok=True)
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(SetupError, match=r"another driver took it over; this one had not renewed"):
        drive()
    assert ended == [held.lost]
    assert leases(tmp_path) == ["b"]


def test_a_lease_that_was_deleted_by_hand_is_written_again(tmp_path):
    path = tmp_path / "drivers/a/lease.json"
    with Lease(str(tmp_path), "a", "isweep run") as held:
        path.unlink()
        while not path.exists():
            time.sleep(0.01)
        assert held.lost is None


def test_a_bucket_is_held_through_an_outage_and_left_clean(monkeypatch):
    monkeypatch.setattr(locks, "EXPIRES_S", 5.0)  # a slow machine makes nobody dead
    monkeypatch.setattr("orchestrator.results.storage.TRIES", 1)
    monkeypatch.setattr("orchestrator.results.storage.CONNECT_TIMEOUT_S", 0.5)
    said: list[str] = []
    with object_store() as store:
        with Lease(store.url, "a", "isweep run first", said.append) as held:
            store.stop()
            while not said:
                time.sleep(0.01)
            store.start()
            while len(said) < 2:
                time.sleep(0.01)
            assert said[0].startswith("The storage does not answer: s3://results/lab/drivers")
            assert said[0].endswith("Trials that end wait for it")
            assert said[1].startswith("The storage answers again after ")
            with (
                pytest.raises(SetupError, match=r"s3://results/lab is in use by .*isweep run first"),
                Lease(store.url, "b", "isweep run second"),
            ):
                pytest.fail("two hold it")
        assert held.lost is None
        with Lease(store.url, "b", "isweep run second"):
            pass
        assert Lease(store.url, "c", "x")._others() == {}
