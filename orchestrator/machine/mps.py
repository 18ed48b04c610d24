"""NVIDIA's multi-process service (MPS) for a private cluster: start, check and end it.

With MPS, kernels of several processes run on a GPU at the same time. Two programs belong to MPS.
``nvidia-cuda-mps-control -d`` starts a daemon. When the first process uses a GPU, the daemon starts
a server. Processes find the daemon by a socket in the folder ``CUDA_MPS_PIPE_DIRECTORY``. Without
such a socket, CUDA computes without MPS.

A process that uses MPS is a *client*. If a client is killed while the GPU computes for it, MPS and
the other clients may hang (section "Client Early Termination" of the source). So isweep first ends
the GPU work of this client with MPS's command ``terminate_client``, and then kills the process.

Others kill clients too, without a call to isweep before: Ray if the memory of the machine runs out,
and Ray Tune after an error of its own. After such an event, the run *stops using* MPS: processes
that use MPS continue, and new processes compute without MPS.

Source of all facts about MPS: NVIDIA, "Multi-Process Service", https://docs.nvidia.com/deploy/mps.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.machine.processes import (
    environment,
    exit_codes_kept,
    kill_process,
    process_state,
    run_program,
)
from orchestrator.results.records import FailureKind, TrialFailure

log = logging.getLogger(__name__)

CONTROL = "nvidia-cuda-mps-control"
"""The program that starts the daemon, and that sends commands to a running daemon."""
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
"""Environment variable with the folder of the daemon's socket."""
DEFAULT_PIPES = "/tmp/nvidia-mps"
"""Folder of the socket if this variable is not set."""
LOGS = "CUDA_MPS_LOG_DIRECTORY"
"""Environment variable with the folder of the log files of the daemon and the server."""
PRIVATE_FOLDER = "ISWEEP_MPS_FOLDER"
"""Environment variable of a run's processes with the folder of MPS that the run started."""
STOP_MARK = "isweep-mps-stopped"
"""File in this folder. If it exists, the run has stopped using MPS."""
MAX_PIPES_LENGTH = 80
"""Most characters in the path of the socket's folder. The path of a socket has at most 107
characters, and the daemon ends without a message if it is longer."""
START_TIMEOUT_S = 30.0
"""Seconds that the daemon may take to start."""
ATTACH_TIMEOUT_S = 120.0
"""Seconds that a process may take to import torch and to compute on every GPU through MPS."""
CONNECT_TIMEOUT_S = 5.0
"""Seconds that the daemon may take to accept a connection."""
COMMAND_TIMEOUT_S = 10.0
"""Seconds that the daemon may take to list processes, or to end the GPU work of one client."""
END_CLIENTS_TIMEOUT_S = 30.0
"""Seconds after which no further client's GPU work is ended: three commands without an answer. The
clients are killed all the same."""
QUIT_TIMEOUT_S = 20.0
"""Seconds that the daemon may take to end; it ends its servers by force after 10 s."""
SUCCESS = "CUDA_SUCCESS"
"""Text that the daemon's program prints if ``terminate_client`` has ended a client's GPU work."""
BREAKING_KINDS = (FailureKind.DEVICE_ERROR, FailureKind.HUNG, FailureKind.WORKER_CRASH)
"""Failures of trials after which MPS may be unusable. isweep kills the process of a trial that
hung."""
ATTACH = """
import torch
for index in range(torch.cuda.device_count()):
    torch.ones(1, device=f"cuda:{index}").item()
print(torch.cuda.device_count())
"""
"""Program that computes on every visible GPU, and prints their number. Only such a program shows
that MPS works: a daemon can answer commands while all processes that use it hang."""
SHELL = "sh"
"""The shell that ends the daemon when this process has ended."""
QUIT_AT_END_OF_INPUT = f"read -r _; echo 'quit -t 10' | {CONTROL}"
"""Shell command that waits for the end of its standard input, and then ends the daemon. MPS waits
up to 10 s for the end of its clients."""


