"""``make slurm-test``: clusters/slurm.sbatch under a real SLURM on three hosts in namespaces.

Three cases run: a sweep on three nodes whose job gets SIGTERM in the middle, as before SLURM's time
limit, then returns to the queue and finishes; a sweep on one node; and a mistake on two nodes, which
is not tried again. The script needs root, iproute2, openssh-server and Debian's slurmctld, slurmd,
slurm-client and munge. It prints one JSON object; the committed one is ``tests/lab/slurm.json``."""

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

from tests.lab.cluster import LINK_PACKAGES, REPOSITORY, TOKEN, sweep_text, wait_until
from tests.lab.hosts import NETWORK, Host, create_lab, enter, run

TOOLS = ("ip", "nsenter", "ssh-keygen", "slurmctld", "slurmd", "sbatch", "munged")
NAMES = ("n1", "n2", "n3")
CPUS = 2
JOB_TIMEOUT_S = 500.0
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
        self.lab = lab
        self.home = lab / "home"
        self.commands: list[str] = []
        (lab / "munge.key").write_bytes(secrets.token_bytes(128))
        (lab / "munge.key").chmod(0o400)
        (lab / "state").mkdir()
        controller_host = platform.node()
        conf = _CONF.format(
            here=controller_host, network=NETWORK, lab=lab, names=",".join(NAMES), cpus=CPUS
        )
        (lab / "slurm.conf").write_text(conf, encoding="utf-8")
        (lab / "gres.conf").write_text("Name=gpu File=/dev/null\n", encoding="utf-8")
        (lab / "cgroup.conf").write_text("CgroupPlugin=disabled\n", encoding="utf-8")
        self.environment = self._environment()
        services = _SERVICES.format(lab=lab)
        self.hosts: list[Host] = create_lab(lab, NAMES, services=services, shares_home=True)
        self._start_controller()
        self._install()

    def _environment(self) -> dict[str, str]:
        hidden = ("RAY_", "ISWEEP_", "MLFLOW_", "SLURM_")
        variables = {
            name: value for name, value in os.environ.items() if not name.startswith(hidden)
        }
        variables |= {
            "HOME": str(self.home),
            "SLURM_CONF": str(self.lab / "slurm.conf"),
            "ISWEEP_LOGICAL_GPUS": "1",
        }
        return variables | {"SCRATCH": str(self.lab / "scratch"), "LC_ALL": "C.UTF-8"}

    def _start_controller(self) -> None:
        commands = _SERVICES.format(lab=self.lab).replace(" slurmd\n", " slurmctld\n")
        run("sh", "-c", f"set -e\n{commands}")
        wait_until(
            "all nodes idle",
            60,
            lambda: self.run_command("sinfo -h -N -o %t").split() == ["idle"] * len(NAMES),
        )

    def _install(self) -> None:
        """Install linked packages, the wheel and the token in the shared home."""
        folders = [path for path in sys.path if path.endswith("site-packages")]
        (self.lab / "link.py").write_text(LINK_PACKAGES.format(folders=folders), encoding="utf-8")
        run(sys.executable, "-m", "venv", str(self.home / "isweep-venv"))
        python = str(self.home / "isweep-venv/bin/python")
        run(python, str(self.lab / "link.py"))
        (wheel,) = (REPOSITORY / "dist").glob("isweep-*.whl")
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel))
        self.run_command(TOKEN)

    def run_command(self, command: str) -> str:
        """Run a command of the user, and return its output."""
        process = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.lab,
            env=self.environment,
            timeout=100,
        )
        if process.returncode:
            raise RuntimeError(f"{command}: {process.stderr.strip() or process.stdout.strip()}")
        return process.stdout

    def write_sweep(self, name: str, *, seeds: str, epochs: int) -> Path:
        """Write a sweep file with two models and three sizes for every seed. Return its path."""
        path = self.lab / f"{name}.yaml"
        path.write_text(sweep_text(name=name, seeds=seeds, epochs=epochs), encoding="utf-8")
        return path

    def submit(self, sweep: object, nodes: int) -> str:
        """Submit the repository's script with options for these small hosts. Return the job's number."""
        options = (
            f"--nodes={nodes} --gpus-per-node=1 --cpus-per-task={CPUS} "
            f"--output={self.lab}/job-%j.log"
        )
        script = REPOSITORY / "clusters/slurm.sbatch"
        self.commands = ["sbatch clusters/slurm.sbatch paper --device gpu"]
        output = self.run_command(f"sbatch {options} {script} {sweep} --device gpu")
        return re.findall(r"\d+", output)[-1]

    def job(self, number: str) -> dict[str, str]:
        """Return SLURM's fields of a job: JobState, ExitCode, Restarts, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run_command(f"scontrol show job {number}")))

    def wait_until_ended(self, number: str) -> dict[str, str]:
        """Wait until a job neither is queued nor runs. Return SLURM's fields of the job."""
        states = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING")
        wait_until(
            f"job {number} ended", JOB_TIMEOUT_S, lambda: self.job(number)["JobState"] not in states
        )
        return self.job(number)

    def results(self, sweep: str) -> list[str]:
        """Return the trials of a sweep that are stored."""
        trials = self.lab / "scratch/isweep-root/sweeps" / sweep / "trials"
        return sorted(path.parent.name for path in trials.glob("*/result.json"))

    def nodes_of(self, sweep: str) -> Counter[str]:
        """Return how many trials each node has finished, by the addresses in the event logs."""
        trials = self.lab / "scratch/isweep-root/sweeps" / sweep / "trials"
        nodes: Counter[str] = Counter()
        for path in trials.glob("*/history.json"):
            events = json.loads(path.read_text())
            nodes.update(event["node"] for event in events if event["what"] == "finished")
        return nodes

    def log(self, number: str) -> str:
        """Return the output of a job."""
        return (self.lab / f"job-{number}.log").read_text(encoding="utf-8")

    def remaining_processes(self) -> list[str]:
        """Return the command lines of processes that a job started and that still run."""
        processes = [
            process for host in self.hosts for process in host.processes("ray", "isweep run")
        ]
        return [" ".join(process.cmdline())[:120] for process in processes]


