"""A request to stop is never lost, whatever the main thread does when it comes."""

import signal
import subprocess
import sys

import pytest

from orchestrator.machine.signals import caused_by_stop

SIGNAL_IN_FINALISER = """
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
    signals.clear_stop_request()
    Progress().stage("stop")
    sys.exit(130)
"""
SLOW_END = """
import atexit, time
from orchestrator import cli
from orchestrator.cli import app

app.main = lambda: 130
atexit.register(lambda: (print("ends", flush=True), time.sleep(3600)))
cli.entry()
"""
SIGNAL_WHILE_RAY_STARTS = """
import os, signal, sys
from orchestrator.machine.signals import restore_signal_handlers, stop_on_signals

stop_on_signals()
try:
    with restore_signal_handlers(lambda: print("half a Ray ended")):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does when it starts
        os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    sys.exit(130)
"""
SIGNAL_WHILE_HELD = """
import os, signal, sys
from orchestrator.machine.signals import delay_stop, stop_on_signals

stop_on_signals()
try:
    with delay_stop():
        os.kill(os.getpid(), signal.{name})
        print("imported whole")
    print("the stop was lost")
except KeyboardInterrupt:
    sys.exit(130)
"""


def run_script(script, **options):
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    ("script", "name", "output"),
    [
        # A stop in a finaliser is raised at the next step, and one during an import after it.
        (SIGNAL_IN_FINALISER, "SIGINT", "the interrupt was lost\n"),
        *(
            pytest.param(
                SIGNAL_IN_FINALISER, name, "the interrupt was lost\n", marks=pytest.mark.long
            )
            for name in ("SIGTERM", "SIGHUP")
        ),
        *(
            (SIGNAL_WHILE_HELD, name, "imported whole\n")
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
        ),
        (SIGNAL_WHILE_RAY_STARTS, "SIGTERM", "half a Ray ended\n"),
    ],
)
def test_a_stop_is_never_lost(script, name, output):
    process = run_script(script.replace("{name}", name))
    assert (process.returncode, process.stdout) == (130, output), process.stderr


def test_signals_that_the_shell_ignores_stay_ignored():
    script = (
        "import signal; from orchestrator.machine.signals import stop_on_signals; "
        "stop_on_signals(); "
    )
    script += "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    process = run_script(script, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout == "True\n"


def test_an_error_during_a_stop_counts_as_the_stop():
    def stop_with_error():
        try:
            raise KeyboardInterrupt
        finally:
            raise ImportError("half a module")

    with pytest.raises(ImportError, match="half a module") as raised:
        stop_with_error()
    assert caused_by_stop(raised.value)
    assert not caused_by_stop(ImportError("no stop"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_further_signal_ends_the_process_at_once_and_silently(number):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SLOW_END], **pipes) as process:
        assert process.stdout.readline() == "ends\n"
        process.send_signal(number)
        assert (process.wait(), process.stderr.read()) == (130, "")
