"""Faults of MLflow: replies dropped, late or reset, a server away or restarted, a SQLite file locked
or deleted.

Each case logs ``num`` trials while something is broken, repairs it, and reads what MLflow shows
with MLflow's own client.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from orchestrator.results.flat_runs import FlatRun
from orchestrator.results.mlflow_connection import connect
from orchestrator.results.mlflow_pages import Page
from orchestrator.results.mlflow_runs import SweepRuns
from orchestrator.results.tracking import Tracker
from tests.integration.proxy import DROP, PASS, REFUSE, RESET, Proxy, proxy_before
from tests.unit.orchestrator.results.test_tracking import finished_run


class Server:
    """MLflow's web application over a SQLite file, which can be stopped and started again."""

    def __init__(self, database: Path) -> None:
        from mlflow.server import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR
        from mlflow.server.handlers import initialize_backend_stores

        self.uri = f"sqlite:///{database}"
        os.environ[BACKEND_STORE_URI_ENV_VAR] = self.uri
        os.environ[ARTIFACT_ROOT_ENV_VAR] = str(database.parent / "artifacts")
        initialize_backend_stores(
            self.uri, default_artifact_root=str(database.parent / "artifacts")
        )
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start listening, after a stop at the same port as before."""
        from mlflow.server import app
        from werkzeug.serving import make_server

        self._server = make_server("127.0.0.1", self.port, app, threaded=True)
        self.port = self._server.port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def end(self) -> None:
        """Stop the server, and remove its variables from this process's environment."""
        from mlflow.server import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR

        self.stop()
        for name in (BACKEND_STORE_URI_ENV_VAR, ARTIFACT_ROOT_ENV_VAR, "MLFLOW_TRACKING_URI"):
            os.environ.pop(name, None)

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def flat(name: str, number: int) -> FlatRun:
    """Return the finished run of a trial."""
    return finished_run(f"{name}-{number}", 1 / (number + 1))


def open_tracker(uri: str, name: str, notes: list[str] | None = None) -> Tracker:
    """Return the tracker of a sweep. Its messages are added to ``notes``."""
    say = (notes if notes is not None else []).append
    return Tracker(lambda: SweepRuns(connect(uri), Page(name), None, None), say)


def log_trials(tracker: Tracker, name: str, numbers: range) -> None:
    """Log trials that start and end."""
    for number in numbers:
        tracker.start_trial(f"{name}-{number}", {"trial_id": f"{name}-{number}"})
        tracker.finish(flat(name, number))


