"""A sweep's tracker on a real PostgreSQL server whose connections end and which is restarted.

The script needs ``initdb``, ``pg_ctl``, ``psql`` and the extra ``postgres``. It prints one JSON
object: runs by status, keys, whether every value is right, and the tracker's messages. It exits
with 1 if a run is missing, doubled or wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import mlflow
from mlflow.tracking import MlflowClient

from orchestrator.planning.workspace import Workspace
from orchestrator.results.store import ResultStore
from orchestrator.results.sweep_tracking import make_tracker
from tests.unit.orchestrator.results.test_tracking import finished_run

NUM_RUNS = 120
PORT = 54399
PASSWORD = "p@ss/w:rd"
QUOTED = "p%40ss%2Fw%3Ard"
"""The password as a URL quotes it."""


class Server:
    """A new server in ``folder`` on loopback, with the password ``PASSWORD``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        secret = folder / "password"
        secret.write_text(PASSWORD, encoding="utf-8")
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            for path in (folder, secret):
                shutil.chown(path, "nobody")
        self.run(
            "initdb",
            "-D",
            f"{folder}/data",
            "-U",
            "lab",
            "-A",
            "scram-sha-256",
            f"--pwfile={secret}",
        )
        self.start()
        self.sql("create database isweep")

    @property
    def uri(self) -> str:
        return f"postgresql://lab:{QUOTED}@127.0.0.1:{PORT}/isweep"

    def run(self, *arguments: str) -> None:
        prefix = ["setpriv", "--reuid=nobody", "--clear-groups"] if os.geteuid() == 0 else []
        environment = {**os.environ, "HOME": str(self.folder), "PGPASSWORD": PASSWORD}
        subprocess.run(
            [*prefix, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL
        )

    def start(self) -> None:
        options = f"-p {PORT} -c listen_addresses=127.0.0.1 -k {self.folder}"
        self.run(
            "pg_ctl",
            "-D",
            f"{self.folder}/data",
            "-o",
            options,
            "-l",
            f"{self.folder}/log",
            "-w",
            "start",
        )

    def stop(self) -> None:
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "stop")

    def sql(self, text: str) -> None:
        self.run(
            "psql",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(PORT),
            "-U",
            "lab",
            "-d",
            "postgres",
            "-c",
            text,
        )

    def end_connections(self) -> None:
        self.sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = 'isweep'")


def break_things(server: Server) -> None:
    """End all connections four times, and stop the server once for four seconds."""
    for turn in range(4):
        time.sleep(1.5)
        server.end_connections()
        if turn == 1:
            server.stop()
            time.sleep(4)
            server.start()


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="isweep-postgres-"))
    notes = list[str]()
    server = Server(folder)
    try:
        changes = {"name": "faults"}
        root = tempfile.mkdtemp(prefix="isweep-root-")
        workspace = Workspace.open("smoke", root, changes=changes)
        workspace.paths.make()
        tracker = make_tracker(
            workspace, ResultStore(workspace.results_url), server.uri, print_note=notes.append
        )
        breaker = threading.Thread(target=break_things, args=(server,))
        breaker.start()
        for number in range(NUM_RUNS):
            tracker.start_trial(f"k{number}", {"trial_id": f"k{number}"})
            tracker.finish(finished_run(f"k{number}", 0.5 + number))
            time.sleep(0.06)
        breaker.join()
        tracker.close("FINISHED")
        mlflow.set_tracking_uri(server.uri)
        runs = []
        for experiment in MlflowClient().search_experiments():
            runs += _runs(experiment.experiment_id)
        losses = sorted(run.data.metrics["test_loss"] for run in runs)
        report = {
            "statuses": Counter(run.info.status for run in runs),
            "keys": len({run.data.tags["isweep.run_key"] for run in runs}),
            "values": losses == [0.5 + number for number in range(NUM_RUNS)],
            "behind": tracker.num_unsent_updates,
            "said": notes,
            "secret": any(PASSWORD in text or QUOTED in text for text in notes),
        }
    finally:
        server.stop()
        shutil.rmtree(folder)
        shutil.rmtree(workspace.paths.root)
    print(json.dumps(report, indent=1))
    is_correct = (
        report["statuses"] == {"FINISHED": NUM_RUNS}
        and report["keys"] == NUM_RUNS
        and report["values"]
    )
    return int(not is_correct or bool(report["secret"]) or report["behind"] > 0)


def _runs(experiment: str) -> list[mlflow.entities.Run]:
    return list(
        MlflowClient().search_runs([experiment], "tags.trial_id LIKE 'k%'", max_results=1000)
    )


if __name__ == "__main__":
    sys.exit(main())
