"""MLflow's own page, started on loopback for one person, and the addresses on it that answer a question.

The page itself is asked what it shows, so nothing of MLflow is imported here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.errors import SetupError

PORT = 5000
START_S = 240
"""On a busy machine MLflow took a minute and a half."""
LOOK_S = 0.5
END_S = 10
ANSWER_S = 10
LINK = re.compile(r"\[([^\]]+)\]\((#/[^)\s]+)\)")
NOTE_TAG = "mlflow.note.content"


@dataclass(frozen=True)
class Page:
    """Where a server shows a sweep.

    Attributes:
        experiment: Its name in MLflow.
        addresses: Question -> address that opens on the answer, the best first.
    """

    experiment: str
    addresses: dict[str, str]


def free_port(asked: int | None = None) -> int:
    """Return a port of loopback that nobody listens on: the one asked for, else MLflow's or any other.

    Raises:
        SetupError: when the one asked for is taken.
    """
    for port in (asked,) if asked else (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise SetupError(
        "The port must be free", f"{asked} is taken", "name another with --port, or leave it out"
    )


@contextlib.contextmanager
def served(uri: str, port: int, log: Path) -> Iterator[str]:
    """Serve the MLflow store at ``uri`` during a ``with`` block; yields the page's address when it answers.

    A server's own address is given back as it is, and nothing started.

    Args:
        uri: A database or a server. Passed in the environment, since it may hold a password.
        port: Of loopback.
        log: What the server says goes there.

    Raises:
        SetupError: when it does not start, with its last words.
    """
    if uri.startswith(("http://", "https://")):
        yield uri.rstrip("/")
        return
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    # Its jobs are workers for judging language models, 300 MB of memory that nobody asked for.
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*command, "--workers", "1"],
            env=environment, cwd=log.parent, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait(address, lambda: process.poll() is None, log)
        yield address
    finally:
        _end(process)


def _wait(address: str, alive: Callable[[], bool], log: Path) -> None:
    until = time.monotonic() + START_S
    while alive() and time.monotonic() < until:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=ANSWER_S).close()
            return
        time.sleep(LOOK_S)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
    why = lines[-1][:300] if not alive() else f"no answer in {START_S} s"
    raise SetupError("MLflow's page must start", why, f"its log: {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server with its workers, which are a session of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
            return


def sweep_pages(address: str, sweep: str) -> list[Page]:
    """Return where the server at ``address`` shows a sweep; several where result stores share its name.

    Raises:
        SetupError: when the server does not answer.
    """
    query = {"filter": f"name LIKE 'isweep/{sweep}%'", "max_results": 1000}
    names = {f"isweep/{sweep}"}
    found = [
        one
        for one in _asked(f"{address}/api/2.0/mlflow/experiments/search", query).get("experiments", [])
        if one["name"].partition("@")[0] in names
    ]
    return [Page(one["name"], _addresses(address, one)) for one in sorted(found, key=lambda one: one["name"])]


def _addresses(address: str, experiment: dict[str, Any]) -> dict[str, str]:
    """Return the links of an experiment's description; without any, the page of its runs."""
    tags = {tag["key"]: tag["value"] for tag in experiment.get("tags", [])}
    links = LINK.findall(tags.get(NOTE_TAG, "").partition("\n")[0])
    plain = f"#/experiments/{experiment['experiment_id']}/runs?workflowType=machine_learning"
    return {question: f"{address}/{link}" for question, link in links or [("All runs", plain)]}


def _asked(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except (OSError, ValueError) as error:
        host = urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
        raise SetupError("The MLflow server must answer", f"{host}: {error}", "see: isweep doctor") from None
