"""NVIDIA's multi-process service (MPS) for a private cluster. This module starts, checks and
ends it.

With MPS, kernels of several processes run on a GPU at the same time. This module is for the
driver. :mod:`orchestrator.machine.mps_worker` is for the processes of trials.
:mod:`orchestrator.machine.mps_daemon` sends commands to NVIDIA's programs.

A process that uses MPS is a *client*. If a client is killed while the GPU computes for it, MPS
and the other clients may hang (section "Client Early Termination" of NVIDIA's documentation).
To avoid this, isweep first ends the client's work on the GPU with MPS's command
``terminate_client``. Then it kills the process.

Ray also kills clients, without calling isweep first. It does so if the machine's memory runs
out, or if Ray Tune fails. After such an event, the run *abandons* MPS. Processes that use MPS
continue, but new processes compute without MPS.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.machine import mps_daemon
from orchestrator.machine.mps_daemon import LOGS_VARIABLE, PIPES_VARIABLE
from orchestrator.machine.mps_worker import PRIVATE_FOLDER, mark_abandoned, socket_folder
from orchestrator.machine.processes import environment, run_program
from orchestrator.results.records import FailureKind, TrialFailure

MAX_PIPES_LENGTH = 80
"""Largest number of characters in the path of the socket's folder. The path of a socket can
have at most 107 characters. If it is longer, MPS's daemon ends without a message."""
ATTACH_TIMEOUT_S = 120.0
"""Seconds that a process may take to import torch and to compute on each GPU through MPS."""
BREAKING_KINDS = (FailureKind.DEVICE_ERROR, FailureKind.HUNG, FailureKind.WORKER_CRASH)
"""Failure kinds of trials after which MPS may be unusable. They include trials that hung,
because isweep kills the process of such a trial while it may be computing."""
ATTACH_PROGRAM = """
import torch
for index in range(torch.cuda.device_count()):
    torch.ones(1, device=f"cuda:{index}").item()
print(torch.cuda.device_count())
"""
"""Program that computes on each visible GPU and prints the number of GPUs. Only such a program
shows that MPS works. A daemon may answer commands although all its clients hang."""


@dataclass
class PrivateMps:
    """The MPS of a private cluster. No other program uses it.

    Attributes:
        uuids: UUIDs of the GPUs. Numbers are not used, because CUDA numbers the GPUs of an MPS
            client in a new order.
        note: function that prints a message for the user.
        folder: folder with the socket and the logs if MPS runs, otherwise None.
        is_abandoned: True if the run has abandoned MPS. New processes then compute without
            MPS.
    """

    uuids: tuple[str, ...]
    note: Callable[[str], None]
    folder: Path | None = field(default=None, init=False)
    is_abandoned: bool = field(default=False, init=False)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        """Start MPS for a ``with`` block. If MPS does not start, print a note and continue
        without MPS.

        All processes that start in the block use MPS, because the block sets environment
        variables.

        Args:
            folder: path of a folder that does not exist yet. Only this user may have access to
                its parent folder.
        """
        with contextlib.ExitStack() as stack:
            try:
                problem = self._start(folder, stack)
            except OSError as error:
                problem = str(error)
            if problem:
                stack.close()
                self.note(
                    f"NVIDIA's MPS did not start: {problem}. The sweep continues without MPS. "
                    "If isweep should not try to start MPS, set `resources.mps: never`"
                )
            else:
                self.folder = folder
                self.is_abandoned = False
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
        return self.folder is not None and not self.is_abandoned

    def abandon(self, reason: str, consequence: str) -> None:
        """Abandon MPS. New processes compute without MPS, and present processes continue with
        it.

        If a process has a fatal error, all processes that use MPS on the same GPU end. A run
        therefore abandons MPS after the first such error.

        Args:
            reason: reason for the message to the user.
            consequence: sentence for the message that says how new trials use the GPUs.
        """
        if self.folder is None or self.is_abandoned:
            return
        self.is_abandoned = True
        mark_abandoned(self.folder)
        self.note(
            f"New trials of this run do not use NVIDIA's MPS any more: {reason}. With MPS, the "
            "failure of one trial can also end other trials on the same GPU. isweep retries the "
            f"ended trials. {consequence}"
        )

    def end_gpu_work(self, pids: Collection[int] | None = None) -> None:
        """End the work of clients on the GPU. The caller must kill these clients afterwards.

        If the daemon does not end the work, log a warning. The caller can kill the clients in
        this case too.

        Args:
            pids: process ids of workers. Their child processes are included, because a
                self-test runs in a child process of a worker. None means all clients.
        """
        if self.folder is not None:
            mps_daemon.end_gpu_work(pids)

    def _start(self, folder: Path, stack: contextlib.ExitStack) -> str:
        """Start the daemon, and check that processes can compute through it.

        Args:
            folder: folder for the socket and the logs.
            stack: stack that receives the callbacks to end the daemon.

        Returns:
            The reason why MPS does not work, or an empty text if it works.
        """
        pipes = socket_folder(folder)
        logs = folder / "log"
        if len(pipes) > MAX_PIPES_LENGTH:
            return f"the path {pipes} is too long for a socket. Set TMPDIR to a shorter path"
        Path(pipes).mkdir(parents=True)
        logs.mkdir()
        visible = ",".join(self.uuids)
        variables = {
            PIPES_VARIABLE: pipes,
            LOGS_VARIABLE: str(logs),
            PRIVATE_FOLDER: str(folder),
            "CUDA_VISIBLE_DEVICES": visible,
        }
        stack.enter_context(environment(**variables))
        stack.enter_context(mps_daemon.daemon_ends_with_this_process(folder / "quit.log"))
        problem = mps_daemon.start_daemon(folder / "start.log")
        if problem:
            return f"`{mps_daemon.CONTROL} -d` failed: {problem}"
        attached = run_program(
            sys.executable, "-P", "-c", ATTACH_PROGRAM, visible=visible, timeout_s=ATTACH_TIMEOUT_S
        )
        if attached.output.splitlines()[-1:] != [str(len(self.uuids))]:
            problem = attached.error or f"a process computed on {attached.output or 'no'} GPUs"
            return f"a test process could not compute through MPS: {problem}"
        try:
            has_server = bool(mps_daemon.process_ids("get_server_list"))
        except mps_daemon.CommandFailedError as error:
            return f"the test process did not use MPS: {error}"
        return "" if has_server else "the test process did not use MPS: no server of MPS runs"


def may_break_mps(failure: TrialFailure) -> bool:
    """Return whether MPS may be unusable after this failure of a trial.

    After a fatal error on a GPU, MPS ends all processes that use this GPU. Meanwhile it
    refuses new processes. If a process dies while the GPU computes for it, MPS and the other
    processes may hang. If a GPU computes wrong numbers, MPS stays usable, because no process
    ends.
    """
    if failure.capture_failed:
        return False  # the process ends by itself, and the GPU works
    # If the machine's memory runs out, Ray kills a process, which may be computing.
    was_killed = failure.memory == "machine"
    return was_killed or failure.device_lost or failure.kind in BREAKING_KINDS
