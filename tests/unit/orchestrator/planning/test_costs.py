"""Test the counted costs of networks, against arithmetic by hand and published counts."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from orchestrator.planning.costs.count_costs import _PassCounter, _unfused_attention
from orchestrator.planning.costs.memory import (
    TENSOR_FACTOR,
    WORKSPACE_FACTOR,
    array_bytes,
    peak_bytes,
)
from orchestrator.planning.costs.networks import cost_of, network_cost
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import parse_sweep
from search_spaces.models import model_spec
from search_spaces.specs import ModelSpec, RecipeSpec
from tasks.trials.attacks import attack_batch_size
from tasks.trials.models import build_model
from tasks.trials.records import CONTEXT_BYTES, EVALUATION_PASS
from tasks.trials.steps import Step

# Multiply-adds of one 3 x 224 x 224 image in 1e9 and parameters in 1e6, as torchvision publishes
# them.
PUBLISHED = {
    "resnet18": (1.814, 11.689512),
    "resnet34": (3.664, 21.797672),
    "resnet50": (4.089, 25.557032),
    "vgg13": (11.308, 133.047848),
    "vgg16": (15.470, 138.357544),
    "vgg19": (19.632, 143.667240),
}


BATCH_SIZES = {"resnet18": 40, "resnet34": 25, "resnet50": 12, "vgg13": 6, "vgg16": 6, "vgg19": 6}
"""Images in a training step of the study."""


def published_cost(model):
    """Return the cost of a network of the study on images of 3 x 224 x 224, with 1,000 logits."""
    recipe = RecipeSpec(name="test", batch_size=BATCH_SIZES[model], precision="bfloat16")
    return network_cost(model_spec(model), recipe, channels=3, image_size=224, num_outputs=1000)


@pytest.mark.parametrize("model", PUBLISHED)
def test_operations_and_parameters_are_the_published_ones(model):
    counted = published_cost(model)
    giga_macs, mega_parameters = PUBLISHED[model]
    assert counted.forward_flops / 2e9 == pytest.approx(giga_macs, rel=0.001)
    assert counted.num_parameters / 1e6 == mega_parameters
    # Backward is twice forward, less the gradient of the pixels, which training does not need.
    assert 2.8 < counted.step.flops / BATCH_SIZES[model] / counted.forward_flops <= 3


@pytest.mark.long
@pytest.mark.parametrize(
    ("architecture", "giga_macs", "mega_parameters"),
    [("vit_b_32", 4.409, 88.224232), ("googlenet", 1.498, 6.624904)],
)
def test_networks_that_compute_with_numbers_while_they_are_built_are_counted(
    architecture, giga_macs, mega_parameters
):
    model = ModelSpec(name="any", library="torchvision", architecture=architecture)
    recipe = RecipeSpec(name="test", batch_size=2)
    counted = network_cost(model, recipe, channels=3, image_size=224, num_outputs=1000)
    # A step of two images: forward, and backward at twice that, less the gradient of the pixels.
    assert counted.step.flops / 2 / 3 / 2e9 == pytest.approx(giga_macs, rel=0.05)
    assert counted.num_parameters / 1e6 == mega_parameters
    assert not counted.uncounted


def test_a_perceptron_is_counted_as_by_hand():
    recipe = RecipeSpec(name="test", batch_size=16)
    counted = network_cost(model_spec("small_mlp"), recipe, channels=1, image_size=8, num_outputs=2)
    weights = 64 * 128 + 128 * 64 + 64 * 2
    assert counted.num_parameters == weights + 128 + 64 + 2
    assert counted.forward_flops == 2 * weights
    # Forward, gradients of all weights, and gradients of the inputs of all layers but the first.
    assert counted.step.flops == 16 * 2 * (3 * weights - 64 * 128)


@pytest.mark.parametrize("needs_pixel_gradient", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 64])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_grouped_convolution_is_counted_as_by_hand(layer, groups, needs_pixel_gradient):
    """Every weight meets each of the 8 x 8 positions of each of the 5 images once."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        convolution = layer(64, 64, 3, padding=1, groups=groups)
        images = torch.zeros(5, 64, 8, 8, requires_grad=needs_pixel_gradient)
        with _PassCounter(convolution) as counter:
            convolution(images).sum().backward()
    forward = 2 * 5 * 8 * 8 * 3 * 3 * 64 * 64 // groups
    num_passes = 3 if needs_pixel_gradient else 2
    assert counter.cost().flops == num_passes * forward


@pytest.mark.parametrize("model", PUBLISHED)
def test_an_attack_needs_no_more_memory_than_training(model):
    """An attack at batch 64 in float32 once needed 2 to 7 times the memory of training."""
    counted = published_cost(model)
    assert counted.attack.peak_bytes <= counted.step.peak_bytes
    recipe = RecipeSpec(name="x", batch_size=BATCH_SIZES[model])
    assert counted.attack_batch == attack_batch_size(recipe)


