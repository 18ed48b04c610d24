"""Tests of :class:`Stages`: Ray is connected before tasks run on it."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.running import stages
from orchestrator.running.stages import Stages


@pytest.mark.parametrize("reads_files", [False, True])
@pytest.mark.parametrize("is_local", [False, True])
def test_an_executor_is_returned_after_ray_is_connected(monkeypatch, reads_files, is_local):
    """Ray may not be connected yet: if all trials are done, a large measure is the first task."""
    events: list[str] = []

    def connect(_: Stages) -> SimpleNamespace:
        events.append("connected")
        return SimpleNamespace(local=is_local)

    def executor(**options: Any) -> dict[str, Any]:
        events.append("executor")
        return options

    monkeypatch.setattr(Stages, "cluster", property(connect))
    monkeypatch.setattr(stages, "RayExecutor", executor)
    monitor: Any = SimpleNamespace(note=print)
    absent: Any = None
    command = Stages("run", workspace=absent, options=absent, monitor=monitor, stack=ExitStack())
    options: Any = command.executor(reads_files=reads_files)
    assert events == ["connected", "executor"]
    assert options["driver_node_only"] == (reads_files and not is_local)