def read_runs(uri: str, name: str) -> dict[str, Any]:
    """Return what MLflow shows of a sweep, read without the product's reader."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(f"isweep/{name}")
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    trials = {
        run.data.tags["trial_id"]: run for run in runs if run.data.tags.get("kind") == "trial"
    }
    return {
        "counted": len([run for run in runs if run.data.tags.get("kind") == "trial"]),
        "losses": {key: run.data.metrics.get("test_loss") for key, run in trials.items()},
        "statuses": dict(Counter(run.info.status for run in runs)),
        "running": sum(run.info.status == "RUNNING" for run in runs),
    }


@dataclass
class Case:
    """A sweep whose tracker goes through a proxy; ``report`` is what MLflow shows at the end."""

    server: Server
    name: str
    num: int
    proxy: Proxy
    tracker: Tracker
    report: dict[str, Any] = field(default_factory=dict)

    def log(self, numbers: range | None = None) -> None:
        """Log trials that start and end: these numbers, or all."""
        log_trials(self.tracker, self.name, range(self.num) if numbers is None else numbers)

    def halves(self) -> tuple[range, range]:
        """Return the numbers of the trials of the first and of the second half."""
        return range(self.num // 2), range(self.num // 2, self.num)

    def heal(self) -> None:
        """Let every request pass until MLflow has all updates."""
        self.proxy.decide = lambda method, path: PASS
        self.tracker.flush()


@contextmanager
def broken(server: Server, name: str, num: int) -> Iterator[Case]:
    """Yield a new case, then close its tracker and read what MLflow shows."""
    notes: list[str] = []
    with proxy_before(f"127.0.0.1:{server.port}") as proxy:
        case = Case(server, name, num, proxy, open_tracker(proxy.url, name, notes))
        yield case
        case.tracker.close("FINISHED")
        report = read_runs(server.uri, name)
        expected = {f"{name}-{number}": 1 / (number + 1) for number in range(num)}
        case.report |= {
            **report,
            "right": report.pop("losses") == expected and report["counted"] == num,
            "faults": dict(Counter(proxy.faults)),
            "behind": case.tracker.num_unsent_updates,
            "said": notes,
        }


def dropped_replies(server: Server, num: int = 12, drops: int = 12) -> dict[str, Any]:
    """Drop the replies of a random third of all writes, ``drops`` in all."""
    random_numbers = random.Random(13)
    num_left = [drops]

    def decide(method: str, path: str) -> str:
        if method != "GET" and num_left[0] and random_numbers.random() < 0.3:
            num_left[0] -= 1
            return DROP
        return PASS

    with broken(server, "dropped", num) as case:
        case.proxy.decide = decide
        case.log()
    return case.report


def away(server: Server, num: int = 6, seconds: float = 2.0) -> dict[str, Any]:
    """Refuse requests at the start of the sweep, and again for a while in the middle."""
    with broken(server, "away", num) as case:
        for numbers in case.halves():
            case.proxy.decide = lambda method, path: REFUSE
            case.log(numbers)
            time.sleep(seconds)
            case.heal()
    return case.report


def resetting(server: Server, num: int = 6, share: float = 0.3) -> dict[str, Any]:
    """Reset connections in the middle of replies, also of reads."""
    random_numbers = random.Random(7)
    with broken(server, "resetting", num) as case:
        case.proxy.decide = lambda method, path: RESET if random_numbers.random() < share else PASS
        case.log()
        case.tracker.flush()
        case.heal()
    return case.report


def slow(server: Server, num: int = 4, delay_s: float = 0.2) -> dict[str, Any]:
    """Delay every reply. Logging must not wait for it."""
    with broken(server, "slow", num) as case:
        case.proxy.delay_s = delay_s
        case.log()
        case.report["waiting"] = case.tracker.num_unsent_updates
    return case.report


def restarted(server: Server, num: int = 6, seconds: float = 1.0) -> dict[str, Any]:
    """Stop the server in the middle of the sweep, and start it again."""
    with broken(server, "restarted", num) as case:
        first, second = case.halves()
        case.log(first)
        server.stop()
        case.log(second)
        time.sleep(seconds)
        server.start()
        case.tracker.flush()
    return case.report


CASES = {case.__name__: case for case in (dropped_replies, away, resetting, slow, restarted)}
LONG_ARGUMENTS = {
    "dropped_replies": {"num": 40, "drops": 40},
    "away": {"num": 40, "seconds": 60.0},
    "resetting": {"num": 40},
    "slow": {"num": 20, "delay_s": 1.0},
    "restarted": {"num": 40, "seconds": 10.0},
}
"""Arguments of the long form (``make chaos``)."""


def locked_database(database: Path, num: int = 4, seconds: float = 2.0) -> dict[str, Any]:
    """Log trials while another connection locks the SQLite file."""
    notes: list[str] = []
    uri = f"sqlite:///{database}"
    tracker = open_tracker(uri, "locked", notes)
    tracker.flush()
    with closing(sqlite3.connect(database, isolation_level=None, timeout=400)) as other_connection:
        other_connection.execute("BEGIN EXCLUSIVE")
        log_trials(tracker, "locked", range(num))
        time.sleep(seconds)
        other_connection.execute("ROLLBACK")
    tracker.flush()
    tracker.close("FINISHED")
    return {**read_runs(uri, "locked"), "said": notes, "behind": tracker.num_unsent_updates}


def deleted_database(database: Path, num: int = 4) -> dict[str, Any]:
    """Delete the SQLite file in the middle of a sweep, and reconcile in another process."""
    notes: list[str] = []
    uri = f"sqlite:///{database}"
    tracker = open_tracker(uri, "deleted", notes)
    log_trials(tracker, "deleted", range(num // 2))
    tracker.flush()
    database.unlink()
    log_trials(tracker, "deleted", range(num // 2, num))
    tracker.close("KILLED")
    # This process keeps its connections to the deleted file.
    reconciling = subprocess.run(
        [sys.executable, "-c", RECONCILE, uri, "deleted", str(num)],
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        **json.loads(reconciling.stdout.splitlines()[-1]),
        "said": notes,
        "behind": tracker.num_unsent_updates,
    }


RECONCILE = """
import json, sys
from tests.integration.mlflow_faults import flat, open_tracker, read_runs
uri, name, num = sys.argv[1:]
tracker = open_tracker(uri, name)
tracker.reconcile([flat(name, number) for number in range(int(num))])
tracker.close("FINISHED")
print(json.dumps(read_runs(uri, name)))
"""

if __name__ == "__main__":
    CASE = sys.argv[1]
    FOLDER = Path(sys.argv[2])
    here = Server(FOLDER / "mlflow.db")
    print(json.dumps(CASES[CASE](here, **LONG_ARGUMENTS[CASE])))
