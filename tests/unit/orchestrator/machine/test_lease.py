"""Leases: one driver per object store, whoever starts when, and whatever a killed one left."""

import json
import threading
import time

import boto3
import pytest

from orchestrator.machine import locks
from orchestrator.machine.locks import LEASE_FILE, InUseError, Lease
from orchestrator.results.storage import Bucket
from search_spaces.errors import SetupError
from tests.object_store import BUCKET, object_store


@pytest.fixture
def url(bucket, request):
    return f"s3://{BUCKET}/{abs(hash(request.node.name))}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locks, "RENEW_EVERY_S", 0.02)
    monkeypatch.setattr(locks, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(locks, "EXPIRES_S", 0.5)


def client(bucket):
    return boto3.client("s3", endpoint_url=bucket.environment["AWS_ENDPOINT_URL"])


def key(url):
    return f"{url.removeprefix(f's3://{BUCKET}/')}/{LEASE_FILE}"


def leases(bucket, url):
    found = client(bucket).list_objects_v2(Bucket=BUCKET, Prefix=key(url))
    return [
        json.loads(client(bucket).get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read())["name"]
        for one in found.get("Contents", ())
    ]


def left_behind(bucket, url, name, content=None):
    text = content or json.dumps({"token": "t", "beat": 7, "name": name})
    client(bucket).put_object(Bucket=BUCKET, Key=key(url), Body=text.encode())


def test_a_second_driver_is_refused_by_name_while_the_first_lives(bucket, url, monkeypatch):
    monkeypatch.setattr(locks, "EXPIRES_S", 1e9)  # a slow machine makes nobody dead
    said = []
    with Lease(url, "a", "isweep run first"):
        assert leases(bucket, url) == ["a"]
        refused = r"is in use by process \d+ of .* \(isweep run first, since"
        with (
            pytest.raises(InUseError, match=refused),
            Lease(url, "b", "isweep run second", said.append),
        ):
            pytest.fail("two hold it")
        assert leases(bucket, url) == ["a"]
    assert leases(bucket, url) == []
    (text,) = said
    assert "isweep run first" in text
    assert "isweep waits up to 1,000,000,000 s to see whether that command is still running" in text


@pytest.mark.parametrize("content", [None, "[" * 100_000])
def test_a_killed_driver_s_lease_expires_and_the_same_root_s_is_replaced_at_once(
    bucket, url, content, monkeypatch
):
    left_behind(bucket, url, "dead", content)
    said = []
    with Lease(url, "b", "isweep run", said.append):
        assert leases(bucket, url) == ["b"]
    assert "in use by another command. isweep waits" in said[0]
    monkeypatch.setattr(locks, "EXPIRES_S", 1e9)
    left_behind(bucket, url, "a")
    with Lease(url, "a", "isweep run"):  # its own root's earlier one
        assert leases(bucket, url) == ["a"]


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_that_start_at_once_exactly_one_holds(bucket, url, monkeypatch, dead):
    if dead:
        left_behind(bucket, url, "dead")
        monkeypatch.setattr(locks, "EXPIRES_S", 2.0)
    else:
        monkeypatch.setattr(locks, "EXPIRES_S", 1e9)  # a slow machine makes nobody dead
    names, held, refused, together = "abcdef", [], [], threading.Barrier(6)
    done = threading.Event()

    def start(name):
        together.wait()
        try:
            with Lease(url, name, f"run {name}"):
                held.append(name)
                locks.EXPIRES_S = 1e9
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
    assert leases(bucket, url) == []


def test_no_beat_makes_a_lease_again_that_was_given_back(bucket, url, monkeypatch):
    remove = Bucket.remove
    monkeypatch.setattr(Bucket, "remove", lambda self, path: (remove(self, path), time.sleep(0.3)))
    with Lease(url, "a", "isweep run"):
        assert leases(bucket, url) == ["a"]
    assert leases(bucket, url) == []


def test_a_store_that_writes_over_what_is_there_is_refused(bucket, url, monkeypatch):
    """As servers did before they knew conditional writes: the header means nothing to them."""
    real = Bucket.put
    monkeypatch.setattr(
        Bucket, "put", lambda self, path, data, mode: real(self, path, data, "overwrite")
    )
    with (
        pytest.raises(SetupError, match=r"conditional writes"),
        Lease(url, "a", "isweep run"),
    ):
        pytest.fail("nobody may hold it")
    assert leases(bucket, url) == []


def test_a_bucket_is_held_through_an_outage_and_left_clean(monkeypatch):
    monkeypatch.setattr(locks, "EXPIRES_S", 1e9)  # a slow machine makes nobody dead
    monkeypatch.setattr("orchestrator.results.storage.TRIES", 1)
    said: list[str] = []
    with object_store() as store:
        with Lease(store.url, "a", "isweep run first", said.append) as held:
            store.stop()
            while not said:
                time.sleep(0.01)
            store.start()
            while len(said) < 2:
                time.sleep(0.01)
            assert said[0].startswith("The storage does not answer: ")
            assert said[0].endswith("of finished trials when it answers again")
            assert said[1].startswith("The storage answers again after ")
            with (
                pytest.raises(
                    SetupError, match=r"s3://results/lab is in use by .*isweep run first"
                ),
                Lease(store.url, "b", "isweep run second"),
            ):
                pytest.fail("two hold it")
        assert held.lost is None
        with Lease(store.url, "b", "isweep run second"):
            pass
        assert leases(store, store.url) == []
