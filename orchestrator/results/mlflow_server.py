"""MLflow's server of pages, which runs as long as somebody looks at them."""

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
"""MLflow's own port, which is taken if it is free."""
START_S = 240
"""Seconds that the server may take to start; on a busy machine it took 90 s."""
LOOK_EVERY_S = 0.5
ANSWER_S = 10
"""Seconds that one answer of the server may take."""
END_S = 10
"""Seconds that the server may take to end before it is killed."""
MAX_REASON_LENGTH = 300
"""Characters of the server's last line that a message quotes."""
_LINK = re.compile(r"\[([^\]]+)\]\((#/[^)\s]+)\)")


def free_port(requested: int | None = None) -> int:
    """Return a free port of this machine.

    Args:
        requested: the port to take; None takes MLflow's own, or any if that is taken.

    Raises:
        SetupError: the requested port is taken.
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
        f"Port {requested} is in use", hint="Name another port with --port, or leave --port out"
    )


@contextlib.contextmanager
def serve_pages(uri: str, port: int, log_path: Path) -> Iterator[str]:
    """Serve the pages of an MLflow store during a ``with`` block.

    Args:
        uri: of the store. A server's own address is yielded as it is, and nothing is started.
        port: of this machine.
        log_path: file for what the server prints.

    Yields:
        The address of the pages, once they answer.

    Raises:
        SetupError: the server does not start.
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
    """Start the server in a session of its own, so that its workers can be ended with it."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    settings = {
        # In the environment, because it may hold a password.
        "MLFLOW_BACKEND_STORE_URI": uri,
        # MLflow's jobs are workers that judge language models: 300 MB of memory for nothing.
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
            raise _not_started(f"it did not answer in {START_S} s", log_path)
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
    return SetupError(f"MLflow's page does not start: {reason}", hint=f"Read the log {log_path}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, which are in a session of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(END_S)
            break


def find_sweep_pages(address: str, sweep: str) -> dict[str, dict[str, str]]:
    """Return where a server shows a sweep.

    Args:
        address: of the server.
        sweep: name of the sweep.

    Returns:
        Addresses by experiment and question. There are several experiments if result stores share
        the sweep's name.
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
