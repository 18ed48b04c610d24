"""The self-test of a GPU, run on a CPU: it finds wrong numbers, and graphs that differ, fail or are
slow."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from orchestrator.machine.self_test import gradients, graph_trainings, program
from orchestrator.machine.self_test.case import PASSED_LINE, Case
from orchestrator.machine.self_test.gradients import (
    Gradient,
    GradientComparison,
    bfloat16_tolerance,
    compare_with_cpu,
    float32_tolerance,
)
from orchestrator.machine.self_test.graph_trainings import (
    Difference,
    TrainingComparison,
    compare_trainings,
    dropout_problem,
)
from orchestrator.machine.self_test.network import build_network, random_images
from orchestrator.machine.self_test.program import run_self_test
from orchestrator.machine.self_test.verdict import PlainStepsCause
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.models import PAPER_MODELS, model_spec
from search_spaces.specs import ModelSpec
from tasks.trials.cuda_graphs import CaptureError
from tasks.trials.training import train

CPU = torch.device("cpu")
TINY = Case(model_spec("small_cnn"), 8, num_images=18, image_size=16)
NO_DIFFERENCE = Difference(noise=0.0, graphs=0.0)
SOUND_TRAINING = TrainingComparison("vgg13", NO_DIFFERENCE, Difference(1e-5, 4e-5), 1.0, 1.0, 0.9)
EXPECTED = Gradient(0.70, [torch.tensor([1.0, 0.0])])


def gradient_with_cosine(cosine, loss=0.70):
    """Return a gradient of the same length with this cosine to the expected one."""
    return Gradient(loss, [torch.tensor([cosine, math.sqrt(1 - cosine**2)])])


BFLOAT16_TOLERANCE = bfloat16_tolerance(gradient_with_cosine(0.92, loss=0.699), EXPECTED)
FLOAT32_TOLERANCE = float32_tolerance(gradient_with_cosine(1.0), EXPECTED)
CORRECT_COMPARISON = GradientComparison(
    "resnet18", "bfloat16", 0.69, 0.70, 0.92, 1.0, BFLOAT16_TOLERANCE
)


@pytest.fixture
def replace_kernel(monkeypatch):
    """``replace_kernel(owner, name, function)`` replaces a kernel of torch by a wrong one.

    Only the network that computes as the device uses the wrong one, not the reference. The first
    ``num_wrong`` comparisons use it."""

    def replace_by_wrong(owner, name, wrong_kernel, num_wrong=2):
        original_kernel = getattr(owner, name)
        # The references are in float32, with perturbed weights, and in bfloat16. Then the device
        # computes in float32 and in bfloat16.
        is_wrong = iter([False, False, False, True, True] * num_wrong)
        original_gradient = gradients._gradient

        def gradient(model, images, labels, precision):
            kernel = wrong_kernel if next(is_wrong, False) else original_kernel
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, kernel)
                return original_gradient(model, images, labels, precision)

        monkeypatch.setattr(gradients, "_gradient", gradient)

    return replace_by_wrong


def test_a_sound_device_computes_correctly_and_its_trainings_are_equal():
    verdict = run_self_test(TINY, CPU)
    assert verdict.gpu_problem == ""
    assert verdict.cause in (None, PlainStepsCause.SLOW_GRAPHS)
    assert [arithmetic.precision for arithmetic in verdict.arithmetic] == ["float32", "bfloat16"]
    float32 = verdict.arithmetic[0]
    assert (float32.loss, float32.cosine, float32.norm_ratio) == pytest.approx(
        (float32.cpu_loss, 1, 1), rel=1e-6
    )
    (training,) = verdict.trainings
    assert (training.losses, training.weights, training.problem) == (
        NO_DIFFERENCE,
        NO_DIFFERENCE,
        "",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"loss": 0.83}, "resnet18 in bfloat16: the first loss is 0.8300, but 0.7000 on the CPU"),
        ({"loss": math.nan}, "the first loss is nan"),
        (
            {"cosine": 0.5},
            "gradient has another direction than on the CPU (the cosine is 0.500, but must be at least ",
        ),
        ({"cosine": math.nan}, "(the cosine is nan, but must be at least "),
        # An H100 of pytorch#150700: losses 1.5725 and 1.5634, norms 0.082 and 0.322.
        (
            {"loss": 1.5725, "cpu_loss": 1.5634, "norm_ratio": 0.082 / 0.322},
            "the first gradient is 0.255 times as long as on the CPU",
        ),
        ({"norm_ratio": math.inf}, "is inf times as long"),
        # TensorFloat-32 in place of float32.
        (
            {"precision": "float32", "loss": 0.70, "cosine": 0.97, "tolerance": FLOAT32_TOLERANCE},
            "resnet18 in float32: the first gradient has another direction",
        ),
        (
            {"precision": "float32", "loss": 0.702, "tolerance": FLOAT32_TOLERANCE},
            "the first loss is 0.7020",
        ),
    ],
)
def test_a_wrong_first_loss_or_gradient_is_named(changes, message):
    problem = replace(CORRECT_COMPARISON, **changes).problem
    assert message in problem
    assert bool(problem) == bool(message)


def test_the_tolerance_of_the_direction_follows_the_rounding():
    """Rounding to bfloat16 turns a ResNet-50's gradient by 80 degrees, on a CPU at 224 pixels."""
    cosines = {"resnet18": 0.922, "resnet34": 0.739, "resnet50": 0.129, "vgg16": 0.884}
    for cosine in cosines.values():
        tolerance = bfloat16_tolerance(gradient_with_cosine(cosine), EXPECTED)
        assert tolerance.cosine < cosine - 0.05
        assert (
            replace(CORRECT_COMPARISON, loss=0.7, cosine=cosine, tolerance=tolerance).problem == ""
        )
    assert bfloat16_tolerance(gradient_with_cosine(0.922), EXPECTED).cosine > 0.75
    unknown = Gradient(0.7, [torch.zeros(2)])
    assert bfloat16_tolerance(unknown, EXPECTED).cosine == -1


