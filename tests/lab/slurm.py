"""``make slurm-test``: clusters/slurm.sbatch under a real SLURM of three hosts in namespaces of
their own.

A sweep on three nodes whose job is told to end in the middle, as SLURM does before the time limit,
goes back to the queue and finishes; a sweep on one node; a mistake on two nodes, which is not tried
again. Needs root, iproute2, openssh-server and Debian's slurmctld, slurmd, slurm-client and munge.
Prints one JSON object; the committed one is ``tests/lab/slurm.json``."""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.lab.cluster import LINK_PACKAGES, REPOSITORY, TOKEN, sweep_text, wait_for
from tests.lab.hosts import NETWORK, Host, enter, make_lab, run

TOOLS = ("ip", "nsenter", "ssh-keygen", "slurmctld", "slurmd", "sbatch", "munged")
NAMES = ("n1", "n2", "n3")
CPUS = 2
JOB_S = 500.0
_CONF = """
ClusterName=lab
SlurmctldHost={here}({network}.1)
SlurmUser=isweep
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmdSpoolDir=/run/slurmd
StateSaveLocation={lab}/state
SlurmctldLogFile={lab}/slurmctld.log
SlurmdLogFile={lab}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
GresTypes=gpu
NodeName={names} CPUs={cpus} RealMemory=4000 Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_SERVICES = """
mkdir -p -m 755 /run/munge /run/slurmd
munged --force --key-file={lab}/munge.key --pid-file=/run/munge/munged.pid \\
  --seed-file=/run/munge/seed --log-file=/run/munge/munged.log
SLURM_CONF={lab}/slurm.conf slurmd
"""


class Slurm:
    """A SLURM cluster on hosts of the lab, driven from the user's machine."""

    def __init__(self, lab: Path) -> None:
        self.lab, self.home = lab, lab / "home"
        self.said: list[str] = []
        (lab / "munge.key").write_bytes(secrets.token_bytes(128))
        (lab / "munge.key").chmod(0o400)
        (lab / "state").mkdir()
        here = platform.node()
        conf = _CONF.format(here=here, network=NETWORK, lab=lab, names=",".join(NAMES), cpus=CPUS)
        (lab / "slurm.conf").write_text(conf, encoding="utf-8")
        (lab / "gres.conf").write_text("Name=gpu File=/dev/null\n", encoding="utf-8")
        (lab / "cgroup.conf").write_text("CgroupPlugin=disabled\n", encoding="utf-8")
        self.environment = self._environment()
        services = _SERVICES.format(lab=lab)
        self.hosts: list[Host] = make_lab(lab, NAMES, services=services, shares_home=True)
        self._start_controller()
        self._install()

    def _environment(self) -> dict[str, str]:
        hidden = ("RAY_", "ISWEEP_", "MLFLOW_", "SLURM_")
        ours = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        ours |= {
            "HOME": str(self.home),
            "SLURM_CONF": str(self.lab / "slurm.conf"),
            "ISWEEP_LOGICAL_GPUS": "1",
        }
        return ours | {"SCRATCH": str(self.lab / "scratch"), "LC_ALL": "C.UTF-8"}

    def _start_controller(self) -> None:
        commands = _SERVICES.format(lab=self.lab).replace(" slurmd\n", " slurmctld\n")
        run("sh", "-c", f"set -e\n{commands}")
        wait_for(
            "all nodes idle",
            60,
            lambda: self.say("sinfo -h -N -o %t").split() == ["idle"] * len(NAMES),
        )

    def _install(self) -> None:
        """The environment on the shared home: packages linked, the wheel installed; and the
        token."""
        folders = [path for path in sys.path if path.endswith("site-packages")]
        (self.lab / "link.py").write_text(LINK_PACKAGES.format(folders=folders), encoding="utf-8")
        run(sys.executable, "-m", "venv", str(self.home / "isweep-venv"))
        python = str(self.home / "isweep-venv/bin/python")
        run(python, str(self.lab / "link.py"))
        (wheel,) = (REPOSITORY / "dist").glob("isweep-*.whl")
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel))
        self.say(TOKEN)

    def say(self, command: str) -> str:
        """Run a command of the user's, with what it prints."""
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.lab,
            env=self.environment,
            timeout=100,
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def write_sweep(self, name: str, *, seeds: str, epochs: int) -> Path:
        """Write a sweep file; two models, three sizes and a class pair for every seed."""
        path = self.lab / f"{name}.yaml"
        path.write_text(sweep_text(name=name, seeds=seeds, epochs=epochs), encoding="utf-8")
        return path

    def submit(self, sweep: object, nodes: int) -> str:
        """Submit the script of the repository with the options that these small hosts need."""
        options = (
            f"--nodes={nodes} --gpus-per-node=1 --cpus-per-task={CPUS} "
            f"--output={self.lab}/job-%j.log"
        )
        script = REPOSITORY / "clusters/slurm.sbatch"
        self.said = ["sbatch clusters/slurm.sbatch paper --device gpu"]
        said = self.say(f"sbatch {options} {script} {sweep} --device gpu")
        return re.findall(r"\d+", said)[-1]

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM knows of a job: JobState, ExitCode, Restarts, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.say(f"scontrol show job {number}")))

    def until_ended(self, number: str) -> dict[str, str]:
        """Wait until a job is not queued and does not run; returns what SLURM knows of it."""
        states = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING")
        wait_for(f"job {number} ended", JOB_S, lambda: self.job(number)["JobState"] not in states)
        return self.job(number)

    def results(self, sweep: str) -> list[str]:
        """Return the trials of a sweep that are stored."""
        trials = self.lab / "scratch/isweep-root/sweeps" / sweep / "trials"
        return sorted(path.parent.name for path in trials.glob("*/result.json"))

    def nodes_of(self, sweep: str) -> Counter[str]:
        """Return how many trials each node has finished, by the addresses that their stories
        name."""
        trials = self.lab / "scratch/isweep-root/sweeps" / sweep / "trials"
        events = [
            event
            for path in trials.glob("*/history.json")
            for event in json.loads(path.read_text())
        ]
        return Counter(event["node"] for event in events if event["what"] == "finished")

    def log(self, number: str) -> str:
        """Return what a job printed."""
        return (self.lab / f"job-{number}.log").read_text(encoding="utf-8")

    def left(self) -> list[str]:
        """Return what still runs on the hosts that a job started."""
        found = [process for host in self.hosts for process in host.processes("ray", "isweep run")]
        return [" ".join(process.cmdline())[:120] for process in found]


