"""What people meet on MLflow's pages: names of runs, descriptions and views.

A view is a filter, an order, columns and a chart. MLflow keeps it as a tag of the experiment, and a
link that names it opens the page with all of that in place. Importing this module does not import
``mlflow``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from orchestrator.planning.workspace import Workspace
from orchestrator.results import columns as c
from orchestrator.results.flat_runs import CURVE
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
        kind = CURVE if self.line else "trial"
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
        found = {"best": View("Best model"), CURVE: View("Test loss over N", line=c.TEST_LOSS)}
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
