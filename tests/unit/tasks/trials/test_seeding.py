"""A custom network shares its process with other trials: its changes, random numbers and state."""

import random
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch

from search_spaces.errors import CorruptStoreError
from search_spaces.specs import AttackSpec, ModelSpec
from tasks.trials.checkpoints import Checkpoints
from tasks.trials.records import ComputeOptions
from tasks.trials.trial import measure_trial, run_trial
from tests.unit.tasks.trials.conftest import Killed, Shelf, killed_at, numbers, trial_spec

OWN = """
import random
import numpy as np
import torch
from torch import nn

class Meddles(nn.Module):
    def __init__(self, num_outputs, in_channels, image_size):
        super().__init__()
        self.layer, self.scale = nn.Linear(in_channels * image_size**2, num_outputs), 1.0

    def forward(self, pixels):
        return self.layer(pixels.flatten(1) / 255)

class Changes(Meddles):
    def forward(self, pixels):
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")
        torch.set_flush_denormal(True)
        torch.manual_seed(1)
        random.seed(2)
        np.random.seed(3)
        logits = super().forward(pixels)
        torch.set_default_device("meta")
        return logits

class Draws(Meddles):
    def forward(self, pixels):
        noise = torch.randn(1).item() + random.random() + np.random.rand()
        return super().forward(pixels) + torch.tensor([0.01 * noise, 0.0])

class Remembers(Meddles):
    def forward(self, pixels):
        if self.training:
            self.scale *= 0.97
        return super().forward(pixels) * self.scale

"""


@pytest.fixture
def own_spec(tmp_path, monkeypatch):
    (tmp_path / "meddling.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(function, **recipe):
        spec = trial_spec("small_mlp", **recipe)
        model = ModelSpec(name=function.lower(), library="own", architecture=f"meddling:{function}")
        return spec.model_copy(update={"network": spec.network.model_copy(update={"model": model})})

    yield make
    sys.modules.pop("meddling", None)


def settings():
    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_default_device(),
        float(torch.full((), 1e-38, device="cpu") / 100),  # 0 where denormals are flushed
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 (a custom network draws from it)
    )


def test_a_network_that_changes_the_process_changes_no_later_trial(data, own_spec):
    spec = trial_spec("small_mlp", epochs=2)
    before = settings()
    expected = numbers(run_trial(spec, data))
    run_trial(trial_spec("small_mlp", epochs=0), data, ComputeOptions(num_threads=2))
    assert settings() == before
    with suppress(RuntimeError):  # types that do not fit are its own doing
        run_trial(own_spec("Changes", epochs=1), data)
    assert settings() == before
    torch.set_default_dtype(torch.float64)
    try:
        assert numbers(run_trial(spec, data)) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_network_that_draws_random_numbers_is_reproduced_also_after_a_kill(data, own_spec):
    spec, shelf = own_spec("Draws", epochs=6), Shelf()

    def checkpoints():
        return Checkpoints(shelf.read, shelf.save, interval_s=0.0)

    with pytest.raises(Killed, match="in epoch 4"):
        run_trial(spec, data, on_epoch=killed_at(4), checkpoints=checkpoints())
    random.seed(9)
    np.random.seed(9)  # noqa: NPY002
    resumed = run_trial(spec, data, checkpoints=checkpoints())
    torch.manual_seed(11)
    assert numbers(resumed) == numbers(run_trial(spec, data))


def test_a_network_that_is_more_than_its_weights_is_not_measured_on_them(data, own_spec):
    spec, shelf = own_spec("Remembers"), Shelf()
    result = run_trial(
        spec, data, store_weights=lambda content: shelf.save(content) or "kept in a test"
    )
    extended_spec = spec.model_copy(update={"attacks": AttackSpec(epsilons=(16.0,))})
    with pytest.raises(
        CorruptStoreError,
        match=r"has the test loss 0\.688219, but after training, the test loss was 0\.691115",
    ):
        measure_trial(spec, data, shelf.data, result, spec.missing_for(extended_spec))
