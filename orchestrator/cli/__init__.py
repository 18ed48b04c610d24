"""The command line of isweep.

Each module contains a group of commands. Commands only parse and print.
"""

import gc
import os
import signal
import sys
from typing import NoReturn

from orchestrator.machine.signals import STOP_SIGNALS


def entry() -> NoReturn:
    """Run the ``isweep`` command and exit with its code."""
    # With the default thresholds, garbage collection takes a third of the time of
    # `isweep status` with 50,000 trials.
    gc.set_threshold(100_000, 20, 20)
    try:
        from orchestrator.cli.app import main

        code = main()
    except KeyboardInterrupt:  # during the import, before the command starts
        sys.stderr.write("Stopped.\n")
        code = 130
    # All results are printed and stored now. If a signal arrives from now on, it must not
    # print a traceback.
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(code))
    gc.freeze()
    sys.exit(code)