def ends_in_the_middle(slurm: Slurm) -> dict[str, Any]:
    """Three nodes; SIGTERM to the script alone when six trials are there, as before the time
    limit."""
    number = slurm.submit(slurm.write_sweep("limited", seeds="[0, 1, 2, 3]", epochs=200), nodes=3)
    wait_for("6 trials", JOB_S, lambda: len(slurm.results("limited")) >= 6)
    before = slurm.results("limited")
    slurm.say(f"scancel --batch --signal=TERM {number}")
    wait_for("back in the queue", 120, lambda: int(slurm.job(number)["Restarts"]) == 1)
    ended = slurm.until_ended(number)
    log = slurm.log(number)
    expect(log, "restarts", ended["Restarts"], "1")
    expect(log, "state", (ended["JobState"], ended["ExitCode"]), ("COMPLETED", "0:0"))
    expect(log, "trials", len(slurm.results("limited")), 24)
    expect(log, "kept", set(before) <= set(slurm.results("limited")), True)
    expect(
        log,
        "the sweep's own goodbye",
        "trials are kept. Continue with `isweep run" in log.replace("\n", " "),
        True,
    )
    expect(log, "all nodes trained", len(slurm.nodes_of("limited")), 3)
    wait_for("no process left", 60, lambda: not slurm.left())
    return {
        "trials": 24,
        "done_when_it_was_told_to_end": len(before),
        "by_node": dict(slurm.nodes_of("limited")),
    }


def one_node(slurm: Slurm) -> dict[str, Any]:
    """The same script on one node."""
    number = slurm.submit(slurm.write_sweep("alone", seeds="[0]", epochs=5), nodes=1)
    ended = slurm.until_ended(number)
    expect(slurm.log(number), "state", (ended["JobState"], ended["ExitCode"]), ("COMPLETED", "0:0"))
    expect(slurm.log(number), "trials", len(slurm.results("alone")), 6)
    return {"trials": 6}


def a_mistake(slurm: Slurm) -> dict[str, Any]:
    """A sweep that is not there: exit code 2, and not tried again."""
    number = slurm.submit("absent", nodes=2)
    ended = slurm.until_ended(number)
    found = (ended["JobState"], ended["ExitCode"], ended["Restarts"])
    expect(slurm.log(number), "state", found, ("FAILED", "2:0", "0"))
    return {"exit_code": ended["ExitCode"]}


def expect(log: str, what: str, found: object, wanted: object) -> None:
    """End the story at a check that does not hold."""
    if found != wanted:
        raise RuntimeError(f"{what}: found {found}, wanted {wanted}\n{log[-6000:]}")


def tell(lab: Path) -> dict[str, Any]:
    """Run the whole story and return what came of it."""
    started, load = time.monotonic(), os.getloadavg()[0]
    slurm = Slurm(lab)
    found = {}
    for case in (a_mistake, one_node, ends_in_the_middle):
        print(f"[{time.monotonic() - started:5.0f} s] {case.__name__}", file=sys.stderr, flush=True)
        found[case.__name__] = case(slurm)
    return {
        "name": "slurm-test",
        "date": time.strftime("%F %H:%M"),
        "load": {"at start": load, "at end": os.getloadavg()[0]},
        "seconds": round(time.monotonic() - started),
        "slurm": slurm.say("slurmd -V").strip(),
        "hosts": len(NAMES),
        "commands": slurm.said,
        "cases": found,
    }


if __name__ == "__main__":
    about = (__doc__ or "").splitlines()[0]
    sys.exit(enter("slurm-test", "tests.lab.slurm", about, TOOLS, tell))
