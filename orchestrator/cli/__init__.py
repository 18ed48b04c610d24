"""The command line: parsing and printing only. One module per group of commands, options beside
them.
"""

import gc
import os
import signal
import sys
from typing import NoReturn


def entry() -> NoReturn:
    """Entry point of the ``isweep`` command."""
    gc.set_threshold(100_000, 20, 20)  # or a third of a look at 50,000 cells is the collector's
    try:
        from orchestrator.cli.app import main

        code = main()
    except KeyboardInterrupt:  # while that is imported: nothing has begun
        sys.stderr.write("Stopped.\n")
        code = 130
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # all is said and kept: no traceback more
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(code))
    gc.freeze()
    sys.exit(code)
