"""A cluster on three hosts, driven as docs/cluster.md says: its commands, word for word,
translated.

What the laboratory stands in for: the address of the machines, the packages of the environment
(linked, not downloaded; the wheel itself is installed), and GPUs (one logical GPU per worker)."""

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

from tests.lab.hosts import Host, make_lab

REPOSITORY = Path(__file__).parents[2]
LAUNCH_FILE = "clusters/onprem.yaml"
STORE = "--object-store-memory=150000000"
PROMPT_S = 3.0
TRIES = 3
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
    """Return a sweep of two small networks, where a folder of pictures is given on that too."""
    own = (
        f", {{name: pictures, own: {{kind: folder, path: {pictures}, domain: natural}}}}"
        if pictures
        else ""
    )
    return _SWEEP.format(name=name, seeds=seeds, epochs=epochs, datasets=f"manifold_d4{own}")


def draw_pictures(folder: Path) -> None:
    """Make a raw download of two classes that every host sees, as on shared storage."""
    rng = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        path = folder / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = 100 * (number % 2)
        Image.fromarray(rng.integers(low, low + 100, (32, 32), dtype=np.uint8)).save(path)


def launch_file(lab: Path, hosts: list[Host]) -> Path:
    """Fill in the places marked CHANGE, and stand-ins for packages and GPUs; returns the file's
    path."""
    made = yaml.safe_load((REPOSITORY / LAUNCH_FILE).read_text(encoding="utf-8"))
    head, *workers = hosts
    made["provider"] |= {
        "head_ip": head.address,
        "worker_ips": [worker.address for worker in workers],
    }
    folders = [path for path in sys.path if path.endswith("site-packages")]
    (lab / "link.py").write_text(LINK_PACKAGES.format(folders=folders), encoding="utf-8")
    link = f"~/isweep-venv/bin/python {lab}/link.py"
    made["setup_commands"] = [
        link if "--require-hashes" in command else command for command in made["setup_commands"]
    ]
    if link not in made["setup_commands"]:
        raise RuntimeError(
            f"{LAUNCH_FILE} installs its packages in another way than this laboratory knows"
        )
    offers = {
        "head_start_ray_commands": "--num-cpus=0",
        "worker_start_ray_commands": "--num-cpus=2 --num-gpus=1",
    }
    for name, offer in offers.items():
        made[name] = [f"ISWEEP_LOGICAL_GPUS=1 {command} {offer} {STORE}" for command in made[name]]
    path = lab / "onprem.yaml"
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    return path


