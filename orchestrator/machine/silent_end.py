"""The message that the user gets if this process is killed, or if Ray's C++ code ends it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from orchestrator.machine.signals import run_again_hint
from orchestrator.machine.watch import at_forced_end

PRINT_AFTER_INPUT_WITHOUT_A_LINE = 'read -r _ || printf "%s\\n" "$1" >&2'
"""Shell command that waits for a line on its standard input. If the input ends without a line,
the command prints its argument to stderr."""


@contextlib.contextmanager
def explained_silent_end() -> Iterator[None]:
    """Make a shell print a message if this process ends in any way during the ``with`` block.

    After SIGKILL, or after an exit in C++ code, a process cannot print anything. A shell
    therefore waits for a line from this process through a pipe. At the end of the block, this
    process writes the line. If the process ends earlier, the kernel closes the pipe without a
    line, and the shell prints the message.
    """
    message = (
        "isweep: the command ended without a message. Either somebody or the system killed "
        "the command's process, or Ray ended it because Ray's own processes had died. "
        f"Finished trials are kept. {run_again_hint()}"
    )
    # In a session of its own, the shell does not receive Ctrl-C.
    shell = subprocess.Popen(
        ["sh", "-c", PRINT_AFTER_INPUT_WITHOUT_A_LINE, "sh", message],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )

    def end_shell() -> None:
        with contextlib.suppress(OSError):  # somebody has ended the shell
            shell.communicate("ended\n")

    with at_forced_end(end_shell):
        try:
            yield
        finally:
            end_shell()
