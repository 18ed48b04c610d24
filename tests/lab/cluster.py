"""A cluster on three hosts of the laboratory, driven by the commands of docs/cluster.md.

The laboratory replaces three things: the addresses of the machines, the packages of the environment
(they are linked, not downloaded; the wheel itself is installed), and GPUs (each worker has one
logical GPU)."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tests.lab.hosts import Host, create_lab

REPOSITORY = Path(__file__).parents[2]
LAUNCH_FILE = "clusters/onprem.yaml"
STORE = "--object-store-memory=150000000"
QUIET_S = 3.0
"""Seconds without output after which a command in the terminal counts as done."""
MAX_TRIES = 3
"""Tries to open a shell."""
NUM_PICTURES = 600
TOKEN = "mkdir -p -m 700 ~/.ray && (umask 077; openssl rand -hex 32 > ~/.ray/auth_token)"

_SWEEP = """
name: {name}
models: [small_mlp, small_cnn]
datasets: [{datasets}]
train_sizes: [40, 80, 160]
test_size: 40
image_size: 16
channels: 1
seeds: {seeds}
recipe: {{from: smoke, epochs: {epochs}}}
num_neighbors: 10
resources: {{num_cpus: 1, num_gpus: 0.5}}
"""

LINK_PACKAGES = """
import sys, sysconfig
from importlib.metadata import entry_points
from pathlib import Path
folders = [f for f in {folders!r}]
site, scripts = Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("scripts"))
(site / "linked.pth").write_text("\\n".join(folders))
(scripts / "ray").write_text(
    f"#!{{sys.executable}}\\nimport sys\\nfrom ray.scripts.scripts import main\\nsys.exit(main())\\n")