@dataclass
class PrivateMps:
    """MPS of a private cluster, which no other program uses.

    Attributes:
        uuids: UUIDs of the GPUs. CUDA numbers the GPUs of an MPS client anew, so a number would
            mean another GPU; a UUID always means the same one.
        note: shows a message to the user.
        folder: folder of the socket and the logs while MPS runs; None if MPS does not run.
        has_stopped: True if the run has stopped using MPS: new processes compute without it.
    """

    uuids: tuple[str, ...]
    note: Callable[[str], None]
    folder: Path | None = field(default=None, init=False)
    has_stopped: bool = field(default=False, init=False)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        """Start MPS for a block. If it does not start, show a note and continue without MPS.

        Processes that start in the block use MPS, because the block sets environment variables.

        Args:
            folder: a folder that does not exist yet, and that only this user can enter.
        """
        with contextlib.ExitStack() as stack:
            try:
                problem = self._start(folder, stack)
            except OSError as error:
                problem = str(error)
            if problem:
                stack.close()
                self.note(
                    f"NVIDIA's MPS did not start: {problem}. The sweep continues without MPS. To "
                    "avoid this attempt, set `resources.mps: never`"
                )
            else:
                self.folder = folder
                self.has_stopped = False
                self.note(
                    "Started NVIDIA's MPS for this sweep, so that several trials share each GPU"
                )
            try:
                yield
            finally:
                self.folder = None

    @property
    def is_used(self) -> bool:
        """True if new processes use MPS."""
        return self.folder is not None and not self.has_stopped

    def stop_using(self, reason: str, consequence: str) -> None:
        """Stop using MPS: new processes compute without it, others continue.

        A fatal error of one process also ends the other processes that use MPS on the same GPU. So
        a run stops using MPS after the first such error.

        Args:
            reason: why, for the message.
            consequence: sentence about the shares of new trials, for the message.
        """
        if self.folder is None or self.has_stopped:
            return
        self.has_stopped = True
        _mark_stopped(self.folder)
        self.note(
            f"New trials of this run do not use NVIDIA's MPS any more: {reason}. With MPS, this "
            "can also end other trials on the same GPU. isweep retries these trials. "
            f"{consequence}"
        )

    def end_clients(self, pids: Collection[int] | None = None) -> None:
        """End the GPU work of clients, which must be killed afterwards.

        If the daemon does not do it, a warning is logged, and the clients can be killed anyway.

        Args:
            pids: ids of processes. Their children are clients too: a self-test runs in a child of
                a worker. None ends the GPU work of all clients.
        """
        if self.folder is not None:
            _end_clients(pids)

    def _start(self, folder: Path, stack: contextlib.ExitStack) -> str:
        """Start the daemon, and check that processes can compute through it.

        Args:
            folder: folder for the socket and the logs.
            stack: ends the daemon when it is closed.

        Returns:
            Why MPS does not work; empty if it works.
        """
        pipes = _pipes(folder)
        logs = folder / "log"
        if len(pipes) > MAX_PIPES_LENGTH:
            return f"the path {pipes} is too long for a socket; set TMPDIR to a shorter path"
        Path(pipes).mkdir(parents=True)
        logs.mkdir()
        visible = ",".join(self.uuids)
        variables = {
            PIPES: pipes,
            LOGS: str(logs),
            PRIVATE_FOLDER: str(folder),
            "CUDA_VISIBLE_DEVICES": visible,
        }
        stack.enter_context(environment(**variables))
        stack.enter_context(_daemon_ends_with_this_process(folder / "quit.log"))
        problem = _start_daemon(folder / "start.log")
        if problem:
            return f"`{CONTROL} -d` failed: {problem}"
        attached = run_program(
            sys.executable, "-P", "-c", ATTACH, visible=visible, timeout_s=ATTACH_TIMEOUT_S
        )
        if attached.output.splitlines()[-1:] != [str(len(self.uuids))]:
            problem = attached.error or f"a process computed on {attached.output or 'no'} GPUs"
            return f"no process could compute through it: {problem}"
        try:
            has_server = bool(_process_ids("get_server_list"))
        except _NoAnswerError as error:
            return f"no process uses it: {error}"
        return "" if has_server else "no process uses it: no server runs"


def mps_runs() -> bool:
    """Return whether NVIDIA's multi-process service (MPS) answers on its socket.

    The file of the socket does not suffice, because it stays after the service has died.
    """
    folder = Path(os.environ.get(PIPES, DEFAULT_PIPES))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CONNECT_TIMEOUT_S)
        try:
            client.connect(str(folder / "control"))
        except OSError as error:
            # EPROTOTYPE: the service listens on another type of socket.
            return error.errno == errno.EPROTOTYPE
    return True


def breaks_mps(failure: TrialFailure) -> bool:
    """Return whether MPS may be unusable after a trial failed.

    After a fatal error on a GPU, MPS ends all processes that use the GPU, and refuses new ones
    meanwhile. If a process dies while the GPU computes for it, MPS and the other processes can
    hang. A GPU that a self-test refuses for its wrong numbers does not end any process, so the
    other GPUs continue to use MPS.
    """
    if failure.capture_failed:
        return False
    # Ray kills a process to free the machine's memory.
    was_killed = failure.memory == "machine"
    return was_killed or failure.device_lost or failure.kind in BREAKING_KINDS


def avoid_stopped_mps() -> None:
    """Make this process compute without MPS if its run has stopped using MPS.

    This has an effect only before the process uses CUDA.
    """
    folder = os.environ.get(PRIVATE_FOLDER)
    if folder and Path(folder, STOP_MARK).exists():
        # CUDA computes without MPS if it finds no socket in this folder.
        os.environ[PIPES] = str(Path(folder, "no-socket"))


