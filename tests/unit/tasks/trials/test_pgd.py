import pytest
import torch
from torch import nn

from tasks.trials.attacks import fgsm, margins_of, pgd
from tests.unit.tasks.trials.test_attacks import linear, pixels, small_network

torch.set_num_threads(1)


def test_on_a_linear_model_pgd_reaches_the_corner_of_the_cube():
    model, images = linear([0.5, -2.0, 0.0, 1.0]), torch.full((2, 1, 2, 2), 100.0)
    (attacked,) = pgd(model, images, torch.tensor([0, 1]), [3.0])
    assert torch.equal(attacked, fgsm(model, images, torch.tensor([0, 1]), 3.0))


def test_pgd_stays_within_epsilon_and_the_range_and_is_repeatable():
    model, images = small_network().eval(), pixels().float()
    labels = torch.zeros(6, dtype=torch.int64)
    first, again = (pgd(model, images, labels, [2.0, 300.0]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert (first[0] - images).abs().max() <= 2 + 1e-4
    assert 0 <= first[1].min() <= first[1].max() <= 255


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_pgd_leaves_no_margin_larger_than_a_step_of_fgsm(epsilon):
    model, images = small_network().eval(), pixels(32).float()
    labels = torch.arange(32) % 3
    (attacked,) = pgd(model, images, labels, [epsilon])
    with torch.no_grad():
        clean, moved = margins_of(model(images), labels), margins_of(model(attacked), labels)
        single = margins_of(model(fgsm(model, images, labels, epsilon)), labels)
    assert (moved <= clean).all()
    assert moved.mean() <= single.mean() + 1e-4


def test_pgd_moves_where_cross_entropy_has_no_gradient():
    model, images = linear([100.0] * 4), torch.full((3, 1, 2, 2), 200.0)
    labels = torch.ones(3, dtype=torch.int64)
    assert torch.equal(fgsm(model, images, labels, 8.0), images)
    assert torch.equal(pgd(model, images, labels, [8.0])[0], images - 8)


def test_a_restart_leaves_a_plateau():
    class Valley(nn.Module):
        """Flat at the image; another class lies in the corner where the first pixel is small."""

        def forward(self, pixels):
            value = torch.relu(98.0 - pixels.flatten(1)[:, 0])
            return torch.stack([torch.ones_like(value), value], 1)

    images = torch.full((1, 1, 2, 2), 100.0)
    (attacked,) = pgd(Valley(), images, torch.tensor([0]), [8.0])
    assert Valley()(attacked).argmax() == 1
