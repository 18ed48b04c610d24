"""Test custom networks in a run: they are checked first, and their code is stored with the sweep."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from orchestrator.planning.costs.networks import cost_of
from orchestrator.planning.estimate import estimate
from orchestrator.planning.estimate_text import extras_text
from orchestrator.planning.extra_costs import extras
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.running.networks import check_models
from search_spaces.errors import ConfigError
from tests.small_sweep import small_sweep

NETWORKS = """
import torch
from torch import nn

def fine(*, num_outputs, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_outputs))

class Late(nn.Module):
    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.layer = nn.Linear(num_inputs, num_outputs)

    def forward(self, pixels):
        if self.training:
            raise ValueError("only in training")
        return self.layer(pixels.flatten(1))

class Picky(nn.Module):
    def __init__(self, num_inputs, num_outputs, refused):
        super().__init__()
        self.layer, self.refused = nn.Linear(num_inputs, num_outputs), refused
        self.register_buffer("kept_too", torch.zeros(1000))

    def forward(self, pixels):
        if self.refused(self, pixels.mean()):
            raise ValueError("no such image")
        return self.layer(pixels.flatten(1))

def noise_in_training(*, num_outputs, in_channels, image_size):
    return Picky(in_channels * image_size**2, num_outputs, lambda net, mean: net.training and mean > 99)

def black(*, num_outputs, in_channels, image_size):
    return Picky(in_channels * image_size**2, num_outputs, lambda net, mean: mean < 1)

def both(*, num_outputs, in_channels, image_size):
    return Picky(in_channels * image_size**2, num_outputs, lambda net, mean: mean < 1 or mean > 99)

def through_numpy(*, num_outputs, in_channels, image_size):
    return Picky(in_channels * image_size**2, num_outputs, lambda net, mean: mean.detach().numpy() < -1)

class Meddles(Picky):
    def forward(self, pixels):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return self.layer(pixels.flatten(1))

def meddles(*, num_outputs, in_channels, image_size):
    return Meddles(in_channels * image_size**2, num_outputs, None)

def lazy(*, num_outputs, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_outputs))

def late(*, num_outputs, in_channels, image_size):
    return Late(in_channels * image_size**2, num_outputs)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "recordednets", raising=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recordednets.py").write_text(NETWORKS)
    return tmp_path / "mine"


@pytest.fixture
def write_sweep(folder):
    """Return a function that writes a sweep of custom networks and returns its path."""

    def write(*names: str, **changes: str) -> Path:
        models = [name if name == "small_mlp" else f"recordednets:{name}" for name in names]
        document = small_sweep("owned", models=models, **changes)
        (folder / "sweep.yaml").write_text(json.dumps(document))
        return folder / "sweep.yaml"

    return write


def test_a_network_that_fails_in_training_only_is_refused_before_anything_is_prepared(write_sweep):
    plan = plan_sweep(load_sweep(write_sweep("fine", "late")))
    with pytest.raises(
        ConfigError,
        match="own recordednets:late fails with every image that isweep tried, in training, in",
    ):
        check_models(plan, ())


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("noise_in_training", ""),
        ("black", ""),
        ("both", "ValueError: no such image"),
        ("through_numpy", ""),
    ],
)
def test_a_network_that_fails_on_some_images_is_accepted(write_sweep, function, reason):
    plan = plan_sweep(load_sweep(write_sweep(function, keep_weights="all")))
    check_models(plan, ())
    extra_costs = extras(plan, ())
    assert extra_costs["uncounted"] == ({function: reason} if reason else {})
    sentence = f"costs of {function} are guessed from its number of weights: {reason}"
    assert (sentence in extras_text(extra_costs)) == bool(reason)
    # Weights for 16 × 16 pixels and two classes, two offsets, and a buffer of 1,000 numbers.
    assert extra_costs["weights_bytes"] == 4 * (16 * 16 * 2 + 2 + 1000)
    assert estimate(plan.trials, ())["gpu_hours"] > 0


def test_a_network_that_changes_the_process_does_not_affect_other_networks(write_sweep):
    with suppress(ConfigError):  # without gradients this network is refused
        check_models(plan_sweep(load_sweep(write_sweep("meddles", "fine", "small_mlp"))), ())
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)


def test_layers_that_take_their_size_from_the_images_can_be_used(write_sweep):
    plan = plan_sweep(load_sweep(write_sweep("lazy")))
    check_models(plan, ())
    assert cost_of(plan.trials[0].network).num_parameters == 16 * 16 * 2 + 2


def test_the_code_is_stored_with_the_sweep_and_imported_from_there(
    write_sweep, folder, root, monkeypatch
):
    workspace = Workspace.open(str(write_sweep("fine")), root)
    workspace.paths.make()
    workspace.write_sweep_file()
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    reopened = Workspace.open("owned", root, prefer_root=True)
    assert reopened.plan.trials_by_id.keys() == workspace.plan.trials_by_id.keys()
