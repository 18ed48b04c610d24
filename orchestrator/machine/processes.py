"""Programs that are asked a question, and what may go wrong: none is there, fails, or hangs.

A program that waits in the kernel cannot be killed, as ``nvidia-smi`` with a broken driver. It is
left behind, and nobody of this process or its children starts it again.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ANSWER_TIMEOUT_S = 60.0
"""Seconds that a program may take to answer."""
KILLED_WITHIN_S = 5.0
"""Seconds that a killed process may take to end; one that waits in a driver never does."""
STUCK_PROGRAMS_VARIABLE = "ISWEEP_STUCK"
"""Names a process's stuck programs to its children."""
MAX_ERROR_CHARACTERS = 300

STUCK_PROGRAMS = set(filter(None, os.environ.get(STUCK_PROGRAMS_VARIABLE, "").split(os.pathsep)))
"""Programs that hung in the kernel, as they would every time."""


@dataclass(frozen=True)
class ProgramOutput:
    """The output of a program.

    Attributes:
        output: its standard output; empty if it failed.
        error: why it failed, in one line; empty if it did not.
        timed_out: whether it gave no answer in time.
    """

    output: str
    error: str = ""
    timed_out: bool = False


def run_program(
    *command: str, visible: str = "", timeout_s: float = ANSWER_TIMEOUT_S
) -> ProgramOutput:
    """Run a program and return what it printed, or why it failed. Nothing is raised.

    Args:
        command: program and arguments.
        visible: value of ``CUDA_VISIBLE_DEVICES`` for it; empty shows it all GPUs.
        timeout_s: seconds after which it is killed.
    """
    program = command[0]
    if program in STUCK_PROGRAMS:
        return ProgramOutput("", "the program does not answer")
    try:
        with exit_codes_kept():
            return _run(command, _child_environment(visible), timeout_s)
    except FileNotFoundError:
        return ProgramOutput("", "the program is not installed")
    except OSError as error:
        return ProgramOutput("", error.strerror or type(error).__name__)


def _child_environment(visible: str) -> dict[str, str]:
    variables = dict(os.environ)
    variables.pop("CUDA_VISIBLE_DEVICES", None)
    if visible:
        variables["CUDA_VISIBLE_DEVICES"] = visible
    variables[STUCK_PROGRAMS_VARIABLE] = os.pathsep.join(STUCK_PROGRAMS)
    return variables


def _run(command: tuple[str, ...], variables: dict[str, str], timeout_s: float) -> ProgramOutput:
    process = subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, error_output = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        if not kill_process(process):
            STUCK_PROGRAMS.add(command[0])
        return ProgramOutput("", f"no answer in {timeout_s:g} s", timed_out=True)
    except BaseException:  # a stop must not leave it behind
        kill_process(process)
        raise
    if process.returncode == 0:
        return ProgramOutput(output.strip())
    lines = (error_output.strip() or output.strip()).splitlines()
    if not lines:
        return ProgramOutput("", f"exit code {process.returncode}")
    return ProgramOutput("", lines[-1][:MAX_ERROR_CHARACTERS])


@contextlib.contextmanager
def exit_codes_kept() -> Iterator[None]:
    """Let this process see its children's exit codes during a block.

    Ray ignores SIGCHLD in its workers, behind Python's back (ray#42992). The kernel then throws
    exit codes away, and every child seems to end with 0. Only a main thread can change that.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not (is_main_thread and _ignores_sigchld()):
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _ignores_sigchld() -> bool:
    """Return whether the kernel ignores SIGCHLD for this process; Python's record may differ."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        ignored = re.search(r"^SigIgn:\s*([0-9a-f]+)", status, re.MULTILINE)
        if ignored:
            return bool(int(ignored[1], 16) >> (signal.SIGCHLD - 1) & 1)
    return False


def kill_process(process: subprocess.Popen[str]) -> bool:
    """Kill a process and return whether it ended: nothing kills one that waits in a driver."""
    process.kill()
    try:
        process.wait(KILLED_WITHIN_S)
    except subprocess.TimeoutExpired:
        return False
    return True


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables during a block, also for the processes that it starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class StoppedChild:
    """A child of this process that somebody stopped (SIGSTOP). Connections to it are accepted."""

    pid: int
    name: str


def stopped_child() -> StoppedChild | None:
    """Return a stopped child of this process, or None."""
    with contextlib.suppress(OSError):
        status = os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        if status is not None:
            name = Path(f"/proc/{status.si_pid}/comm").read_text(encoding="utf-8").strip()
            return StoppedChild(status.si_pid, name)
    return None
