"""Run commands in new PID, mount and network namespaces, so that a kill there hits nothing else.

All processes end with the namespace. This needs Linux and the right to create namespaces (root, or
unprivileged user namespaces). Otherwise :data:`AVAILABLE` is False, and fault tests are skipped with
:data:`REASON`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

_FLAGS = ["--pid", "--mount-proc", "--mount", "--net", "--fork", "--kill-child"]
if os.geteuid() != 0:
    _FLAGS = ["--user", "--map-root-user", *_FLAGS]

# `ip link set lo up` in Python, so that iproute2 need not be installed.
_LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
SIOCSIFFLAGS, IFF_UP_RUNNING = 0x8914, 0x41
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP_RUNNING))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def isolated(*command: str) -> list[str]:
    """Return a command line that runs ``command`` in new namespaces, with loopback up."""
    return ["unshare", *_FLAGS, sys.executable, "-c", _LOOPBACK_UP, *command]


def _available() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(isolated("true"), capture_output=True, check=False).returncode == 0


AVAILABLE = _available()
REASON = "needs Linux namespaces (unshare, as root or with unprivileged user namespaces)"
