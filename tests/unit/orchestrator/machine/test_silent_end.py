"""A driver that ends in any way leaves a message, its own or the shell's."""

import subprocess
import sys

import pytest

DRIVER = """
import os, signal, sys
from orchestrator.machine.signals import remember_command
from orchestrator.machine.silent_end import explained_silent_end

remember_command(["isweep", "run", "my sweep"])
with explained_silent_end():
    {end}
"""
ENDED = "isweep: the command ended without a message. "
AGAIN = "Finished trials are kept. Run the same command again: `isweep run 'my sweep'`\n"
LOST = """from orchestrator.machine.watch import end_main_thread
    from search_spaces.errors import SetupError
    import threading
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lost = threading.Event()
    lost.wait = lambda _: False  # the main thread does not end
    end_main_thread(SetupError("the cluster is lost"), lost)"""


def run_driver(end: str) -> subprocess.CompletedProcess[str]:
    """Run a driver that ends by a statement; the run waits until nobody can write an error."""
    program = DRIVER.format(end=end)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("end", "exit_code"),
    [
        ("os._exit(1)", 1),  # as Ray's C++ code ends a driver
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_a_driver_that_ends_silently_is_explained_with_the_command_to_continue(end, exit_code):
    driver = run_driver(end)
    assert driver.returncode == exit_code
    assert driver.stderr.startswith(ENDED)
    assert driver.stderr.endswith(AGAIN)


@pytest.mark.parametrize(
    ("end", "exit_code", "last_words"),
    [
        ("pass", 0, ""),
        ("sys.exit('stopped')", 1, "stopped\n"),
        ("raise KeyboardInterrupt", -2, "KeyboardInterrupt\n"),
        (LOST, 3, "isweep: the cluster is lost.\n"),
    ],
)
def test_a_driver_that_ends_with_its_own_words_is_not_explained(end, exit_code, last_words):
    driver = run_driver(end)
    assert driver.returncode == exit_code
    assert driver.stderr.endswith(last_words)
    assert ENDED not in driver.stderr
