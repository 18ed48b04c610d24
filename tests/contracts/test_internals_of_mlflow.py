"""Every private place of MLflow that the product reaches for, and what stops working where it is missing.

Runs against the oldest and the newest MLflow that ``pyproject.toml`` allows: what fails here tells what to
mend or to give up. All of them stand in ``orchestrator/results/mlflow_pages.py``.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from orchestrator.results.mlflow_pages import (
    EXPERIMENT_TAGS,
    NOTE_TAG,
    TRAINING_PAGES,
    VIEW_KEY,
    VIEW_TAG,
    View,
)
from orchestrator.results.mlflow_runs import connect

PAGE = {
    VIEW_TAG: "the links of a sweep's description open the table of runs as it is",
    VIEW_KEY: "the same",
    "compareRunsMode": "links to charts open the table",
    TRAINING_PAGES.partition("=")[0]: "links open the pages of language models",
    NOTE_TAG: "a sweep has no description",
    **dict.fromkeys((*EXPERIMENT_TAGS, *EXPERIMENT_TAGS.values()), "an experiment opens on language models"),
    **dict.fromkeys(
        re.findall(r'"(\w+)":', re.sub(r"\[[^]]*\]", "[]", View("q", ({},)).text())),
        "the same as without views",
    ),
}
"""Words by which MLflow's page knows what we keep in tags of an experiment: it has no interface for that."""

COLUMNS = {("runs", "artifact_uri"), ("runs", "experiment_id"), ("experiments", "artifact_location")}
"""Of MLflow's tables. Without them a root that was moved is not tracked, which a run says and survives."""


@pytest.fixture(scope="module")
def scripts():
    folder = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    return "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.js"))


@pytest.mark.parametrize("word", PAGE)
def test_mlflows_page_knows_the_word(scripts, word):
    assert word in scripts, f"MLflow does not read it any more: {PAGE[word]}"


def test_mlflows_tables_have_the_columns(tmp_path):
    connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        for table, column in COLUMNS:
            assert column in {row[1] for row in database.execute(f"PRAGMA table_info({table})")}, (
                table,
                column,
            )
