"""Hosts of a small laboratory: SSH servers in separate network, process, mount and name spaces.

Each host has an address, a home, a temporary folder and shared memory, and the same account
``isweep``. The hosts need root inside :func:`tests.isolation.isolated`: no process can leave its
namespaces, and all end with them. The process that creates the hosts is the user's machine, on the
same bridge."""

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
START_TIMEOUT_S = 20.0

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

# Host keys are new in every lab. ssh would ask a user once whether to accept them.
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
_MOUNT_HOME = "mount --bind {lab}/hosts/{name} {lab}/home"


def run(*words: str) -> None:
    """Run a command of the lab itself. Its output is shown only if it fails."""
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: {process.stderr.strip() or process.stdout.strip()}")


@dataclass
class Host:
    """A simulated machine, which can be started, switched off and emptied.

    Attributes:
        name: The host name.
        address: The address on the bridge.
        lab: Folder of the lab.
        services: Commands that start further services besides the SSH server.
        shares_home: Whether all hosts use one home folder.
    """

    name: str
    address: str
    lab: Path
    services: str = ""
    shares_home: bool = False
    _server: subprocess.Popen[bytes] | None = None

    @property
    def disk(self) -> Path:
        """The path by which the lab reads the host's home folder."""
        return self.lab / "hosts" / self.name

    def connect(self) -> None:
        """Create the host's network card on the bridge."""
        self.disk.mkdir(parents=True)
        run("ip", "netns", "add", self.name)
        card = f"to-{self.name}"[:15]
        run("ip", "link", "add", card, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        run("ip", "link", "set", card, "master", BRIDGE, "up")
        run("ip", "-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        run("ip", "-n", self.name, "link", "set", "eth0", "up")

    def start(self) -> None:
        """Switch the host on, and wait for its SSH server."""
        mount_home = "" if self.shares_home else _MOUNT_HOME.format(name=self.name, lab=self.lab)
        boot = _BOOT.format(
            name=self.name, lab=self.lab, sshd=SSHD, own_home=mount_home, services=self.services
        )
        spaces = ("--pid", "--mount-proc", "--mount", "--uts", "--fork", "--kill-child")
        command = ("nsenter", f"--net=/run/netns/{self.name}", "unshare", *spaces, "sh", "-c", boot)
        with open(self.lab / f"{self.name}.log", "ab") as log:
            self._server = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection((self.address, 22), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline or self._server.poll() is not None:
                    raise RuntimeError(f"no SSH server: see {self.lab}/{self.name}.log") from None
                time.sleep(0.1)

    def switch_off(self) -> None:
        """Switch the host off: its processes and its memory are lost, its disk remains."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def empty_home(self) -> None:
        """Delete everything on the host's disk."""
        run("find", str(self.disk), "-mindepth", "1", "-delete")

    def processes(self, *words: str) -> list[psutil.Process]:
        """Return the host's processes that have one of ``words`` in their command line.

        Without ``words`` return all processes other than those of the lab itself.
        """
        processes = []
        for process in psutil.Process(os.getpid()).children(recursive=True):
            try:
                command_line = " ".join(process.cmdline())
                name = process.name()
                inside = os.readlink(f"/proc/{process.pid}/ns/net") == self._network_space()
            except (psutil.Error, OSError):
                continue
            is_of_lab = (
                name.startswith(("sshd", "unshare", "nsenter"))
                or process.status() == psutil.STATUS_ZOMBIE
            )
            is_named = not words or any(word in command_line for word in words)
            if inside and not is_of_lab and is_named:
                processes.append(process)
        return processes

    def open_ports(self) -> list[dict[str, Any]]:
        """Return each listening program other than SSH, its port, and its answer without a token."""
        process = subprocess.run(
            ("ip", "netns", "exec", self.name, "ss", "-ltnpH"),
            capture_output=True,
            text=True,
            check=True,
        )
        ports = []
        for line in process.stdout.splitlines():
            columns = line.split()
            address, _, port = columns[3].rpartition(":")
            pids = re.findall(r"pid=(\d+)", " ".join(columns[5:]))
            try:
                program = self._program(int(pids[0])) if pids else "?"
            except psutil.NoSuchProcess:
                continue  # the process has ended, so its port is closed
            status = ""
            if not address.startswith("127."):
                status = status_without_token(self.address, int(port))
            ports.append(
                {"program": program, "address": address, "port": int(port), "answer": status}
            )
        return sorted(
            (entry for entry in ports if entry["program"] != "sshd"),
            key=lambda entry: list(entry.values())[:2],
        )

    @staticmethod
    def _program(pid: int) -> str:
        """Return the name of a process's program, for Ray's processes the name that Ray uses."""
        arguments = psutil.Process(pid).cmdline()
        names = re.findall(
            r"gcs_server|raylet|dashboard/(?:agent|dashboard|api_server)|runtime_env|log_monitor"
            r"|monitor\.py|ray::\w+|default_worker|sshd",
            " ".join(arguments),
        )
        if names:
            return names[0]
        return Path(arguments[0]).name if arguments else "?"

    def _network_space(self) -> str:
        return f"net:[{os.stat(f'/run/netns/{self.name}').st_ino}]"

    def kill(self, *words: str) -> int:
        """Kill the host's processes that have one of ``words`` in their command line.

        Returns:
            The number of these processes.
        """
        processes = self.processes(*words)
        for process in processes:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        return len(processes)


def status_without_token(host: str, port: int) -> str:
    """Request metrics from a port by HTTP without a token. Return the status code, or an empty text."""
    connection = http.client.HTTPConnection(host, port, timeout=3)
    try:
        connection.request("GET", "/metrics")
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def create_lab(
    lab: Path, names: Sequence[str], *, services: str = "", shares_home: bool = False
) -> list[Host]:
    """Create bridge, keys and accounts, and start a host for each name.

    The calling process is the machine with the address that ends in ``.1``.
    """
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
    host_lines = [f"{host.address} {host.name}\n" for host in hosts]
    _replace(lab, "/etc/hosts", "".join([*host_lines, "127.0.0.1 localhost\n"]))
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for host in hosts:
        host.connect()
        host.start()
    return hosts


def _replace(lab: Path, path: str, text: str) -> None:
    """Replace a file of the system in the lab's mount namespace only."""
    replacement = lab / "etc" / Path(path).name
    replacement.write_text(text, encoding="utf-8")
    run("mount", "--bind", str(replacement), path)


def _accounts(lab: Path) -> str:
    lines = [
        line
        for line in Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
        if ":0:0:" not in line
    ]
    return "\n".join([f"isweep:x:0:0:lab:{lab}/home:/bin/bash", *lines]) + "\n"


def _profile(lab: Path) -> str:
    """Return a profile by which every login uses this lab's interpreter as ``python3``."""
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
    run_lab: Callable[[Path], dict[str, Any]],
) -> int:
    """Check the needed tools, enter new namespaces, run a laboratory there, and print its result.

    Args:
        target: target of ``make``, which is also the laboratory's name.
        module: the module that calls this function. It is called again inside the namespaces.
        about: one line about the laboratory.
        tools: commands that the laboratory needs.
        run_lab: runs the laboratory in a folder, and returns its result.

    Returns:
        The exit code: 0 if all checks pass, 1 if one fails, 3 if a tool is missing.
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
            missing_text = ", ".join(missing) or "the right to make namespaces (root)"
            print(f"{target} needs {missing_text}", file=sys.stderr)
            return 3
        # Not below /tmp: each host has a folder of its own there.
        lab = tempfile.mkdtemp(prefix=f"isweep-{target}-", dir="/var/tmp")
        arguments = [sys.executable, "-m", module, "--inside", lab]
        arguments += ["--result", str(options.result.absolute())] if options.result else []
        os.execvp("unshare", isolated(*arguments))
    try:
        document = run_lab(options.inside)
    except RuntimeError as error:
        print(f"{error}\nlogs: {options.inside}", file=sys.stderr)
        return 1
    text = json.dumps(document, indent=2) + "\n"
    print(text, end="")
    if options.result:
        options.result.write_text(text, encoding="utf-8")
    shutil.rmtree(options.inside)
    return 0
