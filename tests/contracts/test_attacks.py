"""What every registered attack promises; a function and its row in ``ATTACKS`` are enough to test
it."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from search_spaces.specs import AttackSpec
from tasks.trials.attacks import ATTACKS, PIXEL_MAX
from tests.unit.tasks.trials.test_attacks import attack_all, attacked

EPSILONS = (0.5, 2.0, 8.0)


@pytest.fixture
def model() -> nn.Module:
    """Linear, so that the loss rises along the gradient for every step; with parts that training
    changes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Dropout(0.5), nn.Linear(48, 3))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (10, 3, 4, 4), generator=generator, dtype=torch.uint8)
    images[0], images[1] = 0, 255  # at the ends of the range
    return images, torch.randint(0, 3, (10,), generator=generator)


def test_the_specs_name_every_registered_attack():
    (methods,) = (field for name, field in AttackSpec.model_fields.items() if name == "methods")
    assert set(get_args(get_args(methods.annotation)[0])) == set(ATTACKS)


@pytest.mark.parametrize("method", sorted(ATTACKS))
class TestAttack:
    def test_a_copy_lies_within_epsilon_and_within_the_range(self, method, model, batch):
        for epsilon in EPSILONS:
            copy = attacked(method, model, *batch, epsilon)
            assert copy.shape == batch[0].shape
            assert copy.dtype == torch.float32
            assert not copy.requires_grad
            assert (copy - batch[0].float()).abs().max() <= epsilon + 1e-4
            assert copy.min() >= 0
            assert copy.max() <= PIXEL_MAX

    def test_it_costs_loss_and_more_strength_costs_more(self, method, model, batch):
        records = attack_all(model, *batch, AttackSpec(methods=(method,), epsilons=EPSILONS))
        gains = [record.loss_gain for record in records]
        assert gains[0] > 0
        assert gains == sorted(gains)
        assert [record.name for record in records] == [
            f"{method}_{epsilon:g}" for epsilon in EPSILONS
        ]

    def test_it_runs_in_evaluation_mode_and_leaves_images_model_and_gradients_as_they_were(
        self, method, model, batch
    ):
        images, state = (
            batch[0].clone(),
            {name: t.clone() for name, t in model.state_dict().items()},
        )
        model.train()
        first, again = (
            attack_all(model, *batch, AttackSpec(methods=(method,), epsilons=EPSILONS))
            for _ in range(2)
        )
        assert first == again
        assert model.training
        assert (batch[0] == images).all()
        assert all((model.state_dict()[name] == tensor).all() for name, tensor in state.items())
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_an_image_is_attacked_alike_whatever_stands_beside_it(self, method, model, batch):
        whole = attacked(method, model, *batch, 2.0)
        alone = attacked(method, model, batch[0][3:4], batch[1][3:4], 2.0, rows=torch.tensor([3]))
        torch.testing.assert_close(whole[3:4], alone)
