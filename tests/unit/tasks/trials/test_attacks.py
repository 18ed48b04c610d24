import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.specs import AttackSpec
from tasks.trials.attacks import attack_all, fgsm
from tasks.trials.models import PixelModel

torch.set_num_threads(1)  # work this small is only slowed by threads that wait for each other


def linear(weights):
    """Two logits (0, w x): the gradient of the loss is known in closed form."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(weights), 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(len(weights)), torch.tensor(weights)]))
        model[1].bias.zero_()
    return model


def small_network():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 4, 3)
    )
    return PixelModel(network, 1 / 255)


def pixels(num_images=6, side=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_images, 1, side, side), generator=generator, dtype=torch.uint8)


def test_on_a_linear_model_fgsm_moves_every_pixel_along_the_weights():
    model = linear([0.5, -2.0, 0.0, 1.0])
    images = torch.full((2, 1, 2, 2), 100.0)
    attacked = fgsm(model, images, torch.tensor([0, 1]), 3.0)
    direction = torch.tensor([1.0, -1.0, 0.0, 1.0]).view(1, 2, 2)
    assert torch.equal(attacked[0], images[0] + 3 * direction)  # label 0 wants w x small: raise it
    assert torch.equal(attacked[1], images[1] - 3 * direction)


def test_the_loss_of_an_attacked_linear_model_is_known_in_closed_form():
    weights = [0.01, -0.02, 0.03, -0.04]
    images, labels = pixels(8, 2).clamp(20, 235), torch.tensor([0, 1] * 4)
    (record,) = attack_all(linear(weights), images, labels, AttackSpec(epsilons=(4.0,)))
    sign = 1 - 2 * labels.double()
    clean = sign * (images.flatten(1).double() @ torch.tensor(weights).double())
    attacked = clean + 4.0 * sum(abs(weight) for weight in weights)
    assert record.loss == pytest.approx(float(F.softplus(attacked).mean()), rel=1e-5)
    expected_gain = float((F.softplus(attacked) - F.softplus(clean)).mean())
    assert record.loss_gain == pytest.approx(expected_gain, rel=1e-4)
    assert record.accuracy == float((attacked < 0).double().mean())
    assert record.accuracy_drop == float((clean < 0).double().mean()) - record.accuracy


def test_the_sign_of_every_pixel_is_that_of_a_finite_difference():
    model = small_network().double().eval()
    images, labels = pixels().clamp(10, 240).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    step = 1e-3
    expected = torch.zeros_like(images)
    for index in np.ndindex(*images.shape):
        up, down = images.clone(), images.clone()
        up[index] += step
        down[index] -= step
        loss = [F.cross_entropy(model(moved), labels, reduction="sum") for moved in (up, down)]
        expected[index] = torch.sign(loss[0] - loss[1])
    attacked = fgsm(model.float(), images, labels, 2.0)
    assert torch.equal(attacked.double(), images + 2 * expected)


def test_attacked_pixels_stay_in_range_and_within_epsilon_and_the_images_unchanged():
    images = pixels()
    before = images.clone()
    attacked = fgsm(small_network(), images, torch.zeros(6, dtype=torch.int64), 8.0)
    assert attacked.dtype == torch.float32
    assert 0 <= attacked.min() <= attacked.max() <= 255
    assert (attacked - images.float()).abs().max() <= 8
    assert torch.equal(images, before)


def test_attacks_run_in_evaluation_mode_and_leave_the_model_as_it_was():
    model = small_network().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    labels = torch.zeros(6, dtype=torch.int64)
    first = attack_all(model, pixels(), labels, AttackSpec())
    assert first == attack_all(model, pixels(), labels, AttackSpec())
    assert model.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_record_per_strength_equals_a_plain_loop_over_images():
    model = small_network().eval()
    images, labels = pixels(7), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    records = attack_all(model, images, labels, AttackSpec(epsilons=(0.5, 2.0)), batch_size=3)
    assert [record.name for record in records] == ["fgsm_0.5", "fgsm_2"]
    for record in records:
        losses, clean_losses, hits, both = [], [], [], []
        for image, label in zip(images.split(1), labels.split(1), strict=True):
            attacked = fgsm(model, image, label, record.epsilon)
            clean, moved = model(image.float()), model(attacked)
            losses.append(F.cross_entropy(moved, label).item())
            clean_losses.append(F.cross_entropy(clean, label).item())
            hits.append(int(moved.argmax() == label))
            both.append(int(moved.argmax() == label == clean.argmax()))
        assert record.loss == pytest.approx(sum(losses) / 7, rel=1e-5)
        assert record.loss_gain == pytest.approx((sum(losses) - sum(clean_losses)) / 7, rel=1e-3)
        assert record.accuracy == sum(hits) / 7
        assert record.robust_accuracy == sum(both) / 7
        assert record.num_unchanged == 0


def test_a_stronger_step_costs_a_linear_model_more():
    records = attack_all(linear([0.01] * 4), pixels(8, 2), torch.tensor([0, 1] * 4), AttackSpec())
    gains = [record.loss_gain for record in records]
    assert gains == sorted(gains)
    assert gains[0] > 0


def test_images_without_a_gradient_are_counted():
    images, labels = torch.full((3, 1, 2, 2), 200.0), torch.tensor([1, 1, 1])
    (record,) = attack_all(linear([100.0] * 4), images, labels, AttackSpec(epsilons=(8.0,)))
    assert (record.num_unchanged, record.loss_gain) == (3, 0.0)


def test_losses_can_be_averaged_as_in_the_released_code():
    model, images, labels = linear([0.01] * 4), pixels(5, 2), torch.tensor([0, 1, 0, 1, 1])
    spec = AttackSpec(epsilons=(1.0,))
    (record,) = attack_all(model, images, labels, spec, batch_size=4, rule="mean_of_batch_means")
    attacked = model(fgsm(model, images, labels, 1.0))
    losses = F.cross_entropy(attacked, labels, reduction="none")
    assert record.loss == pytest.approx(((losses[:4].mean() + losses[4]) / 2).item(), rel=1e-5)