def test_the_tolerance_of_float32_follows_the_network():
    """The rounding of a Winograd kernel, no error, turns the gradient of a very deep network."""
    assert FLOAT32_TOLERANCE.cosine == pytest.approx(0.99)
    assert (FLOAT32_TOLERANCE.least_ratio, FLOAT32_TOLERANCE.largest_ratio) == pytest.approx(
        (0.95, 1.05)
    )
    tolerance = float32_tolerance(gradient_with_cosine(0.6), EXPECTED)
    assert tolerance.cosine == pytest.approx(0.19)


def test_perturbed_weights_are_restored():
    model = build_network(TINY, dropout=0.0)
    weights_before = [weight.detach().clone() for weight in model.parameters()]
    with gradients._perturbed(model):
        changes = [
            float(
                (
                    (weight.detach() - weight_before).abs() / weight_before.abs().clamp_min(1e-6)
                ).max()
            )
            for weight, weight_before in zip(model.parameters(), weights_before, strict=True)
        ]
    assert 1e-5 < max(changes) < 1e-3
    assert all(map(torch.equal, model.parameters(), weights_before))


RESNET_TINY = Case(model_spec("resnet_tiny"), 8, num_images=18, image_size=32)


class WrongBackward(torch.autograd.Function):
    """A ReLU whose forward pass is correct, and whose backward pass is wrong."""

    @staticmethod
    def forward(context, images):
        context.shape = images.shape
        return torch.relu(images)

    @staticmethod
    def backward(context, gradient):
        return gradient.roll(1, dims=-1)


def wrong_relu(images, inplace=False):
    return WrongBackward.apply(images)


def test_a_kernel_with_a_wrong_gradient_but_a_correct_loss_is_found(replace_kernel):
    """The forward pass is correct, the backward pass wrong, without an error: pytorch#188344."""
    replace_kernel(F, "relu", wrong_relu)
    verdict = run_self_test(RESNET_TINY, CPU)
    assert "the first gradient has another direction than on the CPU" in verdict.gpu_problem
    assert (verdict.reason_for_plain_steps, verdict.is_final, verdict.reason_for_doubt) == (
        verdict.gpu_problem,
        True,
        "",
    )
    # Both comparisons are in the verdict, each in float32 and in bfloat16.
    assert [bool(comparison.problem) for comparison in verdict.arithmetic] == [True] * 4
    assert verdict.trainings == ()


