"""Texts and views of MLflow's pages: names of runs, descriptions and views.

A view is a filter, an order, columns and a chart. MLflow stores it as a tag of the experiment. A
link that names the view opens the page with all of that. Importing this module does not import
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
from orchestrator.results.columns import (
    CLASS_PAIR,
    DATASET,
    LABEL_SHARPNESS,
    MODEL,
    RECIPE,
    SEED,
    TEST_LOSS,
    TRAIN_SIZE,
)
from orchestrator.results.flat_runs import CURVE
from tasks.atomic import read_whole
from tasks.trials.records import attack_name

log = logging.getLogger(__name__)

SWEEP_KEY = "sweep"
"""Run key of the sweep's own run."""
# Private: MLflow's front end reads these. Without them its page opens without the view.
VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of the tags of an experiment that hold views."""
VIEW_KEY = "viewStateShareKey"
"""Parameter of a link that names a view."""
NOTE_TAG = "mlflow.note.content"
"""Tag of a run's or experiment's description."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tags by which MLflow's page opens on training runs, not on traces of language models."""
TRAINING_PAGES = "workflowType=machine_learning"
"""Parameter of a link that does the same."""
SHOWN_TAGS = (MODEL, TRAIN_SIZE, DATASET, CLASS_PAIR, SEED)
"""Tags that a view shows as columns."""


@dataclass(frozen=True)
class View:
    """A question, and the state of MLflow's page of runs that answers it.

    Attributes:
        question: name of the view for people.
        axes: the metrics x and y of a chart of trials; empty for a table.
        line: the metric of a chart of curves over their steps; empty for another view.
        dataset: show trials on this dataset alone; empty for all.
    """

    question: str
    axes: tuple[str, ...] = ()
    line: str = ""
    dataset: str = ""

    def query(self, name: str) -> str:
        """Return the parameters of a link to the view that is stored as ``name``."""
        # Whether charts are shown is no part of the stored view.
        mode = ""
        if self.axes or self.line:
            mode = "&compareRunsMode=CHART"
        return f"{VIEW_KEY}={name}{mode}&{TRAINING_PAGES}"

    def text(self) -> str:
        """Return the view as MLflow's page reads it."""
        kind = "trial"
        if self.line:
            kind = CURVE
        filter_text = f"tags.kind = '{kind}' and attributes.status = 'FINISHED'"
        if self.dataset:
            filter_text += f" and tags.{DATASET} = '{self.dataset}'"
        # These metrics are visible without scrolling.
        metrics = dict.fromkeys([TEST_LOSS, *self.axes])
        tag_columns = [f"tags.`{name}`" for name in SHOWN_TAGS]
        metric_columns = [f"metrics.`{name}`" for name in metrics]
        state: dict[str, Any] = {
            "searchFilter": filter_text,
            "orderByKey": f"metrics.`{TEST_LOSS}`",
            "orderByAsc": True,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "selectedColumns": tag_columns + metric_columns,
            "runsHiddenMode": "SHOW_ALL",
        }
        chart = self._chart()
        if chart:
            state["compareRunCharts"] = [chart]
            state["compareRunSections"] = [self._section()]
        return json.dumps(state, separators=(",", ":"))

    def _chart(self) -> dict[str, Any]:
        """Return the chart as MLflow's page reads it; empty if the view is a table."""
        chart: dict[str, Any] = {
            "uuid": "isweep-0",
            "metricSectionId": "isweep",
            "runsCountToCompare": 1000,
            "isGenerated": False,
            "deleted": False,
        }
        if self.axes:
            x_metric, y_metric = self.axes
            return chart | {
                "type": "SCATTER",
                "displayName": f"{y_metric} against {x_metric}",
                "xaxis": {"type": "METRIC", "key": x_metric},
                "yaxis": {"type": "METRIC", "key": y_metric},
            }
        if self.line:
            return chart | {
                "type": "LINE",
                "displayName": f"{self.line} at N images, the step",
                "metricKey": self.line,
                "selectedMetricKeys": [self.line],
                "yAxisKey": "metric",
                "xAxisKey": "step",
                "xAxisScaleType": "log",
                "scaleType": "log",
                "displayPoints": True,
                "lineSmoothness": 0,
                "yAxisExpressions": [],
                "selectedXAxisMetricKey": "",
            }
        return {}

    def _section(self) -> dict[str, Any]:
        """Return the section of the page that holds the chart."""
        return {
            "uuid": "isweep",
            "name": self.question,
            "display": True,
            "isReordered": True,
            "columns": 1,
            "cardHeight": 420,
        }


