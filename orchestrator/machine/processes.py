"""Run other programs, which may be missing, fail or hang.

A program that waits in the kernel cannot be killed. This happens to ``nvidia-smi`` with a broken
driver. Such a process stays, and this process and its children do not start the program again.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ANSWER_TIMEOUT_S = 60.0
"""Seconds that a program may take to answer."""
KILLED_WITHIN_S = 5.0
"""Seconds that a killed process may take to end. A process that waits in a driver never ends."""
STUCK_PROGRAMS_VARIABLE = "ISWEEP_STUCK"
"""Environment variable with the programs that hang, for the children of this process."""
MAX_ERROR_CHARACTERS = 300
"""Largest number of characters of a program's error."""
STUCK_PROGRAMS = set(filter(None, os.environ.get(STUCK_PROGRAMS_VARIABLE, "").split(os.pathsep)))
"""Programs that hang in the kernel, and that are therefore not started again."""


@dataclass(frozen=True)
class ProgramOutput:
    """The output of a program.

    Attributes:
        output: standard output of the program, or an empty text if it failed.
        error: reason of the failure, in one line, or an empty text if the program succeeded.
        timed_out: True if the program did not end in time.
        partial_output: standard output of a program that failed.
    """

    output: str
    error: str = ""
    timed_out: bool = False
    partial_output: str = ""


def run_program(
    *command: str,
    visible: str | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
    input_text: str = "",
    before_kill: Callable[[int], object] = lambda pid: None,
) -> ProgramOutput:
    """Run a program, and return its output or the reason why it failed.

    Args:
        command: program and arguments.
        visible: value of ``CUDA_VISIBLE_DEVICES`` for the program. None leaves the variable unset,
            which shows all GPUs. An empty value hides all GPUs.
        timeout_s: seconds after which the program is killed.
        input_text: text for the program's standard input. If empty, the program has the standard
            input of this process.
        before_kill: called with the program's process id before the program is killed, because it
            took too long or because this process is interrupted.
    """
    program = command[0]
    if program in STUCK_PROGRAMS:
        return ProgramOutput("", "the program does not answer")
    try:
        with exit_codes_kept():
            return _run(command, _child_environment(visible), timeout_s, input_text, before_kill)
    except FileNotFoundError:
        return ProgramOutput("", "the program is not installed")
    except OSError as error:
        return ProgramOutput("", error.strerror or type(error).__name__)


def _child_environment(visible: str | None) -> dict[str, str]:
    variables = dict(os.environ)
    variables.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        variables["CUDA_VISIBLE_DEVICES"] = visible
    variables[STUCK_PROGRAMS_VARIABLE] = os.pathsep.join(STUCK_PROGRAMS)
    return variables


def _run(
    command: tuple[str, ...],
    variables: dict[str, str],
    timeout_s: float,
    input_text: str,
    before_kill: Callable[[int], object],
) -> ProgramOutput:
    process = subprocess.Popen(
        command,
        env=variables,
        stdin=subprocess.PIPE if input_text else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        output, error_output = process.communicate(input_text or None, timeout=timeout_s)
    except subprocess.TimeoutExpired as late:
        before_kill(process.pid)
        if not kill_process(process):
            STUCK_PROGRAMS.add(command[0])
        # These are bytes, although the pipe is opened as text.
        partial_output = (late.stdout or b"").decode(errors="replace")
        error = f"no answer in {timeout_s:g} s"
        return ProgramOutput("", error, timed_out=True, partial_output=partial_output)
    except BaseException:  # after Ctrl-C the process must not stay
        before_kill(process.pid)
        kill_process(process)
        raise
    if process.returncode == 0:
        return ProgramOutput(output.strip())
    lines = (error_output.strip() or output.strip()).splitlines()
    error = lines[-1][:MAX_ERROR_CHARACTERS] if lines else f"exit code {process.returncode}"
    return ProgramOutput("", error, partial_output=output)


@contextlib.contextmanager
def exit_codes_kept() -> Iterator[None]:
    """Make the exit codes of child processes available during a block.

    Ray's workers ignore SIGCHLD, and Python does not notice it (ray#42992). The kernel then drops
    exit codes, and every child seems to end with exit code 0. Only the main thread can change this.
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
    """Return whether this process ignores SIGCHLD, according to the kernel, not to Python."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        ignored = re.search(r"^SigIgn:\s*([0-9a-f]+)", status, re.MULTILINE)
        if ignored:
            return bool(int(ignored[1], 16) >> (signal.SIGCHLD - 1) & 1)
    return False


def kill_process(process: subprocess.Popen[str]) -> bool:
    """Kill a process, and return whether it ended: a process that waits in a driver stays."""
    process.kill()
    try:
        process.wait(KILLED_WITHIN_S)
    except subprocess.TimeoutExpired:
        return False
    return True


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables during a block, for this process and for processes that start in
    the block.
    """
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


class ProcessState(NamedTuple):
    """The state of a process, as the kernel reports it.

    Attributes:
        pid: process id.
        name: name of the program, of at most 15 characters.
        state: a letter: T for a process that SIGSTOP stopped, Z for a process that has ended.
        parent: process id of the parent.
    """

    pid: int
    name: str
    state: str
    parent: int


def process_state(pid: int) -> ProcessState | None:
    """Return the state of a process, or None if the process has ended."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The name of the program is in parentheses. It may contain spaces and parentheses.
        start, _, end = text.rpartition(")")
        state, parent, *_ = end.split()
        return ProcessState(pid, start.partition("(")[2], state, int(parent))
    return None


def stopped_children() -> list[ProcessState]:
    """Return the children of this process that SIGSTOP stopped.

    The kernel still accepts connections for a stopped process.
    """
    with contextlib.suppress(ChildProcessError):  # this process has no children
        if os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None:
            # The kernel shows only one stopped child this way, so look at all processes.
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
            states = filter(None, map(process_state, pids))
            return [child for child in states if (child.parent, child.state) == (os.getpid(), "T")]
    return []
