"""The programs of NVIDIA's multi-process service (MPS). This module starts the daemon of MPS,
sends commands to it and ends it.

``nvidia-cuda-mps-control -d`` starts a daemon. When the first process uses a GPU, the daemon
starts a server. A process finds the daemon by a socket in the folder
``CUDA_MPS_PIPE_DIRECTORY``. If there is no such socket, CUDA computes without MPS.

All facts about MPS are from NVIDIA, "Multi-Process Service",
https://docs.nvidia.com/deploy/mps.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import subprocess
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from orchestrator.machine.processes import (
    exit_codes_kept,
    kill_process,
    process_state,
    run_program,
)

log = logging.getLogger(__name__)

CONTROL = "nvidia-cuda-mps-control"
"""Name of the program that starts the daemon and sends commands to a running daemon."""
PIPES_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
"""Name of the environment variable that contains the folder of the daemon's socket."""
DEFAULT_PIPES = "/tmp/nvidia-mps"
"""Folder of the socket if ``CUDA_MPS_PIPE_DIRECTORY`` is not set."""
LOGS_VARIABLE = "CUDA_MPS_LOG_DIRECTORY"
"""Name of the environment variable that contains the folder of the log files of daemon and
server."""
START_TIMEOUT_S = 30.0
"""Seconds that the daemon may take to start."""
CONNECT_TIMEOUT_S = 5.0
"""Seconds that the daemon may take to accept a connection."""
COMMAND_TIMEOUT_S = 10.0
"""Seconds that the daemon may take to list processes, or to end the GPU work of one client."""
END_CLIENTS_TIMEOUT_S = 30.0
"""Seconds in which isweep ends the GPU work of clients. After this time, isweep kills the
remaining clients while they may compute. Three commands without an answer take this long."""
SUCCESS = "CUDA_SUCCESS"
"""Text that the daemon's program prints if ``terminate_client`` has ended the GPU work of a
client."""
SHELL = "sh"
"""Name of the shell that ends the daemon when this process has ended."""
QUIT_AT_END_OF_INPUT = f"read -r _; echo 'quit -t 10' | {CONTROL}"
"""Shell command that waits for the end of its standard input and then ends the daemon. The
daemon waits up to 10 s until its clients have ended."""
QUIT_TIMEOUT_S = 20.0
"""Seconds that the daemon may take to end. The daemon ends its servers by force after 10 s."""


def mps_runs() -> bool:
    """Return whether NVIDIA's multi-process service (MPS) answers on its socket.

    It is not enough to check that the socket's file exists, because the file stays after the
    service has died.
    """
    folder = Path(os.environ.get(PIPES_VARIABLE, DEFAULT_PIPES))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CONNECT_TIMEOUT_S)
        try:
            client.connect(str(folder / "control"))
        except OSError as error:
            # EPROTOTYPE: the service listens on another type of socket.
            return error.errno == errno.EPROTOTYPE
    return True


class CommandFailedError(Exception):
    """Error that is raised if the daemon does not execute a command."""


def ask_daemon(command: str) -> str:
    """Send a command to the daemon. Return the daemon's answer.

    Raises:
        CommandFailedError: the command failed, or it took longer than
            :data:`COMMAND_TIMEOUT_S` seconds.
    """
    answer = run_program(CONTROL, timeout_s=COMMAND_TIMEOUT_S, input_text=f"{command}\n")
    if answer.error:
        raise CommandFailedError(f"`{command}`: {answer.error}")
    return answer.output


def end_gpu_work(pids: Collection[int] | None) -> bool:
    """End the GPU work of clients. Return whether all this work has ended. Log a warning if it
    has not.

    If the daemon does not answer for one client, continue with the next client. Stop after
    :data:`END_CLIENTS_TIMEOUT_S` seconds.

    Args:
        pids: process ids of the clients, or of their parent processes. None means all clients.
    """
    deadline_s = time.monotonic() + END_CLIENTS_TIMEOUT_S
    try:
        clients = [
            (server, client)
            for server in process_ids("get_server_list")
            for client in process_ids(f"get_client_list {server}")
        ]
    except CommandFailedError as error:
        log.warning("NVIDIA's MPS cannot end the GPU work of processes: %s", error)
        return False
    all_ended = True
    for server, client in clients:
        if not _is_or_has_parent_in(client, pids):
            continue
        if time.monotonic() >= deadline_s:
            log.warning(
                "NVIDIA's MPS takes too long to end the GPU work of processes. isweep kills "
                "the remaining processes while they may compute"
            )
            return False
        all_ended = _terminate(server, client) and all_ended
    return all_ended


def _is_or_has_parent_in(client: int, pids: Collection[int] | None) -> bool:
    """Return whether a client or its parent process is in ``pids``. Return True if ``pids`` is
    None.
    """
    if pids is None or client in pids:
        return True
    state = process_state(client)
    return state is not None and state.parent in pids


def _terminate(server: int, client: int) -> bool:
    """End the GPU work of a client. Return whether this work has ended. Log a warning if it
    has not.

    The daemon's program can print an error and exit with code 0, so the exit code is not
    enough. The work has ended if the program prints CUDA_SUCCESS, or if the daemon does not
    list the client any more.
    """
    try:
        reply = ask_daemon(f"terminate_client {server} {client}")
    except CommandFailedError as error:
        reply = str(error)
    if SUCCESS in reply:
        return True
    try:
        if client not in process_ids(f"get_client_list {server}"):
            return True
    except CommandFailedError as error:
        reply = reply or str(error)
    log.warning(
        "NVIDIA's MPS did not end the GPU work of process %d: %s",
        client,
        reply or "the process is still a client",
    )
    return False


def process_ids(command: str) -> list[int]:
    """Send a command that lists processes. Return their process ids.

    Raises:
        CommandFailedError: the daemon does not answer.
    """
    lines = ask_daemon(command).split()
    return [int(line) for line in lines if line.isdigit()]


def start_daemon(output_file: Path) -> str:
    """Start the daemon. Return an empty text if it has started, otherwise the reason why it
    has not.

    The output goes to a file and not to a pipe, because the daemon may leave its output open.
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(output_file, "w", encoding="utf-8"))
        stack.enter_context(exit_codes_kept())
        try:
            process = subprocess.Popen(
                [CONTROL, "-d"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            return error.strerror or type(error).__name__
        try:
            exit_code = process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            kill_process(process)
            return f"no answer in {START_TIMEOUT_S:g} s"
        except BaseException:  # After Ctrl-C, no daemon must start that nobody ends.
            kill_process(process)
            raise
    if exit_code == 0:
        return ""
    lines = output_file.read_text(encoding="utf-8", errors="replace").split("\n")
    return next(filter(None, reversed(lines)), f"exit code {exit_code}")


@contextlib.contextmanager
def daemon_ends_with_this_process(output_file: Path) -> Iterator[None]:
    """End the daemon after a ``with`` block, even if this process is killed in the block.

    A shell waits for the end of its standard input, which is a pipe from this process. If this
    process ends in any way, the kernel closes the pipe. The shell then ends the daemon.

    Args:
        output_file: file for the output of the shell.
    """
    with open(output_file, "w", encoding="utf-8") as output:
        # In a session of its own, the shell does not receive Ctrl-C.
        shell = subprocess.Popen(
            [SHELL, "-c", QUIT_AT_END_OF_INPUT],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        yield
    finally:
        if shell.stdin is not None:
            shell.stdin.close()
        try:
            shell.wait(QUIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # The processes of the daemon are killed when the cluster's folder is removed.
            kill_process(shell)
            log.warning("NVIDIA's MPS did not end within %g s", QUIT_TIMEOUT_S)