(scripts / "ray").chmod(0o755)
"""

_COUNT_NODES = """
import ray
ray.init("auto", log_to_driver=False, logging_level="ERROR")
print(sum(node["Alive"] for node in ray.nodes()))
"""


def sweep_text(*, name: str, seeds: str, epochs: int, pictures: Path | None = None) -> str:
    """Return a sweep of two small networks on a generated dataset, and on a folder of pictures."""
    datasets = "manifold_d4"
    if pictures:
        datasets += (
            f", {{name: pictures, own: {{kind: folder, path: {pictures}, domain: natural}}}}"
        )
    return _SWEEP.format(name=name, seeds=seeds, epochs=epochs, datasets=datasets)


def draw_pictures(folder: Path) -> None:
    """Write a raw download of two classes that every host sees, as on shared storage."""
    rng = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        path = folder / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = 100 * (number % 2)
        Image.fromarray(rng.integers(low, low + 100, (32, 32), dtype=np.uint8)).save(path)


def launch_file(lab: Path, hosts: list[Host]) -> Path:
    """Write the launch file with the hosts' addresses, linked packages and logical GPUs.

    Returns:
        The path of the file.
    """
    launch = yaml.safe_load((REPOSITORY / LAUNCH_FILE).read_text(encoding="utf-8"))
    head, *workers = hosts
    launch["provider"] |= {
        "head_ip": head.address,
        "worker_ips": [worker.address for worker in workers],
    }
    folders = [path for path in sys.path if path.endswith("site-packages")]
    (lab / "link.py").write_text(LINK_PACKAGES.format(folders=folders), encoding="utf-8")
    link = f"~/isweep-venv/bin/python {lab}/link.py"
    launch["setup_commands"] = [
        link if "--require-hashes" in command else command for command in launch["setup_commands"]
    ]
    if link not in launch["setup_commands"]:
        raise RuntimeError(
            f"{LAUNCH_FILE} installs its packages in another way than this laboratory knows"
        )
    ray_options = {
        "head_start_ray_commands": "--num-cpus=0",
        "worker_start_ray_commands": "--num-cpus=2 --num-gpus=1",
    }
    for name, options in ray_options.items():
        launch[name] = [
            f"ISWEEP_LOGICAL_GPUS=1 {command} {options} {STORE}" for command in launch[name]
        ]
    path = lab / "onprem.yaml"
    path.write_text(yaml.safe_dump(launch), encoding="utf-8")
    return path


@dataclass
class LabCluster:
    """The user's machine and the cluster's hosts.

    Attributes:
        lab: Folder of the lab.
        hosts: The hosts, the head first.
        commands: Every command of the documents that was run, as the documents write it.
        submission: Id of the Ray job that was submitted last.
    """

    lab: Path
    hosts: list[Host]
    commands: list[str] = field(default_factory=list)
    submission: str = ""

    @classmethod
    def create(cls, lab: Path) -> LabCluster:
        """Start the hosts, with token and launch file in place."""
        hosts = create_lab(lab, ["head", "gpu1", "gpu2"])
        (lab / "home/data").mkdir()
        (lab / "home/data/raw.txt").write_text("a raw download\n", encoding="utf-8")
        launch_file(lab, hosts)
        draw_pictures(lab / "pictures")
        (lab / "nodes.py").write_text(_COUNT_NODES, encoding="utf-8")
        cluster = cls(lab, hosts)
        cluster.run_here(TOKEN)
        return cluster

    @property
    def head(self) -> Host:
        """The host on which the driver runs."""
        return self.hosts[0]

    @property
    def root(self) -> Path:
        """The path by which the lab reads the sweep's root."""
        return self.head.disk / "isweep-root"

    def _translate(self, command: str, home: Path) -> str:
        self.commands.append(command)
        translated = command.replace(LAUNCH_FILE, str(self.lab / "onprem.yaml"))
        translated = translated.replace("SUBMISSION_ID", self.submission)
        for host in self.hosts:
            translated = translated.replace(f"{host.name}.example.org", host.address)
        return translated.replace("/home/isweep", str(home)).replace(
            " paper", f" {self.lab}/paper.yaml"
        )

    def run_here(self, command: str, *, fails: bool = False) -> str:
        """Run a command of the documents on the user's machine."""
        translated = self._translate(command, self.lab / "home")
        for name, module in {"ray": "ray.scripts.scripts", "isweep": "orchestrator.cli"}.items():
            translated = re.sub(f"^{name} ", f"{sys.executable} -m {module} ", translated)
        process = subprocess.run(
            ["bash", "-c", translated],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
            cwd=REPOSITORY,
            env=self._environment,
        )
        self._log(command, process.stdout + process.stderr)
        if process.returncode and not fails:
            raise RuntimeError(
                f"{command}: exit code {process.returncode}\n{process.stdout}{process.stderr}"
            )
        return process.stdout + process.stderr

    @contextlib.contextmanager
    def running_beside(self, command: str) -> Iterator[None]:
        """Let a command of the documents run on the user's machine while the block runs."""
        arguments = self._translate(command, self.lab / "home").removeprefix("ray ")
        with open(self.lab / "beside.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *arguments.split()],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=REPOSITORY,
                env=self._environment,
                start_new_session=True,
            )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()

    def type_into(self, shell: str, commands: list[str]) -> None:
        """Open a shell by a command of the documents, type commands into it, and end the connection.

        On a busy machine tmux sometimes fails: attaching starts a server that ends before the new
        session begins. A user would type the command again, and so does this function."""
        for _ in range(MAX_TRIES):
            if "server exited unexpectedly" not in self._type_into(shell, commands):
                return
        raise RuntimeError(f"{shell}: no session after {MAX_TRIES} tries")

    def _type_into(self, shell: str, commands: list[str]) -> str:
        arguments = self._translate(shell, self.lab / "home").removeprefix("ray ")
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(REPOSITORY)
            os.execvpe(
                sys.executable,
                [sys.executable, "-m", "ray.scripts.scripts", *arguments.split()],
                self._environment,
            )
        output = self._read_until_quiet(terminal, patience_s=30)
        for command in commands:
            os.write(terminal, self._translate(command, self.lab / "home").encode() + b"\n")
            output += self._read_until_quiet(terminal)
        text = output.decode(errors="replace")
        self._log(shell, text)
        os.close(terminal)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return text

    @staticmethod
    def _read_until_quiet(terminal: int, patience_s: float = QUIET_S) -> bytes:
        output = b""
        quiet_at = time.monotonic() + patience_s
        while time.monotonic() < quiet_at:
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    output += os.read(terminal, 65536)
                except OSError:
                    break
                if output:
                    quiet_at = min(quiet_at, time.monotonic() + QUIET_S)
        return output

    def on_head(self, command: str, *, fails: bool = False) -> str:
        """Run a command of the documents in a shell of the head, as after ``ray attach``."""
        translated = self._translate(command, self.lab / "home")
        login = f"export PATH=~/isweep-venv/bin:$PATH RAY_AUTH_MODE=token; {translated}"
        process = self._ssh(self.head, login)
        self._log(command, process.stdout + process.stderr)
        if process.returncode and not fails:
            raise RuntimeError(
                f"{command}: exit code {process.returncode}\n{process.stdout}{process.stderr}"
            )
        return process.stdout

    def _ssh(self, host: Host, command: str) -> subprocess.CompletedProcess[str]:
        options = (
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        )
        key = str(self.lab / "home/.ssh/id_ed25519")
        arguments = (
            "ssh",
            *options,
            "-i",
            key,
            f"isweep@{host.address}",
            "bash",
            "--login",
            "-c",
            f"'{command}'",
        )
        return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=200)

    @property
    def _environment(self) -> dict[str, str]:
        hidden = ("RAY_", "ISWEEP_", "MLFLOW_")
        variables = {
            name: value for name, value in os.environ.items() if not name.startswith(hidden)
        }
        return {
            **variables,
            "HOME": str(self.lab / "home"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
        }

    def _log(self, command: str, text: str) -> None:
        with open(self.lab / "transcript.txt", "a", encoding="utf-8") as file:
            file.write(f"$ {command}\n{text}\n")

    def num_nodes(self) -> int:
        """Return how many nodes the cluster has now."""
        process = self._ssh(
            self.head, f"RAY_AUTH_MODE=token ~/isweep-venv/bin/python {self.lab}/nodes.py"
        )
        last_lines = process.stdout.strip().splitlines()[-1:] or [""]
        return int(last_lines[0]) if last_lines[0].isdigit() else 0

    def num_done(self, sweep: str) -> int:
        """Return how many trials of a sweep have a result."""
        return len(list((self.root / "sweeps" / sweep / "trials").glob("*/result.json")))


def wait_until(
    description: str, seconds: float, condition: Callable[[], Any], pause: float = 1.0
) -> float:
    """Wait until the condition is true. Return the seconds that it took."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise RuntimeError(f"after {seconds:g} s still not: {description}")
        time.sleep(pause)
    return round(time.monotonic() - started, 1)


def read_json(text: str) -> Any:
    """Return the JSON document in the output of a command."""
    start = min((text.index(bracket) for bracket in "[{" if bracket in text), default=0)
    return json.JSONDecoder().raw_decode(text[start:])[0]
