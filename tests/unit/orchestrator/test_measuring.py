"""Measures of the command line: scratch folders, and how a sampled K_F is told."""

import fcntl
import os
import subprocess
import sys

import numpy as np
import pytest

from orchestrator.measuring.arrays import measure_arrays
from orchestrator.measuring.published import describe
from orchestrator.measuring.request import LabeledImages, MeasureRequest
from orchestrator.measuring.scratch import scratch_folder
from tasks.remote import InlineExecutor


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_scratch_folder_and_its_parts_are_removed_when_the_measure_ends(tmp_path):
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path) as folder:
        folder.mkdir()
        (tmp_path / f".{folder.name}.parts").mkdir()
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_what_a_killed_measure_left_is_removed_by_the_next_one(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from orchestrator.measuring.scratch import scratch_folder
with scratch_folder(Path({str(tmp_path)!r})) as folder:
    folder.mkdir()
    (folder.parent / f".{{folder.name}}.parts").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"..measure-{ended.pid}.parts").mkdir()  # as earlier versions named them
    (tmp_path / f"..measure-{os.getpid()}.parts").mkdir()
    (tmp_path / "digits-1").mkdir()
    assert len(names(tmp_path)) == 6
    with scratch_folder(tmp_path):
        pass
    assert names(tmp_path) == [f"..measure-{os.getpid()}.parts", "digits-1"]


def test_the_folder_of_a_measure_that_still_runs_stays(tmp_path):
    running = tmp_path / ".measure-x1"
    running.mkdir()
    with (tmp_path / ".measure-x1.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with scratch_folder(tmp_path):
            pass
        assert names(tmp_path) == [".measure-x1", ".measure-x1.lock"]


@pytest.mark.parametrize(("num_images", "is_told"), [(900, False), (1100, True)])
def test_a_sampled_label_sharpness_is_told_with_that_of_all_images(num_images, is_told):
    """The maximum over all images is 1 / distance of the closest unlike pair."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(num_images, 3)).astype(np.float32)
    labels = np.arange(num_images) % 2
    distances = np.linalg.norm(points[labels == 0, None] - points[None, labels == 1], axis=-1)
    data = LabeledImages(points, labels, ("a", "b"))
    measured = measure_arrays(data, MeasureRequest(""), InlineExecutor())
    text = " ".join(describe(measured))
    expected = f"Over all {num_images:,} images K_F is {1 / distances.min():.4g}: 1 / distance"
    assert (expected in text) == is_told
