"""Hosts of a small laboratory: SSH servers in network, process, mount and name spaces of their own.

Each has its own address, home, temporary folder and shared memory, and sees the same account
``isweep``. Made for root inside :func:`tests.isolation.isolated`, where nothing can leave and all
ends together; the process that makes them is the user's machine, on the same bridge."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.isolation import AVAILABLE, isolated

NETWORK = "10.77.0"
BRIDGE = "lab0"
SSHD = "/usr/sbin/sshd"
WAIT_S = 20.0

_SSHD_CONFIG = """
HostKey {lab}/host_key
AuthorizedKeysFile {lab}/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
"""

# Host keys are new in every lab; a user would be asked once.
_SSH_CONFIG = """
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""

_BOOT = """
set -e
hostname {name}
{own_home}
for folder in /tmp /dev/shm /run; do mount -t tmpfs -o mode=1777 none $folder; done
mkdir -m 755 /run/sshd
ip link set lo up
{services}
exec {sshd} -D -e -f {lab}/sshd_config
"""
_OWN_HOME = "mount --bind {lab}/hosts/{name} {lab}/home"


def run(*words: str) -> None:
    """Run a command of the lab's own; what it prints is shown only when it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")


@dataclass
class Host:
    """One machine: started, switched off, its processes killed, its home emptied.

    Attributes:
        name: Its host name.
        address: Its address on the bridge.
        lab: Folder of the lab.
        services: Commands that start what runs there beside the SSH server.
        shares_home: Whether its home is the one that all hosts see.
    """

    name: str
    address: str
    lab: Path
    services: str = ""
    shares_home: bool = False
    _server: subprocess.Popen[bytes] | None = None

    @property
    def disk(self) -> Path:
        """Its home folder, as the lab sees it."""
        return self.lab / "hosts" / self.name

    def plug_in(self) -> None:
        """Give it a network card on the bridge, once."""
        self.disk.mkdir(parents=True)
        run("ip", "netns", "add", self.name)
        card = f"to-{self.name}"[:15]
        run("ip", "link", "add", card, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        run("ip", "link", "set", card, "master", BRIDGE, "up")
        run("ip", "-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        run("ip", "-n", self.name, "link", "set", "eth0", "up")

    def start(self) -> None:
        """Switch it on, and wait for its SSH server."""
        own_home = "" if self.shares_home else _OWN_HOME.format(name=self.name, lab=self.lab)
        boot = _BOOT.format(
            name=self.name, lab=self.lab, sshd=SSHD, own_home=own_home, services=self.services
        )
        spaces = ("--pid", "--mount-proc", "--mount", "--uts", "--fork", "--kill-child")
        command = ("nsenter", f"--net=/run/netns/{self.name}", "unshare", *spaces, "sh", "-c", boot)
        with open(self.lab / f"{self.name}.log", "ab") as log:
            self._server = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        patience = time.monotonic() + WAIT_S
        while True:
            try:
                socket.create_connection((self.address, 22), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > patience or self._server.poll() is not None:
                    raise RuntimeError(f"no SSH server: see {self.lab}/{self.name}.log") from None
                time.sleep(0.1)

    def switch_off(self) -> None:
        """Pull the plug: every process and everything in memory is gone, the disk stays."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def empty_home(self) -> None:
        """Take everything off its disk."""
        run("find", str(self.disk), "-mindepth", "1", "-delete")

    def processes(self, *words: str) -> list[psutil.Process]:
        """Return its processes other than SSH servers, those with one of ``words`` in their command
        line."""
        found = []
        for process in psutil.Process(os.getpid()).children(recursive=True):
            try:
                line, name = " ".join(process.cmdline()), process.name()
                inside = os.readlink(f"/proc/{process.pid}/ns/net") == self._network_space()
            except (psutil.Error, OSError):
                continue
            ours = (
                name.startswith(("sshd", "unshare", "nsenter"))
                or process.status() == psutil.STATUS_ZOMBIE
            )
            if inside and not ours and (not words or any(word in line for word in words)):
                found.append(process)
        return found

    def open_ports(self) -> list[dict[str, Any]]:
        """Return program, address and port of all that listens there but SSH, and what it tells
        strangers."""
        done = subprocess.run(
            ("ip", "netns", "exec", self.name, "ss", "-ltnpH"),
            capture_output=True,
            text=True,
            check=True,
        )
        found = []
        for line in done.stdout.splitlines():
            place, users = line.split()[3], line.split()[5:]
            address, _, port = place.rpartition(":")
            pids = re.findall(r"pid=(\d+)", " ".join(users))
            try:
                program = self._program(int(pids[0])) if pids else "?"
            except psutil.NoSuchProcess:
                continue  # it has ended since, and its port is closed
            answer = "" if address.startswith("127.") else stranger_asks(self.address, int(port))
            found.append(
                {"program": program, "address": address, "port": int(port), "answer": answer}
            )
        return sorted(
            (one for one in found if one["program"] != "sshd"),
            key=lambda one: list(one.values())[:2],
        )

    @staticmethod
    def _program(pid: int) -> str:
        """Return what a process is, in a word: Ray's own names where it gives one."""
        words = psutil.Process(pid).cmdline()
        known = re.findall(
            r"gcs_server|raylet|dashboard/(?:agent|dashboard|api_server)|runtime_env|log_monitor"
            r"|monitor\.py|ray::\w+|default_worker|sshd",
            " ".join(words),
        )
        return known[0] if known else (Path(words[0]).name if words else "?")

    def _network_space(self) -> str:
        return f"net:[{os.stat(f'/run/netns/{self.name}').st_ino}]"

    def kill(self, *words: str) -> int:
        """Kill its processes that have one of ``words`` in their command line; returns how many."""
        found = self.processes(*words)
        for process in found:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        return len(found)


