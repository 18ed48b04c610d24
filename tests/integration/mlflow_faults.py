"""MLflow servers that drop replies, are slow, away, resetting or restarted; SQLite files locked or
deleted.

Each case logs ``num`` trials while something is broken, heals it, and reads back what MLflow
shows, through a client of its own.
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
from tests.integration.proxy import DROP, PASS, REFUSE, RESET, Proxy, before
from tests.unit.orchestrator.results.test_tracking import finished_run


class Server:
    """MLflow's own web application over a SQLite file, started and stopped as often as needed."""

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
        """Listen, at the same port as before."""
        from mlflow.server import app
        from werkzeug.serving import make_server

        self._server = make_server("127.0.0.1", self.port, app, threaded=True)
        self.port = self._server.port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def end(self) -> None:
        """Stop, and leave nothing of a server's in this process: what it makes next is no
        server's."""
        from mlflow.server import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR

        self.stop()
        for name in (BACKEND_STORE_URI_ENV_VAR, ARTIFACT_ROOT_ENV_VAR, "MLFLOW_TRACKING_URI"):
            os.environ.pop(name, None)

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


def flat(name: str, number: int) -> FlatRun:
    """Return what a trial shows."""
    return finished_run(f"{name}-{number}", 1 / (number + 1))


def opened(uri: str, name: str, said: list[str] | None = None) -> Tracker:
    """Return the tracker of a sweep."""
    say = (said if said is not None else []).append
    return Tracker(lambda: SweepRuns(connect(uri), Page(name), None, None), say)


def log_trials(tracker: Tracker, name: str, numbers: range) -> None:
    """Log trials that start and end."""
    for number in numbers:
        tracker.start_trial(f"{name}-{number}", {"trial_id": f"{name}-{number}"})
        tracker.finish(flat(name, number))


