"""Experiments of sweeps in MLflow: one per sweep and result store, and the rows that it shows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestrator.results.rows import Row, row_of
from orchestrator.results.tracking.mlflow_database import follow_root
from orchestrator.results.tracking.mlflow_page import Page

PAGE_SIZE = 5000
INF_AS_STORED = 1.7e308
DUPLICATE_TAG = "isweep.duplicate"
STORAGE_TAG = "isweep.storage"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's page open on runs; it opens on language-model traces otherwise."""


def experiment_names(sweep: str, storage: str | None) -> list[str]:
    """Return the experiments that may hold a sweep's runs, the first choice first."""
    plain = f"isweep/{sweep}"
    return [plain] if storage is None else [plain, f"{plain}@{storage[:8]}"]


def find_experiment(client: MlflowClient, sweep: str, storage: str | None) -> str | None:
    """Return the id of the experiment that mirrors this sweep of this store; None when there is none."""
    for name in experiment_names(sweep, storage):
        found = client.get_experiment_by_name(name)
        if found is not None and (storage is None or found.tags.get(STORAGE_TAG) in (None, storage)):
            return str(found.experiment_id)
    return None


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
            follow_root(str(client.tracking_uri), str(found.experiment_id), before, location)
        return str(found.experiment_id), name
    raise AssertionError("the last name is always taken")


def rows_of_experiment(client: MlflowClient, experiment: str) -> list[Row]:
    """Return the rows of an experiment's finished trials, ordered by trial id."""
    rows = []
    for run in search(client, experiment, "attribute.status = 'FINISHED' and tags.kind = 'trial'"):
        if run.data.tags.get(DUPLICATE_TAG) != "true":
            finite = {k: v for k, v in run.data.metrics.items() if abs(v) < INF_AS_STORED and v == v}
            rows.append(row_of(run.data.tags, finite))
    return sorted(rows, key=lambda row: str(row["trial_id"]))


def search(client: MlflowClient, experiment: str, query: str) -> Iterable[Run]:
    """Yield all runs of an experiment that fit ``query``, oldest first."""
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment],
            query,
            max_results=PAGE_SIZE,
            order_by=["attribute.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def describe_experiment(client: MlflowClient, experiment: str, page: Page) -> None:
    """Give an experiment its description and its views, where they are not there yet."""
    shown = client.get_experiment(experiment).tags
    for name, text in page.experiment_tags(experiment).items():
        if shown.get(name) != text:
            client.set_experiment_tag(experiment, name, text)
