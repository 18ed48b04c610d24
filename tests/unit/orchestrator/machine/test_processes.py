"""Programs that isweep runs: whatever goes wrong with one, the result gives the reason."""

import os
import signal
import subprocess
import sys

import pytest

from orchestrator.machine import processes
from orchestrator.machine.processes import ProgramOutput, environment, run_program


@pytest.mark.parametrize(
    ("command", "output", "error"),
    [
        (("no-such-command-anywhere",), "", "the program is not installed"),
        (("false",), "", "exit code 1"),
        (("echo", "570.1"), "570.1", ""),
        (("/proc",), "", "Permission denied"),
    ],
)
def test_the_result_is_the_output_or_the_reason_for_none(command, output, error):
    assert run_program(*command) == ProgramOutput(output, error)


def test_the_reason_is_the_last_line_of_the_error_output():
    assert run_program("ls", "/nowhere/at/all").error.endswith("No such file or directory")


def test_bytes_that_are_not_utf_8_are_replaced_in_output_and_error():
    assert run_program("printf", r"a\377").output == "a\ufffd"
    program = "import sys; sys.stderr.buffer.write(b'\\xff broken'); sys.exit(3)"
    assert run_program(sys.executable, "-c", program).error == "\ufffd broken"


def test_a_program_without_an_answer_in_time_is_marked():
    for _ in range(2):
        result = run_program("sleep", "999", timeout_s=0.1)
        assert result == ProgramOutput("", "no answer in 0.1 s", timed_out=True)


def test_a_program_sees_the_given_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    command = ("sh", "-c", "echo ${CUDA_VISIBLE_DEVICES-all}")
    assert run_program(*command).output == "all"
    assert run_program(*command, visible="GPU-1").output == "GPU-1"
    assert run_program(*command, visible="").output == ""


SCRIPT_WITH_SIGCHLD_IGNORED = """
import ctypes, signal, subprocess, sys
from orchestrator.machine.processes import run_program
ctypes.CDLL(None).signal(signal.SIGCHLD, 1)  # SIG_IGN, as Ray's core worker does
assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # Python does not know
print(run_program(sys.executable, "-c", "import os; os._exit(7)").error)
print(run_program(sys.executable, "-c", "import os; os.kill(os.getpid(), 11)").error)
child = "import subprocess, sys; sys.exit(subprocess.run(['false']).returncode)"
print(run_program(sys.executable, "-c", child).error)
print(subprocess.run(["false"]).returncode)
"""


def test_the_exit_code_of_a_child_is_known_although_ray_ignores_sigchld():
    """Without this every child in a worker seemed to end with 0 and no output: ray#42992."""
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT_WITH_SIGCHLD_IGNORED],
        capture_output=True,
        text=True,
        check=True,
    )
    exit_7, segfault, grandchild, afterwards = process.stdout.split("\n")[:4]
    assert (exit_7, segfault, grandchild) == ("exit code 7", "exit code -11", "exit code 1")
    assert afterwards == "0"  # Ray's setting is in force again


def test_environment_variables_are_set_only_in_the_block(monkeypatch):
    monkeypatch.setenv("ISWEEP_A", "before")
    monkeypatch.delenv("ISWEEP_B", raising=False)
    with environment(ISWEEP_A="1", ISWEEP_B="2"):
        assert (os.environ["ISWEEP_A"], os.environ["ISWEEP_B"]) == ("1", "2")
    assert os.environ["ISWEEP_A"] == "before"
    assert "ISWEEP_B" not in os.environ


def test_all_stopped_children_are_listed():
    assert processes.stopped_children() == []
    children = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
    pids = {child.pid for child in children[:2]}
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        assert {child.pid for child in processes.stopped_children()} == pids
        assert {child.name for child in processes.stopped_children()} == {"sleep"}
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert processes.stopped_children() == []
