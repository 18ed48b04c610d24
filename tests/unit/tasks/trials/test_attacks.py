import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.attacks import ATTACKS
from search_spaces.specs import AttackSpec
from tasks.trials import attacks
from tasks.trials.attacks import AttackBatch, attack_function, logit_margins, run_clean_pass
from tasks.trials.models import PixelModel
from tests.unit.tasks.trials.conftest import pixels_of


def attacked(method, model, images, labels, epsilon, *, rows=None, **parameters):
    """Attack images in one batch; their rows are their indices unless others are given."""
    with attacks.evaluation_mode(model):
        sign = run_clean_pass(model, images, labels, batch_size=len(images)).gradient_sign
        rows = torch.arange(len(images)) if rows is None else rows
        batch = AttackBatch(images.to(torch.float32, copy=True), labels, sign, rows)
        values = ATTACKS[method].values(parameters)
        with torch.no_grad():
            return attack_function(method)(model, batch, epsilon, **values)


def attack_all(model, images, labels, spec, batch_size=16, loss_rule="mean_over_examples"):
    clean = run_clean_pass(model, images, labels, batch_size=batch_size)
    return attacks.attack_all(
        model,
        images,
        labels,
        spec.requests(),
        clean,
        batch_size=batch_size,
        loss_rule=loss_rule,
    )


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
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4 * 4, 3),
    )
    return PixelModel(network, 1 / 255)


def pixels(num_images=6, side=4):
    return pixels_of(num_images, side=side)


GREY = torch.full((2, 1, 2, 2), 100.0)
NUM_STEPS, NUM_RESTARTS = 20, 5  # PGD's defaults


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_on_a_linear_model_every_pixel_moves_along_the_weights_to_the_corner_of_the_cube(method):
    adversarial = attacked(method, linear([0.5, -2.0, 0.0, 1.0]), GREY, torch.tensor([0, 1]), 3.0)
    direction = torch.tensor([1.0, -1.0, 0.0, 1.0]).view(1, 2, 2)
    assert torch.equal(
        adversarial[0], GREY[0] + 3 * direction
    )  # the loss of label 0 rises with w x
    assert torch.equal(adversarial[1], GREY[1] - 3 * direction)


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


def test_one_record_per_strength_equals_a_plain_loop_over_images():
    model = small_network().eval()
    images, labels = pixels(7), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    records = attack_all(model, images, labels, AttackSpec(epsilons=(0.5, 2.0)), batch_size=3)
    assert [record.name for record in records] == ["fgsm_0.5", "fgsm_2"]
    for record in records:
        losses, clean_losses, correct, correct_twice = [], [], [], []
        for image, label in zip(images.split(1), labels.split(1), strict=True):
            perturbed = attacked("fgsm", model, image, label, record.epsilon)
            clean_logits, adversarial_logits = model(image.float()), model(perturbed)
            losses.append(F.cross_entropy(adversarial_logits, label).item())
            clean_losses.append(F.cross_entropy(clean_logits, label).item())
            correct.append(int(adversarial_logits.argmax() == label))
            correct_twice.append(int(adversarial_logits.argmax() == label == clean_logits.argmax()))
        assert record.loss == pytest.approx(sum(losses) / 7, rel=1e-5)
        assert record.loss_gain == pytest.approx((sum(losses) - sum(clean_losses)) / 7, rel=1e-3)
        assert record.accuracy == sum(correct) / 7
        assert record.robust_accuracy == sum(correct_twice) / 7
        assert record.num_unchanged == 0


def test_images_where_cross_entropy_has_no_gradient_are_counted_and_moved_by_pgd():
    model, images, labels = (
        linear([100.0] * 4),
        torch.full((3, 1, 2, 2), 200.0),
        torch.tensor([1, 1, 1]),
    )
    (record,) = attack_all(model, images, labels, AttackSpec(epsilons=(8.0,)))
    assert (record.num_unchanged, record.loss_gain) == (3, 0.0)
    assert torch.equal(attacked("fgsm", model, images, labels, 8.0), images)
    assert torch.equal(attacked("pgd", model, images, labels, 8.0), images - 8)