def ends_in_the_middle(slurm: Slurm) -> dict[str, Any]:
    """Run a job on three nodes, and send SIGTERM to the script alone when six trials are stored."""
    number = slurm.submit(slurm.write_sweep("limited", seeds="[0, 1, 2, 3]", epochs=200), nodes=3)
    wait_until("6 trials", JOB_TIMEOUT_S, lambda: len(slurm.results("limited")) >= 6)
    results_before = slurm.results("limited")
    slurm.run_command(f"scancel --batch --signal=TERM {number}")
    wait_until("back in the queue", 120, lambda: int(slurm.job(number)["Restarts"]) == 1)
    job = slurm.wait_until_ended(number)
    log = slurm.log(number)
    require(log, "restarts", job["Restarts"], "1")
    require(log, "state", (job["JobState"], job["ExitCode"]), ("COMPLETED", "0:0"))
    require(log, "trials", len(slurm.results("limited")), 24)
    require(log, "kept", set(results_before) <= set(slurm.results("limited")), True)
    require(
        log,
        "the sweep's own goodbye",
        "trials are kept. Continue with `isweep run" in log.replace("\n", " "),
        True,
    )
    require(log, "all nodes trained", len(slurm.nodes_of("limited")), 3)
    wait_until("no process left", 60, lambda: not slurm.remaining_processes())
    return {
        "trials": 24,
        "done_when_it_was_told_to_end": len(results_before),
        "by_node": dict(slurm.nodes_of("limited")),
    }


def one_node(slurm: Slurm) -> dict[str, Any]:
    """Run a job on one node."""
    number = slurm.submit(slurm.write_sweep("alone", seeds="[0]", epochs=5), nodes=1)
    job = slurm.wait_until_ended(number)
    require(slurm.log(number), "state", (job["JobState"], job["ExitCode"]), ("COMPLETED", "0:0"))
    require(slurm.log(number), "trials", len(slurm.results("alone")), 6)
    return {"trials": 6}


def a_mistake(slurm: Slurm) -> dict[str, Any]:
    """Run a job of an absent sweep: its exit code is 2, and SLURM does not run it again."""
    number = slurm.submit("absent", nodes=2)
    job = slurm.wait_until_ended(number)
    state = (job["JobState"], job["ExitCode"], job["Restarts"])
    require(slurm.log(number), "state", state, ("FAILED", "2:0", "0"))
    return {"exit_code": job["ExitCode"]}


def require(log: str, description: str, value: object, expected: object) -> None:
    """Raise a RuntimeError with the end of the log if a value is not the expected one."""
    if value != expected:
        raise RuntimeError(f"{description}: found {value}, wanted {expected}\n{log[-6000:]}")


def run_cases(lab: Path) -> dict[str, Any]:
    """Run all cases in a new lab, and return their results."""
    started = time.monotonic()
    load = os.getloadavg()[0]
    slurm = Slurm(lab)
    results = {}
    for case in (a_mistake, one_node, ends_in_the_middle):
        print(f"[{time.monotonic() - started:5.0f} s] {case.__name__}", file=sys.stderr, flush=True)
        results[case.__name__] = case(slurm)
    return {
        "name": "slurm-test",
        "date": time.strftime("%F %H:%M"),
        "load": {"at start": load, "at end": os.getloadavg()[0]},
        "seconds": round(time.monotonic() - started),
        "slurm": slurm.run_command("slurmd -V").strip(),
        "hosts": len(NAMES),
        "commands": slurm.commands,
        "cases": results,
    }


if __name__ == "__main__":
    about = (__doc__ or "").splitlines()[0]
    sys.exit(enter("slurm-test", "tests.lab.slurm", about, TOOLS, run_cases))
