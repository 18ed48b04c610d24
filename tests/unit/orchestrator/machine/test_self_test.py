"""The self-test of a GPU, on a CPU: wrong numbers are recognized, and graphs that differ, fail or
are slow."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from orchestrator.machine import self_test
from orchestrator.machine.self_test import (
    Arithmetic,
    Difference,
    Gradient,
    TrainingComparison,
    bfloat16_tolerance,
    compare_with_cpu,
    float32_tolerance,
    frozen_dropout,
    run,
)
from orchestrator.machine.self_test_case import COMPARED_LINE, Case
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.models import PAPER_MODELS, model_spec
from search_spaces.specs import ModelSpec
from tasks.trials.training import CaptureError, train

CPU = torch.device("cpu")
TINY = Case(model_spec("small_cnn"), 8, num_images=18, image_size=16)
EQUAL = Difference(noise=0.0, graphs=0.0)
SOUND = TrainingComparison("vgg13", EQUAL, Difference(1e-5, 4e-5), 1.0, 1.0, 0.9)
EXPECTED = Gradient(0.70, [torch.tensor([1.0, 0.0])])


def turned(cosine, loss=0.70):
    """Return a gradient of the same length, with this cosine to the expected one."""
    return Gradient(loss, [torch.tensor([cosine, math.sqrt(1 - cosine**2)])])


HALF = bfloat16_tolerance(turned(0.92, loss=0.699), EXPECTED)
SINGLE = float32_tolerance(turned(1.0), EXPECTED)
RIGHT = Arithmetic("resnet18", "bfloat16", 0.69, 0.70, 0.92, 1.0, HALF)


@pytest.fixture
def kernel(monkeypatch):
    """A CPU whose kernels can be made wrong: ``kernel(name, function)`` replaces one of torch's
    while the network computes as a device, and not while it is the reference."""

    def make_wrong(owner, name, wrong):
        right = getattr(owner, name)
        references = {"left": 3}  # in float32, with perturbed weights, and in bfloat16
        gradient = self_test._gradient

        def counted(model, images, labels, precision):
            is_reference = references["left"] > 0
            references["left"] -= 1
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, right if is_reference else wrong)
                return gradient(model, images, labels, precision)

        monkeypatch.setattr(self_test, "_gradient", counted)

    return make_wrong


def test_a_sound_device_computes_rightly_and_its_trainings_are_equal():
    verdict = run(TINY, CPU)
    assert verdict.wrong == ""
    assert verdict.is_only_slow == bool(verdict.plain_because)
    assert [one.precision for one in verdict.arithmetic] == ["float32", "bfloat16"]
    exact = verdict.arithmetic[0]
    assert (exact.loss, exact.cosine, exact.norm_ratio) == pytest.approx(
        (exact.cpu_loss, 1, 1), rel=1e-6
    )
    (training,) = verdict.trainings
    assert (training.losses, training.weights, training.problem) == (EQUAL, EQUAL, "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"loss": 0.73}, "resnet18 in bfloat16: the first loss is 0.7300, but 0.7000 on the CPU"),
        ({"loss": math.nan}, "the first loss is nan"),
        ({"cosine": 0.5}, "gradient has another direction than on the CPU (cosine 0.500)"),
        ({"cosine": math.nan}, "(cosine nan)"),
        # An H100 of pytorch#150700: losses 1.5725 and 1.5634, norms 0.082 and 0.322.
        (
            {"loss": 1.5725, "cpu_loss": 1.5634, "norm_ratio": 0.082 / 0.322},
            "the first gradient is 0.255 times as long as on the CPU",
        ),
        ({"norm_ratio": math.inf}, "is inf times as long"),
        # TensorFloat-32 in place of float32.
        (
            {"precision": "float32", "loss": 0.70, "cosine": 0.97, "tolerance": SINGLE},
            "resnet18 in float32: the first gradient has another direction",
        ),
        ({"precision": "float32", "loss": 0.702, "tolerance": SINGLE}, "the first loss is 0.7020"),
    ],
)
def test_a_wrong_first_loss_or_gradient_is_named(changes, words):
    text = replace(RIGHT, **changes).problem
    assert words in text
    assert bool(text) == bool(words)


def test_direction_counts_as_far_as_rounding_leaves_it():
    """Measured on a CPU in bfloat16 at 224 pixels: a ResNet-50's gradient turns by 80 degrees."""
    cosines = {"resnet18": 0.922, "resnet34": 0.739, "resnet50": 0.129, "vgg16": 0.884}
    for cosine in cosines.values():
        tolerance = bfloat16_tolerance(turned(cosine), EXPECTED)
        assert tolerance.cosine < cosine - 0.05
        assert replace(RIGHT, loss=0.7, cosine=cosine, tolerance=tolerance).problem == ""
    assert bfloat16_tolerance(turned(0.922), EXPECTED).cosine > 0.75
    unknown = Gradient(0.7, [torch.zeros(2)])
    assert bfloat16_tolerance(unknown, EXPECTED).cosine == -1