def stop_using_from_worker() -> None:
    """Stop using MPS in the whole run, if the run started it.

    A worker calls this before it waits with a broken GPU. Until the driver learns of the failure,
    MPS would refuse new processes on every GPU.
    """
    folder = os.environ.get(PRIVATE_FOLDER)
    if folder:
        _mark_stopped(Path(folder))


def end_work_of_child(pid: int) -> None:
    """End the GPU work of a child of a worker, if it uses the MPS of the run.

    The child must be killed afterwards. If the daemon does not end the work, the run stops using
    MPS.
    """
    folder = os.environ.get(PRIVATE_FOLDER)
    # After avoid_stopped_mps(), this process and its children compute without MPS.
    uses_mps = bool(folder) and os.environ.get(PIPES) == _pipes(Path(str(folder)))
    if uses_mps and not _end_clients({pid}):
        stop_using_from_worker()


class _NoAnswerError(Exception):
    """Raised if the daemon does not execute a command."""


def _ask_daemon(command: str) -> str:
    """Send a command to the daemon, and return its answer.

    Raises:
        _NoAnswerError: the command failed, or took longer than :data:`COMMAND_TIMEOUT_S`.
    """
    answer = run_program(CONTROL, timeout_s=COMMAND_TIMEOUT_S, input_text=f"{command}\n")
    if answer.error:
        raise _NoAnswerError(f"`{command}`: {answer.error}")
    return answer.output


def _end_clients(pids: Collection[int] | None) -> bool:
    """End the GPU work of clients; return whether it has ended, and log a warning if not.

    If the daemon does not answer about one client, the next client is tried, until
    :data:`END_CLIENTS_TIMEOUT_S` seconds have passed.

    Args:
        pids: ids of the clients or of their parents; None ends the GPU work of all clients.
    """
    last_start_s = time.monotonic() + END_CLIENTS_TIMEOUT_S
    try:
        clients = [
            (server, client)
            for server in _process_ids("get_server_list")
            for client in _process_ids(f"get_client_list {server}")
        ]
    except _NoAnswerError as error:
        log.warning("NVIDIA's MPS cannot end the GPU work of processes: %s", error)
        return False
    all_ended = True
    for server, client in clients:
        if not _is_listed(client, pids):
            continue
        if time.monotonic() >= last_start_s:
            log.warning(
                "NVIDIA's MPS takes too long to end the GPU work of processes. isweep kills "
                "the remaining processes while they may compute"
            )
            return False
        all_ended = _end_client(server, client) and all_ended
    return all_ended


def _is_listed(client: int, pids: Collection[int] | None) -> bool:
    """Return whether a client or its parent is in a list of process ids; None lists all clients."""
    if pids is None or client in pids:
        return True
    state = process_state(client)
    return state is not None and state.parent in pids


def _end_client(server: int, client: int) -> bool:
    """End the GPU work of a client; return whether it has ended, and log a warning if not.

    The daemon's program can print an error and exit with code 0. So the work has ended only if the
    program prints CUDA_SUCCESS, or if the daemon does not list the client any more.
    """
    try:
        reply = _ask_daemon(f"terminate_client {server} {client}")
    except _NoAnswerError as error:
        reply = str(error)
    if SUCCESS in reply:
        return True
    try:
        if client not in _process_ids(f"get_client_list {server}"):
            return True
    except _NoAnswerError as error:
        reply = reply or str(error)
    log.warning(
        "NVIDIA's MPS did not end the GPU work of process %d: %s",
        client,
        reply or "the process is still a client",
    )
    return False


def _process_ids(command: str) -> list[int]:
    """Return the process ids that the daemon lists, one a line, after a command.

    Raises:
        _NoAnswerError: the daemon does not answer.
    """
    lines = _ask_daemon(command).split()
    return [int(line) for line in lines if line.isdigit()]


def _pipes(folder: Path) -> str:
    """Return the folder of the socket in a private folder of MPS."""
    return str(folder / "pipe")


def _mark_stopped(folder: Path) -> None:
    with contextlib.suppress(OSError):  # the folder is gone if the cluster is lost
        (folder / STOP_MARK).touch()


def _start_daemon(output_file: Path) -> str:
    """Start the daemon; return why it failed, empty if it started.

    The daemon may keep its output open, so the output is a file and not a pipe to this process.
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
def _daemon_ends_with_this_process(output_file: Path) -> Iterator[None]:
    """End the daemon after a block, also if this process is killed in the block.

    A shell waits for the end of its standard input, a pipe from this process. The kernel closes the
    pipe when this process ends in any way.

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
