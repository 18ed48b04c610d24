"""The verdict of a self-test, from the results of its two parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum, auto
from typing import Any

from orchestrator.machine.self_test.gradients import GradientComparison
from orchestrator.machine.self_test.graph_trainings import TrainingComparison


@dataclass(frozen=True)
class CpuResult:
    """The result of the first part: one comparison of a device with the CPU.

    Attributes:
        comparisons: comparisons of loss and gradient, one for each precision until an error.
        error_text: the error that ended the comparison early, in one line; empty if there was none.
        is_gpu_error: True if the GPU itself caused the error.
    """

    comparisons: tuple[GradientComparison, ...]
    error_text: str = ""
    is_gpu_error: bool = False

    @property
    def problem(self) -> str:
        """What the device computes wrongly, in one line; empty if nothing is wrong."""
        return _join(comparison.problem for comparison in self.comparisons)


@dataclass(frozen=True)
class GraphResult:
    """The result of the second part: trainings with graphs and with plain steps.

    Attributes:
        trainings: comparisons of trainings; empty if an error ended them.
        error_text: an error, or the problem of dropout in a graph, in one line; empty if there was
            none.
    """

    trainings: tuple[TrainingComparison, ...] = ()
    error_text: str = ""


class PlainCause(Enum):
    """Why trials use plain steps instead of graphs."""

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
    """The verdict of a self-test. The names of most fields are keys in files of ``gpu-check``.

    Attributes:
        wrong: text that describes what the GPU computes wrongly, in one line; empty if it computes
            correctly.
        plain_because: text with the reason why trials use plain steps, in one line; empty if they
            use graphs.
        cause: the kind of this reason; None if trials use graphs.
        doubt: why the wrong result is in doubt, as text: the second comparison with the CPU found
            no difference, failed or did not end. Empty otherwise.
        unchecked: the error of the GPU that ended the comparison with the CPU, in one line. It is
            then unknown whether the GPU computes correctly. Empty if there was no such error.
        seconds: duration of the whole test.
        arithmetic: comparisons with the CPU, also those of the second comparison.
        trainings: comparisons of graphs with plain steps.
    """

    wrong: str = ""
    plain_because: str = ""
    cause: PlainCause | None = None
    doubt: str = ""
    unchecked: str = ""
    seconds: float = 0.0
    arithmetic: tuple[GradientComparison, ...] = ()
    trainings: tuple[TrainingComparison, ...] = ()

    @property
    def is_final(self) -> bool:
        """False if an error or other load on the GPU caused the verdict.

        A later test may then have another verdict.
        """
        return self.cause not in (PlainCause.ERROR, PlainCause.SLOW_GRAPHS)

    def as_fields(self) -> dict[str, Any]:
        """Return the verdict as JSON types, by key of the file of ``gpu-check``."""
        fields = asdict(self)
        del fields["cause"]
        fields["is_final"] = self.is_final
        fields["is_only_slow"] = self.cause == PlainCause.SLOW_GRAPHS
        return fields


def wrong_verdict(first: CpuResult, second: CpuResult | None = None) -> Verdict:
    """Return the verdict on a device that has computed wrongly at least once.

    The verdict is final even if the second comparison finds no difference: trials never use a
    device that has computed wrongly.

    Args:
        first: the first comparison with the CPU, which found the problem.
        second: the second comparison; None if it has not ended.
    """
    comparisons = first.comparisons
    if second is not None:
        comparisons += second.comparisons
    return Verdict(
        wrong=first.problem,
        plain_because=first.problem,
        cause=PlainCause.WRONG_GPU,
        doubt=_doubt(first, second),
        arithmetic=comparisons,
    )


def _doubt(first: CpuResult, second: CpuResult | None) -> str:
    """Return why a wrong result is in doubt; empty if the second comparison confirmed it."""
    last = second or first
    if last.error_text:
        return f"a later comparison with the CPU failed: {last.error_text}"
    if second is None:
        return "the second comparison with the CPU did not end"
    if not second.problem:
        return "the second comparison with the CPU found no difference"
    return ""


def error_verdict(result: CpuResult) -> Verdict:
    """Return the verdict if an error ended the comparison before it found a problem.

    Only an error of the GPU itself leaves the device unchecked. Other errors do not count against
    it: memory may be short because of other trials, and a CPU may lack an operation.
    """
    return Verdict(
        plain_because=result.error_text,
        cause=PlainCause.ERROR,
        unchecked=result.error_text if result.is_gpu_error else "",
        arithmetic=result.comparisons,
    )


def graph_verdict(result: CpuResult, graphs: GraphResult) -> Verdict:
    """Return the verdict on a device that has passed the comparison with the CPU."""
    different = _join(comparison.problem for comparison in graphs.trainings)
    slow = _join(comparison.slowness for comparison in graphs.trainings)
    cause = None
    # A difference makes the verdict final, also if an error followed it.
    if different:
        cause = PlainCause.DIFFERENT_GRAPHS
    elif graphs.error_text:
        cause = PlainCause.ERROR
    elif slow:
        cause = PlainCause.SLOW_GRAPHS
    return Verdict(
        plain_because=graphs.error_text or different or slow,
        cause=cause,
        arithmetic=result.comparisons,
        trainings=graphs.trainings,
    )


def _join(texts: Iterable[str]) -> str:
    """Return all texts that are not empty, in one line."""
    return "; ".join(filter(None, texts))