def test_float32_is_held_as_closely_as_the_network_lets_it():
    """Of a very deep network a Winograd kernel's rounding, which is no fault, turns the gradient."""
    assert SINGLE.cosine == pytest.approx(0.99)
    assert (SINGLE.least_ratio, SINGLE.largest_ratio) == pytest.approx((0.95, 1.05))
    deep = float32_tolerance(turned(0.6), EXPECTED)
    assert deep.cosine == pytest.approx(0.19)


def test_perturbed_weights_are_given_back():
    model = self_test.built(TINY, dropout=0.0)
    before = [weight.detach().clone() for weight in model.parameters()]
    with self_test._perturbed(model):
        changes = [
            float(((now.detach() - then).abs() / then.abs().clamp_min(1e-6)).max())
            for now, then in zip(model.parameters(), before, strict=True)
        ]
    assert 1e-5 < max(changes) < 1e-3
    assert all(map(torch.equal, model.parameters(), before))


def test_a_pooling_whose_gradient_is_wrong_is_found_although_its_loss_is_right(kernel):
    """As pytorch#188344: right forward, wrong backward, without an error."""

    class WrongBackward(torch.autograd.Function):
        @staticmethod
        def forward(context, images):
            context.shape = images.shape
            return torch.relu(images)

        @staticmethod
        def backward(context, gradient):
            return gradient.roll(1, dims=-1)

    kernel(F, "relu", lambda images, inplace=False: WrongBackward.apply(images))
    verdict = run(Case(model_spec("resnet_tiny"), 8, num_images=18, image_size=32), CPU)
    assert "the first gradient has another direction than on the CPU" in verdict.wrong
    assert (verdict.plain_because, verdict.is_final) == (verdict.wrong, True)
    assert verdict.trainings == ()


@pytest.mark.parametrize(
    ("error", "is_unchecked"),
    [
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (NotImplementedError("an operation has no kernel on the CPU"), False),
    ],
)
def test_only_an_error_of_the_gpu_itself_leaves_its_arithmetic_unchecked(
    monkeypatch, error, is_unchecked
):
    """Memory may be short beside other trials, and a CPU may lack an operation."""
    original = self_test._gradient
    devices = []

    def gradient(model, images, labels, precision):
        devices.append(precision)
        if len(devices) == 4:  # after three references on the CPU
            raise error
        return original(model, images, labels, precision)

    compared = []
    monkeypatch.setattr(self_test, "_gradient", gradient)
    verdict = run(TINY, CPU, lambda: compared.append(True))
    assert compared == []
    assert str(error).splitlines()[0] in verdict.plain_because
    assert bool(verdict.unchecked) is is_unchecked
    assert (verdict.wrong, verdict.is_final) == ("", False)


def test_a_network_that_shows_nothing_condemns_no_device(monkeypatch):
    monkeypatch.setattr(
        self_test,
        "_gradient",
        lambda *_: self_test.Gradient(math.nan, [torch.zeros(3)]),
    )
    assert compare_with_cpu(TINY, CPU) == []


def test_a_network_that_draws_numbers_is_compared_without_drawing(monkeypatch):
    """Stochastic depth and own dropout draw other numbers on a GPU."""
    modes = []
    original = self_test._gradient

    def observed(model, *rest):
        modes.append(model.training)
        return original(model, *rest)

    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(256, 2)

        def forward(self, images):
            return self.layer(F.dropout(images.flatten(1), 0.5, self.training))

    monkeypatch.setattr(self_test, "_gradient", observed)
    monkeypatch.setattr(self_test, "built", lambda case, dropout=None: Drawing())
    results = compare_with_cpu(TINY, CPU)
    assert not any(modes)
    assert [one.problem for one in results] == ["", ""]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        (
            {"weights": Difference(1e-5, 4.1e-5)},
            "captured graphs change a weight by 4.1e-05; two plain trainings differ by 1.0e-05",
        ),
        # Two plain trainings that are equal to the last bit do not make every rounding a fault.
        ({"losses": Difference(0.0, 3.9e-5), "weights": Difference(0.0, 3.9e-6)}, ""),
        ({"losses": Difference(0.0, 4.1e-5)}, "vgg13: captured graphs change a loss by 4.1e-05"),
        ({"weights": Difference(0.0, 1e-4)}, "vgg13: captured graphs change a weight by 1.0e-04"),
        ({"losses": Difference(0.0, math.nan)}, "vgg13: captured graphs change a loss by nan"),
        ({"weights": None, "losses": Difference(0.05, 0.19)}, ""),
        (
            {"weights": None, "losses": Difference(0.0, 0.21)},
            "vgg13: with dropout, captured graphs change the loss by 2.1e-01",
        ),
        ({"weights": None, "losses": Difference(0.0, math.nan)}, "change the loss by nan"),
    ],
)
def test_graphs_that_differ_by_more_than_noise_are_named(changes, words):
    text = replace(SOUND, **changes).problem
    assert words in text
    assert bool(text) == bool(words)


