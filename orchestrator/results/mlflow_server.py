"""MLflow's own server of pages, run for as long as somebody looks at them."""

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

START_S, LOOK_S, ANSWER_S, END_S = 240, 0.5, 10, 10
"""On a busy machine MLflow took a minute and a half to start."""

LINK = re.compile(r"\[([^\]]+)\]\((#/[^)\s]+)\)")


def free_port(asked: int | None = None) -> int:
    """Return a port of loopback that is free: the one asked for (or SetupError), else MLflow's or
    another.
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
def served(uri: str, port: int, words: Path) -> Iterator[str]:
    """Serve the MLflow store at ``uri`` during a ``with`` block; yields the page's address when it
    answers.

    A server's own address is given back as it is, and nothing started. ``words`` takes what the
    server says; SetupError has the last of them where it does not start.
    """
    if uri.startswith(("http://", "https://")):
        yield uri.rstrip("/")
        return
    connect(uri)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=ANSWER_S).close()
            return True
        return False

    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    # Its jobs are workers for judging language models, 300 MB of memory that nobody asked for.
    # In the environment, since it may hold a password.
    settings = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with words.open("wb") as said:
        server = subprocess.Popen(
            [*command, "--workers", "1"],
            env=os.environ | settings,
            cwd=words.parent,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + START_S
        while not answers():
            if server.poll() is not None or time.monotonic() > until:
                lines = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                last = lines[-1][:300] if lines else "it said nothing"
                why = f"no answer in {START_S} s" if server.poll() is None else last
                raise SetupError("MLflow's page must start", why, f"its log: {words}")
            time.sleep(LOOK_S)
        yield address
    finally:
        for number in (
            signal.SIGTERM,
            signal.SIGKILL,
        ):  # to its workers too: a session of their own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(END_S)
                break


def sweep_pages(address: str, sweep: str) -> dict[str, dict[str, str]]:
    """Return where the server at ``address`` shows a sweep: by experiment and question an address.

    There are several where result stores share the sweep's name.
    """
    found = {}
    for one in connect(address).search_experiments(filter_string=f"name LIKE 'isweep/{sweep}%'"):
        if one.name.partition("@")[0] == f"isweep/{sweep}":
            links = LINK.findall(one.tags.get(NOTE_TAG, ""))
            links = links or [
                ("All runs", f"#/experiments/{one.experiment_id}/runs?{TRAINING_PAGES}")
            ]
            found[one.name] = {question: f"{address}/{link}" for question, link in links}
    return dict(sorted(found.items()))
