"""The self-test of a GPU, on a CPU: what it says of graphs that differ, fail or are slow."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from orchestrator.machine import self_test
from orchestrator.machine.self_test import Case, CaseResult, run, run_case
from tasks.trials.training import CaptureError, train

CPU = torch.device("cpu")
TINY = Case("small_cnn", 8, 18, 16)
SOUND = CaseResult("vgg13", (0.0, 0.0), (1e-5, 4e-5), (0.69, 0.70), seconds=(1.0, 1.0, 0.9))


def test_graphs_are_timed_between_the_two_plain_trainings(monkeypatch):
    order = []
    monkeypatch.setattr(
        self_test, "train", lambda *of, graphs, **how: order.append(graphs) or train(*of, **how)
    )
    run_case(TINY, CPU)
    assert order == [False, True, False]


def test_on_a_cpu_all_three_trainings_are_equal():
    found = run_case(TINY, CPU)
    assert (found.losses, found.weights) == ((0, 0), (0, 0))
    assert found.first_loss[0] == pytest.approx(
        found.first_loss[1], abs=self_test.FIRST_LOSS_TOLERANCE
    )
    assert found.problem == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        (
            {"weights": (1e-5, 4.1e-5)},
            "a weight differs by 4.1e-05, between two plain trainings by 1.0e-05",
        ),
        # Two plain trainings that are equal to the last bit do not make every rounding a fault.
        ({"losses": (0.0, 3.9e-5), "weights": (0.0, 3.9e-6)}, ""),
        ({"losses": (0.0, 4.1e-5)}, "vgg13: a loss differs by 4.1e-05"),
        (
            {"weights": (0.0, 1e-4)},
            "vgg13: a weight differs by 1.0e-04, between two plain trainings by 0.0",
        ),
        ({"losses": (0.0, float("nan"))}, "vgg13: a loss differs by nan"),
        ({"first_loss": (0.73, 0.70)}, "vgg13: the first loss is 0.7300, on the CPU 0.7000"),
        ({"first_loss": (float("nan"), 0.70)}, "the first loss is nan"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes, words):
    said = replace(SOUND, **changes).problem
    assert words in said
    assert bool(said) == bool(words)


def captured_badly(model):
    raise CaptureError("a step could not be captured: RuntimeError: unsupported")


def changed(model):
    next(model.parameters()).data.flatten()[0] += 1e-3


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (changed, "small_cnn: a weight differs by 1.0e-03, between two plain trainings by 0.0e+00"),
        (captured_badly, "small_cnn: CaptureError: a step could not be captured"),
    ],
)
def test_graphs_that_change_a_weight_or_cannot_be_captured_are_not_taken(monkeypatch, harm, reason):
    def trained(model, *arguments, graphs=False, **options):
        history = train(model, *arguments, **options)
        if graphs:
            harm(model)
        return history

    monkeypatch.setattr(self_test, "train", trained)
    verdict = run(CPU, [TINY])
    assert not verdict.graphs
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [
        ((1.0, 1.0, 0.9), ""),
        ((1.0, 1.0, 1.04), ""),
        ((1.0, 1.0, 1.06), "they take 1.06 s an epoch, plain steps 1.00 s and 1.00 s"),
        (
            (0.9, 1.1, 1.29),
            "",
        ),  # longer than the slower plain training by less than these differ by
        ((0.9, 1.1, 1.31), "they take 1.31 s an epoch, plain steps 0.90 s and 1.10 s"),
    ],
)
def test_graphs_that_are_slower_beyond_the_noise_of_plain_steps_are_not_taken(
    monkeypatch, seconds, reason
):
    monkeypatch.setattr(self_test, "run_case", lambda case, device: replace(SOUND, seconds=seconds))
    verdict = run(CPU, [TINY])
    assert verdict.graphs is (not reason)
    assert (verdict.reason, verdict.error, verdict.slower) == (reason, False, bool(reason))


def test_a_process_of_its_own_prints_the_verdict():
    case = "s.Case('small_cnn', 8, 18, 16)"
    code = (
        "import sys; from orchestrator.machine import self_test as s; s.SMALL_CASES = "
        f"({case},); s.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "cpu"], capture_output=True, text=True, check=True
    )
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert set(verdict) == {"graphs", "reason", "error", "slower", "seconds", "cases"}
    assert verdict["cases"][0]["weights"] == [0, 0]
