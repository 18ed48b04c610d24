import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from search_spaces.specs import RecipeSpec, RobustnessSpec
from tasks.trials.attacks import logit_margins
from tasks.trials.robustness import (
    POOL_BLOCK,
    measure_robustness,
    minimal_perturbations,
    nearest_of_another_class,
    summarize_radii,
)
from tasks.trials.training import train
from tests.unit.tasks.trials.conftest import built, equal, weights
from tests.unit.tasks.trials.test_attacks import attacked


def measure(model, images, labels, pool, *, seed, batch_size=50, **spec):
    return measure_robustness(
        model, images, labels, pool, RobustnessSpec(**spec), seed=seed, batch_size=batch_size
    )


class Linear(nn.Module):
    """Two logits (0, w x + b)."""

    def __init__(self, weights, bias):
        super().__init__()
        self.weights, self.bias = weights.float(), float(bias)

    def forward(self, pixels):
        values = pixels.flatten(1) @ self.weights + self.bias
        return torch.stack([torch.zeros_like(values), values], 1)


def exact_radius(image, weights, bias):
    """Return the distance to the closest point of the half-space within the box.

    The point is clip(x + lambda w). Bisection determines lambda.
    """
    image = image.flatten().double()
    margin = float(image @ weights + bias)
    sign = -1 if margin > 0 else 1

    def perturbed(length):
        return (image + sign * length * weights).clamp(0, 255)

    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        if float(perturbed(middle) @ weights + bias) * margin <= 0:
            high = middle
        else:
            low = middle
    return float((perturbed(high) - image).norm())


@pytest.mark.parametrize("box", ["free", "binding"])
@pytest.mark.parametrize("scale", [0.001, 1.0, 10.0])
def test_radii_of_a_linear_model_are_exact_with_every_point_found(box, scale):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(256, generator=generator, dtype=torch.float64) * scale
    if box == "free":
        images = torch.randint(100, 156, (48, 1, 16, 16), generator=generator).float()
    else:
        dark = torch.rand(48, 1, 16, 16, generator=generator) > 0.7
        images = torch.randint(0, 256, (48, 1, 16, 16), generator=generator).float() * dark
    bias = -float((images.flatten(1).double() @ weights).mean())
    pool = torch.randint(0, 256, (300, 1, 16, 16), generator=generator).float()
    model, labels = Linear(weights, bias), torch.zeros(48, dtype=torch.int64)
    record = measure(model, images, labels, pool, num_images=48, seed=0)
    expected = [exact_radius(images[row], weights, bias) for row in record.rows]
    assert record.num_not_found == 0
    assert record.radii == pytest.approx(expected, rel=1e-3)
    assert record.box_share == (0.0 if box == "free" else 1.0)
    if scale == 10.0:
        # Cross-entropy has no gradient there: float32 rounds the probability to one.
        assert logit_margins(model(images), model(images).argmax(1)).median() > 700


