"""Test that a stopped run counts the results that its store really has."""

import shutil

import pytest

from orchestrator.machine.cluster import RunOptions
from orchestrator.planning.workspace import Workspace
from orchestrator.running.progress import Progress
from orchestrator.running.run import run_sweep
from tests.small_sweep import small_sweep

pytestmark = pytest.mark.usefixtures("in_process")

SWEEP = small_sweep("stopped", train_sizes=[30, 40, 50], resources={"num_cpus": 2, "num_gpus": 0})


class StoppedAfterTwo(Progress):
    """Calls ``before_stop`` after the second trial, and then stops the run as Ctrl-C does."""

    def __init__(self, before_stop) -> None:
        super().__init__()
        self.notes: list[str] = []
        self._before_stop = before_stop

    def note(self, message: str) -> None:
        self.notes.append(message)

    def trial_finished(self, trial_id: str, status: str) -> None:
        super().trial_finished(trial_id, status)
        if self.done == 2:
            self._before_stop()
            raise KeyboardInterrupt


def stopped_run(root, before_stop) -> StoppedAfterTwo:
    monitor = StoppedAfterTwo(before_stop)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run_sweep(SWEEP, RunOptions(root=root, tracking=False), progress=monitor)
    return monitor


def test_a_stopped_run_counts_its_stored_results_as_kept(root):
    monitor = stopped_run(root, lambda: None)
    assert monitor.done == 2
    assert not [note for note in monitor.notes if "removed" in note]


@pytest.mark.long
def test_a_stopped_run_whose_folder_was_deleted_counts_no_result_as_kept(root):
    folder = Workspace.open(SWEEP, root).sweep_paths.folder
    monitor = stopped_run(root, lambda: shutil.rmtree(folder))
    assert monitor.done == 0
    # Two trials and the one measure of their images.
    removed = "3 finished results were removed from the store while this command ran"
    assert monitor.notes[-1] == removed
