"""The verdict of a self-test, which is derived from the results of its two parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum, auto
from typing import Any

from orchestrator.machine.self_test.gradients import GradientComparison
from orchestrator.machine.self_test.graph_trainings import TrainingComparison


@dataclass(frozen=True)
class CpuResult:
    """The result of the first part of the self-test, one comparison of a device with the CPU.

    Attributes:
        comparisons: comparisons of the loss and the gradient, one for each precision. If an
            error occurred, later precisions are missing.
        error_text: the error that ended the comparison early, as one line of text. It is empty
            if no error occurred.
        is_gpu_error: True if the GPU itself caused the error.
    """

    comparisons: tuple[GradientComparison, ...]
    error_text: str = ""
    is_gpu_error: bool = False

    @property
    def problem(self) -> str:
        """A line of text that says what the device computes wrongly, or an empty text if
        nothing is wrong.
        """
        return _join(comparison.problem for comparison in self.comparisons)


@dataclass(frozen=True)
class GraphResult:
    """The result of the second part of the self-test, trainings with graphs and with plain
    steps.

    Attributes:
        trainings: comparisons of trainings. It is empty if an error ended the trainings.
        error_text: the error that ended this part early, as one line of text. It is empty if
            no error occurred.
        dropout_problem: line of text that says what is wrong with dropout in a graph. It is
            empty if nothing is wrong.
    """

    trainings: tuple[TrainingComparison, ...] = ()
    error_text: str = ""
    dropout_problem: str = ""


class PlainStepsCause(Enum):
    """The kind of reason why trials use plain steps instead of graphs."""

    WRONG_GPU = auto()
    """The GPU computes wrongly, so no trial uses it at all."""
    DIFFERENT_GRAPHS = auto()
    """Trainings with graphs have other results than trainings with plain steps."""
    ERROR = auto()
    """An error ended a part of the test, or dropout in a graph is wrong."""
    SLOW_GRAPHS = auto()
    """Graphs compute correctly, but are slower than plain steps."""


@dataclass(frozen=True)
class Verdict:
    """The verdict of a self-test.

    Attributes:
        gpu_problem: line of text that says what the GPU computes wrongly. It is empty if the
            GPU computes correctly.
        reason_for_plain_steps: line of text that says why trials use plain steps. It is empty
            if they use graphs.
        cause: kind of the reason for plain steps, or None if trials use graphs.
        reason_for_doubt: line of text that says why ``gpu_problem`` is in doubt. There are two
            possible reasons. The second comparison with the CPU detected no difference, failed
            or did not end. Or the first comparison detected the problem and then ended with an
            error. The text is empty if the second comparison confirmed the problem, or if
            there is no problem.
        comparison_error: the GPU's error that ended the comparison with the CPU, as one line
            of text. It is empty if there was no such error. After such an error, it is unknown
            whether the GPU computes correctly.
        seconds: duration of the whole test in seconds.
        arithmetic: results of the first and the second comparison with the CPU.
        trainings: comparisons of graphs with plain steps.
    """

    gpu_problem: str = ""
    reason_for_plain_steps: str = ""
    cause: PlainStepsCause | None = None
    reason_for_doubt: str = ""
    comparison_error: str = ""
    seconds: float = 0.0
    arithmetic: tuple[GradientComparison, ...] = ()
    trainings: tuple[TrainingComparison, ...] = ()

    @property
    def is_final(self) -> bool:
        """False if an error or other processes on the GPU may have caused the verdict,
        otherwise True.

        A verdict that is not final may change in a later test.
        """
        return self.cause not in (PlainStepsCause.ERROR, PlainStepsCause.SLOW_GRAPHS)

    def as_fields(self) -> dict[str, Any]:
        """Return the verdict as JSON types. The keys are those in the file of ``isweep
        gpu-check``.
        """
        return {
            "wrong": self.gpu_problem,
            "plain_because": self.reason_for_plain_steps,
            "doubt": self.reason_for_doubt,
            "unchecked": self.comparison_error,
            "seconds": self.seconds,
            "arithmetic": tuple(map(asdict, self.arithmetic)),
            "trainings": tuple(map(asdict, self.trainings)),
            "is_final": self.is_final,
            "is_only_slow": self.cause == PlainStepsCause.SLOW_GRAPHS,
        }


def verdict_on_wrong_gpu(first: CpuResult, second: CpuResult | None = None) -> Verdict:
    """Return the verdict on a device that computed wrongly at least once.

    The verdict is final even if the second comparison detects no difference, because trials
    never use a device that has computed wrongly.

    Args:
        first: the first comparison with the CPU. It detected the problem.
        second: the second comparison, or None if it has not ended.
    """
    comparisons = first.comparisons
    if second is not None:
        comparisons += second.comparisons
    return Verdict(
        gpu_problem=first.problem,
        reason_for_plain_steps=first.problem,
        cause=PlainStepsCause.WRONG_GPU,
        reason_for_doubt=_reason_for_doubt(first, second),
        arithmetic=comparisons,
    )


def _reason_for_doubt(first: CpuResult, second: CpuResult | None) -> str:
    """Return the reason to doubt that the device computes wrongly. Return an empty text if
    there is no doubt.
    """
    if second is None:
        if first.error_text:
            # One precision was wrong, and the comparison of the next precision failed.
            return f"a later comparison with the CPU failed: {first.error_text}"
        return "the second comparison with the CPU did not end"
    if second.error_text:
        return f"a later comparison with the CPU failed: {second.error_text}"
    if not second.problem:
        return "the second comparison with the CPU found no difference"
    return ""


def verdict_after_error(result: CpuResult) -> Verdict:
    """Return the verdict if an error ended the comparison before a problem was detected.

    Only an error of the GPU itself becomes ``comparison_error``. Other errors may have causes
    outside the GPU: other trials may use the memory, or a CPU may lack an operation.
    """
    return Verdict(
        reason_for_plain_steps=result.error_text,
        cause=PlainStepsCause.ERROR,
        comparison_error=result.error_text if result.is_gpu_error else "",
        arithmetic=result.comparisons,
    )


def verdict_on_graphs(result: CpuResult, graphs: GraphResult) -> Verdict:
    """Return the verdict on a device that has passed the comparison with the CPU."""
    different = _join(comparison.problem for comparison in graphs.trainings)
    slow = _join(comparison.slowness for comparison in graphs.trainings)
    error_text = graphs.error_text or graphs.dropout_problem
    cause = None
    # A difference makes the verdict final, even if an error followed it.
    if different:
        cause = PlainStepsCause.DIFFERENT_GRAPHS
    elif error_text:
        cause = PlainStepsCause.ERROR
    elif slow:
        cause = PlainStepsCause.SLOW_GRAPHS
    return Verdict(
        reason_for_plain_steps=different or error_text or slow,
        cause=cause,
        arithmetic=result.comparisons,
        trainings=graphs.trainings,
    )


def _join(texts: Iterable[str]) -> str:
    """Return one line with all texts that are not empty."""
    return "; ".join(filter(None, texts))
