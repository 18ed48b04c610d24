"""The verdict of a self-test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.machine.self_test.gradients import Arithmetic
from orchestrator.machine.self_test.graph_trainings import TrainingComparison


@dataclass(frozen=True)
class Verdict:
    """The verdict of a self-test.

    Attributes:
        wrong: what the GPU computes wrongly, in one line; empty if it computes correctly.
        plain_because: why trials use plain steps, in one line; empty if they use graphs.
        is_final: False if an error or other load on the GPU caused the verdict. A later test may
            then have another verdict.
        doubt: how the second comparison with the CPU ended, if it did not confirm that the GPU
            computes wrongly. Empty if the second comparison confirmed it, and if the GPU computes
            correctly.
        unchecked: the error of the GPU that ended the comparison with the CPU, in one line. It is
            then unknown whether the GPU computes correctly. Empty if there was no such error.
        seconds: duration of the whole test.
        arithmetic: comparisons with the CPU, also those of the second comparison.
        trainings: comparisons of graphs with plain steps.
    """

    wrong: str
    plain_because: str
    is_final: bool
    doubt: str = ""
    unchecked: str = ""
    seconds: float = 0.0
    arithmetic: tuple[Arithmetic, ...] = ()
    trainings: tuple[TrainingComparison, ...] = ()

    @property
    def is_only_slow(self) -> bool:
        """True if graphs compute correctly and are only slower than plain steps."""
        return bool(self.plain_because) and self.plain_because == _slowness_of(self.trainings)

    def as_fields(self) -> dict[str, Any]:
        """Return the fields as JSON types, by name."""
        return asdict(self) | {"is_only_slow": self.is_only_slow}


def _wrong_in(arithmetic: Sequence[Arithmetic]) -> str:
    """Return what a device computes wrongly, in one line; empty if nothing is wrong."""
    return "; ".join(filter(None, (comparison.problem for comparison in arithmetic)))


def _wrong_verdict(
    arithmetic: Sequence[Arithmetic], repeated: Sequence[Arithmetic], error_text: str
) -> Verdict:
    """Return the verdict on a device that has computed wrongly at least once.

    The verdict is final even if the second comparison finds no difference: trials never use a
    device that has computed wrongly.

    Args:
        arithmetic: the first comparison with the CPU.
        repeated: the second comparison; empty if it has not ended.
        error_text: the error that ended a later comparison; empty if there was none.
    """
    wrong = _wrong_in(arithmetic)
    doubt = ""
    if error_text:
        doubt = f"a later comparison with the CPU failed: {error_text}"
    elif not repeated:
        doubt = "the second comparison with the CPU did not end"
    elif not _wrong_in(repeated):
        doubt = "the second comparison with the CPU found no difference"
    return Verdict(
        wrong=wrong,
        plain_because=wrong,
        is_final=True,
        doubt=doubt,
        arithmetic=(*arithmetic, *repeated),
    )


def _verdict_on_graphs(trainings: Sequence[TrainingComparison], error_text: str) -> Verdict:
    """Return the verdict on a device that computes correctly, as far as it was compared."""
    different = "; ".join(filter(None, (comparison.problem for comparison in trainings)))
    slow = _slowness_of(trainings)
    return Verdict(
        wrong="",
        plain_because=error_text or different or slow,
        is_final=bool(different) or not (error_text or slow),
        trainings=tuple(trainings),
    )


def _slowness_of(trainings: Sequence[TrainingComparison]) -> str:
    """Return text about trainings that are slower with graphs; empty if there are none."""
    return "; ".join(filter(None, (comparison.slowness for comparison in trainings)))
