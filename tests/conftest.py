"""Fixtures shared by all tests: a small Ray cluster, roots of their own, nothing from the
environment."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from orchestrator.machine.cluster import Cluster
from tests.here import trained_here
from tests.mlflow_tables import copied_tables
from tests.shared_ray import SHARED, ByFileOrCluster, group_of

# No test measures time, and slow machines are no faults.
hypothesis.settings.register_profile(
    "isweep", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("isweep")


# Several processes share two cores: a thread that waits for others of its own must not spin
# meanwhile.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# And Ray's workers, nice by default, would starve beside the tests that need none.
os.environ.setdefault("RAY_worker_niceness", "0")

# Where a shell had signals ignored (`nohup`, a background job), what tests start would ignore them
# too.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)  # which is not inherited

# What is imported and collected stays: looking for garbage in it again and again took a third of
# that time.
gc.disable()

FIRST = (
    "tests/integration/",
    "tests/simulation/",
    "tests/unit/tasks/trials/test_fidelity.py",
    "tests/unit/orchestrator/running/",
    "tests/unit/tasks/sources/test_hostile_sources.py",
    "tests/unit/orchestrator/analysis/",
)
"""Of the files that share no cluster, those that take longest."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """One schedule of the simulated world by its seed."""
    parser.addoption(
        "--seed", type=int, default=None, help="of tests/simulation: run this schedule alone"
    )


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's root, MLflow store or cluster."""
    for name in ("ISWEEP_ROOT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Tests kill processes, but cut off no power: what is written need not reach the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _tables_of_mlflow_are_made_once() -> Iterator[None]:
    """A new MLflow database of this process is a copy; without MLflow's import, if no test has it."""
    with copied_tables() if "mlflow" in sys.modules else contextlib.nullcontext():
        yield


@pytest.fixture
def root(tmp_path: Path) -> str:
    """An empty root."""
    return str(tmp_path / "root")


@pytest.fixture(scope="module")
def ray_local() -> Cluster:
    """One private two-CPU cluster for all files that ask for it (``tests/shared_ray.py``)."""
    return SHARED.cluster()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The cluster ends with the last test; in a worker of pytest-xdist with the last one of its
    group."""
    worker = hasattr(item.config, "workerinput")
    if nextitem is None or (worker and group_of(nextitem.nodeid) != group_of(item.nodeid)):
        SHARED.end()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that workers end together: files on a cluster, and real
    sweeps."""

    def place(item: pytest.Item) -> int:
        if group_of(item.nodeid).startswith("Ray"):
            return 0
        return next((at for at, start in enumerate(FIRST, 1) if item.nodeid.startswith(start)), 99)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What was collected stays, and is no garbage."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFileOrCluster | None:
    """Files that share a cluster go to one worker."""
    return ByFileOrCluster(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """Sweeps, pilots and searches of this process train in it."""
    with trained_here():
        yield


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A stand-in for S3, with an empty bucket."""
    from tests.object_store import object_store

    with object_store() as running:
        yield running
