"""What a run says and leaves at its end, whatever happened beside it."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import Workspace
from orchestrator.results.state import StoredResults
from orchestrator.results.store import CellReport
from orchestrator.running import run as module
from orchestrator.running.cluster import RunOptions
from orchestrator.running.ending import remove_orphans
from orchestrator.running.preparation import load_arrays
from orchestrator.running.progress import Progress
from orchestrator.running.run import run_sweep
from orchestrator.running.trials import GridWork, Run
from search_spaces.errors import ConfigError, DataError
from tests.unit.orchestrator.results.examples import diverged, trial_record, trial_result
from tests.unit.orchestrator.running.test_pipeline import finished  # noqa: F401


def test_results_that_are_removed_while_a_run_goes_on_are_not_counted(
    finished: Workspace,  # noqa: F811
    root: str,
    monkeypatch: Any,
) -> None:
    lost, *_ = sorted(finished.plan.trials_by_id)
    real = module._report

    def removed_before(sweep: Any) -> Any:
        shutil.rmtree(finished.sweep_paths.folder / "trials" / lost)
        return real(sweep)

    monkeypatch.setattr(module, "_report", removed_before)
    monkeypatch.setattr("orchestrator.analysis.report.report_sweep", lambda *_: None)
    notes: list[str] = []
    progress = Progress()
    progress.note = notes.append  # type: ignore[method-assign]
    summary = run_sweep("smoke", RunOptions(root=root, tracking=False), progress=progress)
    assert (summary.planned - summary.done, summary.pending, summary.exit_code) == (1, 1, 1)
    assert any(note.startswith("1 finished results were removed from the store") for note in notes)


def test_cells_that_another_sweep_of_the_root_has_are_told(
    finished: Workspace,  # noqa: F811
    root: str,
    monkeypatch: Any,
) -> None:
    with finished.recorded_while_checked():
        pass

    def stop(_: Any) -> None:
        raise ConfigError("enough was seen")

    monkeypatch.setattr(module, "_start", stop)
    progress, notes = Progress(), list[str]()
    progress.note = notes.append  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="enough was seen"):
        run_sweep(
            "smoke", RunOptions(root=root, tracking=False), progress=progress, changes={"name": "again"}
        )
    num = len(finished.plan.trials)
    assert f"smoke, another sweep of this root, has {num} of these cells: trained again here" in notes


def test_a_prepared_dataset_that_goes_is_one_clear_message(finished: Workspace) -> None:  # noqa: F811
    cell = finished.plan.trials[0]
    subset = cell.network.subset
    _ = finished.prepared
    shutil.rmtree(finished.paths.prepared(subset.prepared))
    with pytest.raises(DataError, match=r"must stay as it is while its cells are trained.*prepared anew"):
        load_arrays(finished, subset, cell.network.train_size)


def test_every_start_removes_what_a_killed_run_left(tmp_path: Any) -> None:
    paths = RootPaths.create(tmp_path / "root")
    whole = paths.root / "prepared" / "mnist-0123"
    left = [paths.root / "prepared" / ".mnist-0123.89abcdef", paths.tune / "smoke-0"]
    for folder in (whole, *left, paths.sweep("smoke").folder):
        folder.mkdir(parents=True)
        (folder / "a file").touch()
    files = [
        paths.token,
        paths.root / ".driver.id.0.tmp",
        paths.sweep("smoke").folder / ".progress.json.1.tmp",
    ]
    for file in files:
        file.touch()
    remove_orphans(paths)
    assert not [path for path in (*left, *files) if path.exists()]
    assert (whole / "a file").exists()
    assert os.listdir(paths.sweep("smoke").folder) == ["a file"]


def test_a_new_sweep_is_known_by_its_name_at_once_and_one_that_is_refused_is_not(root: str) -> None:
    content = {
        "name": "fresh",
        "models": ["small_mlp"],
        "datasets": ["manifold_d4"],
        "train_sizes": [30],
        "test_size": 20,
        "image_size": 16,
        "recipe": "smoke",
    }
    workspace = Workspace.open(content, root)
    workspace.make()
    known: list[Workspace] = []

    def refuse() -> None:
        with workspace.recorded_while_checked():
            known.append(Workspace.open("fresh", root))
            raise ConfigError("refused")

    with pytest.raises(ConfigError, match="refused"):
        refuse()
    assert known[0].plan.trials_by_id.keys() == workspace.plan.trials_by_id.keys()
    with pytest.raises(ConfigError, match=rf"Unknown preset or sweep of {root}; found: 'fresh'"):
        Workspace.open("fresh", root)
    with workspace.recorded_while_checked():
        pass
    changed = Workspace.open({**content, "train_sizes": [40]}, root)
    with pytest.raises(ConfigError, match="refused"), changed.recorded_while_checked():
        raise ConfigError("refused")
    assert Workspace.open("fresh", root).plan.sweep.train_sizes == (30,)


@pytest.mark.parametrize("trained", [True, False])
def test_a_network_without_a_finished_epoch_that_is_trained_again_counts_as_trained(
    finished: Workspace,  # noqa: F811
    trained: bool,
) -> None:
    """Both histories are empty: only the worker knows whether it trained."""
    cell = finished.plan.trials[0]
    stored = StoredResults.read(finished.results_url)
    result = (diverged() if trained else trial_result()).model_copy(
        update={"history": (), "test_history": ()}
    )
    known = trial_record(result, spec=cell, trial_id=cell.trial_id, started_at=100.0, finished_at=200.0)
    stored.save(known)
    monitor, cluster = Progress(), SimpleNamespace(object_store_bytes=1e9)
    run = Run(finished.plan, finished.paths, cluster, None, stored, None, monitor)  # type: ignore[arg-type]
    work = GridWork(run, [cell], lambda *_: None)  # type: ignore[arg-type,return-value]
    report = CellReport(
        started_at=5000.0, finished_at=6000.0, outcome=result, trained=trained, data_fingerprint="new data"
    )
    work.found(cell, report, 1)
    record = json.loads((finished.sweep_paths.folder / f"trials/{cell.trial_id}/result.json").read_text())[
        "record"
    ]
    expected = (5000.0, 6000.0, None) if trained else (100.0, 200.0, 6000.0)
    assert (record["started_at"], record["finished_at"], record["measured_at"]) == expected