def planned_network(model, *, train_size=40, **recipe):
    recipe_fields = recipe | {"batch_size": 8}
    fields = ", ".join(f"{key}: {value}" for key, value in recipe_fields.items())
    text = f"""
name: mine
models: [{model}]
datasets: [manifold_d4]
train_sizes: [{train_size}]
test_size: 100
image_size: 32
recipe: {{from: smoke, {fields}}}
"""
    return plan_sweep(parse_sweep(text, origin="mine.yaml")).trials[0].network


@pytest.mark.parametrize(
    ("model", "optimizer"), [("vgg13", "adam"), ("vgg13", "sgd"), ("small_mlp", "adamw")]
)
def test_a_share_has_room_for_an_evaluation_between_two_epochs(model, optimizer):
    """Moments and gradients of training stay in memory during an evaluation.

    For a large network, both together need more memory than training or evaluation alone.
    """
    planned = planned_network(model, epochs=20, optimizer=optimizer)
    recipe = planned.recipe
    shape = (1, 32, 32)
    with FakeTensorMode():
        built = build_model(
            planned.model,
            num_outputs=2,
            in_channels=1,
            input_scale=1.0,
            dropout=None,
            seed=0,
            image_size=32,
        )
        images = torch.zeros(40, *shape, dtype=torch.uint8)
        pixels = torch.zeros(EVALUATION_PASS, *shape)
        counter = _PassCounter(built)
        with counter:
            step = Step(built, images, torch.zeros(40, dtype=torch.int64), recipe)
            for _ in range(2):
                step(torch.arange(8))
            training_bytes = counter._alive_bytes
            with torch.no_grad():
                built.eval()(pixels)
    cost = cost_of(planned)
    largest = max(
        counter._peak_bytes, training_bytes + cost.evaluation.peak_bytes - cost.state_bytes
    )
    expected = (
        CONTEXT_BYTES + TENSOR_FACTOR * largest + WORKSPACE_FACTOR * cost.evaluation.workspace_bytes
    )
    assert peak_bytes(planned) - array_bytes(planned) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", ["torchvision:vit_b_16", "timm:test_vit"])
def test_a_transformers_evaluation_is_counted_operator_by_operator(name):
    """PyTorch may fuse a layer in evaluation into one operator, which would count as none."""
    recipe = RecipeSpec(name="any", batch_size=8)
    image_size = 160 if name.startswith("timm") else 64
    cost = network_cost(model_spec(name), recipe, channels=3, image_size=image_size)
    assert 2.5 < cost.step.flops / 8 / cost.forward_flops < 3.1


def test_one_epoch_needs_no_memory_for_an_evaluation_between_epochs():
    peaks = [peak_bytes(planned_network("vgg13", epochs=epochs)) for epochs in (1, 2, 100)]
    assert peaks[0] < peaks[1] == peaks[2]


@pytest.mark.parametrize(("train_size", "sizes"), [(40, [8]), (44, [8, 4]), (41, [8, 9]), (6, [6])])
def test_captured_graphs_keep_the_memory_of_their_steps_during_an_evaluation(train_size, sizes):
    """Full batches have one graph, and a last batch of another size has another.

    Each graph has its own gradients.
    """
    planned = planned_network("resnet18", train_size=train_size, epochs=20)
    cost = cost_of(planned)
    gradients = 4 * cost.num_parameters
    activations = cost.step.peak_bytes - cost.state_bytes - 3 * gradients
    graphs = sum(gradients + activations * size / 8 for size in sizes if size != 6)
    if sizes == [6]:  # counted as a full batch
        graphs = gradients + activations
    largest = cost.evaluation.peak_bytes + 2 * gradients + graphs
    expected = (
        CONTEXT_BYTES + TENSOR_FACTOR * largest + WORKSPACE_FACTOR * cost.evaluation.workspace_bytes
    )
    assert peak_bytes(planned) - array_bytes(planned) == pytest.approx(expected, rel=1e-6)


def test_attention_is_counted_in_evaluation_by_its_formula():
    """PyTorch fuses a layer in evaluation into one operation, which would count as none."""
    batch = 2
    tokens = 16
    width = 32
    hidden = 64
    layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=hidden, batch_first=True)
    layer.eval()
    counter = _PassCounter(layer)
    with _unfused_attention(), torch.no_grad(), counter:
        layer(torch.rand(batch, tokens, width))
    projections = 4 * width * width  # queries, keys, values and the output
    attention = 2 * tokens * width  # products with the keys, and with the values
    multiply_adds = batch * tokens * (projections + attention + 2 * width * hidden)
    assert counter.cost().flops == 2 * multiply_adds
