"""A command inside its own PID, mount and network namespaces: a kill there can hit nothing else.

Everything ends with the namespace. Needs Linux and the right to make namespaces (root, or
unprivileged user namespaces); where that is missing, :data:`AVAILABLE` is False and fault tests
skip with the reason."""

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
    """Return ``command`` wrapped so that it runs in namespaces of its own, with loopback up."""
    return ["unshare", *_FLAGS, sys.executable, "-c", _LOOPBACK_UP, *command]


def _available() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(isolated("true"), capture_output=True, check=False).returncode == 0


AVAILABLE = _available()
REASON = "needs Linux namespaces (unshare, as root or with unprivileged user namespaces)"