@dataclass
class LabCluster:
    """The user's machine, and what is seen of the hosts behind its back.

    Attributes:
        lab: Folder of the lab.
        hosts: Head first.
        said: Every command of the documents that was run, in its words there.
        submission: Id of the Ray job that was submitted last.
    """

    lab: Path
    hosts: list[Host]
    said: list[str] = field(default_factory=list)
    submission: str = ""

    @classmethod
    def make(cls, lab: Path) -> LabCluster:
        """Start the hosts, with token and launch file in place."""
        hosts = make_lab(lab, ["head", "gpu1", "gpu2"])
        (lab / "home/data").mkdir()
        (lab / "home/data/raw.txt").write_text("a raw download\n", encoding="utf-8")
        launch_file(lab, hosts)
        draw_pictures(lab / "pictures")
        (lab / "nodes.py").write_text(_COUNT_NODES, encoding="utf-8")
        made = cls(lab, hosts)
        made.here(TOKEN)
        return made

    @property
    def head(self) -> Host:
        """The host that drives."""
        return self.hosts[0]

    @property
    def root(self) -> Path:
        """The sweep's root, as the lab sees it."""
        return self.head.disk / "isweep-root"

    def _translated(self, command: str, home: Path) -> str:
        self.said.append(command)
        words = command.replace(LAUNCH_FILE, str(self.lab / "onprem.yaml"))
        words = words.replace("SUBMISSION_ID", self.submission)
        for host in self.hosts:
            words = words.replace(f"{host.name}.example.org", host.address)
        return words.replace("/home/isweep", str(home)).replace(" paper", f" {self.lab}/paper.yaml")

    def here(self, command: str, *, fails: bool = False) -> str:
        """Run a command of the documents on the user's machine."""
        words = self._translated(command, self.lab / "home")
        for name, module in {"ray": "ray.scripts.scripts", "isweep": "orchestrator.cli"}.items():
            words = re.sub(f"^{name} ", f"{sys.executable} -m {module} ", words)
        done = subprocess.run(
            ["bash", "-c", words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
            cwd=REPOSITORY,
            env=self._environment,
        )
        self._note(command, done.stdout + done.stderr)
        if done.returncode and not fails:
            raise RuntimeError(
                f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def beside(self, command: str) -> Iterator[None]:
        """Keep a command of the documents running on the user's machine inside the block."""
        words = self._translated(command, self.lab / "home").removeprefix("ray ")
        with open(self.lab / "beside.log", "ab") as log:
            running = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *words.split()],
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
            os.killpg(running.pid, signal.SIGTERM)
            running.wait()

    def type_into(self, shell: str, commands: list[str]) -> None:
        """Open a shell by a command of the documents, type others into it, and close the laptop.

        tmux gives up now and then on a busy machine (attaching starts a server that ends at once,
        and the new session meets its end); a user would type the command again."""
        for _ in range(TRIES):
            if "server exited unexpectedly" not in self._type_into(shell, commands):
                return
        raise RuntimeError(f"{shell}: no session after {TRIES} tries")

    def _type_into(self, shell: str, commands: list[str]) -> str:
        words = self._translated(shell, self.lab / "home").removeprefix("ray ")
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(REPOSITORY)
            os.execvpe(
                sys.executable,
                [sys.executable, "-m", "ray.scripts.scripts", *words.split()],
                self._environment,
            )
        seen = self._read_until_quiet(terminal, patience=30)
        for command in commands:
            os.write(terminal, self._translated(command, self.lab / "home").encode() + b"\n")
            seen += self._read_until_quiet(terminal)
        text = seen.decode(errors="replace")
        self._note(shell, text)
        os.close(terminal)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return text

    @staticmethod
    def _read_until_quiet(terminal: int, patience: float = PROMPT_S) -> bytes:
        seen, quiet_at = b"", time.monotonic() + patience
        while time.monotonic() < quiet_at:
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    seen += os.read(terminal, 65536)
                except OSError:
                    break
                if seen:
                    quiet_at = min(quiet_at, time.monotonic() + PROMPT_S)
        return seen

    def on_head(self, command: str, *, fails: bool = False) -> str:
        """Run a command of the documents in a shell of the head, as after ``ray attach``."""
        words = self._translated(command, self.lab / "home")
        login = f"export PATH=~/isweep-venv/bin:$PATH RAY_AUTH_MODE=token; {words}"
        done = self._ssh(self.head, login)
        self._note(command, done.stdout + done.stderr)
        if done.returncode and not fails:
            raise RuntimeError(
                f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

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
        words = (
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
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=200)

    @property
    def _environment(self) -> dict[str, str]:
        hidden = ("RAY_", "ISWEEP_", "MLFLOW_")
        ours = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        return {
            **ours,
            "HOME": str(self.lab / "home"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
        }

    def _note(self, command: str, text: str) -> None:
        with open(self.lab / "transcript.txt", "a", encoding="utf-8") as file:
            file.write(f"$ {command}\n{text}\n")

    def num_nodes(self) -> int:
        """Return how many nodes the cluster has now."""
        done = self._ssh(
            self.head, f"RAY_AUTH_MODE=token ~/isweep-venv/bin/python {self.lab}/nodes.py"
        )
        last = done.stdout.strip().splitlines()[-1:] or [""]
        return int(last[0]) if last[0].isdigit() else 0

    def num_done(self, sweep: str) -> int:
        """Return how many trials of a sweep have a result."""
        return len(list((self.root / "sweeps" / sweep / "trials").glob("*/result.json")))


def wait_for(what: str, seconds: float, true: Callable[[], Any], pause: float = 1.0) -> float:
    """Wait until something is so; returns how long it took."""
    started = time.monotonic()
    while not true():
        if time.monotonic() - started > seconds:
            raise RuntimeError(f"after {seconds:g} s still not: {what}")
        time.sleep(pause)
    return round(time.monotonic() - started, 1)


def read_json(text: str) -> Any:
    """Return the JSON document that a command printed, among what it said."""
    start = min((text.index(sign) for sign in "[{" if sign in text), default=0)
    return json.JSONDecoder().raw_decode(text[start:])[0]
