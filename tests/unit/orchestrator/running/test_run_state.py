"""What a run says of itself is true whenever somebody asks."""

import random

import pytest

from orchestrator.planning.plan import Workspace
from orchestrator.running.locks import exclusive
from orchestrator.running.progress import Progress, read_run, running_trials, spelled
from tasks.trials.records import EpochRecord


@pytest.fixture
def workspace(root):
    opened = Workspace.open("smoke", root)
    opened.record()
    return opened


@pytest.mark.parametrize("seed", range(3))
def test_trials_that_run_are_those_that_started_and_did_not_end(workspace, seed):
    """Held to a plain set, after each event of a run in which things happen faster than any interval."""
    names, truth, chance = [f"t{k}" for k in range(30)], set(), random.Random(seed)
    progress = Progress(path=workspace.sweep_paths.progress)
    with exclusive(workspace.paths.lock, "isweep run smoke"):
        for _ in range(120):
            if truth and chance.random() < 0.5:
                name = chance.choice(sorted(truth))
                truth.remove(name)
                if chance.random() < 0.3:
                    progress.trial_failed(name, "worker_crash", "gone")
                else:
                    progress.trial_finished(name, "done")
            else:
                name = chance.choice(names)
                truth.add(name)
                progress.trial_started(name)
            assert running_trials(workspace) == sorted(truth)
    assert running_trials(workspace) == []


def test_a_trial_says_epoch_rate_and_what_is_left(workspace):
    trial_id, trial = next(iter(workspace.plan.trials_by_id.items()))
    network = trial.network
    progress = Progress(path=workspace.sweep_paths.progress)
    with exclusive(workspace.paths.lock, "isweep run smoke"):
        progress.trial_started(trial_id)
        progress.trial_epoch(trial_id, EpochRecord(2, 0.5, 0.7, seconds=4.0), network)
        progress.trial_epoch("not running", EpochRecord(2, 0.5, 0.7, seconds=4.0), network)
        progress.save()
        (said,) = read_run(workspace).running.values()
    assert (said.epoch, said.num_epochs) == (2, network.recipe.epochs)
    assert said.images_per_second == network.train_size / 4
    assert said.seconds_left == 4 * (network.recipe.epochs - 2)
    assert said.text("9 s").startswith(f"9 s  epoch 2/{network.recipe.epochs}  10 img/s  about ")


def test_durations():
    assert [spelled(s) for s in (0.4, 59.4, 60, 3599, 3600, 7384)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 00 min",
        "2 h 03 min",
    ]
