"""Start MLflow's web server while a user views its pages, and stop it afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from orchestrator.results.mlflow_connection import connect
from orchestrator.results.mlflow_pages import NOTE_TAG, TRAINING_PAGES
from search_spaces.errors import SetupError

PORT = 5000
"""MLflow's default port. isweep uses it if it is free."""
START_S = 240
"""Longest time for the start of the server, seconds. On a busy machine, the start once took 90
s."""
LOOK_EVERY_S = 0.5
"""Seconds between two requests to a starting server."""
ANSWER_S = 10
"""Longest time for one answer of the server, seconds."""
END_S = 10
"""Seconds after which isweep kills a server that does not end by itself."""
MAX_REASON_LENGTH = 300
"""Largest number of characters that a message quotes from the last line of the server's
output."""
_LINK = re.compile(r"\[([^\]]+)\]\((#/[^)\s]+)\)")


def free_port(requested: int | None = None) -> int:
    """Return a free port of this machine.

    Args:
        requested: The port to use. None means MLflow's default port, or any free port if the
            default port is in use.

    Raises:
        SetupError: The requested port is in use.
    """
    candidates = [PORT, 0]
    if requested:
        candidates = [requested]
    for port in candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise SetupError(
        f"Port {requested} is in use", hint="Choose another port with --port, or remove --port"
    )


@contextlib.contextmanager
def serve_pages(uri: str, port: int, log_path: Path) -> Iterator[str]:
    """Serve the pages of an MLflow store during a ``with`` block.

    Args:
        uri: URI of the store. If the URI is the address of a server, that server is used, and
            no server is started.
        port: Port of this machine at which the server answers.
        log_path: File for the output of the server.

    Yields:
        The address of the pages, after the server has answered.

    Raises:
        SetupError: The server does not start.
    """
    if uri.startswith(("http://", "https://")):
        yield uri.rstrip("/")
        return
    connect(uri)
    address = f"http://127.0.0.1:{port}"
    server = _start(uri, port, log_path)
    try:
        _wait_for_answer(server, address, log_path)
        yield address
    finally:
        _stop(server)


def _start(uri: str, port: int, log_path: Path) -> subprocess.Popen[bytes]:
    """Start the server in a new session, so that its workers can be stopped with it."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    settings = {
        # The URI may contain a password, so it is passed in the environment. Other users could
        # read it on the command line.
        "MLFLOW_BACKEND_STORE_URI": uri,
        # MLflow's job workers use 300 MB of memory. They evaluate language models, but isweep
        # has no language models.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with log_path.open("wb") as log_file:
        return subprocess.Popen(
            [*command, "--workers", "1"],
            env=os.environ | settings,
            cwd=log_path.parent,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
        )


def _wait_for_answer(server: subprocess.Popen[bytes], address: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_S
    while not _answers(address):
        if server.poll() is not None:
            raise _not_started(_last_line(log_path), log_path)
        if time.monotonic() > deadline:
            raise _not_started(f"it did not answer within {START_S} s", log_path)
        time.sleep(LOOK_EVERY_S)


def _answers(address: str) -> bool:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"{address}/health", timeout=ANSWER_S).close()
        return True
    return False


def _last_line(log_path: Path) -> str:
    lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if not lines:
        return "it printed nothing"
    return lines[-1][:MAX_REASON_LENGTH]


def _not_started(reason: str, log_path: Path) -> SetupError:
    return SetupError(f"MLflow's server did not start: {reason}", hint=f"Read the log {log_path}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and its workers, which are the processes of one session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(END_S)
            break


def find_sweep_pages(address: str, sweep: str) -> dict[str, dict[str, str]]:
    """Return the addresses of a sweep's pages on a server.

    Args:
        address: Address of the server.
        sweep: Name of the sweep.

    Returns:
        Addresses by the name of the experiment and the title of the page. If several result
        stores have a sweep with this name, each store has its own experiment.
    """
    pages = {}
    experiments = connect(address).search_experiments(filter_string=f"name LIKE 'isweep/{sweep}%'")
    for experiment in experiments:
        if experiment.name.partition("@")[0] != f"isweep/{sweep}":
            continue
        links = _LINK.findall(experiment.tags.get(NOTE_TAG, ""))
        if not links:
            all_runs = f"#/experiments/{experiment.experiment_id}/runs?{TRAINING_PAGES}"
            links = [("All runs", all_runs)]
        pages[experiment.name] = {question: f"{address}/{link}" for question, link in links}
    return dict(sorted(pages.items()))
