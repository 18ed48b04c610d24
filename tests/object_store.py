"""A simulated S3 server on loopback, which can be stopped and started again with its objects."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "results"
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY0001",
    "AWS_SECRET_ACCESS_KEY": "canary-secret-of-the-object-store",
}


@dataclass
class ObjectStore:
    """A server with one bucket.

    Attributes:
        port: The port on which the server listens.
        url: The value for ``--storage``.
    """

    port: int
    url: str = f"s3://{BUCKET}/lab"
    _server: ThreadedMotoServer | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            **KEYS,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
        }

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Start a server with an empty bucket. Inside the block the environment has its address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ObjectStore(port)
    store.start()
    try:
        with mock.patch.dict(os.environ, store.environment):
            boto3.client("s3", endpoint_url=store.environment["AWS_ENDPOINT_URL"]).create_bucket(
                Bucket=BUCKET
            )
            yield store
    finally:
        store.stop()
