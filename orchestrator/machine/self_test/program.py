"""The self-test of a GPU with one network: is it correct, and can trials use CUDA graphs?

The test has two parts.

1. **Arithmetic.** Compare the first loss and the first gradient of all weights with float32 on the
   CPU. All trainings on a GPU use the same kernels, so only another device can reveal a wrong
   kernel. If the GPU fails, the comparison is repeated with a new copy of the network. A GPU that
   has failed must not be used, even if it passes the second comparison. The verdict then contains
   this doubt.
2. **Graphs.** Train the network three times from the same start: without CUDA graphs (plain
   steps), with CUDA graphs, and without them again. The two plain trainings show how much the GPU
   varies between equal trainings. If the training with graphs differs by more, the three trainings
   are repeated, and the largest differences of both repetitions count. If graphs still differ by
   more, or if graphs fail or are slower, trials use plain steps.

``python -m orchestrator.machine.self_test.program DEVICE CASE`` runs the test in a separate
process, because a failed capture can end the process. If the GPU passes the first part, the command
prints :data:`~.case.COMPARED_LINE`. If the GPU fails the first comparison, the command prints a
preliminary verdict, which counts if the process ends during the second comparison. At the end, the
command prints the verdict as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from orchestrator.machine.gpu_errors import library_error
from orchestrator.machine.gpus.torch_gpus import compute_capability
from orchestrator.machine.self_test.case import COMPARED_LINE, Case
from orchestrator.machine.self_test.gradients import Arithmetic, compare_with_cpu
from orchestrator.machine.self_test.graph_trainings import (
    TrainingComparison,
    compare_trainings,
    frozen_dropout,
)
from orchestrator.machine.self_test.verdict import (
    Verdict,
    _verdict_on_graphs,
    _wrong_in,
    _wrong_verdict,
)
from orchestrator.planning.costs.gpu_models import BFLOAT16_FROM
from orchestrator.results.records import FailureKind
from tasks.trials.isolation import deterministic, fixed_torch_state, trial_memory


def run(
    case: Case,
    device: torch.device,
    on_compared: Callable[[], object] = lambda: None,
    on_wrong: Callable[[Verdict], object] = lambda verdict: None,
) -> Verdict:
    """Test one network on a device; an exception becomes a part of the verdict.

    Args:
        case: the network and its settings.
        device: the GPU, or a CPU.
        on_compared: called when the device has passed the comparison with the CPU.
        on_wrong: called with a preliminary verdict when the device has failed the comparison,
            before the comparison is repeated.
    """
    start = time.perf_counter()
    if device.type == "cuda" and compute_capability() < BFLOAT16_FROM:
        case = replace(case, precision="float32")
    arithmetic: list[Arithmetic] = []
    repeated: list[Arithmetic] = []
    trainings: list[TrainingComparison] = []
    error_text = ""
    unchecked = ""
    is_compared = False
    try:
        with (
            trial_memory(device),
            fixed_torch_state(0, device),
            deterministic(device, case.num_threads),
        ):
            # One by one: if a later comparison fails, a wrong result before it still counts.
            for comparison in compare_with_cpu(case, device):
                arithmetic.append(comparison)
            is_compared = True
            # If the device computes wrongly, a comparison of graphs on it is useless.
            if _wrong_in(arithmetic):
                on_wrong(_wrong_verdict(arithmetic, [], error_text=""))
                repeated += compare_with_cpu(case, device)
            else:
                on_compared()
                trainings += compare_trainings(case, device)
                error_text = frozen_dropout(device)
    except Exception as error:  # A driver, a library or a capture may raise any exception.
        first_line = (str(error).splitlines() or [""])[0][:300]
        error_text = f"{case.model.name}: {type(error).__name__}: {first_line}"
        library_row = library_error(error)
        is_device_error = library_row is not None and library_row.kind == FailureKind.DEVICE_ERROR
        if is_device_error and not is_compared and not _wrong_in(arithmetic):
            unchecked = error_text
    if _wrong_in(arithmetic):
        verdict = _wrong_verdict(arithmetic, repeated, error_text)
    else:
        verdict = replace(_verdict_on_graphs(trainings, error_text), arithmetic=tuple(arithmetic))
    return replace(verdict, unchecked=unchecked, seconds=time.perf_counter() - start)


def main() -> None:
    """Run the case of the command line, and print each verdict as a line of JSON."""
    device_name, case_text = sys.argv[1:]

    def print_compared() -> None:
        print(COMPARED_LINE, flush=True)  # noqa: T201

    def print_verdict(verdict: Verdict) -> None:
        print(json.dumps(verdict.as_fields()), flush=True)  # noqa: T201

    case = Case.from_json(case_text)
    print_verdict(run(case, torch.device(device_name), print_compared, print_verdict))


if __name__ == "__main__":
    main()
