"""``make cluster-test``: the commands of docs/cluster.md on three hosts, with faults of the hosts.

The steps are ``ray up``, ``isweep doctor``, a sweep typed into ``ray attach``, and a sweep by ``ray
job submit``. A worker is killed, one is rebooted, one returns with an empty home, and the head is
lost. At the end every trial must be stored once, MLflow must have no open run, and no process may
remain. The script needs root (for namespaces and SSH servers in them), iproute2, openssh-server,
rsync and tmux. It prints one JSON object; the committed one is ``tests/lab/result.json``."""

from __future__ import annotations

import json
import os
import platform
import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.lab.cluster import LabCluster, read_json, sweep_text, wait_until
from tests.lab.hosts import SSHD, enter

TOOLS = ("ip", "nsenter", "ssh", "ssh-keygen", "rsync", "tmux", SSHD)
RAY_PROGRAMS = ("ray", "isweep", "orchestrator", "raylet", "gcs_server", "mlflow", "log_monitor")
UP_S = 300.0
"""Seconds in which the cluster must have three nodes."""
SWEEP_S = 400.0
"""Seconds that each part of a sweep may take."""
NUM_TRIALS = 24
NO_MISTAKE = "isweep detected no mistake. isweep does not contact the provider for this check"
HOME = "/home/isweep"
ISWEEP = f"{HOME}/isweep-venv/bin/isweep"
RUN = "isweep run paper --address auto --device gpu"
ADDRESS_OPTION = "--address http://127.0.0.1:8265"
SUBMIT = (
    f"ray job submit {ADDRESS_OPTION} --no-wait -- "
    f"{ISWEEP} run paper --address auto --device gpu --root {HOME}/isweep-root"
)
KEEP = 'tmux new-session -d "~/isweep-venv/bin/python ~/isweep-dist/keep.py paper --device gpu"'

_RUNS = """
select tags.value, runs.status from runs
join tags on tags.run_uuid = runs.run_uuid and tags.key = 'trial_id'
join experiments on experiments.experiment_id = runs.experiment_id where experiments.name = ?
"""


