"""The contents of Ray's dashboard while a sweep runs, read from its REST API and nodes' metrics."""

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
class DashboardContents:
    """Everything that the dashboard's pages have shown."""

    tasks: set[str] = field(default_factory=set)
    actors: set[str] = field(default_factory=set)
    job: dict[str, str] = field(default_factory=dict)
    series: set[str] = field(default_factory=set)
    states: dict[str, float] = field(default_factory=dict)


class Watcher:
    """A client of the dashboard's REST API that collects what the pages show.

    Args:
        address: The dashboard's address.
        token: The access token that the dashboard needs.
    """

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._token = token
        self.contents = DashboardContents()

    def _get(self, path: str, address: str = "") -> bytes:
        request = urllib.request.Request(f"{address or self._address}{path}")
        request.add_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(request, timeout=400) as answer:
            return bytes(answer.read())

    def _list(self, resource: str) -> list[dict[str, Any]]:
        answer = json.loads(self._get(f"/api/v0/{resource}?detail=1&limit=10000"))
        return answer["data"]["result"]["result"]

    def update(self) -> None:
        """Add what the pages show now."""
        contents = self.contents
        contents.job |= self._jobs()
        contents.tasks |= {task["name"] for task in self._list("tasks")}
        contents.actors |= {actor["class_name"] for actor in self._list("actors")}
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
                self.contents.series.add(name)
                if name == "ray_isweep_trials":
                    self.contents.states[re.search(r'state="(\w+)"', labels)[1]] = float(value)


def watched_run(command: list[str], root: Path) -> tuple[str, str, DashboardContents, list[str]]:
    """Run ``isweep run …`` and read its dashboard once a second until the command ends.

    Returns:
        stdout, stderr, the dashboard's contents, and the failed requests. The last requests may
        fail: the dashboard ends with the command.
    """
    # A short sweep ends before Ray's default interval of ten seconds.
    environment = {**os.environ, "COLUMNS": "200", "RAY_metrics_report_interval_ms": "500"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    output_lines: list[str] = []
    announced = threading.Event()

    def read() -> None:
        for line in process.stderr:
            output_lines.append(line)
            if ADDRESS.search(line):
                announced.set()
        announced.set()

    reader = threading.Thread(target=read)
    reader.start()
    problems: list[str] = []
    announced.wait()
    address = next(filter(None, map(ADDRESS.search, output_lines)), None)
    watcher = Watcher(address[1], (root / "ray-token").read_text()) if address else None
    while process.poll() is None and watcher is not None:
        try:
            watcher.update()
        except (OSError, http.client.HTTPException, ValueError) as error:
            problems.append(f"{type(error).__name__}: {error}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
    stdout = process.stdout.read()
    process.wait()
    reader.join()
    assert process.returncode == 0, "".join(output_lines)
    return (
        stdout,
        "".join(output_lines),
        watcher.contents if watcher else DashboardContents(),
        problems,
    )
