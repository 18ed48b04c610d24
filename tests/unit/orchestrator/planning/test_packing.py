"""The memory that a share is made for: against a walk over what a trial holds at once, and formulas."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.predict import TENSOR_FACTOR, WORKSPACE_FACTOR, array_bytes, cost_of, peak_bytes
from orchestrator.planning.sweep_file import parse_sweep
from orchestrator.planning.walk import _Walk
from tasks.trials.models import build_model
from tasks.trials.records import CONTEXT_BYTES, EVALUATION_PASS
from tasks.trials.training import Step


def network(model, *, train_size=40, **recipe):
    fields = ", ".join(f"{key}: {value}" for key, value in (recipe | {"batch_size": 8}).items())
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
    """Beside it training holds moments and gradients: more than any of both alone, for a large network."""
    planned = network(model, epochs=20, optimizer=optimizer)
    recipe, shape = planned.recipe, (1, 32, 32)
    with FakeTensorMode():
        built = build_model(
            planned.model, num_outputs=2, in_channels=1, input_scale=1.0, dropout=None, seed=0, image_size=32
        )
        images = torch.zeros(40, *shape, dtype=torch.uint8)
        pixels = torch.zeros(EVALUATION_PASS, *shape)
        walk = _Walk(built)
        with walk:
            step = Step(built, images, torch.zeros(40, dtype=torch.int64), recipe)
            for _ in range(2):
                step(torch.arange(8))
            held = walk._alive
            with torch.no_grad():
                built.eval()(pixels)
    cost = cost_of(planned)
    most = max(walk._peak, held + cost.evaluation.peak_bytes - cost.state_bytes)
    expected = CONTEXT_BYTES + TENSOR_FACTOR * most + WORKSPACE_FACTOR * cost.evaluation.workspace_bytes
    assert peak_bytes(planned) - array_bytes(planned) == pytest.approx(expected, rel=0.02)


def test_without_an_epoch_in_between_nothing_is_evaluated_there():
    once, twice = (network("vgg13", epochs=epochs) for epochs in (1, 2))
    assert peak_bytes(once) < peak_bytes(twice) == peak_bytes(network("vgg13", epochs=100))


@pytest.mark.parametrize(("train_size", "sizes"), [(40, [8]), (44, [8, 4]), (41, [8, 9]), (6, [6])])
def test_captured_graphs_keep_the_memory_of_their_steps_while_test_images_pass(train_size, sizes):
    """One for whole batches, one for a last batch of another size; each has gradients of its own."""
    planned = network("resnet18", train_size=train_size, epochs=20)
    cost = cost_of(planned)
    gradients = 4 * cost.num_parameters
    activations = cost.step.peak_bytes - cost.state_bytes - 3 * gradients
    graphs = sum(gradients + activations * size / 8 for size in sizes if size != 6)
    if sizes == [6]:  # counted as a whole batch
        graphs = gradients + activations
    most = cost.evaluation.peak_bytes + 2 * gradients + graphs
    expected = CONTEXT_BYTES + TENSOR_FACTOR * most + WORKSPACE_FACTOR * cost.evaluation.workspace_bytes
    assert peak_bytes(planned) - array_bytes(planned) == pytest.approx(expected, rel=1e-6)
