"""A request to stop is never lost, whatever the main thread does when it comes."""

import signal
import subprocess
import sys

import pytest

from orchestrator.running.ending import is_stop

LOST = """
import os, signal, sys
from orchestrator.running import ending
from orchestrator.running.progress import Progress

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})

ending.stop_on_signals()
del_me = Finalised()
del del_me
print("the interrupt was lost")
try:
    Progress().advance("")
except KeyboardInterrupt:
    ending.stop_heard()
    Progress().stage("stop")
    sys.exit(130)
"""
TAKEN = """
import os, signal, sys
from orchestrator.running.ending import own_signals, stop_on_signals

stop_on_signals()
try:
    with own_signals(lambda: print("half a Ray ended")):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does when it starts
        os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    sys.exit(130)
"""
HELD = """
import os, signal, sys
from orchestrator.running.ending import stop_held, stop_on_signals

stop_on_signals()
try:
    with stop_held():
        os.kill(os.getpid(), signal.{name})
        print("imported whole")
    print("the stop was lost")
except KeyboardInterrupt:
    sys.exit(130)
"""


def run(script):
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stop_that_a_finaliser_swallowed_is_raised_at_the_next_step(name):
    done = run(LOST.replace("{name}", name))
    assert (done.returncode, done.stdout) == (130, "the interrupt was lost\n"), done.stderr


def test_a_stop_while_ray_starts_is_ours():
    done = run(TAKEN)
    assert (done.returncode, done.stdout) == (130, "half a Ray ended\n"), done.stderr


def test_what_a_shell_has_ignored_stays_ignored():
    script = "import signal; from orchestrator.running.ending import stop_on_signals; stop_on_signals()"
    asked = "; print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    done = subprocess.run(
        [sys.executable, "-c", script + asked],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert done.stdout == "True\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stop_during_an_import_comes_after_it(name):
    ended = run(HELD.format(name=name))
    assert (ended.returncode, ended.stdout) == (130, "imported whole\n"), ended.stderr


def test_what_breaks_on_the_way_out_of_a_stop_is_part_of_it():
    def stopped():
        try:
            raise KeyboardInterrupt
        finally:
            raise ImportError("half a module")

    with pytest.raises(ImportError, match="half a module") as caught:
        stopped()
    assert is_stop(caught.value)
    assert not is_stop(ImportError("no stop"))
