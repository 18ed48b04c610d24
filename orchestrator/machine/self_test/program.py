"""The self-test of a GPU with one network, and the program that runs the test in a separate
process.

The test has two parts.

1. :mod:`~.gradients` compares the first loss and the gradient of all weights with float32 on
   the CPU. All trainings on a GPU use the same kernels, so a wrong kernel can be detected only
   on another device. If the GPU fails, the comparison is repeated with a new copy of the
   network. If the GPU passes the second comparison, trials still do not use it. The verdict
   then says that the first result is in doubt.
2. :mod:`~.graph_trainings` trains the network with and without CUDA graphs. If graphs give
   other results, fail or are slower, trials use plain steps.

``python -m orchestrator.machine.self_test.program DEVICE CASE`` runs the test in a separate
process, because a failed capture can end the process. If the GPU passes the first part, the
command prints :data:`~.case.PASSED_LINE`. If the GPU fails the first comparison, the command
prints a preliminary verdict. This verdict is used if the process ends during the second
comparison. At its end, the command prints the verdict as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from orchestrator.machine.gpu_errors import library_error
from orchestrator.machine.gpus.torch_gpus import compute_capability
from orchestrator.machine.self_test.case import PASSED_LINE, Case
from orchestrator.machine.self_test.gradients import GradientComparison, compare_with_cpu
from orchestrator.machine.self_test.graph_trainings import (
    TrainingComparison,
    compare_trainings,
    dropout_problem,
)
from orchestrator.machine.self_test.verdict import (
    CpuResult,
    GraphResult,
    Verdict,
    verdict_after_error,
    verdict_on_graphs,
    verdict_on_wrong_gpu,
)
from orchestrator.planning.costs.gpu_models import BFLOAT16_FROM
from orchestrator.results.records import FailureKind
from tasks.trials.isolation import deterministic, fixed_torch_state, trial_memory

MAX_ERROR_LENGTH = 300
"""Largest number of characters of an error's first line in a verdict. Messages repeat this
line."""


def run_self_test(
    case: Case,
    device: torch.device,
    on_passed: Callable[[], object] = lambda: None,
    on_wrong: Callable[[Verdict], object] = lambda verdict: None,
) -> Verdict:
    """Test one network on a device. If the test raises an exception, the verdict contains its
    text.

    Args:
        case: the network and its settings.
        device: the GPU, or a CPU.
        on_passed: function that is called when the device has passed the comparison with the
            CPU.
        on_wrong: function that is called with a preliminary verdict when the device has failed
            the comparison. The comparison is repeated afterwards.
    """
    start = time.perf_counter()
    if device.type == "cuda" and compute_capability() < BFLOAT16_FROM:
        case = replace(case, precision="float32")
    verdict = _run_parts(case, device, on_passed, on_wrong)
    return replace(verdict, seconds=time.perf_counter() - start)


def _run_parts(
    case: Case,
    device: torch.device,
    on_passed: Callable[[], object],
    on_wrong: Callable[[Verdict], object],
) -> Verdict:
    """Run the parts of the test that are needed. Return the verdict without the duration of
    the test.
    """
    first = _run_cpu_comparison(case, device)
    if not first.problem:
        if first.error_text:
            return verdict_after_error(first)
        on_passed()
        return verdict_on_graphs(first, _run_graph_trainings(case, device))
    # A comparison of graphs on a device that computes wrongly is useless.
    if first.error_text:
        return verdict_on_wrong_gpu(first)
    on_wrong(verdict_on_wrong_gpu(first))
    return verdict_on_wrong_gpu(first, second=_run_cpu_comparison(case, device))


def _run_cpu_comparison(case: Case, device: torch.device) -> CpuResult:
    """Compare the loss and the gradient with the CPU, in one precision after the other. An
    error ends the comparisons.
    """
    comparisons: list[GradientComparison] = []
    try:
        with _trial_settings(case, device):
            # The results are stored one by one: if a later comparison fails, an earlier wrong
            # result still counts.
            for comparison in compare_with_cpu(case, device):
                comparisons.append(comparison)
    except Exception as error:  # A driver or a library may raise any exception.
        known_error = library_error(error)
        is_gpu_error = known_error is not None and known_error.kind == FailureKind.DEVICE_ERROR
        return CpuResult(tuple(comparisons), _error_text(case, error), is_gpu_error)
    return CpuResult(tuple(comparisons))


def _run_graph_trainings(case: Case, device: torch.device) -> GraphResult:
    """Train with and without graphs. Test dropout in a graph."""
    trainings: list[TrainingComparison] = []
    try:
        with _trial_settings(case, device):
            trainings += compare_trainings(case, device)
            problem = dropout_problem(device)
    except Exception as error:  # A driver, a library or a capture may raise any exception.
        return GraphResult(tuple(trainings), error_text=_error_text(case, error))
    return GraphResult(tuple(trainings), dropout_problem=problem)


@contextmanager
def _trial_settings(case: Case, device: torch.device) -> Iterator[None]:
    """Run a ``with`` block with the settings of a trial. Free the memory of the block
    afterwards.
    """
    with (
        trial_memory(device),
        fixed_torch_state(0, device),
        deterministic(device, case.num_threads),
    ):
        yield


def _error_text(case: Case, error: Exception) -> str:
    """Return a text with the network, and with the type and the first line of an error."""
    first_line = (str(error).splitlines() or [""])[0][:MAX_ERROR_LENGTH]
    return f"{case.model.name}: {type(error).__name__}: {first_line}"


def main() -> None:
    """Test the case that the command line contains. Print each verdict as a line of JSON."""
    device_name, case_text = sys.argv[1:]

    def print_passed() -> None:
        print(PASSED_LINE, flush=True)  # noqa: T201

    def print_verdict(verdict: Verdict) -> None:
        print(json.dumps(verdict.as_fields()), flush=True)  # noqa: T201

    case = Case.from_json(case_text)
    print_verdict(run_self_test(case, torch.device(device_name), print_passed, print_verdict))


if __name__ == "__main__":
    main()
