"""What people meet on MLflow's pages: run names, descriptions, data sets, and views that answer a question.

A view is a filter, an order, columns and charts. MLflow keeps it as a tag of the experiment, and a link that
names it opens the page with all of that in place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

from orchestrator.results import columns as c
from orchestrator.results.tracking.provenance import provenance

VIEW_TAG = "mlflow.sharedViewState."
NOTE_TAG = "mlflow.note.content"
LONGEST_DIGEST = 36
"""Characters of a data set's digest that MLflow takes."""
SHOWN_TAGS = (c.MODEL, c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE, c.SEED)
SHOWN_METRICS = (c.TEST_LOSS, c.TEST_ACCURACY, c.D_DATA_MLE, c.LABEL_SHARPNESS)


@dataclass(frozen=True)
class Page:
    """What a sweep's pages say of it.

    Attributes:
        sweep: Its name.
        description: In the sweep file's words.
        planned: Number of trials.
        loss_gain: Column of the loss gained under the attack that the charts show; empty for none.
    """

    sweep: str
    description: str = ""
    planned: int = 0
    loss_gain: str = ""

    def parent_tags(self) -> dict[str, str]:
        """Return the tags of the sweep's own run."""
        return {"planned": str(self.planned), "description": self.description}

    def source_tags(self) -> dict[str, str]:
        """Return the tags that fill MLflow's fields for what made a run."""
        made_by = {"mlflow.source.name": f"isweep run {self.sweep}", "mlflow.source.type": "LOCAL"}
        commit = provenance().commit
        return {**made_by, **({"mlflow.source.git.commit": commit} if commit else {})}

    def note(self, experiment: str) -> str:
        """Return the description of the experiment and of the sweep's run, in Markdown, with its views."""
        # MLflow shows the first line alone until it is asked for more.
        links = [
            f"[{view.question}](#/experiments/{experiment}/runs?{view.query(name)})"
            for name, view in self.views().items()
        ]
        lines = [
            " · ".join(links),
            self.description,
            "One run per trial, below one run for the sweep, whose metrics are counts, the best test loss of "
            "each dataset and every fitted coefficient. The result store is the truth; this is its view.",
        ]
        return "\n\n".join(filter(None, lines))

    def views(self) -> dict[str, View]:
        """Return the views of the sweep by the name that links give them."""
        found = {
            "best": View("Best model"),
            "curve": View(
                "Test loss over N",
                charts=(_scatter(("PARAM", c.TRAIN_SIZE), ("METRIC", c.TEST_LOSS)),),
            ),
        }
        if self.loss_gain:
            chart = _scatter(("METRIC", c.LABEL_SHARPNESS), ("METRIC", self.loss_gain))
            found["sharpness"] = View(
                "Loss gained under attack over K_F",
                charts=(chart,),
                metrics=(*SHOWN_METRICS, self.loss_gain),
            )
        return found

    def experiment_tags(self, experiment: str) -> dict[str, str]:
        """Return what the experiment keeps of its pages."""
        views = {VIEW_TAG + name: view.text() for name, view in self.views().items()}
        return {NOTE_TAG: self.note(experiment), **views}


VIEW_KEY = "viewStateShareKey"
TRAINING_PAGES = "workflowType=machine_learning"
"""Shows training runs to a browser that stands, as a new one does, on the pages of language models."""


@dataclass(frozen=True)
class View:
    """A question, and the state of MLflow's page of runs that answers it.

    Attributes:
        question: In words.
        charts: Charts to show; none shows the table.
        metrics: Columns beside the tags that say what a trial is.
    """

    question: str
    charts: tuple[dict[str, Any], ...] = ()
    metrics: tuple[str, ...] = SHOWN_METRICS

    def query(self, name: str) -> str:
        """Return what a link to it asks for; whether charts are shown is no part of the view itself."""
        mode = "&compareRunsMode=CHART" if self.charts else ""
        return f"{VIEW_KEY}={name}{mode}&{TRAINING_PAGES}"

    def text(self) -> str:
        """Return it as MLflow's page reads it."""
        shown = [f"tags.`{name}`" for name in SHOWN_TAGS] + [f"metrics.`{name}`" for name in self.metrics]
        state: dict[str, Any] = {
            "searchFilter": "tags.kind = 'trial' and attributes.status = 'FINISHED'",
            "orderByKey": f"metrics.`{c.TEST_LOSS}`",
            "orderByAsc": True,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "selectedColumns": shown,
            "runsHiddenMode": "SHOW_ALL",
        }
        if self.charts:
            state["compareRunCharts"] = [
                {**chart, "uuid": f"isweep-{place}", "metricSectionId": "isweep"}
                for place, chart in enumerate(self.charts)
            ]
            section = {"uuid": "isweep", "name": self.question, "display": True, "isReordered": True}
            state["compareRunSections"] = [section]
        return json.dumps(state, separators=(",", ":"))


def run_name(key: str, kind: str, tags: Mapping[str, str]) -> str:
    """Return the name of a run: of a trial its model, dataset and N first, since columns are narrow."""
    if c.DATASET not in tags:
        return key
    data = " ".join(filter(None, (tags[c.DATASET], tags.get(c.CLASS_PAIR, ""))))
    if kind != "trial":
        return f"{kind} {data}"
    changed = tags.get(c.RECIPE, "")
    recipe = [changed] if "+" in changed else []
    seed = f"seed {tags.get(c.SEED, '0')}"
    return " ".join([tags.get(c.MODEL, ""), data, f"N={tags.get(c.TRAIN_SIZE, '')}", seed, *recipe])


def dataset_input(tags: Mapping[str, str]) -> DatasetInput | None:
    """Return MLflow's entry for the data of a run, known by their fingerprint; None where tags name none."""
    if not tags.get(c.DATA_FINGERPRINT):
        return None
    name = " ".join(filter(None, (tags[c.DATASET], tags.get(c.CLASS_PAIR, ""))))
    source = json.dumps({"dataset": tags[c.DATASET], "fingerprint": tags[c.DATA_FINGERPRINT]})
    data = Dataset(name, tags[c.DATA_FINGERPRINT][:LONGEST_DIGEST], "prepared", source)
    return DatasetInput(data, [InputTag("mlflow.data.context", "training")])


def _scatter(x: tuple[str, str], y: tuple[str, str]) -> dict[str, Any]:
    axes = {side: {"type": kind, "key": key} for side, (kind, key) in (("xaxis", x), ("yaxis", y))}
    chart = {"type": "SCATTER", "isGenerated": False, "deleted": False, "runsCountToCompare": 1000}
    return {**chart, **axes, "displayName": f"{y[1]} against {x[1]}"}
