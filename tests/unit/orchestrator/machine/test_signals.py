"""A request to stop is never lost, whatever the main thread does when it comes."""

import signal
import subprocess
import sys

import pytest

from orchestrator.machine.signals import is_stop

LOST = """
import os, signal, sys
from orchestrator.machine import signals
from orchestrator.running.progress import Progress

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})

signals.stop_on_signals()
del_me = Finalised()
del del_me
print("the interrupt was lost")
try:
    Progress().advance("")
except KeyboardInterrupt:
    signals.stop_heard()
    Progress().stage("stop")
    sys.exit(130)
"""
ENDS = """
import atexit, time
from orchestrator import cli
from orchestrator.cli import app

app.main = lambda: 130
atexit.register(lambda: (print("ends", flush=True), time.sleep(3600)))
cli.entry()
"""
TAKEN = """
import os, signal, sys
from orchestrator.machine.signals import own_signals, stop_on_signals

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
from orchestrator.machine.signals import stop_held, stop_on_signals

stop_on_signals()
try:
    with stop_held():
        os.kill(os.getpid(), signal.{name})
        print("imported whole")
    print("the stop was lost")
except KeyboardInterrupt:
    sys.exit(130)
"""


def run(script, **options):
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    ("script", "name", "said"),
    [
        # One that a finaliser swallowed is raised at the next step, one during an import comes
        # after it.
        *((LOST, name, "the interrupt was lost\n") for name in ("SIGINT", "SIGTERM", "SIGHUP")),
        *((HELD, name, "imported whole\n") for name in ("SIGINT", "SIGTERM", "SIGHUP")),
        (TAKEN, "SIGTERM", "half a Ray ended\n"),
    ],
)
def test_a_stop_is_never_lost(script, name, said):
    done = run(script.replace("{name}", name))
    assert (done.returncode, done.stdout) == (130, said), done.stderr


def test_what_a_shell_has_ignored_stays_ignored():
    asked = (
        "import signal; from orchestrator.machine.signals import stop_on_signals; "
        "stop_on_signals(); "
    )
    asked += "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    done = run(asked, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert done.stdout == "True\n"


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_further_signal_while_the_process_ends_ends_it_at_once_without_a_word(number):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", ENDS], **pipes) as process:
        assert process.stdout.readline() == "ends\n"
        process.send_signal(number)
        assert (process.wait(), process.stderr.read()) == (130, "")
