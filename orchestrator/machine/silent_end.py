"""Print a message for the user if this process is killed, or if Ray's C++ code ends it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from orchestrator.machine.signals import run_again_hint
from orchestrator.machine.watch import at_forced_end

PRINT_AFTER_INPUT_WITHOUT_A_LINE = 'read -r _ || printf "%s\\n" "$1" >&2'
"""Shell command that waits for its standard input. If the input ends without a line, the command
prints its argument as an error."""


@contextlib.contextmanager
def explained_silent_end() -> Iterator[None]:
    """Let a shell print a message if this process ends in the block, in any way.

    No code of a process runs after SIGKILL or after an exit in C++ code. So a shell waits for a
    line from this process, through a pipe. At the end of the block, this process writes the line.
    If the process ends before the end of the block, the kernel closes the pipe without a line.
    """
    message = (
        "isweep: the command ended without a message. Somebody or the system killed its "
        "process, or Ray ended it after its own processes had died. Finished trials are kept. "
        f"{run_again_hint()}"
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
