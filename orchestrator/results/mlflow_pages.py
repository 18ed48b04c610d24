"""What people meet on MLflow's pages: names of runs, descriptions, views; and the server of those
pages.

A view is a filter, an order, columns and a chart. MLflow keeps it as a tag of the experiment, and a
link that names it opens the page with all of that in place. Importing this module does not import
``mlflow``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from orchestrator.planning.workspace import Workspace
from orchestrator.results import table as c
from search_spaces.errors import SetupError
from tasks.atomic import read_whole
from tasks.trials.records import attack_name

log = logging.getLogger(__name__)

SWEEP_KEY = "sweep"
"""Run key of the sweep's own run."""
VIEW_TAG, VIEW_KEY = "mlflow.sharedViewState.", "viewStateShareKey"
NOTE_TAG = "mlflow.note.content"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
TRAINING_PAGES = "workflowType=machine_learning"
"""Both make MLflow's page open on training runs instead of traces of language models."""
SHOWN_TAGS = (c.MODEL, c.TRAIN_SIZE, c.DATASET, c.CLASS_PAIR, c.SEED)


@dataclass(frozen=True)
class View:
    """A question, and the state of MLflow's page of runs that answers it: a chart of ``axes``, or a
    table.

    ``axes`` are the metrics x and y of trials, of ``dataset`` alone where it is given; ``line`` is
    the metric of curves over their steps.
    """

    question: str
    axes: tuple[str, ...] = ()
    line: str = ""
    dataset: str = ""

    def query(self, name: str) -> str:
        """Return what a link to it asks for; whether charts are shown is no part of the view
        itself.
        """
        mode = "&compareRunsMode=CHART" if self.axes or self.line else ""
        return f"{VIEW_KEY}={name}{mode}&{TRAINING_PAGES}"

    def text(self) -> str:
        """Return it as MLflow's page reads it."""
        kind = c.CURVE if self.line else "trial"
        metrics = dict.fromkeys([c.TEST_LOSS, *self.axes])  # in view without scrolling
        state: dict[str, Any] = {
            "searchFilter": f"tags.kind = '{kind}' and attributes.status = 'FINISHED'"
            + (f" and tags.{c.DATASET} = '{self.dataset}'" if self.dataset else ""),
            "orderByKey": f"metrics.`{c.TEST_LOSS}`",
            "orderByAsc": True,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "selectedColumns": [f"tags.`{name}`" for name in SHOWN_TAGS]
            + [f"metrics.`{n}`" for n in metrics],
            "runsHiddenMode": "SHOW_ALL",
        }
        chart: dict[str, Any] = {
            "uuid": "isweep-0",
            "metricSectionId": "isweep",
            "runsCountToCompare": 1000,
        }
        chart |= {"isGenerated": False, "deleted": False}
        if self.axes:
            x, y = ({"type": "METRIC", "key": name} for name in self.axes)
            chart |= {"type": "SCATTER", "displayName": f"{y['key']} against {x['key']}"}
            chart |= {"xaxis": x, "yaxis": y}
        if self.line:
            chart |= {"type": "LINE", "displayName": f"{self.line} at N images, the step"}
            chart |= {
                "metricKey": self.line,
                "selectedMetricKeys": [self.line],
                "yAxisKey": "metric",
            }
            chart |= {
                "xAxisKey": "step",
                "xAxisScaleType": "log",
                "scaleType": "log",
                "displayPoints": True,
            }
            chart |= {"lineSmoothness": 0, "yAxisExpressions": [], "selectedXAxisMetricKey": ""}
        if "type" in chart:
            section = {
                "uuid": "isweep",
                "name": self.question,
                "display": True,
                "isReordered": True,
            }
            section |= {"columns": 1, "cardHeight": 420}
            state |= {"compareRunCharts": [chart], "compareRunSections": [section]}
        return json.dumps(state, separators=(",", ":"))


