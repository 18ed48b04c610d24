"""Functions that run other programs. These programs may be missing, may fail or may hang.

A program that waits in the kernel cannot be killed. With a broken driver, ``nvidia-smi`` may
wait in this way. Such a process stays. This process and its child processes then do not start
the program again.
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
"""Seconds that a program may take, unless the caller sets another limit."""
KILLED_WITHIN_S = 5.0
"""Seconds that a killed process may take to end. If a process waits in a driver, it may never
end."""
STUCK_PROGRAMS_VARIABLE = "ISWEEP_STUCK"
"""Name of the environment variable that tells child processes which programs hang."""
MAX_ERROR_CHARACTERS = 300
"""Largest number of characters of a program's error that are reported."""
STUCK_PROGRAMS = set(filter(None, os.environ.get(STUCK_PROGRAMS_VARIABLE, "").split(os.pathsep)))
"""Names of programs that hang in the kernel. They are not started again."""


@dataclass(frozen=True)
class ProgramOutput:
    """The output of a program that was run.

    Attributes:
        output: standard output of the program, or an empty text if it failed.
        error: reason of the failure in one line. It is empty if the program succeeded.
        timed_out: True if the program did not end in time.
        partial_output: standard output of the program if it failed.
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
    """Run a program. Return its output, or the reason why it failed.

    Args:
        command: name or path of the program, and its arguments.
        visible: value of ``CUDA_VISIBLE_DEVICES`` for the program. None leaves the variable
            unset, so all GPUs are visible. An empty value hides all GPUs.
        timeout_s: seconds after which the program is killed.
        input_text: text for the program's standard input. If it is empty, the program uses the
            standard input of this process.
        before_kill: function that is called before the program is killed, with its process id.
            The program is killed if it takes too long, or if this process is interrupted.
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
    """Make the exit codes of child processes available during a ``with`` block.

    Ray's workers ignore SIGCHLD, and Python does not notice this (ray#42992). The kernel then
    drops exit codes, so every child process seems to end with exit code 0. Only the main
    thread can change this setting.
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
    """Return whether this process ignores SIGCHLD. The function reads this from the kernel,
    because Python may not know it.
    """
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        ignored = re.search(r"^SigIgn:\s*([0-9a-f]+)", status, re.MULTILINE)
        if ignored:
            return bool(int(ignored[1], 16) >> (signal.SIGCHLD - 1) & 1)
    return False


def kill_process(process: subprocess.Popen[str]) -> bool:
    """Kill a process. Return whether it has ended. A process that waits in a driver does not
    end.
    """
    process.kill()
    try:
        process.wait(KILLED_WITHIN_S)
    except subprocess.TimeoutExpired:
        return False
    return True


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables during a ``with`` block. They are set for this process and for
    processes that start in the block.
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
    """The state of a process as the kernel reports it.

    Attributes:
        pid: process id.
        name: first 15 characters of the program's name.
        state: letter for the state. T means that SIGSTOP has stopped the process, Z that the
            process has ended.
        parent: process id of the parent process.
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
    """Return the child processes of this process that SIGSTOP has stopped.

    An open port does not show that a process runs, because the kernel accepts connections for
    stopped processes too.
    """
    with contextlib.suppress(ChildProcessError):  # this process has no children
        if os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None:
            # The kernel shows only one stopped child this way, so look at all processes.
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
            states = filter(None, map(process_state, pids))
            return [child for child in states if (child.parent, child.state) == (os.getpid(), "T")]
    return []
