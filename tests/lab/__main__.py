"""``make cluster-test``: the way of docs/cluster.md on three hosts, with everything that may befall
them.

``ray up``, ``isweep doctor``, a sweep typed into ``ray attach``, a sweep by ``ray job submit``, a
worker killed, one rebooted, one that comes back with an empty home, the head lost and the same
submission again, the end; then every trial must be there once, MLflow clean, and no process left.
Needs root (to make namespaces and SSH servers in them), iproute2, openssh-server, rsync and tmux.
Prints one JSON object; the committed one is ``tests/lab/result.json``."""

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

from tests.lab.cluster import LabCluster, read_json, sweep_text, wait_for
from tests.lab.hosts import SSHD, enter

TOOLS = ("ip", "nsenter", "ssh", "ssh-keygen", "rsync", "tmux", SSHD)
RAY = ("ray", "isweep", "orchestrator", "raylet", "gcs_server", "mlflow", "log_monitor")
UP_S, SWEEP_S = 300.0, 400.0
NUM_TRIALS = 24
LAUNCH_IS_GOOD = "no mistake was detected; the check does not contact the provider"
HOME = "/home/isweep"
ISWEEP = f"{HOME}/isweep-venv/bin/isweep"
RUN = "isweep run paper --address auto --device gpu"
AT = "--address http://127.0.0.1:8265"
SUBMIT = (
    f"ray job submit {AT} --no-wait -- "
    f"{ISWEEP} run paper --address auto --device gpu --root {HOME}/isweep-root"
)
KEEP = 'tmux new-session -d "~/isweep-venv/bin/python ~/isweep-dist/keep.py paper --device gpu"'

_RUNS = """
select tags.value, runs.status from runs
join tags on tags.run_uuid = runs.run_uuid and tags.key = 'trial_id'
join experiments on experiments.experiment_id = runs.experiment_id where experiments.name = ?
"""


