"""NVIDIA's multi-process service (MPS) for a private cluster: start, check and end it.

With MPS, kernels of several processes run on a GPU at the same time. This module is for the process
of the run, :mod:`orchestrator.machine.mps_worker` is for the processes of trials, and
:mod:`orchestrator.machine.mps_daemon` sends commands to NVIDIA's programs.

A process that uses MPS is a *client*. If a client is killed while the GPU computes for it, MPS and
the other clients may hang (section "Client Early Termination" of NVIDIA's documentation). So isweep
first ends the GPU work of this client with MPS's command ``terminate_client``, and then kills the
process.

Others kill clients too, without a call to isweep before: Ray if the memory of the machine runs out,
and Ray Tune after an error of its own. After such an event, the run *abandons* MPS: processes
that use MPS continue, and new processes compute without MPS.
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
"""Largest length of the path of the socket's folder, in characters. The path of a socket has at
most 107 characters. If it is longer, the daemon ends without a message."""
ATTACH_TIMEOUT_S = 120.0
"""Seconds that a process may take to import torch and to compute on every GPU through MPS."""
BREAKING_KINDS = (FailureKind.DEVICE_ERROR, FailureKind.HUNG, FailureKind.WORKER_CRASH)
"""Failures of trials after which MPS may be unusable. A trial that hung is in the list, because
isweep kills its process, which may be computing."""
ATTACH_PROGRAM = """
import torch
for index in range(torch.cuda.device_count()):
    torch.ones(1, device=f"cuda:{index}").item()
print(torch.cuda.device_count())
"""
"""Program that computes on every visible GPU, and prints their number. Only such a program shows
that MPS works: a daemon can answer commands while all processes that use it hang."""


@dataclass
class PrivateMps:
    """MPS of a private cluster, which no other program uses.

    Attributes:
        uuids: UUIDs of the GPUs. CUDA numbers the GPUs of an MPS client anew, so a number would
            mean another GPU. A UUID always means the same GPU.
        note: shows a message to the user.
        folder: folder of the socket and the logs while MPS runs, or None if MPS does not run.
        is_abandoned: True if the run has abandoned MPS: new processes compute without it.
    """

    uuids: tuple[str, ...]
    note: Callable[[str], None]
    folder: Path | None = field(default=None, init=False)
    is_abandoned: bool = field(default=False, init=False)

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
                    f"NVIDIA's MPS did not start: {problem}. The sweep continues without MPS. "
                    "To avoid this attempt, set `resources.mps: never`"
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
        """Abandon MPS: new processes compute without MPS, and the present processes continue.

        A fatal error of one process also ends the other processes that use MPS on the same GPU. So
        a run abandons MPS after the first such error.

        Args:
            reason: why, for the message.
            consequence: sentence about the shares of new trials, for the message.
        """
        if self.folder is None or self.is_abandoned:
            return
        self.is_abandoned = True
        mark_abandoned(self.folder)
        self.note(
            f"New trials of this run do not use NVIDIA's MPS any more: {reason}. With MPS, "
            "such a failure can also end other trials on the same GPU. isweep retries these "
            f"trials. {consequence}"
        )

    def end_gpu_work(self, pids: Collection[int] | None = None) -> None:
        """End the GPU work of clients, which must be killed afterwards.

        If the daemon does not do it, a warning is logged, and the clients can be killed anyway.

        Args:
            pids: ids of workers. Their children count too, because a self-test runs in a child of a
                worker. None ends the GPU work of all clients.
        """
        if self.folder is not None:
            mps_daemon.end_gpu_work(pids)

    def _start(self, folder: Path, stack: contextlib.ExitStack) -> str:
        """Start the daemon, and check that processes can compute through it.

        Args:
            folder: folder for the socket and the logs.
            stack: gets the callbacks that end the daemon.

        Returns:
            The reason why MPS does not work, or an empty text if it works.
        """
        pipes = socket_folder(folder)
        logs = folder / "log"
        if len(pipes) > MAX_PIPES_LENGTH:
            return f"the path {pipes} is too long for a socket; set TMPDIR to a shorter path"
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
            return f"no process could compute through it: {problem}"
        try:
            has_server = bool(mps_daemon.process_ids("get_server_list"))
        except mps_daemon.CommandFailedError as error:
            return f"no process uses it: {error}"
        return "" if has_server else "no process uses it: no server runs"


def may_break_mps(failure: TrialFailure) -> bool:
    """Return whether MPS may be unusable after a trial failed.

    After a fatal error on a GPU, MPS ends all processes that use the GPU, and refuses new processes
    meanwhile. If a process dies while the GPU computes for it, MPS and the other processes can
    hang. A GPU that computes wrong numbers does not count, because no process ends.
    """
    if failure.capture_failed:
        return False  # the process ends by itself, and the GPU works
    # If the machine's memory runs out, Ray kills a process, which may be computing.
    was_killed = failure.memory == "machine"
    return was_killed or failure.device_lost or failure.kind in BREAKING_KINDS
