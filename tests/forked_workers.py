"""Workers of pytest-xdist that are forked from one process, which has collected the tests.

A worker that collects for itself imports PyTorch, SciPy, Ray, MLflow and all test files: 17 s of
processor time. A forked worker has these modules, so its own collection takes 2 s.

The controller starts the process (:func:`serve`). xdist starts a worker by a command, so the command
is this file: it hands its standard streams to that process, which forks the worker. The command then
waits until the worker ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
START = "import sys;exec(eval(sys.stdin.readline()))"
"""Program of a worker of xdist: the first line of its standard input."""


@contextlib.contextmanager
def forking_process(paths: Sequence[str]) -> Iterator[str]:
    """Start the process that forks workers, and yield the command that asks it for a worker.

    Args:
        paths: Files and folders whose tests it collects.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        address = f"{folder}/socket"
        listener.bind(address)
        listener.listen()
        number = listener.fileno()
        command = [sys.executable, "-m", "tests.forked_workers", str(number), *paths]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, pass_fds=[number]):
            yield shlex.join([sys.executable, __file__, address])


def serve(listener: socket.socket, paths: Sequence[str]) -> None:
    """Collect tests, and fork a worker for each connection until standard input ends."""
    # A worker has its own handler: Python's, as in a process that was not forked.
    signal.signal(signal.SIGINT, lambda *_: None)
    # Threads do not survive a fork, so collecting must start none. NumPy stays with one thread:
    # several workers share the cores.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    num_threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    import pytest  # not on top: the command of a worker needs no pytest

    # Errors are left to the workers, which collect the same tests once more.
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *paths])
    if num_threads is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = num_threads
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    # The allocator of Arrow starts its thread again after a fork.
    has_threads = len(names) - names.count("jemalloc_bg_thd") > 1
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            signal.alarm(10)  # ends this process, if a worker hangs
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.wait()  # so that `time make test` counts the workers
            return
        connection, _ = listener.accept()
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        if os.fork() == 0:
            listener.close()
            become_worker(streams, connection, starts_anew=has_threads)
            return
        for number in (connection.detach(), *streams):
            os.close(number)


def become_worker(streams: list[int], connection: socket.socket, *, starts_anew: bool) -> None:
    """Do what xdist's command for a worker does.

    Args:
        streams: The worker's standard input, output and error.
        connection: The command that requested the worker waits until this connection ends.
        starts_anew: Whether the worker must be a new program, because threads were lost by the fork.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if starts_anew:
        connection.set_inheritable(True)
        os.execv(sys.executable, [sys.executable, "-u", "-c", START])
    if "torch" in sys.modules:
        default = len(os.sched_getaffinity(0))
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", default)))
    sys.argv = ["-c"]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    exec(START, {"__name__": "__main__"})


def request_worker(address: str) -> None:
    """Hand the standard streams of this process to a new worker, and wait until it ends."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"."], [0, 1, 2])
        for number in (0, 1):
            os.close(number)
        connection.recv(1)


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    else:
        request_worker(sys.argv[1])