@dataclass(frozen=True)
class Page:
    """What a sweep's pages say of it; ``loss_gain`` is the column of an attack that charts show, or
    empty.
    """

    sweep: str
    description: str = ""
    planned: int = 0
    loss_gain: str = ""
    datasets: tuple[str, ...] = ()

    @classmethod
    def of(cls, workspace: Workspace) -> Page:
        """Return the pages of a sweep."""
        plan, sweep, asked = workspace.plan, workspace.plan.sweep, workspace.plan.sweep.attacks
        gains = [
            f"{attack_name(method, e)}_loss_gain"
            for method in asked.methods
            for e in asked.epsilons
        ]
        return cls(
            sweep.name, sweep.description, len(plan.trials), (*gains, "")[0], tuple(plan.datasets)
        )

    def sweep_tags(self, experiment: str) -> dict[str, str]:
        """Return the tags of the sweep's own run."""
        tags = {"planned": str(self.planned), "description": self.description}
        return {**tags, NOTE_TAG: self.note(experiment)}

    def note(self, experiment: str) -> str:
        """Return the description of the experiment and of the sweep's run, in Markdown, with its
        views.
        """
        pages = f"#/experiments/{experiment}/runs"
        links: dict[bool, list[str]] = {False: [], True: []}
        for name, view in self.views().items():
            links[bool(view.dataset)].append(f"[{view.question}]({pages}?{view.query(name)})")
        lines = [
            " · ".join(
                links[False]
            ),  # MLflow shows the first line alone until it is asked for more
            self.description,
            " · ".join(links[True]),
            "One run per trial, below one run for the sweep, whose metrics are counts, the best "
            "test loss of "
            "each dataset and every fitted coefficient. The result store is the truth; this is its "
            "view.",
        ]
        return "\n\n".join(filter(None, lines))

    def views(self) -> dict[str, View]:
        """Return the views of the sweep by the name that links give them."""
        found = {"best": View("Best model"), c.CURVE: View("Test loss over N", line=c.TEST_LOSS)}
        if self.loss_gain:
            axes = (c.LABEL_SHARPNESS, self.loss_gain)
            found["sharpness"] = View("Loss gained under attack over K_F", axes)
        return found | {
            f"best-{name}": View(f"Best on {name}", dataset=name) for name in self.datasets
        }

    def experiment_tags(self, experiment: str) -> dict[str, str]:
        """Return what the experiment keeps of its pages."""
        views = {VIEW_TAG + name: view.text() for name, view in self.views().items()}
        return {NOTE_TAG: self.note(experiment), **views}

    def run_name(self, key: str, tags: Mapping[str, str]) -> str:
        """Return the name of a run: of a trial its model and N first, since columns are narrow."""
        if c.DATASET not in tags:
            return self.sweep if key == SWEEP_KEY else key
        marks = {c.MODEL: "", c.TRAIN_SIZE: "N=", c.DATASET: "", c.CLASS_PAIR: "", c.SEED: "seed "}
        words = [f"{mark}{tags[name]}" for name, mark in marks.items() if tags.get(name)]
        recipe = tags.get(c.RECIPE, "")
        return " ".join([*words, recipe] if "+" in recipe else words)


class RunPages(BaseModel):
    """Where MLflow shows runs: what stands before a run's id in the address of its page, and ids by
    key.
    """

    prefix: str = ""
    runs: dict[str, str] = Field(default_factory=dict)


def read_run_pages(path: Path) -> RunPages:
    """Return what :meth:`Tracker.keep_pages` kept; nothing where that is nothing, or cannot be
    read.
    """
    try:
        return RunPages.model_validate_json(read_whole(path))
    except FileNotFoundError:
        return RunPages()
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, and reports link to no runs: %s", path, error)
        return RunPages()


PORT = 5000
START_S, LOOK_S, ANSWER_S, END_S = 240, 0.5, 10, 10
"""On a busy machine MLflow took a minute and a half to start."""
LINK = re.compile(r"\[([^\]]+)\]\((#/[^)\s]+)\)")


def free_port(asked: int | None = None) -> int:
    """Return a port of loopback that is free: the one asked for (or SetupError), else MLflow's or
    another.
    """
    for port in (asked,) if asked else (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise SetupError(
        "The port must be free", f"{asked} is taken", "name another with --port, or leave it out"
    )


@contextlib.contextmanager
def served(uri: str, port: int, words: Path) -> Iterator[str]:
    """Serve the MLflow store at ``uri`` during a ``with`` block; yields the page's address when it
    answers.

    A server's own address is given back as it is, and nothing started. ``words`` takes what the
    server says; SetupError has the last of them where it does not start.
    """
    from orchestrator.results.mlflow_runs import connect

    if uri.startswith(("http://", "https://")):
        yield uri.rstrip("/")
        return
    connect(uri)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=ANSWER_S).close()
            return True
        return False

    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    # Its jobs are workers for judging language models, 300 MB of memory that nobody asked for.
    # In the environment, since it may hold a password.
    settings = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with words.open("wb") as said:
        server = subprocess.Popen(
            [*command, "--workers", "1"],
            env=os.environ | settings,
            cwd=words.parent,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + START_S
        while not answers():
            if server.poll() is not None or time.monotonic() > until:
                lines = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                last = lines[-1][:300] if lines else "it said nothing"
                why = f"no answer in {START_S} s" if server.poll() is None else last
                raise SetupError("MLflow's page must start", why, f"its log: {words}")
            time.sleep(LOOK_S)
        yield address
    finally:
        for number in (
            signal.SIGTERM,
            signal.SIGKILL,
        ):  # to its workers too: a session of their own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(END_S)
                break


def sweep_pages(address: str, sweep: str) -> dict[str, dict[str, str]]:
    """Return where the server at ``address`` shows a sweep: by experiment and question an address.

    There are several where result stores share the sweep's name.
    """
    from orchestrator.results.mlflow_runs import connect

    found = {}
    for one in connect(address).search_experiments(filter_string=f"name LIKE 'isweep/{sweep}%'"):
        if one.name.partition("@")[0] == f"isweep/{sweep}":
            links = LINK.findall(one.tags.get(NOTE_TAG, ""))
            links = links or [
                ("All runs", f"#/experiments/{one.experiment_id}/runs?{TRAINING_PAGES}")
            ]
            found[one.name] = {question: f"{address}/{link}" for question, link in links}
    return dict(sorted(found.items()))