def shown(uri: str, name: str) -> dict[str, Any]:
    """Return what MLflow shows of a sweep, asked without our own reader."""
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
    """A sweep whose tracker goes through a proxy; ``found`` is what MLflow shows of it in the
    end."""

    server: Server
    name: str
    num: int
    proxy: Proxy
    tracker: Tracker
    found: dict[str, Any] = field(default_factory=dict)

    def log(self, numbers: range | None = None) -> None:
        """Log trials that start and end, all or some."""
        log_trials(self.tracker, self.name, range(self.num) if numbers is None else numbers)

    def halves(self) -> tuple[range, range]:
        """Return the numbers of the trials of the first and of the second half."""
        return range(self.num // 2), range(self.num // 2, self.num)

    def heal(self) -> None:
        """Let everything pass until all is shown."""
        self.proxy.decide = lambda method, path: PASS
        self.tracker.flush()


@contextmanager
def broken(server: Server, name: str, num: int) -> Iterator[Case]:
    """Open a case; closes its tracker and reads what MLflow shows."""
    said: list[str] = []
    with before(f"127.0.0.1:{server.port}") as proxy:
        case = Case(server, name, num, proxy, opened(proxy.url, name, said))
        yield case
        case.tracker.close("FINISHED")
        found = shown(server.uri, name)
        expected = {f"{name}-{number}": 1 / (number + 1) for number in range(num)}
        case.found |= {
            **found,
            "right": found.pop("losses") == expected and found["counted"] == num,
            "faults": dict(Counter(proxy.faults)),
            "behind": case.tracker.num_unsent_updates,
            "said": said,
        }


def dropped_replies(server: Server, num: int = 12, drops: int = 12) -> dict[str, Any]:
    """The replies of a random third of all writes get lost, until so many were."""
    chance, left = random.Random(13), [drops]

    def decide(method: str, path: str) -> str:
        if method != "GET" and left[0] and chance.random() < 0.3:
            left[0] -= 1
            return DROP
        return PASS

    with broken(server, "dropped", num) as case:
        case.proxy.decide = decide
        case.log()
    return case.found


def away(server: Server, num: int = 6, seconds: float = 2.0) -> dict[str, Any]:
    """Down when the sweep starts, up, down again for a while in the middle."""
    with broken(server, "away", num) as case:
        for numbers in case.halves():
            case.proxy.decide = lambda method, path: REFUSE
            case.log(numbers)
            time.sleep(seconds)
            case.heal()
    return case.found


def resetting(server: Server, num: int = 6, share: float = 0.3) -> dict[str, Any]:
    """Connections are reset in the middle of replies, of reads too."""
    chance = random.Random(7)
    with broken(server, "resetting", num) as case:
        case.proxy.decide = lambda method, path: RESET if chance.random() < share else PASS
        case.log()
        case.tracker.flush()
        case.heal()
    return case.found


def slow(server: Server, num: int = 4, delay_s: float = 0.2) -> dict[str, Any]:
    """Every reply is late; nobody who logs something waits for it."""
    with broken(server, "slow", num) as case:
        case.proxy.delay_s = delay_s
        case.log()
        case.found["waiting"] = case.tracker.num_unsent_updates
    return case.found


def restarted(server: Server, num: int = 6, seconds: float = 1.0) -> dict[str, Any]:
    """The server ends in the middle and starts again."""
    with broken(server, "restarted", num) as case:
        first, second = case.halves()
        case.log(first)
        server.stop()
        case.log(second)
        time.sleep(seconds)
        server.start()
        case.tracker.flush()
    return case.found


CASES = {case.__name__: case for case in (dropped_replies, away, resetting, slow, restarted)}
LONG = {
    "dropped_replies": {"num": 40, "drops": 40},
    "away": {"num": 40, "seconds": 60.0},
    "resetting": {"num": 40},
    "slow": {"num": 20, "delay_s": 1.0},
    "restarted": {"num": 40, "seconds": 10.0},
}
"""Arguments of the long form (``make chaos``)."""


def locked_database(database: Path, num: int = 4, seconds: float = 2.0) -> dict[str, Any]:
    """Another program holds the SQLite file."""
    said: list[str] = []
    uri = f"sqlite:///{database}"
    tracker = opened(uri, "locked", said)
    tracker.flush()
    with closing(sqlite3.connect(database, isolation_level=None, timeout=400)) as other:
        other.execute("BEGIN EXCLUSIVE")
        log_trials(tracker, "locked", range(num))
        time.sleep(seconds)
        other.execute("ROLLBACK")
    tracker.flush()
    tracker.close("FINISHED")
    return {**shown(uri, "locked"), "said": said, "behind": tracker.num_unsent_updates}


def deleted_database(database: Path, num: int = 4) -> dict[str, Any]:
    """The SQLite file is deleted in the middle; another process's reconcile shows everything
    again."""
    said: list[str] = []
    uri = f"sqlite:///{database}"
    tracker = opened(uri, "deleted", said)
    log_trials(tracker, "deleted", range(num // 2))
    tracker.flush()
    database.unlink()
    log_trials(tracker, "deleted", range(num // 2, num))
    tracker.close("KILLED")
    # This process keeps its connections to the file that is gone.
    other = subprocess.run(
        [sys.executable, "-c", RECONCILE, uri, "deleted", str(num)],
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        **json.loads(other.stdout.splitlines()[-1]),
        "said": said,
        "behind": tracker.num_unsent_updates,
    }


RECONCILE = """
import json, sys
from tests.integration.mlflow_faults import flat, opened, shown
uri, name, num = sys.argv[1:]
tracker = opened(uri, name)
tracker.reconcile([flat(name, number) for number in range(int(num))])
tracker.close("FINISHED")
print(json.dumps(shown(uri, name)))
"""

if __name__ == "__main__":
    CASE, FOLDER = sys.argv[1], Path(sys.argv[2])
    here = Server(FOLDER / "mlflow.db")
    print(json.dumps(CASES[CASE](here, **LONG[CASE])))
