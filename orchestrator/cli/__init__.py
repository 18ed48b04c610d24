"""The command line: parsing and printing only. One module per group of commands, options beside them."""

import gc
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
    gc.freeze()
    sys.exit(code)
