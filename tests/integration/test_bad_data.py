"""Unusable data: the run ends with one message before any training, and nothing is lost."""

import shutil
from pathlib import Path

import pytest

from orchestrator.machine.cluster import RunOptions
from orchestrator.planning.workspace import Workspace
from orchestrator.running.preparation import prepare_missing
from orchestrator.running.progress import Progress
from tasks.remote import InlineExecutor
from tests.integration.sweeps import isweep, isweep_json, write_sweep

pytestmark = pytest.mark.usefixtures("in_process")

DIGITS = """
name: small
models: [small_mlp]
datasets: [{name: digits, class_pairs: [[0, 1]]}]
train_sizes: [20]
test_size: 20
image_size: 8
recipe: smoke
num_neighbors: 5
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("root")


def test_a_train_size_larger_than_the_data_is_refused(root, tmp_path):
    sweep = write_sweep(tmp_path, DIGITS.replace("[20]", "[20, 2000]"))
    done = isweep("run", sweep, "--no-dashboard", "--no-tracking", root=root, exit_code=2)
    message = " ".join(done.stderr.split())
    assert (
        "the train size 2000 is too large: with 20 test images, at most 336 images are left"
        in message
    )
    assert "Lower `train_sizes` to at most" in message
    assert isweep_json("status", sweep, root=root)["pending"] == 2


def test_a_damaged_shard_is_named_before_anything_is_trained(root, tmp_path):
    sweep = write_sweep(tmp_path, DIGITS)
    workspace = Workspace.open(sweep, str(root))
    workspace.make()
    prepare_missing(workspace, workspace.plan.prepared, RunOptions(), InlineExecutor(), Progress())
    (shard,) = root.glob("prepared/digits-*/images/c/0/0/0/0")
    damaged = bytearray(shard.read_bytes())
    damaged[10] ^= 1
    shard.write_bytes(damaged)
    done = isweep("run", sweep, "--no-dashboard", "--no-tracking", root=root, exit_code=2)
    message = " ".join(done.stderr.split())
    assert "images/c/0/0/0/0" in message
    folder = shard.parents[5]
    assert f"Delete the folder {folder}, and prepare the dataset again" in message
    assert isweep_json("status", sweep, root=root)["pending"] == 1
    shutil.rmtree(folder)
    isweep("run", sweep, "--no-dashboard", "--no-tracking", root=root)
    assert isweep_json("status", sweep, root=root)["done"] == 1