def test_a_gpu_that_is_wrong_in_only_one_of_two_comparisons_stays_out_and_the_doubt_is_named(
    replace_kernel,
):
    replace_kernel(F, "relu", wrong_relu, num_wrong=1)
    preliminary = []
    passed = []
    verdict = run_self_test(RESNET_TINY, CPU, lambda: passed.append(True), preliminary.append)
    assert "the first gradient has another direction than on the CPU" in verdict.gpu_problem
    assert (verdict.reason_for_plain_steps, verdict.is_final) == (verdict.gpu_problem, True)
    assert verdict.reason_for_doubt == "the second comparison with the CPU found no difference"
    assert (passed, verdict.trainings) == ([], ())
    # This verdict counts if the process ends during the second comparison.
    assert [(early.gpu_problem, early.is_final) for early in preliminary] == [
        (verdict.gpu_problem, True)
    ]
    assert preliminary[0].reason_for_doubt == "the second comparison with the CPU did not end"


def test_an_error_in_the_second_comparison_does_not_acquit_the_gpu(replace_kernel, monkeypatch):
    replace_kernel(F, "relu", wrong_relu)
    original_compare = program.compare_with_cpu
    compared_cases = []

    def compare_or_fail(case, device):
        compared_cases.append(case)
        if len(compared_cases) == 2:
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        return original_compare(case, device)

    monkeypatch.setattr(program, "compare_with_cpu", compare_or_fail)
    verdict = run_self_test(RESNET_TINY, CPU)
    assert verdict.gpu_problem
    assert (verdict.is_final, verdict.comparison_error) == (True, "")
    assert verdict.reason_for_doubt.startswith(
        "a later comparison with the CPU failed: resnet_tiny: "
    )
    assert "uncorrectable ECC error" in verdict.reason_for_doubt


def test_an_error_in_bfloat16_does_not_hide_a_wrong_result_in_float32(replace_kernel, monkeypatch):
    replace_kernel(F, "relu", wrong_relu)
    original_gradient = gradients._gradient
    precisions = []

    def gradient_or_error(model, images, labels, precision):
        precisions.append(precision)
        if len(precisions) == 5:  # after three references on the CPU, and float32 on the device
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return original_gradient(model, images, labels, precision)

    monkeypatch.setattr(gradients, "_gradient", gradient_or_error)
    verdict = run_self_test(RESNET_TINY, CPU)
    assert verdict.gpu_problem
    assert (verdict.is_final, verdict.comparison_error) == (True, "")
    assert "illegal memory access" in verdict.reason_for_doubt


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
    original_gradient = gradients._gradient
    precisions = []

    def gradient_or_error(model, images, labels, precision):
        precisions.append(precision)
        if len(precisions) == 4:  # after three references on the CPU
            raise error
        return original_gradient(model, images, labels, precision)

    passed = []
    monkeypatch.setattr(gradients, "_gradient", gradient_or_error)
    verdict = run_self_test(TINY, CPU, lambda: passed.append(True))
    assert passed == []
    assert str(error).splitlines()[0] in verdict.reason_for_plain_steps
    assert bool(verdict.comparison_error) is is_unchecked
    assert (verdict.gpu_problem, verdict.is_final) == ("", False)


def test_the_comparison_uses_the_number_of_threads_of_the_case(monkeypatch):
    """On all cores, the self-test would slow down the trials of other processes."""
    threads = []

    def compare_with_cpu(case, device):
        threads.append(torch.get_num_threads())
        raise ValueError("no more is needed here")

    monkeypatch.setattr(program, "compare_with_cpu", compare_with_cpu)
    for num_threads in (1, 2):
        run_self_test(replace(TINY, num_threads=num_threads), CPU)
    assert threads == [1, 2]


def test_a_network_without_a_usable_gradient_gives_no_verdict(monkeypatch):
    monkeypatch.setattr(
        gradients,
        "_gradient",
        lambda *_: Gradient(math.nan, [torch.zeros(3)]),
    )
    assert not list(compare_with_cpu(TINY, CPU))


