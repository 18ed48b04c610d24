"""Tests of :class:`SweepCommand`: the connection to Ray, and the choice of MPS."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.planning.workspace import Workspace
from orchestrator.results.state import State
from orchestrator.running import stages
from orchestrator.running.run import _SweepRun
from orchestrator.running.stages import SweepCommand
from search_spaces.specs import TrialSpec
from tests.unit.orchestrator.machine.test_gpu_situations import H100, node


@pytest.mark.parametrize("reads_files", [False, True])
@pytest.mark.parametrize("is_local", [False, True])
def test_an_executor_is_returned_after_ray_is_connected(monkeypatch, reads_files, is_local):
    """Ray may not be connected yet: if all trials are done, a large measure is the first task."""
    events: list[str] = []

    def connect(_: SweepCommand) -> SimpleNamespace:
        events.append("connected")
        return SimpleNamespace(is_private=is_local)

    def executor(**options: Any) -> dict[str, Any]:
        events.append("executor")
        return options

    monkeypatch.setattr(SweepCommand, "start_cluster", connect)
    monkeypatch.setattr(stages, "RayExecutor", executor)
    monitor: Any = SimpleNamespace(note=print)
    absent: Any = None
    command = SweepCommand(
        "run", workspace=absent, options=absent, monitor=monitor, stack=ExitStack()
    )
    options: Any = command.executor(reads_files=reads_files)
    assert events == ["connected", "executor"]
    assert options["driver_node_only"] == (reads_files and not is_local)


def test_mps_is_chosen_for_the_trials_that_are_left_to_train(monkeypatch, tmp_path):
    """The start of MPS costs more than it saves for the last trials of a sweep."""
    workspace = Workspace.open("smoke", tmp_path)
    done, partial, outdated, *other_ids = workspace.plan.trials_by_id
    outline: Any = None
    state = State({done: outline}, partial={partial: outline}, outdated=frozenset([outdated]))
    counted: list[str] = []

    def why_no_mps(nodes: Any, resources: Any, trials: list[TrialSpec], checks: Any) -> str:
        counted.extend(trial.trial_id for trial in trials)
        return "no MPS is needed here"

    monkeypatch.setattr(stages, "why_no_mps", why_no_mps)
    monkeypatch.setattr(_SweepRun, "compute_state", lambda _: state)
    absent: Any = None
    run = _SweepRun("run", workspace, options=absent, monitor=absent, stack=ExitStack())
    run.local_gpus = [node(H100)]
    assert run._private_mps() is None
    assert counted == [outdated, *other_ids]