@dataclass(frozen=True)
class Page:
    """The facts about a sweep that MLflow's pages show.

    Attributes:
        sweep: name of the sweep.
        description: of the sweep, by its author.
        planned: number of planned trials.
        loss_gain: column of the attack that charts show; empty if nothing is attacked.
        datasets: names of the datasets.
    """

    sweep: str
    description: str = ""
    planned: int = 0
    loss_gain: str = ""
    datasets: tuple[str, ...] = ()

    @classmethod
    def of(cls, workspace: Workspace) -> Page:
        """Return the pages of a sweep."""
        plan = workspace.plan
        attacks = plan.sweep.attacks
        loss_gain = ""
        if attacks.methods and attacks.epsilons:
            name = attack_name(attacks.methods[0], attacks.epsilons[0])
            loss_gain = f"{name}_loss_gain"
        return cls(
            sweep=plan.sweep.name,
            description=plan.sweep.description,
            planned=len(plan.trials),
            loss_gain=loss_gain,
            datasets=tuple(plan.datasets),
        )

    def sweep_tags(self, experiment: str) -> dict[str, str]:
        """Return the tags of the sweep's own run, in the experiment with this id."""
        return {
            "planned": str(self.planned),
            "description": self.description,
            NOTE_TAG: self.note(experiment),
        }

    def note(self, experiment: str) -> str:
        """Return the description of the experiment and of the sweep's run, with links to views.

        Args:
            experiment: id of the experiment.

        Returns:
            Markdown. MLflow shows its first line alone until somebody opens it.
        """
        pages = f"#/experiments/{experiment}/runs"
        general_links = []
        dataset_links = []
        for name, view in self.views().items():
            link = f"[{view.question}]({pages}?{view.query(name)})"
            if view.dataset:
                dataset_links.append(link)
            else:
                general_links.append(link)
        paragraphs = [
            " · ".join(general_links),
            self.description,
            " · ".join(dataset_links),
            "Each trial has one run, below the run of the sweep. Metrics of the sweep's run are "
            "counts, the best test loss of each dataset and every fitted coefficient. MLflow only "
            "shows the results; the result store keeps them.",
        ]
        return "\n\n".join(filter(None, paragraphs))

    def views(self) -> dict[str, View]:
        """Return the views of the sweep by the name that links give them."""
        views = {
            "best": View("Best model"),
            CURVE: View("Test loss over N", line=TEST_LOSS),
        }
        if self.loss_gain:
            axes = (LABEL_SHARPNESS, self.loss_gain)
            views["sharpness"] = View("Loss gained under attack over K_F", axes)
        for name in self.datasets:
            views[f"best-{name}"] = View(f"Best on {name}", dataset=name)
        return views

    def experiment_tags(self, experiment: str) -> dict[str, str]:
        """Return the tags by which the experiment with this id stores description and views."""
        views = {VIEW_TAG + name: view.text() for name, view in self.views().items()}
        return {NOTE_TAG: self.note(experiment), **views}

    def run_name(self, key: str, tags: Mapping[str, str]) -> str:
        """Return the name of a run; of a trial model and N first, because columns are narrow.

        Args:
            key: the run's key.
            tags: of the run.
        """
        if key == SWEEP_KEY:
            return self.sweep
        if DATASET not in tags:
            return key
        prefixes = {MODEL: "", TRAIN_SIZE: "N=", DATASET: "", CLASS_PAIR: "", SEED: "seed "}
        words = [f"{prefix}{tags[name]}" for name, prefix in prefixes.items() if tags.get(name)]
        recipe = tags.get(RECIPE, "")
        if "+" in recipe:
            words.append(recipe)
        return " ".join(words)


class RunPages(BaseModel):
    """Addresses of the pages of runs.

    Attributes:
        prefix: the address without the run's id at its end.
        runs: MLflow's ids of runs by run key.
    """

    prefix: str = ""
    runs: dict[str, str] = Field(default_factory=dict)


def read_run_pages(path: Path) -> RunPages:
    """Return what :meth:`.Tracker.save_run_pages` wrote; empty if that cannot be read."""
    try:
        return RunPages.model_validate_json(read_whole(path))
    except FileNotFoundError:
        return RunPages()
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, and reports link to no runs: %s", path, error)
        return RunPages()