def test_losses_can_be_averaged_as_in_the_released_code():
    model, images, labels = linear([0.01] * 4), pixels(65, 2), torch.arange(65) % 2
    spec = AttackSpec(epsilons=(1.0,))
    (record,) = attack_all(model, images, labels, spec, loss_rule="mean_of_batch_means")
    losses = F.cross_entropy(
        model(attacked("fgsm", model, images, labels, 1.0)), labels, reduction="none"
    )
    assert record.loss == pytest.approx(((losses[:64].mean() + losses[64]) / 2).item(), rel=1e-5)


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_pgd_leaves_no_margin_larger_than_a_step_of_fgsm(epsilon):
    model, images, labels = small_network().eval(), pixels(32).float(), torch.arange(32) % 3
    image_sets = [
        images,
        *(attacked(method, model, images, labels, epsilon) for method in ("pgd", "fgsm")),
    ]
    with torch.no_grad():
        clean_margins, pgd_margins, fgsm_margins = (
            logit_margins(model(pixels), labels) for pixels in image_sets
        )
    assert (pgd_margins <= clean_margins).all()
    assert pgd_margins.mean() <= fgsm_margins.mean() + 1e-4


class FirstPixel(nn.Module):
    """The logit of another class is a function of the first pixel; that of the image's class is
    1."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, pixels):
        value = self.function(pixels.flatten(1)[:, 0])
        return torch.stack([torch.ones_like(value), value], 1)


def test_a_restart_leaves_a_plateau():
    valley = FirstPixel(lambda pixel: torch.relu(98.0 - pixel))
    assert valley(attacked("pgd", valley, GREY[:1], torch.tensor([0]), 8.0)).argmax() == 1


def test_pgd_keeps_the_best_iterate_not_the_last():
    """Another class occupies a narrow strip, which the descent crosses forth and back."""
    strip = FirstPixel(lambda pixel: 2.0 - 10 * (pixel - 100.79).abs())
    images, labels = GREY[:1], torch.tensor([0])
    seeds = [torch.Generator().manual_seed(restart) for restart in range(1, NUM_RESTARTS)]
    starts = [images, *(92 + torch.rand(images[0].shape, generator=seed) * 16 for seed in seeds)]
    margins = []
    for start in starts:
        pixel, path = float(start.flatten()[0]), []
        for _ in range(NUM_STEPS + 1):
            path.append(1 - (2 - 10 * abs(pixel - 100.79)))
            pixel = min(108.0, max(92.0, pixel + 0.8 * np.sign(100.79 - pixel)))
        margins.append(path)
    best, last = min(min(path) for path in margins), min(path[-1] for path in margins)
    assert best < last
    pgd_margin = logit_margins(strip(attacked("pgd", strip, images, labels, 8.0)), labels)
    assert float(pgd_margin) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(
    ("brightness", "reason"),
    [
        (0.0, "the loss on the clean images is nan"),
        (250.0, "the loss on the attacked images is nan"),
        (100.0, ""),
    ],
)
def test_a_loss_that_is_not_finite_is_left_out_and_the_reason_names_it(brightness, reason):
    class NanAtTheEnds(nn.Module):
        """Logits are NaN at black and at white."""

        def forward(self, pixels):
            first = pixels.flatten(1)[:, 0]
            value = torch.where((first < 1) | (first > 254), torch.nan, first)
            return torch.stack([value, -value], 1)

    images = torch.full((2, 1, 2, 2), brightness)
    (record,) = attack_all(
        NanAtTheEnds(), images, torch.tensor([1, 1]), AttackSpec(epsilons=(8.0,))
    )
    assert record.reason == reason
    assert (record.loss is None) == (record.loss_gain is None) == bool(reason)


@pytest.mark.long
def test_losses_do_not_depend_on_the_batch_size():
    model, images, labels = small_network().eval(), pixels(9).float(), torch.arange(9) % 3
    spec = AttackSpec(methods=("pgd",), epsilons=(4.0,))
    losses = [
        attack_all(model, images, labels, spec, batch_size=size)[0].loss for size in (1, 4, 9)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