def test_a_network_with_random_layers_is_compared_in_evaluation_mode(monkeypatch):
    """Stochastic depth and own dropout layers draw other numbers on a GPU."""
    modes = []
    original_gradient = gradients._gradient

    def gradient_and_mode(model, *arguments):
        modes.append(model.training)
        return original_gradient(model, *arguments)

    class NetworkWithDropout(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(256, 2)

        def forward(self, images):
            return self.layer(F.dropout(images.flatten(1), 0.5, self.training))

    monkeypatch.setattr(gradients, "_gradient", gradient_and_mode)
    monkeypatch.setattr(gradients, "build_network", lambda case, dropout=None: NetworkWithDropout())
    results = list(compare_with_cpu(TINY, CPU))
    assert not any(modes)
    assert [arithmetic.problem for arithmetic in results] == ["", ""]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        (
            {"weights": Difference(1e-5, 4.1e-5)},
            "captured graphs change a weight by 4.1e-05, but two plain trainings differ by 1.0e-05",
        ),
        # Two plain trainings that are equal to the last bit do not make every rounding a fault.
        ({"losses": Difference(0.0, 3.9e-5), "weights": Difference(0.0, 3.9e-6)}, ""),
        ({"losses": Difference(0.0, 4.1e-5)}, "vgg13: captured graphs change a loss by 4.1e-05"),
        ({"weights": Difference(0.0, 1e-4)}, "vgg13: captured graphs change a weight by 1.0e-04"),
        ({"losses": Difference(0.0, math.nan)}, "vgg13: captured graphs change a loss by nan"),
        ({"weights": None, "losses": Difference(0.05, 0.19)}, ""),
        (
            {"weights": None, "losses": Difference(0.0, 0.21)},
            "vgg13: in trainings with random numbers (such as dropout), captured graphs "
            "change the loss by 2.1e-01",
        ),
        ({"weights": None, "losses": Difference(0.0, math.nan)}, "change the loss by nan"),
    ],
)
def test_graphs_that_differ_by_more_than_noise_are_named(changes, message):
    problem = replace(SOUND_TRAINING, **changes).problem
    assert message in problem
    assert bool(problem) == bool(message)


def sample(weight_noise, weight_change):
    """Return a comparison of three trainings in which graphs change a weight by this amount."""
    return replace(SOUND_TRAINING, weights=Difference(weight_noise, weight_change))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([sample(1e-5, 3e-5)], ""),
        # The two plain trainings of the first sample were equal by chance.
        ([sample(0.0, 3e-5), sample(1e-5, 1e-5)], ""),
        (
            [sample(0.0, 3e-5), sample(5e-6, 1e-5)],
            "vgg13: captured graphs change a weight by 3.0e-05, but two plain trainings differ by "
            "5.0e-06",
        ),
        # A graph that is wrong only sometimes is not used either.
        ([sample(0.0, 1.0), sample(1e-5, 1e-5)], "captured graphs change a weight by 1.0e+00"),
        ([sample(0.0, math.nan), sample(1e-5, 1e-5)], "captured graphs change a weight by nan"),
        ([sample(0.0, 3e-5), sample(math.nan, 1e-5)], "two plain trainings differ by nan"),
    ],
)
def test_graphs_are_given_up_only_after_two_samples(monkeypatch, samples, message):
    remaining_samples = iter(samples)
    monkeypatch.setattr(
        graph_trainings, "_train_three_times", lambda *_, **__: next(remaining_samples)
    )
    (comparison,) = compare_trainings(TINY, CPU)
    assert message in comparison.problem
    assert bool(comparison.problem) == bool(message)
    assert next(remaining_samples, None) is None


def fail_to_capture(model):
    raise CaptureError("a step could not be captured: RuntimeError: unsupported")


def change_a_weight(model):
    next(model.parameters()).data.flatten()[0] += 1e-3


@pytest.mark.parametrize(
    ("harm", "reason", "is_final"),
    [
        (
            change_a_weight,
            "small_cnn: captured graphs change a weight by 1.0e-03, but two plain",
            True,
        ),
        (fail_to_capture, "small_cnn: CaptureError: a step could not be captured", False),
    ],
)
def test_graphs_that_change_a_weight_or_cannot_be_captured_are_not_used(
    monkeypatch, harm, reason, is_final
):
    graphs_used = []

    def train_with_error(model, *arguments, graphs=False, **options):
        graphs_used.append(graphs)
        history = train(model, *arguments, **options)
        if graphs:
            harm(model)
        return history

    monkeypatch.setattr(graph_trainings, "train", train_with_error)
    verdict = run_self_test(TINY, CPU)
    assert verdict.reason_for_plain_steps.startswith(reason)
    assert (verdict.gpu_problem, verdict.is_final) == ("", is_final)
    assert graphs_used[:2] == [False, True]


SLOW_GRAPHS = "captured graphs take {} s per epoch, but plain steps take {} s and {} s"