class Walkthrough:
    """All steps in order, each timed. The first failed check ends them; the transcript remains."""

    def __init__(self, cluster: LabCluster, log: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.log = log
        self.steps: list[dict[str, Any]] = []
        self.ports: dict[str, list[dict[str, Any]]] = {}

    def step(self, description: str, action: Callable[[], Any]) -> Any:
        """Run an action, record its seconds, and return its result."""
        self.log(description)
        started = time.monotonic()
        result = action()
        self.steps.append({"what": description, "seconds": round(time.monotonic() - started, 1)})
        return result

    def wait_step(self, description: str, seconds: float, condition: Callable[[], Any]) -> None:
        """Wait for a condition, as a step."""
        self.step(description, lambda: wait_until(description, seconds, condition))

    def bring_up(self) -> None:
        """Start the cluster of three nodes, and check each node."""
        lab = self.cluster
        checks = read_json(
            self.step(
                "doctor --launch",
                lambda: lab.run_here(
                    "isweep doctor --launch clusters/onprem.yaml --json", fails=True
                ),
            )
        )
        launch = [check["detail"] for check in checks if check["name"].startswith("launch file")]
        require("doctor finds nothing wrong in the launch file", launch, [NO_MISTAKE])
        self.step("ray up", lambda: lab.run_here("ray up -y clusters/onprem.yaml"))
        self.wait_step("three nodes", UP_S, lambda: lab.num_nodes() == 3)
        self.step("ray status", lambda: lab.on_head("ray status"))
        checks = read_json(
            self.step(
                "doctor", lambda: lab.on_head("isweep doctor --address auto --json", fails=True)
            )
        )
        nodes = [check for check in checks if "node" in check]
        require("doctor reports each node", len(nodes), 3)
        self.ports = {host.name: host.open_ports() for host in lab.hosts}
        problems = [check["detail"] for check in checks if not check["ok"]]
        require("doctor finds nothing wrong", problems, [])

    def sweep_by_attach(self) -> dict[str, Any]:
        """Type a sweep into a terminal of the head and close it. Kill one worker, reboot another."""
        lab = self.cluster
        self.write_sweep("attached", seeds="[0, 1]")
        self.step("plan", lambda: lab.on_head("isweep plan paper"))
        lab.run_here("ray rsync-up clusters/onprem.yaml ~/data/ '~/data/'")
        shell = "ray attach --tmux clusters/onprem.yaml"
        commands = ["export PATH=~/isweep-venv/bin:$PATH RAY_AUTH_MODE=token", RUN]
        self.step("attach, type, close", lambda: lab.type_into(shell, commands))
        self.wait_step("4 trials", SWEEP_S, lambda: lab.num_done("attached") >= 4)
        self.step("kill Ray on gpu1", lambda: lab.hosts[1].kill(*RAY_PROGRAMS))
        self.wait_step("8 trials", SWEEP_S, lambda: lab.num_done("attached") >= 8)
        self.step("reboot gpu2", lambda: (lab.hosts[2].switch_off(), lab.hosts[2].start()))
        self.wait_step("all trials", SWEEP_S, lambda: self.is_done("attached"))
        self.wait_step("three nodes again", UP_S, lambda: lab.num_nodes() == 3)
        self.step("status", lambda: lab.on_head("isweep status paper"))
        self.step(
            "fetch",
            lambda: lab.run_here(
                "ray rsync-down clusters/onprem.yaml '~/isweep-root/sweeps/' ~/sweeps/"
            ),
        )
        fetched = len(list((lab.lab / "home/sweeps/attached/trials").glob("*/result.json")))
        require("attached: results were fetched", fetched, NUM_TRIALS)
        return self.check_outcome("attached")

    def sweep_by_job(self) -> dict[str, Any]:
        """Submit a sweep as a job. Empty a worker's home, lose the head, and submit the job again."""
        lab = self.cluster
        self.write_sweep("submitted", seeds="[2, 3]")
        with lab.running_beside("ray dashboard clusters/onprem.yaml"):
            self.wait_step(
                "the tunnel",
                60,
                lambda: "HTTP" in lab.run_here("curl -sI http://127.0.0.1:8265", fails=True),
            )
            self.submit("ray job submit")
            self.wait_step("4 trials", SWEEP_S, lambda: lab.num_done("submitted") >= 4)
        lab.hosts[1].switch_off()
        lab.hosts[1].empty_home()
        self.step("gpu1 comes back empty", lab.hosts[1].start)
        self.wait_step("8 trials", SWEEP_S, lambda: lab.num_done("submitted") >= 8)
        lab.head.switch_off()
        num_done_before = lab.num_done("submitted")
        self.step("the head is lost", lab.head.start)
        self.step("ray up again", lambda: lab.run_here("ray up -y clusters/onprem.yaml"))
        self.wait_step("three nodes, the emptied one too", UP_S, lambda: lab.num_nodes() == 3)
        with lab.running_beside("ray dashboard clusters/onprem.yaml"):
            self.wait_step(
                "the tunnel again",
                60,
                lambda: "HTTP" in lab.run_here("curl -sI http://127.0.0.1:8265", fails=True),
            )
            self.submit("the same submission again")
            self.wait_step(
                "2 more trials", SWEEP_S, lambda: lab.num_done("submitted") >= num_done_before + 2
            )
            self.step(
                "ray job stop", lambda: lab.run_here(f"ray job stop {ADDRESS_OPTION} SUBMISSION_ID")
            )
            self.submit("and again")
            self.wait_step("all trials", SWEEP_S, lambda: self.is_done("submitted"))
            self.step("ray job list", lambda: lab.run_here(f"ray job list {ADDRESS_OPTION}"))
        return {**self.check_outcome("submitted"), "done_when_the_head_was_lost": num_done_before}

    def submit(self, description: str) -> None:
        """Submit the sweep as a job, and check that it has a log."""
        lab = self.cluster
        output = self.step(description, lambda: lab.run_here(SUBMIT))
        (lab.submission,) = set(re.findall(r"\braysubmit_\w+", output))
        self.wait_step(
            "a log",
            60,
            lambda: "MLflow" in lab.run_here(f"ray job logs {ADDRESS_OPTION} SUBMISSION_ID"),
        )

    def sweep_kept(self) -> dict[str, Any]:
        """Run a sweep under the supervisor and kill its driver. The supervisor must start it again."""
        lab = self.cluster
        self.write_sweep("kept", seeds="[4]")
        self.step("keep", lambda: lab.on_head(KEEP))
        self.wait_step("2 trials", SWEEP_S, lambda: lab.num_done("kept") >= 2)
        num_done_before = lab.num_done("kept")
        require(
            "kept: a driver was killed",
            self.step("kill it", lambda: lab.head.kill("isweep run")) > 0,
            True,
        )
        self.wait_step("all trials", SWEEP_S, lambda: self.is_done("kept", NUM_TRIALS // 2))
        self.wait_step("the supervisor ends", 60, lambda: not lab.head.processes("keep.py"))
        return {
            **self.check_outcome("kept", NUM_TRIALS // 2),
            "done_when_the_driver_was_killed": num_done_before,
        }

    def take_down(self) -> dict[str, list[str]]:
        """End the cluster as documented. Return the processes that still run on each host."""
        lab = self.cluster
        self.step(
            "ray stop",
            lambda: lab.run_here("ray exec clusters/onprem.yaml '~/isweep-venv/bin/ray stop'"),
        )
        for worker in lab.hosts[1:]:
            stop = f"ssh isweep@{worker.name}.example.org '~/isweep-venv/bin/ray stop'"
            self.step(f"ray stop on {worker.name}", lambda stop=stop: lab.run_here(stop))
        self.step("ray down", lambda: lab.run_here("ray down -y clusters/onprem.yaml"))

        def remaining() -> dict[str, list[str]]:
            processes = {host.name: host.processes(*RAY_PROGRAMS) for host in lab.hosts}
            return {
                name: [" ".join(process.cmdline())[:120] for process in host_processes]
                for name, host_processes in processes.items()
                if host_processes
            }

        try:
            self.wait_step("no process left", 120, lambda: not remaining())
        except RuntimeError:
            return remaining()
        return {}

    def reading_messages(self) -> list[str]:
        """Return the messages of the log about the nodes that read raw files."""
        log = (self.cluster.root / "isweep.log").read_text(encoding="utf-8")
        return re.findall(r"isweep reads pictures with \d+ CPUs on the \d+ nodes", log)

    def write_sweep(self, name: str, seeds: str) -> None:
        """Write the sweep file that replaces the documents' sweep ``paper``."""
        pictures = self.cluster.lab / "pictures"
        text = sweep_text(name=name, seeds=seeds, epochs=EPOCHS[name], pictures=pictures)
        (self.cluster.lab / "paper.yaml").write_text(text, encoding="utf-8")

    def is_done(self, sweep: str, trials: int = NUM_TRIALS) -> bool:
        """Return whether all trials are stored and the driver has written the report."""
        lab = self.cluster
        return lab.num_done(sweep) == trials and (lab.root / "sweeps" / sweep / "report").is_dir()

    def check_outcome(self, sweep: str, trials: int = NUM_TRIALS) -> dict[str, Any]:
        """Check that every trial is stored once, and has one closed run in MLflow."""
        folder = self.cluster.root / "sweeps" / sweep / "trials"
        stored = sorted(path.parent.name for path in folder.glob("*/result.json"))
        failed = sorted(path.parent.name for path in folder.glob("*/failure.json"))
        with sqlite3.connect(
            f"file:{self.cluster.root / 'mlflow.db'}?mode=ro", uri=True
        ) as database:
            rows = database.execute(_RUNS, (f"isweep/{sweep}",)).fetchall()
        runs = Counter(trial for trial, _ in rows)
        require(f"{sweep}: every trial is stored", len(stored), trials)
        require(f"{sweep}: no failure is left", failed, [])
        require(f"{sweep}: one run per trial in MLflow", sorted(runs), stored)
        require(f"{sweep}: no trial has two runs", max(runs.values()), 1)
        require(f"{sweep}: no run is open", sorted({status for _, status in rows}), ["FINISHED"])
        records = [
            json.loads((folder / name / "result.json").read_text())["record"] for name in stored
        ]
        require(
            f"{sweep}: results know their commit",
            all(record["provenance"]["commit"] for record in records),
            True,
        )
        return {
            "trials": len(stored),
            "attempts": dict(Counter(str(record["attempt"]) for record in records)),
        }


EPOCHS = {"attached": 40, "submitted": 100, "kept": 60}
"""Number of epochs of the trials of each sweep. When a fault comes, some trials must still run."""
CHECKED: list[str] = []
"""Descriptions of the checks that passed."""


def require(description: str, value: Any, expected: Any) -> None:
    """Record a check that passes. Raise a RuntimeError if the value is not the expected one."""
    if value != expected:
        raise RuntimeError(f"{description}: found {value}, wanted {expected}")
    CHECKED.append(description)


def run_walkthrough(lab: Path) -> dict[str, Any]:
    """Run all steps in a new lab, and return their results."""
    started = time.monotonic()
    date = time.strftime("%F %H:%M")
    load = os.getloadavg()[0]

    def log(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    walkthrough = Walkthrough(LabCluster.create(lab), log)
    walkthrough.bring_up()
    sweeps = {
        "attached": walkthrough.sweep_by_attach(),
        "submitted": walkthrough.sweep_by_job(),
        "kept": walkthrough.sweep_kept(),
    }
    require(
        "the few pictures were read before anything started", walkthrough.reading_messages(), []
    )
    remaining = walkthrough.take_down()
    require("no process is left", remaining, {})
    return {
        "name": "cluster-test",
        "date": date,
        "load": {"at start": load, "at end": os.getloadavg()[0]},
        "seconds": round(time.monotonic() - started),
        "sweeps": sweeps,
        "checked": CHECKED,
        "steps": walkthrough.steps,
        "ports": walkthrough.ports,
        "commands": sorted(set(walkthrough.cluster.commands)),
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            **{name: metadata.version(name) for name in ("ray", "mlflow", "torch")},
        },
    }


if __name__ == "__main__":
    about = (__doc__ or "").splitlines()[0]
    sys.exit(enter("cluster-test", "tests.lab", about, TOOLS, run_walkthrough))
