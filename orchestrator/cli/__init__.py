"""The command line: parsing and printing only. One module per group of commands, options beside them."""

import gc
import sys
from typing import NoReturn


def entry() -> NoReturn:
    """Entry point of the ``isweep`` command."""
    # By its default the collector goes through a sweep's millions of objects, which live to the end, again
    # and again: a third of the time of a look at 50,000 cells (benchmarks/running.py looks).
    gc.set_threshold(100_000, 20, 20)
    try:
        from orchestrator.cli.app import main

        code = main()
    except KeyboardInterrupt:  # while that is imported: nothing has begun
        sys.stderr.write("Stopped.\n")
        code = 130
    gc.freeze()
    sys.exit(code)
