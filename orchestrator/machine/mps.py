"""NVIDIA's multi-process service (MPS) for a private cluster: start, check and end it.

With MPS, kernels of several processes run on a GPU at the same time. Two programs belong to MPS.
``nvidia-cuda-mps-control -d`` starts a daemon. When the first process uses a GPU, the daemon starts
a server. Processes find the daemon by a socket in the folder ``CUDA_MPS_PIPE_DIRECTORY``. Without
such a socket, CUDA computes without MPS.

A process that uses MPS is a *client*. If a client is killed while the GPU computes for it, MPS and
the other clients may hang (section "Client Early Termination" of the source). So isweep first ends
the GPU work of this client with MPS's command ``terminate_client``, and then kills the process.

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
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.machine.processes import environment, exit_codes_kept, kill_process, run_program
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
END_MARK = "isweep-mps-ended"
"""File in this folder. If it exists, new processes must compute without MPS."""
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
QUIT_TIMEOUT_S = 20.0
"""Seconds that the daemon may take to end; it ends its servers by force after 10 s."""
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
        has_ended_use: whether no further process uses MPS.
    """

    uuids: tuple[str, ...]
    note: Callable[[str], None]
    folder: Path | None = field(default=None, init=False)
    has_ended_use: bool = field(default=False, init=False)

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
                self.has_ended_use = False
                self.note(
                    "Started NVIDIA's MPS for this sweep, so that several trials share each GPU"
                )
            try:
                yield
            finally:
                self.folder = None

    def end_use(self, reason: str, consequence: str) -> None:
        """Let no further process use MPS; processes that use it already continue.

        A fatal error of one process also ends the other processes that use MPS on the same GPU. So
        a run stops using MPS after the first such error.

        Args:
            reason: why, for the message.
            consequence: sentence about the shares of new trials, for the message.
        """
        if self.folder is None or self.has_ended_use:
            return
        self.has_ended_use = True
        _mark_ended(self.folder)
        self.note(
            f"New trials of this run do not use NVIDIA's MPS any more: {reason}. With MPS, an "
            "error of one trial also ends other trials on the same GPU. isweep retries these "
            f"trials. {consequence}"
        )

    def end_clients(self, pids: Collection[int] | None = None) -> None:
        """End the GPU work of clients, which must be killed afterwards.

        If the daemon does not do it, a warning is logged, and the clients can be killed anyway.

        Args:
            pids: process ids of the clients; None ends the GPU work of all clients.
        """
        if self.folder is None:
            return
        try:
            for server in _process_ids("get_server_list"):
                for client in _process_ids(f"get_client_list {server}"):
                    if pids is None or client in pids:
                        _end_client(server, client)
        except _NoAnswerError as error:
            log.warning("NVIDIA's MPS cannot end the GPU work of processes: %s", error)

    def _start(self, folder: Path, stack: contextlib.ExitStack) -> str:
        """Start the daemon, and check that processes can compute through it.

        Args:
            folder: folder for the socket and the logs.
            stack: ends the daemon when it is closed.

        Returns:
            Why MPS does not work; empty if it works.
        """
        pipes = folder / "pipe"
        logs = folder / "log"
        if len(str(pipes)) > MAX_PIPES_LENGTH:
            return f"the path {pipes} is too long for a socket; set TMPDIR to a shorter path"
        pipes.mkdir(parents=True)
        logs.mkdir()
        visible = ",".join(self.uuids)
        variables = {
            PIPES: str(pipes),
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
            sys.executable, "-c", ATTACH, visible=visible, timeout_s=ATTACH_TIMEOUT_S
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


def leave_ended_mps() -> None:
    """Make this process compute without MPS if its run has stopped using MPS.

    This has an effect only before the process uses CUDA.
    """
    folder = os.environ.get(PRIVATE_FOLDER)
    if folder and Path(folder, END_MARK).exists():
        # CUDA computes without MPS if it finds no socket in this folder.
        os.environ[PIPES] = str(Path(folder, "no-socket"))


def end_use_of_all() -> None:
    """Let no further process of this run use the MPS that the run started.

    A worker calls this before it waits with a broken GPU. Until the driver learns of the failure,
    MPS would refuse new processes on every GPU.
    """
    folder = os.environ.get(PRIVATE_FOLDER)
    if folder:
        _mark_ended(Path(folder))


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


def _end_client(server: int, client: int) -> None:
    """End the GPU work of a client; log a warning if this fails, for example if it has ended."""
    try:
        _ask_daemon(f"terminate_client {server} {client}")
    except _NoAnswerError as error:
        log.warning("NVIDIA's MPS did not end the GPU work of process %d: %s", client, error)


def _process_ids(command: str) -> list[int]:
    """Return the process ids that the daemon lists, one a line, after a command.

    Raises:
        _NoAnswerError: the daemon does not answer.
    """
    lines = _ask_daemon(command).split()
    return [int(line) for line in lines if line.isdigit()]


def _mark_ended(folder: Path) -> None:
    with contextlib.suppress(OSError):  # the folder is gone if the cluster is lost
        (folder / END_MARK).touch()


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