def captured_badly(model):
    raise CaptureError("a step could not be captured: RuntimeError: unsupported")


def changed(model):
    next(model.parameters()).data.flatten()[0] += 1e-3


@pytest.mark.parametrize(
    ("harm", "reason", "is_final"),
    [
        (changed, "small_cnn: captured graphs change a weight by 1.0e-03; two plain", True),
        (captured_badly, "small_cnn: CaptureError: a step could not be captured", False),
    ],
)
def test_graphs_that_change_a_weight_or_cannot_be_captured_are_not_taken(
    monkeypatch, harm, reason, is_final
):
    order = []

    def trained(model, *arguments, graphs=False, **options):
        order.append(graphs)
        history = train(model, *arguments, **options)
        if graphs:
            harm(model)
        return history

    monkeypatch.setattr(self_test, "train", trained)
    verdict = run(TINY, CPU)
    assert verdict.plain_because.startswith(reason)
    assert (verdict.wrong, verdict.is_final) == ("", is_final)
    assert order[:2] == [False, True]


SLOWER = "captured graphs take {} s an epoch; plain steps take {} s and {} s"


@pytest.mark.parametrize(
    ("plain_s", "again_s", "graph_s", "words"),
    [
        (1.0, 1.0, 0.9, ""),
        (1.0, 1.0, 1.04, ""),
        (1.0, 1.0, 1.06, SLOWER.format("1.06", "1.00", "1.00")),
        # Longer than the slower plain training by less than the two differ by.
        (0.9, 1.1, 1.29, ""),
        (0.9, 1.1, 1.31, SLOWER.format("1.31", "0.90", "1.10")),
    ],
)
def test_graphs_that_are_slower_beyond_noise_are_not_taken_for_now(
    monkeypatch, plain_s, again_s, graph_s, words
):
    training = replace(SOUND, plain_s=plain_s, again_s=again_s, graph_s=graph_s)
    assert training.slowness == words
    monkeypatch.setattr(self_test, "compare_trainings", lambda case, device: [training])
    verdict = run(TINY, CPU)
    assert (verdict.plain_because, verdict.is_final) == (words, not words)
    assert verdict.is_only_slow == bool(words)


def test_dropout_in_a_graph_must_draw_anew_at_each_replay():
    def replays(work):
        return work

    def frozen(work):
        return lambda: None

    assert frozen_dropout(CPU) == ""
    assert frozen_dropout(CPU, replays) == ""
    assert "dropout in a captured graph repeats its random numbers" in frozen_dropout(CPU, frozen)


def test_networks_with_dropout_are_also_compared_with_it():
    squeezenet = ModelSpec(name="squeezenet", library="torchvision", architecture="squeezenet1_1")
    results = self_test.compare_trainings(Case(squeezenet, 4, num_images=10, image_size=32), CPU)
    assert [one.weights is None for one in results] == [False, True]
    assert all(one.problem == "" for one in results)


def test_a_case_is_the_network_as_its_trial_trains_it():
    trials = {trial.network.model.name: trial for trial in plan_sweep(load_sweep("paper")).trials}
    for name in PAPER_MODELS:
        network = trials[name].network
        case = Case.of_network(network)
        assert (case.model, case.batch_size) == (network.model, network.recipe.batch_size)
        assert (case.image_size, case.channels, case.precision) == (224, 1, "bfloat16")
        assert case.num_images // case.batch_size >= 2
        assert case.num_images % case.batch_size >= 2
        assert Case.from_json(case.to_json()) == case
    own = network.model.model_copy(update={"library": "own"})
    stand_in = Case.of_network(network.model_copy(update={"model": own}))
    assert stand_in.model.name == "resnet18"


def test_a_process_of_its_own_prints_the_verdict():
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.machine.self_test", "cpu", TINY.to_json()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert COMPARED_LINE in done.stdout.splitlines()
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert (verdict["wrong"], verdict["unchecked"]) == ("", "")
    assert {"plain_because", "is_final", "seconds", "arithmetic", "trainings"} <= set(verdict)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("vgg13", marks=pytest.mark.long)])
def test_a_cpu_without_bfloat16_rounds_about_as_much_as_one_with_it(monkeypatch, name):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no instructions for bfloat16")
    case = Case(model_spec(name), 8, image_size=64)
    model = self_test.built(case, dropout=0.0)
    before = [weight.detach().clone() for weight in model.parameters()]
    images, labels = self_test.noise(8, 64, 1)
    exact = self_test._gradient(model, images, labels, "float32")
    native = self_test._bfloat16_gradient(model, images, labels)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    rounded = self_test._bfloat16_gradient(model, images, labels)
    assert 1 - rounded.cosine(exact) == pytest.approx(1 - native.cosine(exact), rel=0.5, abs=0.02)
    assert rounded.norm == pytest.approx(native.norm, rel=0.1)
    assert all(map(torch.equal, before, model.parameters()))
