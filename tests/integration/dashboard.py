"""What Ray's dashboard says while a sweep runs, asked of its own REST API and of its nodes'
metrics."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import threading
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ADDRESS = re.compile(r"Ray dashboard: (http\S+)")


@dataclass
class Seen:
    """Everything that the pages have said."""

    tasks: set[str] = field(default_factory=set)
    actors: set[str] = field(default_factory=set)
    job: dict[str, str] = field(default_factory=dict)
    series: set[str] = field(default_factory=set)
    states: dict[str, float] = field(default_factory=dict)


class Watcher:
    """Asks once a second.

    Args:
        address: Of the dashboard.
        token: What it asks for.
    """

    def __init__(self, address: str, token: str) -> None:
        self._address, self._token = address, token
        self.seen = Seen()

    def _get(self, path: str, address: str = "") -> bytes:
        request = urllib.request.Request(f"{address or self._address}{path}")
        request.add_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(request, timeout=400) as answer:
            return bytes(answer.read())

    def _listed(self, what: str) -> list[dict[str, Any]]:
        found = json.loads(self._get(f"/api/v0/{what}?detail=1&limit=10000"))
        return found["data"]["result"]["result"]

    def look(self) -> None:
        """Add what the pages say now."""
        seen = self.seen
        seen.job |= self._jobs()
        seen.tasks |= {task["name"] for task in self._listed("tasks")}
        seen.actors |= {actor["class_name"] for actor in self._listed("actors")}
        self._read_series()

    def _jobs(self) -> dict[str, str]:
        jobs = json.loads(self._get("/api/jobs/"))
        return {key: value for job in jobs for key, value in (job.get("metadata") or {}).items()}

    def _read_series(self) -> None:
        targets = json.loads(self._get("/api/prometheus/sd"))
        for target in {address for group in targets for address in group["targets"]}:
            text = self._get("/metrics", f"http://{target}").decode()
            for name, labels, value in re.findall(
                r"^(ray_isweep_\w+)\{(.*?)\} (\S+)$", text, re.MULTILINE
            ):
                self.seen.series.add(name)
                if name == "ray_isweep_trials":
                    self.seen.states[re.search(r'state="(\w+)"', labels)[1]] = float(value)


def watched_run(command: list[str], root: Path) -> tuple[str, str, Seen, list[str]]:
    """Run ``isweep run …`` and look at its dashboard until it ends.

    Returns:
        stdout, stderr, what was seen, and what could not be asked: the dashboard ends with the
        command.
    """
    # Of Ray's ten seconds a short sweep sees none.
    environment = {**os.environ, "COLUMNS": "200", "RAY_metrics_report_interval_ms": "500"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    said: list[str] = []
    announced = threading.Event()

    def read() -> None:
        for line in process.stderr:
            said.append(line)
            if ADDRESS.search(line):
                announced.set()
        announced.set()

    reader = threading.Thread(target=read)
    reader.start()
    troubles: list[str] = []
    announced.wait()
    address = next(filter(None, map(ADDRESS.search, said)), None)
    watcher = Watcher(address[1], (root / "ray-token").read_text()) if address else None
    while process.poll() is None and watcher is not None:
        try:
            watcher.look()
        except (OSError, http.client.HTTPException, ValueError) as error:
            troubles.append(f"{type(error).__name__}: {error}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
    out = process.stdout.read()
    process.wait()
    reader.join()
    assert process.returncode == 0, "".join(said)
    return out, "".join(said), watcher.seen if watcher else Seen(), troubles
