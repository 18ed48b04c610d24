"""Fixtures shared by all tests: one small Ray cluster, roots of their own, nothing from the environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from orchestrator.running.cluster import Cluster, connect

# No test measures time, and slow machines are no faults.
hypothesis.settings.register_profile(
    "isweep", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("isweep")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's root, MLflow store or cluster."""
    for name in ("ISWEEP_ROOT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """An empty root."""
    return str(tmp_path / "root")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Cluster]:
    """One private two-CPU cluster for the whole session."""
    with connect(num_cpus=2, dashboard=False) as cluster:
        yield cluster