class Story:
    """The steps in order, each timed; what went wrong ends it, with the transcript kept."""

    def __init__(self, cluster: LabCluster, say: Callable[[str], None]) -> None:
        self.cluster, self.say = cluster, say
        self.steps: list[dict[str, Any]] = []
        self.ports: dict[str, list[dict[str, Any]]] = {}

    def step(self, what: str, do: Callable[[], Any]) -> Any:
        """Do one thing, and note how long it took."""
        self.say(what)
        started = time.monotonic()
        found = do()
        self.steps.append({"what": what, "seconds": round(time.monotonic() - started, 1)})
        return found

    def until(self, what: str, seconds: float, true: Callable[[], Any]) -> None:
        """Wait as a step of its own."""
        self.step(what, lambda: wait_for(what, seconds, true))

    def bring_up(self) -> None:
        """From nothing to three nodes, looked at one by one."""
        lab = self.cluster
        checks = read_json(
            self.step(
                "doctor --launch",
                lambda: lab.here("isweep doctor --launch clusters/onprem.yaml --json", fails=True),
            )
        )
        launch = [check["detail"] for check in checks if check["name"].startswith("launch file")]
        expect("doctor finds nothing wrong in the launch file", launch, [LAUNCH_IS_GOOD])
        self.step("ray up", lambda: lab.here("ray up -y clusters/onprem.yaml"))
        self.until("three nodes", UP_S, lambda: lab.num_nodes() == 3)
        self.step("ray status", lambda: lab.on_head("ray status"))
        checks = read_json(
            self.step(
                "doctor", lambda: lab.on_head("isweep doctor --address auto --json", fails=True)
            )
        )
        nodes = [check for check in checks if "node" in check]
        expect("doctor reports each node", len(nodes), 3)
        self.ports = {host.name: host.open_ports() for host in lab.hosts}
        expect("doctor finds nothing wrong", [c["detail"] for c in checks if not c["ok"]], [])

    def sweep_by_attach(self) -> dict[str, Any]:
        """Typed into a terminal of the head that is closed at once; a worker is killed, one
        rebooted."""
        lab = self.cluster
        self.write_sweep("attached", seeds="[0, 1]")
        self.step("plan", lambda: lab.on_head("isweep plan paper"))
        lab.here("ray rsync-up clusters/onprem.yaml ~/data/ '~/data/'")
        shell = "ray attach --tmux clusters/onprem.yaml"
        typed = ["export PATH=~/isweep-venv/bin:$PATH RAY_AUTH_MODE=token", RUN]
        self.step("attach, type, close", lambda: lab.type_into(shell, typed))
        self.until("4 trials", SWEEP_S, lambda: lab.num_done("attached") >= 4)
        self.step("kill Ray on gpu1", lambda: lab.hosts[1].kill(*RAY))
        self.until("8 trials", SWEEP_S, lambda: lab.num_done("attached") >= 8)
        self.step("reboot gpu2", lambda: (lab.hosts[2].switch_off(), lab.hosts[2].start()))
        self.until("all trials", SWEEP_S, lambda: self.ended("attached"))
        self.until("three nodes again", UP_S, lambda: lab.num_nodes() == 3)
        self.step("status", lambda: lab.on_head("isweep status paper"))
        self.step(
            "fetch",
            lambda: lab.here(
                "ray rsync-down clusters/onprem.yaml '~/isweep-root/sweeps/' ~/sweeps/"
            ),
        )
        fetched = len(list((lab.lab / "home/sweeps/attached/trials").glob("*/result.json")))
        expect("attached: results were fetched", fetched, NUM_TRIALS)
        return self.outcome("attached")

    def sweep_by_job(self) -> dict[str, Any]:
        """Submitted; a worker comes back with an empty home; the head is lost, and all is typed
        again."""
        lab = self.cluster
        self.write_sweep("submitted", seeds="[2, 3]")
        with lab.beside("ray dashboard clusters/onprem.yaml"):
            self.until(
                "the tunnel",
                60,
                lambda: "HTTP" in lab.here("curl -sI http://127.0.0.1:8265", fails=True),
            )
            self.submit("ray job submit")
            self.until("4 trials", SWEEP_S, lambda: lab.num_done("submitted") >= 4)
        lab.hosts[1].switch_off()
        lab.hosts[1].empty_home()
        self.step("gpu1 comes back empty", lab.hosts[1].start)
        self.until("8 trials", SWEEP_S, lambda: lab.num_done("submitted") >= 8)
        lab.head.switch_off()
        before = lab.num_done("submitted")
        self.step("the head is lost", lab.head.start)
        self.step("ray up again", lambda: lab.here("ray up -y clusters/onprem.yaml"))
        self.until("three nodes, the emptied one too", UP_S, lambda: lab.num_nodes() == 3)
        with lab.beside("ray dashboard clusters/onprem.yaml"):
            self.until(
                "the tunnel again",
                60,
                lambda: "HTTP" in lab.here("curl -sI http://127.0.0.1:8265", fails=True),
            )
            self.submit("the same submission again")
            self.until("2 more trials", SWEEP_S, lambda: lab.num_done("submitted") >= before + 2)
            self.step("ray job stop", lambda: lab.here(f"ray job stop {AT} SUBMISSION_ID"))
            self.submit("and again")
            self.until("all trials", SWEEP_S, lambda: self.ended("submitted"))
            self.step("ray job list", lambda: lab.here(f"ray job list {AT}"))
        return {**self.outcome("submitted"), "done_when_the_head_was_lost": before}

    def submit(self, what: str) -> None:
        """Submit the sweep as a job, and see that it has a log."""
        lab = self.cluster
        said = self.step(what, lambda: lab.here(SUBMIT))
        (lab.submission,) = set(re.findall(r"\braysubmit_\w+", said))
        self.until("a log", 60, lambda: "MLflow" in lab.here(f"ray job logs {AT} SUBMISSION_ID"))

    def sweep_kept(self) -> dict[str, Any]:
        """Kept going by the supervisor; its driver is killed, and nobody types anything."""
        lab = self.cluster
        self.write_sweep("kept", seeds="[4]")
        self.step("keep", lambda: lab.on_head(KEEP))
        self.until("2 trials", SWEEP_S, lambda: lab.num_done("kept") >= 2)
        before = lab.num_done("kept")
        expect(
            "kept: a driver was killed",
            self.step("kill it", lambda: lab.head.kill("isweep run")) > 0,
            True,
        )
        self.until("all trials", SWEEP_S, lambda: self.ended("kept", NUM_TRIALS // 2))
        self.until("the supervisor ends", 60, lambda: not lab.head.processes("keep.py"))
        return {**self.outcome("kept", NUM_TRIALS // 2), "done_when_the_driver_was_killed": before}

    def take_down(self) -> dict[str, list[str]]:
        """End it as documented; returns what still runs on each host."""
        lab = self.cluster
        self.step(
            "ray stop",
            lambda: lab.here("ray exec clusters/onprem.yaml '~/isweep-venv/bin/ray stop'"),
        )
        for worker in lab.hosts[1:]:
            stop = f"ssh isweep@{worker.name}.example.org '~/isweep-venv/bin/ray stop'"
            self.step(f"ray stop on {worker.name}", lambda stop=stop: lab.here(stop))
        self.step("ray down", lambda: lab.here("ray down -y clusters/onprem.yaml"))

        def left() -> dict[str, list[str]]:
            found = {host.name: host.processes(*RAY) for host in lab.hosts}
            return {
                name: [" ".join(p.cmdline())[:120] for p in ps] for name, ps in found.items() if ps
            }

        try:
            self.until("no process left", 120, lambda: not left())
        except RuntimeError:
            return left()
        return {}

    def read_on(self) -> list[str]:
        """What the log says of where raw files were read."""
        log = (self.cluster.root / "isweep.log").read_text(encoding="utf-8")
        return re.findall(r"isweep reads pictures with \d+ CPUs on the \d+ nodes", log)

    def write_sweep(self, name: str, seeds: str) -> None:
        """Put the sweep where the documents' ``paper`` is translated to."""
        pictures = self.cluster.lab / "pictures"
        text = sweep_text(name=name, seeds=seeds, epochs=EPOCHS[name], pictures=pictures)
        (self.cluster.lab / "paper.yaml").write_text(text, encoding="utf-8")

    def ended(self, sweep: str, trials: int = NUM_TRIALS) -> bool:
        """Whether all trials are there and the driver let go of the root."""
        lab = self.cluster
        return lab.num_done(sweep) == trials and (lab.root / "sweeps" / sweep / "report").is_dir()

    def outcome(self, sweep: str, trials: int = NUM_TRIALS) -> dict[str, Any]:
        """Every trial once in the store, and once in MLflow, closed."""
        folder = self.cluster.root / "sweeps" / sweep / "trials"
        stored = sorted(path.parent.name for path in folder.glob("*/result.json"))
        failed = sorted(path.parent.name for path in folder.glob("*/failure.json"))
        with sqlite3.connect(
            f"file:{self.cluster.root / 'mlflow.db'}?mode=ro", uri=True
        ) as database:
            rows = database.execute(_RUNS, (f"isweep/{sweep}",)).fetchall()
        runs = Counter(trial for trial, _ in rows)
        expect(f"{sweep}: every trial is stored", len(stored), trials)
        expect(f"{sweep}: no failure is left", failed, [])
        expect(f"{sweep}: one run per trial in MLflow", sorted(runs), stored)
        expect(f"{sweep}: no trial has two runs", max(runs.values()), 1)
        expect(f"{sweep}: no run is open", sorted({status for _, status in rows}), ["FINISHED"])
        records = [
            json.loads((folder / name / "result.json").read_text())["record"] for name in stored
        ]
        expect(
            f"{sweep}: results know their commit",
            all(r["provenance"]["commit"] for r in records),
            True,
        )
        return {
            "trials": len(stored),
            "attempts": dict(Counter(str(r["attempt"]) for r in records)),
        }


EPOCHS = {"attached": 40, "submitted": 100, "kept": 60}
"""Long enough that trials are left when something befalls them, on a busy machine too."""
CHECKED: list[str] = []


def expect(what: str, found: Any, wanted: Any) -> None:
    """Note a check that holds; one that does not ends the story."""
    if found != wanted:
        raise RuntimeError(f"{what}: found {found}, wanted {wanted}")
    CHECKED.append(what)


def tell(lab: Path) -> dict[str, Any]:
    """Run the whole story and return what came of it."""
    started, date, load = time.monotonic(), time.strftime("%F %H:%M"), os.getloadavg()[0]

    def say(what: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {what}", file=sys.stderr, flush=True)

    story = Story(LabCluster.make(lab), say)
    story.bring_up()
    found = {
        "attached": story.sweep_by_attach(),
        "submitted": story.sweep_by_job(),
        "kept": story.sweep_kept(),
    }
    expect("the few pictures were read before anything started", story.read_on(), [])
    left = story.take_down()
    expect("no process is left", left, {})
    return {
        "name": "cluster-test",
        "date": date,
        "load": {"at start": load, "at end": os.getloadavg()[0]},
        "seconds": round(time.monotonic() - started),
        "sweeps": found,
        "checked": CHECKED,
        "steps": story.steps,
        "ports": story.ports,
        "commands": sorted(set(story.cluster.said)),
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            **{name: metadata.version(name) for name in ("ray", "mlflow", "torch")},
        },
    }


if __name__ == "__main__":
    about = (__doc__ or "").splitlines()[0]
    sys.exit(enter("cluster-test", "tests.lab", about, TOOLS, tell))
