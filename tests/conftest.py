"""Fixtures that all tests share, and the order in which tests run."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from orchestrator.machine.cluster import Cluster
from tests.in_process import train_in_process
from tests.mlflow_tables import copied_tables
from tests.shared_ray import SHARED, ByFileOrCluster, group_of

# No test measures time, so a slow machine must not fail one.
hypothesis.settings.register_profile(
    "isweep", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("isweep")


# Several processes share two cores: a thread of OpenMP that waits must not use a core.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# For the same reason, NumPy uses one thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# By default Ray's workers have a low priority. Tests without Ray would then take all cores.
os.environ.setdefault("RAY_worker_niceness", "0")

# If the shell ignores signals (`nohup`, a background job), child processes would ignore them too. A
# handler is not inherited.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

# Imported modules and collected tests are no garbage. Without this line, garbage collection took a
# third of the time of importing and collecting.
gc.disable()

FIRST = (
    "tests/integration/",
    "tests/simulation/",
    "tests/unit/tasks/trials/test_fidelity.py",
    "tests/unit/orchestrator/running/",
    "tests/unit/tasks/sources/test_hostile_sources.py",
    "tests/unit/orchestrator/analysis/",
)
"""The slowest files and folders of those that use no shared cluster. They run first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs one schedule of the simulated world."""
    parser.addoption(
        "--seed", type=int, default=None, help="of tests/simulation: run this schedule alone"
    )


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the user's root, MLflow store and cluster from the test."""
    for name in ("ISWEEP_ROOT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def _skip_fsync() -> Iterator[None]:
    """Skip fsync: tests kill processes, but none cuts the power, so no file must reach the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _copy_tables_of_mlflow() -> Iterator[None]:
    """Copy MLflow's tables into new databases, if any collected test has imported MLflow."""
    with copied_tables() if "mlflow" in sys.modules else contextlib.nullcontext():
        yield


@pytest.fixture
def root(tmp_path: Path) -> str:
    """The path of a root that does not exist yet."""
    return str(tmp_path / "root")


@pytest.fixture(scope="module")
def ray_local() -> Cluster:
    """The private two-CPU cluster of all files that use this fixture (``tests/shared_ray.py``)."""
    return SHARED.cluster()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the shared cluster after the last test of the process or, in pytest-xdist, of the group."""
    worker = hasattr(item.config, "workerinput")
    if nextitem is None or (worker and group_of(nextitem.nodeid) != group_of(item.nodeid)):
        SHARED.end()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests: those on a cluster first, then the slowest files, so that workers end together."""

    def place(item: pytest.Item) -> int:
        if group_of(item.nodeid).startswith("Ray"):
            return 0
        return next((at for at, start in enumerate(FIRST, 1) if item.nodeid.startswith(start)), 99)

    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let each test format what it logs, so that a message that cannot be formatted fails it.

    pytest's option ``log_level`` would set the level six times per test. Each time, Python clears
    the caches of a thousand loggers.
    """
    if logging.root.level != logging.INFO:
        logging.root.setLevel(logging.INFO)


def pytest_collection_finish() -> None:
    """Turn garbage collection on again, without the objects that exist now."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFileOrCluster | None:
    """Return the scheduler that sends files on one cluster to one worker."""
    return ByFileOrCluster(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="module")
def in_process() -> Iterator[None]:
    """Sweeps, pilots and searches train in this process, without Ray."""
    with train_in_process():
        yield


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A simulated S3 server with an empty bucket."""
    from tests.object_store import object_store

    with object_store() as running:
        yield running