def stranger_asks(host: str, port: int) -> str:
    """Ask a port by HTTP for metrics, without a token; returns its status code, or nothing."""
    asking = http.client.HTTPConnection(host, port, timeout=3)
    try:
        asking.request("GET", "/metrics")
        return str(asking.getresponse().status)
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        asking.close()


def make_lab(
    lab: Path, names: Sequence[str], *, services: str = "", shares_home: bool = False
) -> list[Host]:
    """Make the bridge, keys and accounts, and start a host for each name; we are the machine at
    ``.1``."""
    for folder in ("home/.ssh", "hosts", "etc"):
        (lab / folder).mkdir(parents=True)
    for key in ("home/.ssh/id_ed25519", "host_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(lab / key))
    (lab / "home/.ssh/config").write_text(_SSH_CONFIG, encoding="utf-8")
    (lab / "authorized_keys").write_bytes((lab / "home/.ssh/id_ed25519.pub").read_bytes())
    (lab / "sshd_config").write_text(_SSHD_CONFIG.format(lab=lab), encoding="utf-8")
    hosts = [
        Host(name, f"{NETWORK}.{10 + index}", lab, services, shares_home)
        for index, name in enumerate(names)
    ]
    for folder in ("/tmp", "/run"):
        run("mount", "-t", "tmpfs", "-o", "mode=1777", "none", folder)
    _replace(lab, "/etc/passwd", _accounts(lab))
    _replace(lab, "/etc/profile", _profile(lab))
    _replace(
        lab,
        "/etc/hosts",
        "".join(f"{h.address} {h.name}\n" for h in hosts) + "127.0.0.1 localhost\n",
    )
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for host in hosts:
        host.plug_in()
        host.start()
    return hosts


def _replace(lab: Path, path: str, text: str) -> None:
    """Cover a file of the system, in the lab's mount namespace only."""
    ours = lab / "etc" / Path(path).name
    ours.write_text(text, encoding="utf-8")
    run("mount", "--bind", str(ours), path)


def _accounts(lab: Path) -> str:
    others = [
        line
        for line in Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
        if ":0:0:" not in line
    ]
    return "\n".join([f"isweep:x:0:0:lab:{lab}/home:/bin/bash", *others]) + "\n"


def _profile(lab: Path) -> str:
    """Every login finds a ``python3`` that is new enough: the interpreter of this lab."""
    folder = lab / "bin"
    folder.mkdir()
    base = Path(
        sys._base_executable if hasattr(sys, "_base_executable") else sys.executable
    ).resolve()
    (folder / "python3").write_text(f'#!/bin/sh\nexec {base} "$@"\n', encoding="utf-8")
    (folder / "python3").chmod(0o755)
    return f"export PATH={folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"


def enter(
    target: str,
    module: str,
    about: str,
    tools: Sequence[str],
    tell: Callable[[Path], dict[str, Any]],
) -> int:
    """Check what is needed, go into namespaces of our own, and print what ``tell`` finds in a lab
    there.

    Args:
        target: of ``make``, which names the laboratory.
        module: runs it, called again inside.
        about: what it is, in a line.
        tools: commands that it needs.
        tell: runs the whole story in the lab's folder.
    """
    parser = argparse.ArgumentParser(prog=f"make {target}", description=about)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--result", type=Path, help="where to write what is printed, not below /tmp"
    )
    options = parser.parse_args()
    if options.inside is None:
        missing = [tool for tool in tools if shutil.which(tool) is None]
        if missing or os.geteuid() != 0 or not AVAILABLE:
            wanted = ", ".join(missing) or "the right to make namespaces (root)"
            print(f"{target} needs {wanted}", file=sys.stderr)
            return 3
        # Not below /tmp: each host has a folder of its own there.
        lab = tempfile.mkdtemp(prefix=f"isweep-{target}-", dir="/var/tmp")
        words = [sys.executable, "-m", module, "--inside", lab]
        words += ["--result", str(options.result.absolute())] if options.result else []
        os.execvp("unshare", isolated(*words))
    try:
        document = tell(options.inside)
    except RuntimeError as error:
        print(f"{error}\nlogs: {options.inside}", file=sys.stderr)
        return 1
    text = json.dumps(document, indent=2) + "\n"
    print(text, end="")
    if options.result:
        options.result.write_text(text, encoding="utf-8")
    shutil.rmtree(options.inside)
    return 0
