"""Leases: one command at a time per object store, also after simultaneous starts and a kill."""

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
def short_intervals(monkeypatch):
    monkeypatch.setattr(locks, "RENEW_EVERY_S", 0.02)
    monkeypatch.setattr(locks, "READ_LEASE_EVERY_S", 0.01)
    monkeypatch.setattr(locks, "EXPIRES_S", 0.5)


def s3_client(bucket):
    return boto3.client("s3", endpoint_url=bucket.environment["AWS_ENDPOINT_URL"])


def lease_key(url):
    return f"{url.removeprefix(f's3://{BUCKET}/')}/{LEASE_FILE}"


def lease_names(bucket, url):
    client = s3_client(bucket)
    listing = client.list_objects_v2(Bucket=BUCKET, Prefix=lease_key(url))
    return [
        json.loads(client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read())["name"]
        for entry in listing.get("Contents", ())
    ]


def leave_lease(bucket, url, name, content=None):
    body = content or json.dumps({"token": "t", "beat": 7, "name": name})
    s3_client(bucket).put_object(Bucket=BUCKET, Key=lease_key(url), Body=body.encode())


def test_a_second_command_is_refused_while_the_first_runs(bucket, url, monkeypatch):
    monkeypatch.setattr(locks, "EXPIRES_S", 1e9)  # a slow machine makes nobody dead
    messages = []
    with Lease(url, "a", "isweep run first"):
        assert lease_names(bucket, url) == ["a"]
        expected_error = r"is in use by process \d+ of .* \(isweep run first, since"
        with (
            pytest.raises(InUseError, match=expected_error),
            Lease(url, "b", "isweep run second", messages.append),
        ):
            pytest.fail("two hold it")
        assert lease_names(bucket, url) == ["a"]
    assert lease_names(bucket, url) == []
    (message,) = messages
    assert "isweep run first" in message
    assert (
        "isweep waits up to 1,000,000,000 s to see whether that command is still running" in message
    )


@pytest.mark.parametrize("content", [None, "[" * 100_000])
def test_the_lease_of_a_killed_command_expires_and_that_of_the_same_root_is_replaced_at_once(
    bucket, url, content, monkeypatch
):
    leave_lease(bucket, url, "dead", content)
    messages = []
    with Lease(url, "b", "isweep run", messages.append):
        assert lease_names(bucket, url) == ["b"]
    assert "in use by another command. isweep waits" in messages[0]
    monkeypatch.setattr(locks, "EXPIRES_S", 1e9)
    leave_lease(bucket, url, "a")
    with Lease(url, "a", "isweep run"):  # the same root
        assert lease_names(bucket, url) == ["a"]


@pytest.mark.parametrize("with_expired_lease", [False, True])
def test_one_of_many_simultaneous_starts_gets_the_lease(
    bucket, url, monkeypatch, with_expired_lease
):
    # On a slow machine, a holder renews late. So only the lease "dead" expires, and it does at once.
    monkeypatch.setattr(locks, "EXPIRES_S", 1e9)
    wait_until_expired = Lease._wait_until_expired

    def wait_for_the_living(lease, seen):
        if seen.fields["name"] != "dead":
            wait_until_expired(lease, seen)

    monkeypatch.setattr(Lease, "_wait_until_expired", wait_for_the_living)
    if with_expired_lease:
        leave_lease(bucket, url, "dead")
    names, holders, refused, all_ready = "abcdef", [], [], threading.Barrier(6)
    all_decided = threading.Event()

    def start(name):
        all_ready.wait()
        try:
            # A second holder fails the last lines, and must not interrupt pytest before.
            with Lease(url, name, f"run {name}", interrupt=lambda *_: None):
                holders.append(name)
                all_decided.wait()
        except SetupError:
            refused.append(name)

    threads = [threading.Thread(target=start, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    while len(holders) + len(refused) < len(names):
        time.sleep(0.01)
    all_decided.set()
    for thread in threads:
        thread.join()
    assert len(holders) == 1
    assert lease_names(bucket, url) == []


def test_a_released_lease_is_not_renewed(bucket, url, monkeypatch):
    original_remove = Bucket.remove
    monkeypatch.setattr(
        Bucket, "remove", lambda self, path: (original_remove(self, path), time.sleep(0.3))
    )
    with Lease(url, "a", "isweep run"):
        assert lease_names(bucket, url) == ["a"]
    assert lease_names(bucket, url) == []


def test_a_store_without_conditional_writes_is_refused(bucket, url, monkeypatch):
    """Old servers ignore the header of conditional writes and overwrite the object."""
    original_put = Bucket.put
    monkeypatch.setattr(
        Bucket, "put", lambda self, path, data, mode: original_put(self, path, data, "overwrite")
    )
    with (
        pytest.raises(SetupError, match=r"conditional writes"),
        Lease(url, "a", "isweep run"),
    ):
        pytest.fail("the lease was granted")
    assert lease_names(bucket, url) == []


def test_a_lease_survives_an_outage_and_is_removed_at_the_end(monkeypatch):
    monkeypatch.setattr(locks, "EXPIRES_S", 1e9)  # a slow machine makes nobody dead
    monkeypatch.setattr("orchestrator.results.storage.TRIES", 1)
    messages: list[str] = []
    with object_store() as store:
        with Lease(store.url, "a", "isweep run first", messages.append) as lease:
            store.stop()
            while not messages:
                time.sleep(0.01)
            store.start()
            while len(messages) < 2:
                time.sleep(0.01)
            assert messages[0].startswith("The storage does not answer: ")
            assert messages[0].endswith("of finished trials when the storage answers again")
            assert messages[1].startswith("The storage answers again after ")
            with (
                pytest.raises(
                    SetupError, match=r"s3://results/lab is in use by .*isweep run first"
                ),
                Lease(store.url, "b", "isweep run second"),
            ):
                pytest.fail("two hold it")
        assert lease.failure is None
        with Lease(store.url, "b", "isweep run second"):
            pass
        assert lease_names(store, store.url) == []
