"""Texts of MLflow's pages: names of runs, descriptions and views.

A view is a filter, a sort order, columns and a chart of MLflow's table of runs. It is stored
as a tag of the experiment. A link with the name of a view opens the table in this view.
Importing this module does not import ``mlflow``.
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
"""Key of the MLflow run that describes the whole sweep."""
# The next names are internal to MLflow's front end. If a version of MLflow changes them, a
# link opens the page without the view.
VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of an experiment's tags that contain views. The name of the view follows."""
VIEW_KEY = "viewStateShareKey"
"""Parameter of a link. Its value is the name of a view."""
NOTE_TAG = "mlflow.note.content"
"""Tag that contains the description of a run or an experiment."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tags of an experiment. Because of these tags, MLflow's page shows training runs instead of
traces of language models."""
TRAINING_PAGES = "workflowType=machine_learning"
"""Parameter of a link. Because of this parameter, MLflow's page shows training runs."""
SHOWN_TAGS = (MODEL, TRAIN_SIZE, DATASET, CLASS_PAIR, SEED)
"""Tags that MLflow shows as columns in every view."""


@dataclass(frozen=True)
class View:
    """A view of MLflow's table of runs: a table, a scatter plot or a line chart.

    Attributes:
        question: Title of the view.
        axes: The two metrics on the axes x and y of a scatter plot of trials. The tuple is
            empty if the view is not a scatter plot.
        line: Metric of a line chart over steps. The text is empty if the view is not a line
            chart.
        dataset: Name of the only dataset whose trials the view shows. If it is empty, the view
            shows the trials of all datasets.
    """

    question: str
    axes: tuple[str, ...] = ()
    line: str = ""
    dataset: str = ""

    def query(self, name: str) -> str:
        """Return the parameters of a link to this view, which is stored as ``name``."""
        # A stored view does not say whether MLflow shows charts, so the link says it.
        mode = ""
        if self.axes or self.line:
            mode = "&compareRunsMode=CHART"
        return f"{VIEW_KEY}={name}{mode}&{TRAINING_PAGES}"

    def text(self) -> str:
        """Return the view in the JSON format of MLflow's page."""
        kind = "trial"
        if self.line:
            kind = CURVE
        filter_text = f"tags.kind = '{kind}' and attributes.status = 'FINISHED'"
        if self.dataset:
            filter_text += f" and tags.{DATASET} = '{self.dataset}'"
        # The user sees the first columns without scrolling.
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
        """Return the chart in the format of MLflow's page.

        If the view is a table, return an empty dictionary.
        """
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
                "displayName": f"{self.line} over N (step)",
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
        """Return the section of the page that contains the chart."""
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
    """The data of a sweep on MLflow's pages.

    Attributes:
        sweep: Name of the sweep.
        description: Description of the sweep from the sweep file.
        planned: Number of planned trials.
        loss_gain: Column with the loss gain under the attack that charts show. The text is
            empty if the sweep has no attack.
        datasets: Names of the datasets.
    """

    sweep: str
    description: str = ""
    planned: int = 0
    loss_gain: str = ""
    datasets: tuple[str, ...] = ()

    @classmethod
    def of(cls, workspace: Workspace) -> Page:
        """Return the data of a sweep that MLflow's pages show."""
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
        """Return the tags of the sweep's run in the experiment with the id ``experiment``."""
        return {
            "planned": str(self.planned),
            "description": self.description,
            NOTE_TAG: self.note(experiment),
        }

    def note(self, experiment: str) -> str:
        """Return the description of the experiment and of the sweep's run, with links to views.

        Args:
            experiment: Id of the experiment.

        Returns:
            The description in Markdown. Until a user opens it, MLflow shows only its first
            line.
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
            "Each trial has a run in MLflow, which is nested in the run of the sweep. The "
            "metrics of the sweep's run "
            "are counts, the best test loss of each dataset and all fitted coefficients. MLflow "
            "has copies of the results. The originals are in the result store.",
        ]
        return "\n\n".join(filter(None, paragraphs))

    def views(self) -> dict[str, View]:
        """Return the views of the sweep by their names in links."""
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
        """Return the tags of an experiment with its description and views."""
        views = {VIEW_TAG + name: view.text() for name, view in self.views().items()}
        return {NOTE_TAG: self.note(experiment), **views}

    def run_name(self, key: str, tags: Mapping[str, str]) -> str:
        """Return the name of a run.

        The name of a trial's run begins with the model and the train size N.

        MLflow's table shows only the beginning of a name, because its columns are narrow.

        Args:
            key: Key of the run.
            tags: Tags of the run.
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
        prefix: Beginning of each address. The run's id follows.
        runs: MLflow's ids of runs by run key.
    """

    prefix: str = ""
    runs: dict[str, str] = Field(default_factory=dict)


def read_run_pages(path: Path) -> RunPages:
    """Read the file of :meth:`.Tracker.save_run_pages`. Return no pages if it cannot be read."""
    try:
        return RunPages.model_validate_json(read_whole(path))
    except FileNotFoundError:
        return RunPages()
    except (OSError, ValueError) as error:
        log.warning(
            "The file %s cannot be read, so reports have no links to MLflow: %s", path, error
        )
        return RunPages()