@pytest.mark.parametrize(
    ("plain_s", "again_s", "graph_s", "message"),
    [
        (1.0, 1.0, 0.9, ""),
        (1.0, 1.0, 1.04, ""),
        (1.0, 1.0, 1.06, SLOW_GRAPHS.format("1.06", "1.00", "1.00")),
        # Longer than the slower plain training by less than the two differ by.
        (0.9, 1.1, 1.29, ""),
        (0.9, 1.1, 1.31, SLOW_GRAPHS.format("1.31", "0.90", "1.10")),
    ],
)
def test_graphs_that_are_slower_by_more_than_noise_are_not_used_for_now(
    monkeypatch, plain_s, again_s, graph_s, message
):
    training = replace(SOUND_TRAINING, plain_s=plain_s, again_s=again_s, graph_s=graph_s)
    assert training.slowness == message
    monkeypatch.setattr(program, "compare_trainings", lambda case, device: [training])
    verdict = run_self_test(TINY, CPU)
    assert (verdict.reason_for_plain_steps, verdict.is_final) == (message, not message)
    assert verdict.as_fields()["is_only_slow"] == bool(message)


def test_dropout_in_a_graph_must_draw_new_numbers_in_each_replay():
    def capture_that_runs_again(draw):
        return draw

    def capture_that_repeats(draw):
        return lambda: None

    assert dropout_problem(CPU) == ""
    assert dropout_problem(CPU, capture_that_runs_again) == ""
    assert "dropout in a captured graph repeats its random numbers" in dropout_problem(
        CPU, capture_that_repeats
    )


@pytest.mark.long
def test_networks_with_dropout_are_also_compared_with_it():
    squeezenet = ModelSpec(name="squeezenet", library="torchvision", architecture="squeezenet1_1")
    results = compare_trainings(Case(squeezenet, 4, num_images=10, image_size=32), CPU)
    assert [comparison.weights is None for comparison in results] == [False, True]
    assert all(comparison.problem == "" for comparison in results)


def test_a_case_has_the_network_and_settings_of_its_trial():
    trials = {trial.network.model.name: trial for trial in plan_sweep(load_sweep("paper")).trials}
    for name in PAPER_MODELS:
        network = trials[name].network
        case = Case.of_network(network)
        assert (case.model, case.batch_size) == (network.model, network.recipe.batch_size)
        assert (case.image_size, case.channels, case.precision) == (224, 1, "bfloat16")
        assert case.num_images // case.batch_size >= 2
        assert case.num_images % case.batch_size >= 2
        assert Case.from_json(case.to_json()) == case
    own_model = network.model.model_copy(update={"library": "own"})
    case_of_own_model = Case.of_network(network.model_copy(update={"model": own_model}))
    assert case_of_own_model.model.name == "resnet18"


@pytest.mark.long
def test_the_module_prints_the_verdict_as_a_program():
    process = subprocess.run(
        [sys.executable, "-m", "orchestrator.machine.self_test.program", "cpu", TINY.to_json()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert PASSED_LINE in process.stdout.splitlines()
    verdict = json.loads(process.stdout.splitlines()[-1])
    assert (verdict["wrong"], verdict["unchecked"]) == ("", "")
    assert {"plain_because", "is_final", "seconds", "arithmetic", "trainings"} <= set(verdict)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("vgg13", marks=pytest.mark.long)])
def test_a_cpu_without_bfloat16_instructions_rounds_about_as_much_as_one_with_them(
    monkeypatch, name
):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no instructions for bfloat16")
    case = Case(model_spec(name), 8, image_size=64)
    model = build_network(case, dropout=0.0)
    weights_before = [weight.detach().clone() for weight in model.parameters()]
    images, labels = random_images(8, 64, 1)
    float32 = gradients._gradient(model, images, labels, "float32")
    bfloat16 = gradients._bfloat16_gradient(model, images, labels)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    emulated_bfloat16 = gradients._bfloat16_gradient(model, images, labels)
    assert 1 - emulated_bfloat16.cosine(float32) == pytest.approx(
        1 - bfloat16.cosine(float32), rel=0.5, abs=0.02
    )
    assert emulated_bfloat16.norm == pytest.approx(bfloat16.norm, rel=0.1)
    assert all(map(torch.equal, weights_before, model.parameters()))
