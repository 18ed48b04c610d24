"""One step, run by Python, in parts, or through the machinery that replays captured graphs."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from search_spaces.specs import RecipeSpec
from tasks.trials import training
from tasks.trials.cuda_graphs import WARM_UP_STEPS, CapturedSteps, CaptureError, capture_graph
from tasks.trials.image_tensors import as_pixels
from tasks.trials.steps import Step, split_batches
from tasks.trials.training import train
from tests.unit.tasks.trials.conftest import equal, pixels_of, weights


def recipe(**changes):
    fields = {"name": "test", "epochs": 6, "batch_size": 8, "learning_rate": 1e-3}
    return RecipeSpec(**(fields | changes))


def images(num_images=20):
    return pixels_of(num_images, 3, 8), torch.arange(num_images) % 2


def network(*, norm=True):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 36, 2))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_captured_steps_and_eager_steps_give_the_same_weights_to_the_last_bit(precision, optimizer):
    """A replay that runs the captured step replaces CUDA's. Buffers and counts are the product's."""
    settings, (pixels, labels) = recipe(precision=precision, optimizer=optimizer), images()
    captured_sizes, replays = [], []

    def record(run_step):
        captured_sizes.append(1)

        def replay():
            replays.append(1)
            run_step()

        return replay

    results = []
    for capture in (False, True):
        model = network().to(memory_format=torch.channels_last)
        step = Step(model, pixels, labels, settings)
        take = CapturedSteps(step, record) if capture else step
        torch.manual_seed(1)
        totals = []
        for epoch in range(settings.epochs):
            order = torch.randperm(20, generator=torch.Generator().manual_seed(epoch))
            for rows in split_batches(order, 8):
                take(rows)
            totals.append(step.read_scores(num_images=len(pixels)))
        results.append((weights(model), totals))
    (eager, eager_totals), (captured, captured_totals) = results
    assert equal(eager, captured)
    assert eager_totals == captured_totals
    assert len(captured_sizes) == 2  # one for full batches of 8, one for the ragged 4
    assert len(replays) == 6 * 3 - 2 * WARM_UP_STEPS


def test_a_cpu_has_no_graphs_and_takes_the_same_steps():
    first, second = network(), network()
    train(first, *images(), recipe(), seed=0, graphs=True)
    train(second, *images(), recipe(), seed=0)
    assert equal(weights(first), weights(second))
    assert all(parameter.grad is None for parameter in second.parameters())  # given back


def test_graphs_are_captured_on_the_gpu_of_the_training(monkeypatch):
    """The current GPU may be another than the one requested: a graph would capture nothing."""
    entered = []

    class Current:
        def __init__(self, device):
            entered.append(device)

        __enter__ = __exit__ = lambda self, *error: None

    monkeypatch.setattr(torch.cuda, "device", Current)
    train(network(), *images(), recipe(epochs=0), seed=0, graphs=True)
    monkeypatch.setattr(nn.Module, "to", lambda model, *arguments, **options: model)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *arguments, **options: tensor)
    monkeypatch.setattr(training, "Step", lambda *arguments, **options: None)
    monkeypatch.setattr(training, "seeded", lambda seed, device: nullcontext())
    train(network(), *images(), recipe(epochs=0), seed=0, device="cuda:1", graphs=True)
    assert entered == [torch.device("cuda:1")]


def test_a_step_that_cannot_be_captured_raises_a_capture_error(monkeypatch):
    """Its cause is the original error, which shows that memory ran out inside a capture."""

    class NoCapture:
        def __init__(self, graph):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *error):
            return False

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", NoCapture)

    def exhausted():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(CaptureError, match="could not be captured: OutOfMemoryError") as caught:
        capture_graph(exhausted)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_micro_batches_make_the_step_of_the_whole_batch():
    settings, (pixels, labels) = recipe(epochs=3, optimizer="sgd", learning_rate=1e-4), images()
    plain_network, split_network = network(norm=False), network(norm=False)
    plain_network[4].p = split_network[4].p = 0.0
    first = train(plain_network, pixels, labels, settings, seed=0)
    second = train(split_network, pixels, labels, settings, seed=0, micro_batch=3)
    for split, plain in zip(split_network.parameters(), plain_network.parameters(), strict=True):
        torch.testing.assert_close(split, plain, rtol=1e-4, atol=1e-6)
    for split, plain in zip(second, first, strict=True):
        assert split.train_loss == pytest.approx(plain.train_loss, rel=1e-4)
        assert split.train_accuracy == plain.train_accuracy


@pytest.mark.parametrize(("batch_size", "micro_batch"), [(7, 3), (6, None)])
def test_no_lone_image_is_left_to_batch_norm(batch_size, micro_batch):
    history = train(
        network(),
        *images(7),
        recipe(epochs=1, batch_size=batch_size),
        seed=0,
        micro_batch=micro_batch,
    )
    assert not history[0].diverged


def test_pixels_are_a_float_copy_with_channels_last():
    pixels, _ = images()
    converted = as_pixels(pixels)
    assert converted.dtype == torch.float32
    assert converted.is_contiguous(memory_format=torch.channels_last)
    floats = pixels.float()
    assert as_pixels(floats).data_ptr() != floats.data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_on_a_gpu_gives_the_eager_numbers():
    settings = recipe(precision="bfloat16", epochs=6)
    pixels, labels = (tensor.cuda() for tensor in images())
    results = []
    for graphs in (False, True):
        model = network().cuda().to(memory_format=torch.channels_last)
        model[4].p = 0.0
        train(model, pixels, labels, settings, seed=0, device="cuda", graphs=graphs)
        results.append(weights(model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-4)
