"""Data that cannot be used: one message before anything is trained, and nothing lost."""

from pathlib import Path

import pytest

from tests.integration.sweeps import isweep_here, isweep_json, write_sweep

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("on_ray_local")]

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


def test_a_train_size_larger_than_the_data(root, tmp_path):
    sweep = write_sweep(tmp_path, DIGITS.replace("[20]", "[20, 2000]"))
    done = isweep_here("run", sweep, "--no-dashboard", "--no-tracking", root=root, exit_code=2)
    message = " ".join(done.stderr.split())
    assert "Train size 2000 needs as many images beside 20 test images" in message
    assert "lower train_sizes to at most" in message
    assert isweep_json("status", sweep, root=root)["pending"] == 2


def test_a_damaged_shard_is_named_and_its_removal_mends_it(root, tmp_path):
    sweep = write_sweep(tmp_path, DIGITS)
    isweep_here("run", sweep, "--no-dashboard", "--no-tracking", root=root)
    untracked = isweep_here("results", sweep, root=root)
    assert "MLflow lacks 1 results that the store has" in " ".join(untracked.stderr.split())
    (shard,) = root.glob("prepared/digits-*/images/c/0/0/0/0")
    damaged = bytearray(shard.read_bytes())
    damaged[10] ^= 1
    shard.write_bytes(damaged)
    extended = write_sweep(tmp_path, DIGITS.replace("[20]", "[20, 40]"))
    done = isweep_here("run", extended, "--no-dashboard", "--no-tracking", root=root, exit_code=2)
    message = " ".join(done.stderr.split())
    assert "images/c/0/0/0/0" in message
    assert "delete the folder and prepare the dataset again" in message
    status = isweep_json("status", extended, root=root)
    assert (status["done"], status["pending"]) == (1, 1)