def two_dimensional(seed, width=24):
    """A ReLU network on images of two pixels whose regions are about a hundred pixel units wide."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))
    with torch.no_grad():
        corners = torch.rand(width, 2) * 255
        network[1].bias.copy_(-(network[1].weight * corners).sum(1))
        for layer in network[1::2]:
            layer.weight *= 30
        values = network(torch.rand(4000, 1, 1, 2) * 255)
        network[3].bias[1] += (values[:, 0] - values[:, 1]).median()
    return network


@pytest.mark.parametrize("seed", range(4))
def test_radii_in_two_dimensions_are_those_of_a_grid_search(seed):
    network = two_dimensional(seed)
    steps = torch.linspace(0, 255, 511)  # half a pixel unit
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).view(-1, 1, 1, 2)
    with torch.no_grad():
        classes = network(grid).argmax(1)
    images = torch.randint(
        0, 256, (40, 1, 1, 2), generator=torch.Generator().manual_seed(seed)
    ).float()
    record = measure(network, images, classes[:40], grid[::397], num_images=40, seed=0)
    assert record.num_not_found == 0
    with torch.no_grad():
        decisions = network(images).argmax(1)
    pairs = zip(images, decisions, strict=True)
    expected = [
        (grid[classes != decision] - image).flatten(1).norm(dim=1).min().item()
        for image, decision in pairs
    ]
    # A grid point is within 0.36 of the true nearest point: the tolerance for small radii.
    assert np.mean(record.radii) == pytest.approx(np.mean(expected), rel=0.02, abs=0.36)


def digits(classes):
    data = load_digits()
    in_classes = np.isin(data.target, classes)
    images = torch.tensor(data.images[in_classes] * 255 / 16).float()[:, None]
    return images, torch.tensor(np.searchsorted(classes, data.target[in_classes]))


@pytest.fixture(
    scope="module",
    params=[
        ("small_mlp", (3, 8)),
        pytest.param(("small_cnn", (4, 9)), marks=pytest.mark.long),
        pytest.param(("small_mlp", (0, 1, 2, 3)), marks=pytest.mark.long),
    ],
)
def trained(request):
    architecture, classes = request.param
    images, labels = digits(classes)
    settings = {"num_outputs": len(classes), "input_scale": 1 / 255, "image_size": 8}
    model = built(architecture, "isweep", **settings)
    recipe = RecipeSpec(name="any", epochs=60, batch_size=32, learning_rate=2e-3)
    train(model, images[:200], labels[:200], recipe, seed=0)
    model.zero_grad(set_to_none=True)
    return model.eval(), images, labels


@pytest.mark.long
def test_radii_of_trained_networks_are_as_small_as_those_of_the_best_attacks(trained):
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = trained
    record = measure(model, images[200:232], labels[200:232], images[:200], num_images=32, seed=0)
    pixels = images[200:232]
    with torch.no_grad():
        decisions = model(pixels).argmax(1)
    attacks = (
        foolbox.attacks.DDNAttack(steps=300),
        foolbox.attacks.L2FMNAttack(steps=300),
        foolbox.attacks.L2DeepFoolAttack(),
    )
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 255), device="cpu")
    means = []
    for attack in attacks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # foolbox warns of its future versions
            _, changed, _ = attack(wrapped, pixels, decisions, epsilons=None)
        with torch.no_grad():
            is_adversarial = model(changed).argmax(1) != decisions
        if is_adversarial.all():
            means.append(float((changed - pixels).flatten(1).norm(dim=1).mean()))
    assert record.num_not_found == 0
    assert record.pred.mean <= 1.03 * min(means)


@pytest.mark.parametrize("epsilon", [2.0, 8.0, 24.0])
def test_pgd_fools_as_many_images_as_foolboxs_from_as_many_starts(trained, epsilon):
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = trained
    pixels, labels = images[200:264].float(), labels[200:264]
    theirs = foolbox.attacks.LinfProjectedGradientDescentAttack(steps=20, rel_stepsize=0.1).repeat(
        5
    )
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 255), device="cpu")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        *_, is_fooled = theirs(
            wrapped, pixels, foolbox.criteria.Misclassification(labels), epsilons=epsilon
        )
    with torch.no_grad():
        ours = model(attacked("pgd", model, pixels, labels, epsilon)).argmax(1) != labels
    assert ours.sum() >= is_fooled.sum()


def test_every_perturbed_image_has_another_decision_within_the_range(trained):
    model, images, _ = trained
    pixels = images[200:232]
    with torch.no_grad():
        decisions, pool = model(pixels).argmax(1), model(images[:200]).argmax(1)
        starts = nearest_of_another_class(pixels, decisions, images[:200], pool)
        change = minimal_perturbations(
            model, pixels, decisions, starts, RobustnessSpec(num_steps=20)
        )
        perturbed = pixels + change
        assert (model(perturbed.clamp(0, 255)).argmax(1) != decisions).all()
    assert -1e-3 <= perturbed.min() <= perturbed.max() <= 255 + 1e-3
    assert (change.flatten(1).norm(dim=1) <= (starts - pixels).flatten(1).norm(dim=1)).all()


def test_the_network_is_left_as_it_was(trained):
    model, images, labels = trained
    model.train().zero_grad(set_to_none=True)
    before, arguments = weights(model), (images[200:220], labels[200:220], images[:50])
    first, again = (measure(model, *arguments, num_images=8, seed=3, num_steps=5) for _ in range(2))
    assert first == again
    assert model.training
    assert equal(before, model.state_dict())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    model.eval()


def test_a_wrong_decision_has_radius_zero_against_the_truth():
    weights = torch.full((4,), 1.0, dtype=torch.float64)
    model, images = Linear(weights, -400.0), torch.full((4, 1, 2, 2), 120.0)
    labels = torch.tensor([1, 1, 0, 1])  # the network predicts 1: 480 - 400
    record = measure(model, images, labels, torch.zeros(1, 1, 2, 2), num_images=4, seed=0)
    assert record.wrong == (False, False, True, False)
    assert record.pred.mean == pytest.approx(40, rel=1e-3)  # 80 over the norm of the weights
    assert record.pred.geometric_mean == pytest.approx(40, rel=1e-3)
    assert record.pred.mean_per_pixel == pytest.approx(20, rel=1e-3)
    assert (record.true.mean, record.true.geometric_mean) == (pytest.approx(30, rel=1e-3), None)


def test_a_network_that_predicts_one_class_has_no_radius_and_a_reason():
    model, images = Linear(torch.zeros(4), 5.0), torch.full((3, 1, 2, 2), 120.0)
    record = measure(model, images, torch.ones(3, dtype=torch.int64), images, num_images=3, seed=0)
    assert (record.pred, record.true, record.box_share) == (None, None, None)
    assert (record.radii, record.num_not_found) == ((None,) * 3, 3)
    assert "the same class for all images" in record.reason


def test_a_misclassified_image_counts_with_radius_zero_even_without_a_radius():
    class OneWayOut(nn.Module):
        """Class 1 only near white. At black the slope is 0, and the pool shows no other class."""

        def forward(self, pixels):
            first = pixels.flatten(1)[:, 0]
            value = torch.where(first > 100, first - 220, -1 + 0 * first)
            return torch.stack([torch.zeros_like(value), value], 1)

    images = torch.zeros(2, 1, 1, 1)
    images[1] = 200  # its slope leads to class 1
    record = measure(OneWayOut(), images, torch.tensor([1, 0]), images, num_images=2, seed=0)
    assert record.radii == (None, pytest.approx(20, rel=1e-3))
    assert record.num_not_found == 1
    assert (record.pred.num_images, record.pred.mean) == (1, pytest.approx(20, rel=1e-3))
    assert (record.true.num_images, record.true.mean) == (2, pytest.approx(10, rel=1e-3))


def test_without_any_radius_there_is_no_mean_even_if_images_are_misclassified():
    """A mean over misclassified images alone would be 0, however robust the others are."""
    one_class, images = Linear(torch.zeros(4), 5.0), torch.full((3, 1, 2, 2), 120.0)
    labels = torch.tensor([1, 0, 1])  # the network predicts 1
    record = measure(one_class, images, labels, images, num_images=3, seed=0)
    assert (record.pred, record.true, record.wrong) == (None, None, (False, True, False))


def test_an_image_is_compared_with_the_class_it_had_when_its_start_was_chosen():
    """A network near a tie, whose decision depends on the batch size, as rounding may."""

    class NearTie(nn.Module):
        """Class 0 up to 50; above a tie, which is class 1 in large batches, 0 in small ones."""

        def forward(self, pixels):
            first = pixels.flatten(1)[:, 0]
            tie = 1e-6 if len(pixels) > 4 else -1e-6
            value = torch.where(first < 50, -1.0, tie) + 0 * first
            return torch.stack([torch.zeros_like(value), value], 1)

    image, pool = torch.full((1, 1, 1, 1), 100.0), torch.zeros(6, 1, 1, 1)
    record = measure(NearTie(), image, torch.tensor([1]), pool, num_images=1, seed=0, batch_size=7)
    # Alone in its batch, the unchanged image has another class than before. Compared with class 0,
    # its radius would be the distance to its start, 100, which changes no class.
    assert record.radii == pytest.approx([0.0], abs=1e-3)


def test_a_class_that_no_image_of_the_pool_shows_is_found_by_descent():
    model = Linear(torch.full((4,), 1.0, dtype=torch.float64), -400.0)
    images = torch.full((2, 1, 2, 2), 120.0)
    record = measure(model, images, torch.ones(2, dtype=torch.int64), images, num_images=2, seed=0)
    assert record.radii == pytest.approx([40, 40], rel=1e-3)


def test_a_vanishing_gradient_is_crossed_towards_the_start():
    class Step(nn.Module):
        """Decides by the first pixel with no slope anywhere."""

        def forward(self, pixels):
            value = (pixels.flatten(1)[:, 0] > 200).float() + 0 * pixels.flatten(1)[:, 0]
            return torch.stack([1 - value, value], 1)

    images = torch.full((2, 1, 2, 2), 100.0)
    pool = torch.full((1, 1, 2, 2), 100.0)
    pool[0, 0, 0, 0] = 255
    record = measure(Step(), images, torch.zeros(2, dtype=torch.int64), pool, num_images=2, seed=0)
    assert record.radii == pytest.approx([100, 100], rel=1e-3)


def test_the_nearest_start_is_found_in_any_block_of_the_pool():
    generator = torch.Generator().manual_seed(0)
    pool = torch.randint(
        0, 256, (2 * POOL_BLOCK + 1, 1, 3, 3), generator=generator, dtype=torch.uint8
    )
    images, classes = pool[::100].float() + 0.5, torch.arange(len(pool)) % 3
    decisions = classes[::100]
    starts = nearest_of_another_class(images, decisions, pool, classes)
    for image, decision, start in zip(images, decisions, starts, strict=True):
        candidates = pool[classes != decision].double()
        distances = ((candidates - image.double()) ** 2).flatten(1).sum(1)
        assert ((start.double() - image.double()) ** 2).sum() == pytest.approx(
            distances.min().item()
        )


def test_radii_do_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    model, images = Linear(torch.randn(4), -3.0), torch.rand(9, 1, 2, 2) * 255
    labels = model(images).argmax(1)
    in_one_batch, in_batches = (
        measure(model, images, labels, images, num_images=9, seed=0, batch_size=batch_size)
        for batch_size in (50, 4)
    )
    assert in_batches.radii == pytest.approx(in_one_batch.radii, rel=1e-4)
    assert (in_batches.rows, in_batches.wrong) == (in_one_batch.rows, in_one_batch.wrong)


def test_the_sample_depends_on_the_seed_alone_and_contains_all_images_if_it_can():
    model, images = Linear(torch.ones(4), -400.0), torch.full((30, 1, 2, 2), 120.0)
    labels, options = torch.ones(30, dtype=torch.int64), {"num_steps": 1, "num_bisections": 1}
    first, again, with_another_seed = (
        measure(model, images, labels, images[:2], num_images=10, seed=seed, **options)
        for seed in (1, 1, 2)
    )
    assert first.rows == again.rows != with_another_seed.rows
    assert len(set(first.rows)) == 10
    with_all_images = measure(model, images, labels, images[:2], num_images=99, seed=0, **options)
    assert with_all_images.rows == tuple(range(30))


def test_summaries_follow_from_the_radii():
    radii = np.array([1.0, 2.0, 4.0, 8.0])
    summary = summarize_radii(radii, num_values=16)
    assert (summary.mean, summary.median, summary.geometric_mean) == (
        3.75,
        3.0,
        pytest.approx(2**1.5),
    )
    assert summary.std_error == pytest.approx(np.std(radii, ddof=1) / 2)
    assert summary.quantiles["0.25"] == 1.75
    assert summary.mean_per_pixel == 3.75 / 4
    assert summarize_radii(radii[:0], 16) is None
    assert summarize_radii(radii[:1], 16).std_error is None
