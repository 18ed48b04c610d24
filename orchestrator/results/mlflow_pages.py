"""What people meet on MLflow's pages: run names, descriptions, data sets, and views that answer a question.

A view is a filter, an order, columns and charts. MLflow keeps it as a tag of the experiment, and a link that
names it opens the page with all of that in place.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestrator.planning.plan import Workspace
from orchestrator.results import table as c
from orchestrator.results.records import provenance
from orchestrator.results.rows import Row, row_of
from tasks.trials.records import attack_name

VIEW_TAG = "mlflow.sharedViewState."
NOTE_TAG = "mlflow.note.content"
DUPLICATE_TAG, STORAGE_TAG = "isweep.duplicate", "isweep.storage"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's page open on runs; it opens on language-model traces otherwise."""
PAGE_SIZE = 5000
INF_AS_STORED = 1.7e308
SQLITE = "sqlite:///"
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

    @classmethod
    def of(cls, workspace: Workspace) -> Page:
        """Return the pages of a sweep."""
        sweep = workspace.plan.sweep
        attacks = [attack_name(method, e) for method in sweep.attacks.methods for e in sweep.attacks.epsilons]
        loss_gain = f"{attacks[0]}_loss_gain" if attacks else ""
        return cls(sweep.name, sweep.description, len(workspace.plan.trials), loss_gain)

    def sweep_tags(self) -> dict[str, str]:
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


# Experiments: one per sweep and result store.


def experiment_names(sweep: str, storage: str | None) -> list[str]:
    """Return the experiments that may hold a sweep's runs, the first choice first."""
    plain = f"isweep/{sweep}"
    return [plain] if storage is None else [plain, f"{plain}@{storage[:8]}"]


def claim_experiment(
    client: MlflowClient, sweep: str, storage: str | None, artifacts: Path | None
) -> tuple[str, str]:
    """Return id and name of the experiment for this sweep of this store, made where missing.

    One that belongs to another store is left alone: two roots on one server keep their runs apart.
    """
    location = artifacts.absolute().as_uri() if artifacts else ""
    own = {STORAGE_TAG: storage} if storage else {}
    names = experiment_names(sweep, storage)
    for name in names:
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                made = client.create_experiment(name, location or None, tags={**EXPERIMENT_TAGS, **own})
                return str(made), name
            except MlflowException:
                # Another driver on the same server was first, or the reply was lost.
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if storage is not None and found.tags.get(STORAGE_TAG, storage) != storage and name != names[-1]:
            continue
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        if storage is not None and STORAGE_TAG not in found.tags:
            client.set_experiment_tag(found.experiment_id, STORAGE_TAG, storage)
        before = str(found.artifact_location)
        if artifacts and before != location and before.endswith(f"/{artifacts.name}"):
            _follow_root(str(client.tracking_uri), str(found.experiment_id), before, location)
        return str(found.experiment_id), name
    raise AssertionError("the last name is always taken")


def _follow_root(uri: str, experiment: str, old: str, new: str) -> None:
    """Let an experiment in the SQLite file of ``uri`` keep its artifacts where the root is now.

    MLflow notes whole paths and has no call that changes them: after a move it would make the old folder
    again, open to everybody, and from a copy of a root it would write over the artifacts of the first.

    Raises:
        MlflowException: when the file does not take it.
    """
    runs = "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ?"
    where = " AND substr(artifact_uri, 1, ?) = ?"
    experiments = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
    try:  # private: MLflow's tables; without them a root that was moved has no mirror, and says so
        with closing(sqlite3.connect(uri.removeprefix(SQLITE), timeout=20)) as database, database:
            database.execute(runs + where, (new, len(old) + 1, experiment, len(old) + 1, f"{old}/"))
            database.execute(experiments, (new, experiment))
    except sqlite3.Error as error:
        raise MlflowException(f"The root was moved, and MLflow's file does not follow: {error}") from error


def rows_of_sweep(client: MlflowClient, sweep: str, storage: str | None) -> list[Row]:
    """Return the rows of a sweep's finished trials, ordered by trial id; [] when unknown."""
    rows = []
    for name in experiment_names(sweep, storage):
        found = client.get_experiment_by_name(name)
        if found is not None and (storage is None or found.tags.get(STORAGE_TAG) in (None, storage)):
            query = "attribute.status = 'FINISHED' and tags.kind = 'trial'"
            for run in search(client, str(found.experiment_id), query):
                if run.data.tags.get(DUPLICATE_TAG) != "true":
                    finite = {k: v for k, v in run.data.metrics.items() if abs(v) < INF_AS_STORED}
                    rows.append(row_of(run.data.tags, finite))
            break
    return sorted(rows, key=lambda row: str(row["trial_id"]))


def search(client: MlflowClient, experiment: str, query: str) -> Iterator[Run]:
    """Yield all runs of an experiment that fit ``query``, oldest first."""
    token: str | None = ""
    while token is not None:
        page = client.search_runs(
            [experiment],
            query,
            max_results=PAGE_SIZE,
            order_by=["attribute.start_time ASC"],
            page_token=token or None,
        )
        yield from page
        token = page.token or None
