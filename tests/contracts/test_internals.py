"""The private interfaces of Ray and MLflow that the product uses, and what is lost without them.

The product checks for each one where it uses it, so that a version without it loses only this
feature. These tests run against the oldest and the newest version that ``pyproject.toml`` allows. A
failed test names the feature to repair or to drop."""

from __future__ import annotations

import importlib
import inspect
import re
import sqlite3
from contextlib import closing
from itertools import chain
from pathlib import Path

import mlflow
import pytest
import ray

from orchestrator.machine import ray_settings
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
    ): "private clusters where Ray was imported before isweep: the second cluster's token",
    (
        "ray._private.ray_constants",
        "ENABLE_RAY_CLUSTER",
    ): "private clusters where Ray was imported before isweep: every port on loopback",
    (
        "ray._private.ray_constants",
        "NUM_REDIS_GET_RETRIES",
    ): "private clusters where Ray was imported before isweep: a head that does not answer",
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
"""Module and name of a private interface -> feature that is lost without it."""

ATTRIBUTES = {
    "ray_actor": ("ray.tune.experiment.trial", "hung trials are ended"),
    "_default_result_or_future": (
        "ray.tune.experiment.trial",
        "a driver of thousands of trials stays small",
    ),
    "run_metadata": ("ray.tune.experiment.trial", "a driver of thousands of trials stays small"),
    "pickled_error_file": ("ray.tune.experiment.trial", "the error of which a worker died"),
    "_live_actors_to_ray_actors_resources": (
        "ray.air.execution._internal.actor_manager",
        "names of tasks",
    ),
    "_trial_to_actor": ("ray.tune.execution.tune_controller", "names of tasks"),
}
"""Attribute of Ray's objects -> the module that sets it, and the feature that is lost without it."""

PRIVATE_NAME = re.compile(r"ray\.[\w.]*?_(?:private|raylet)[\w.]*|_internal_kv_\w+")
"""A private name of Ray in the product's source."""

RAY_SCHEMA = "autoscaler/ray-schema.json"
"""The schema by which the product checks launch files."""

PAGE_WORDS = {
    mlflow_pages.VIEW_TAG: "the links of a sweep's description open the table of runs as it is",
    mlflow_pages.VIEW_KEY: "the same",
    "compareRunsMode": "links to charts open the table",
    mlflow_pages.TRAINING_PAGES.partition("=")[0]: "links open the pages of language models",
    mlflow_pages.NOTE_TAG: "a sweep has no description",
    **dict.fromkeys(
        chain(*mlflow_pages.EXPERIMENT_TAGS.items()), "an experiment opens on language models"
    ),
    **dict.fromkeys(
        re.findall(r'"(\w+)":', mlflow_pages.View("q", ("x", "y")).text()),
        "the same as without views",
    ),
}
"""Words with which MLflow's page reads an experiment's tags -> what is lost if it no longer reads
them. MLflow has no public interface for this."""

COLUMNS = {
    ("runs", "artifact_uri"),
    ("runs", "experiment_id"),
    ("experiments", "artifact_location"),
}
"""Tables and columns of MLflow's database. Without them the runs of a moved root are not tracked; a
run then prints a warning and goes on."""


@pytest.mark.parametrize(("module", "name"), INTERNALS)
def test_a_private_interface_exists(module: str, name: str) -> None:
    value = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(value, part), f"gone: {INTERNALS[module, name]}"
        value = getattr(value, part)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_is_named_in_its_module(name: str) -> None:
    module, lost = ATTRIBUTES[name]
    assert re.search(rf"\b{name}\b", inspect.getsource(importlib.import_module(module))), (
        f"gone: {lost}"
    )


def test_rays_schema_of_launch_files_exists() -> None:
    assert (RAY / RAY_SCHEMA).is_file()


@pytest.mark.parametrize(
    "variable", sorted({**ray_settings._RAY_VARIABLES, **ray_settings._PRIVATE_CLUSTER_VARIABLES})
)
def test_ray_reads_a_setting(variable: str) -> None:
    # Python code reads the variable by its name, C++ code without the prefix.
    names = {variable.encode(), variable.removeprefix("RAY_").encode()}
    files = [*RAY.rglob("*.py"), *RAY.glob("_raylet*.so")]
    assert any(name in path.read_bytes() for path in files for name in names)


@pytest.fixture(scope="module")
def scripts() -> str:
    folder = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    return "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.js"))


@pytest.mark.parametrize("word", PAGE_WORDS)
def test_mlflows_page_uses_the_word(scripts: str, word: str) -> None:
    assert word in scripts, f"MLflow does not read it any more: {PAGE_WORDS[word]}"


def test_mlflows_tables_have_the_columns(tmp_path: Path) -> None:
    connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        for table, column in COLUMNS:
            rows = database.execute(f"PRAGMA table_info({table})")
            columns = {row[1] for row in rows}
            assert column in columns, (table, column)


def test_no_other_private_interface_of_ray_is_used() -> None:
    """Every new private interface must be listed in ``INTERNALS``."""
    listed_names = {name.rpartition(".")[2] for _, name in INTERNALS}
    listed_names |= {module for module, _ in INTERNALS}
    for package in ("tasks", "orchestrator"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for used_name in PRIVATE_NAME.findall(text):
                last_part = used_name.rpartition(".")[2]
                assert last_part in listed_names or used_name in listed_names, (
                    f"{path.name} uses {used_name}"
                )
