"""Networks of one's own in a run: failures in training are found first; the code is kept with the sweep."""

import sys
from pathlib import Path

import pytest

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.running.networks import check_models
from search_spaces.errors import ConfigError

NETWORKS = """
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

def late(*, num_outputs, in_channels, image_size):
    return Late(in_channels * image_size**2, num_outputs)
"""
SWEEP = """
name: owned
models: [{models}]
datasets: [manifold_d4]
train_sizes: [30]
test_size: 20
image_size: 16
recipe: smoke
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "recordednets", raising=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recordednets.py").write_text(NETWORKS)
    return tmp_path / "mine"


def test_what_fails_in_training_only_is_found_before_anything_is_prepared(folder: Path) -> None:
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.format(models="'recordednets:fine', 'recordednets:late'"))
    plan = plan_sweep(load_sweep(path))
    with pytest.raises(ConfigError, match="recordednets:late: ValueError: only in training"):
        check_models(plan, ())


def test_the_code_is_kept_with_the_sweep_and_found_by_its_name(
    folder: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.format(models="'recordednets:fine'"))
    workspace = Workspace.open(str(path), root)
    workspace.paths.make()
    workspace.record()
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    again = Workspace.open("owned", root, as_run=True)
    assert again.plan.trials_by_id.keys() == workspace.plan.trials_by_id.keys()
