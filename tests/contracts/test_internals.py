"""Every private place of Ray and MLflow that the product reaches for, and what stops working
without it.

Each is guarded where it is used, so that a version without it costs that and no more. This runs
against the oldest and the newest that ``pyproject.toml`` allows: what fails here tells what to mend
or to give up."""

from __future__ import annotations

import importlib
import inspect
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
import ray

from orchestrator.machine import cluster
from orchestrator.results import mlflow_pages
from orchestrator.results.mlflow_connection import connect

RAY = Path(ray.__file__).parent
ROOT = Path(__file__).parents[2]

INTERNALS = {
    (
        "ray.tune.execution.tune_controller",
        "TuneController._schedule_trial_task",
    ): "names of trials' tasks",
    ("ray.tune.execution.class_cache", "ENV_VARS_TO_PROPAGATE"): "AWS keys stay out of Ray's logs",
    ("ray._raylet", "setproctitle"): "ids of trials in `top` and on the node page",
    ("ray._raylet", "Config.initialize"): "private clusters where Ray was imported before isweep",
    (
        "ray._raylet",
        "AuthenticationTokenLoader.instance",
    ): "the same: the token of the second cluster",
    ("ray._private.ray_constants", "ENABLE_RAY_CLUSTER"): "the same: every port on loopback",
    (
        "ray._private.ray_constants",
        "NUM_REDIS_GET_RETRIES",
    ): "the same: a head that does not answer",
    (
        "ray._private.state",
        "actors",
    ): "which trial the memory killer hit: all that ran would count as failed",
    (
        "ray._private.worker",
        "print_to_stdstream",
    ): "what Ray says of a lost raylet goes to the log, not to the terminal",
    ("ray._private.worker", "_global_node"): "free disk of each node in `isweep doctor --address`",
}
"""By module and name: what is lost."""

ATTRIBUTES = {
    "ray_actor": ("ray.tune.experiment.trial", "hung trials are ended"),
    "_default_result_or_future": (
        "ray.tune.experiment.trial",
        "a driver of thousands of trials stays small",
    ),
    "run_metadata": ("ray.tune.experiment.trial", "the same"),
    "pickled_error_file": ("ray.tune.experiment.trial", "of what a worker died"),
    "_live_actors_to_ray_actors_resources": (
        "ray.air.execution._internal.actor_manager",
        "names of tasks",
    ),
    "_trial_to_actor": ("ray.tune.execution.tune_controller", "names of tasks"),
}
"""Attributes of Ray's objects, with the module that makes them."""

RAY_SCHEMA = "autoscaler/ray-schema.json"
"""Mistakes in a launch file are found by it."""

PAGE = {
    mlflow_pages.VIEW_TAG: "the links of a sweep's description open the table of runs as it is",
    mlflow_pages.VIEW_KEY: "the same",
    "compareRunsMode": "links to charts open the table",
    mlflow_pages.TRAINING_PAGES.partition("=")[0]: "links open the pages of language models",
    mlflow_pages.NOTE_TAG: "a sweep has no description",
    **{
        word: "an experiment opens on language models"
        for item in mlflow_pages.EXPERIMENT_TAGS.items()
        for word in item
    },
    **dict.fromkeys(
        re.findall(r'"(\w+)":', mlflow_pages.View("q", ("x", "y")).text()),
        "the same as without views",
    ),
}
"""Words by which MLflow's page knows what we keep in tags of an experiment: it has no interface for
that."""

COLUMNS = {
    ("runs", "artifact_uri"),
    ("runs", "experiment_id"),
    ("experiments", "artifact_location"),
}
"""Of MLflow's tables. Without them a root that was moved is not tracked, which a run says and
survives."""


@pytest.mark.parametrize(("module", "name"), INTERNALS)
def test_a_private_interface_is_where_it_was(module: str, name: str) -> None:
    found = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"gone: {INTERNALS[module, name]}"
        found = getattr(found, part)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_is_still_set(name: str) -> None:
    module, lost = ATTRIBUTES[name]
    assert re.search(rf"\b{name}\b", inspect.getsource(importlib.import_module(module))), (
        f"gone: {lost}"
    )


def test_a_file_of_ray_is_there() -> None:
    assert (RAY / RAY_SCHEMA).is_file()


@pytest.mark.parametrize(
    "variable", sorted({**cluster._RAY_VARIABLES, **cluster._PRIVATE_CLUSTER_VARIABLES})
)
def test_a_setting_is_still_read(variable: str) -> None:
    """In Python by its name, in C++ without the prefix."""
    names = {variable.encode(), variable.removeprefix("RAY_").encode()}
    files = [*RAY.rglob("*.py"), *RAY.glob("_raylet*.so")]
    assert any(name in path.read_bytes() for path in files for name in names)


@pytest.fixture(scope="module")
def scripts() -> str:
    folder = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    return "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.js"))


@pytest.mark.parametrize("word", PAGE)
def test_mlflows_page_knows_the_word(scripts: str, word: str) -> None:
    assert word in scripts, f"MLflow does not read it any more: {PAGE[word]}"


def test_mlflows_tables_have_the_columns(tmp_path: Path) -> None:
    connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        for table, column in COLUMNS:
            named = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
            assert column in named, (table, column)


def test_no_other_private_interface_of_ray_is_used() -> None:
    """Whoever adds one lists it here."""
    known = {name.rpartition(".")[2] for _, name in INTERNALS} | {module for module, _ in INTERNALS}
    for package in ("tasks", "orchestrator"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for found in re.findall(
                r"ray\.[\w.]*?_(?:private|raylet)[\w.]*|_internal_kv_\w+", text
            ):
                last = found.rpartition(".")[2]
                assert last in known or found in known, f"{path.name} uses {found}"
