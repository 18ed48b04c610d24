"""Verdicts on trials that ran out of memory, or for which cuDNN has no kernel.

A verdict says whether a further attempt can succeed. If no attempt can succeed, the verdict
contains a hint for the user.
"""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.specs import TrialSpec


@dataclass(frozen=True)
class TrialVerdict:
    """The decision of the resource policy about a failed trial.

    Attributes:
        is_final: True if every further attempt would fail as well.
        hint: advice for the user, or an empty text if the trial may be tried again.
    """

    is_final: bool = False
    hint: str = ""


MAY_RETRY = TrialVerdict()
"""Verdict on a trial that may succeed with its next request."""


@dataclass(frozen=True)
class MemoryLimit:
    """The name of a memory that is too small for a trial, with advice. Both are words of a
    hint.

    Attributes:
        name: name of the memory, for example "the memory of a whole GPU".
        advice: sentence that says how the user can get more of this memory.
    """

    name: str
    advice: str


MACHINE = MemoryLimit("the memory of the machine", "Choose a larger machine")
WHOLE_GPU = MemoryLimit("the memory of a whole GPU", "Choose a larger GPU")
OCCUPIED_GPU = MemoryLimit(
    "the GPU memory that other processes leave free",
    "End the other processes, choose another GPU",
)


def too_little_memory(
    trial: TrialSpec, limit: MemoryLimit, *, suggest_splitting: bool
) -> TrialVerdict:
    """Return the final verdict on a trial that cannot get enough memory.

    Args:
        trial: the trial.
        limit: the memory that is too small.
        suggest_splitting: If True, the hint also says how the sweep file allows isweep to
            split batches.
    """
    recipe = trial.network.recipe
    hint = (
        f"{trial.network.model.name} at batch size {recipe.batch_size} needs more than "
        f"{limit.name}. {limit.advice}, or lower recipe.batch_size"
    )
    if suggest_splitting:
        hint = (
            f"{hint}. Or set `resources.micro_batches: on`. isweep then splits each batch, "
            "and batch norm uses the statistics of each part"
        )
    return TrialVerdict(is_final=True, hint=hint)


def no_kernel_verdict(trial: TrialSpec) -> TrialVerdict:
    """Return the final verdict on a trial that failed because cuDNN has no kernel for it on
    its GPU.
    """
    recipe = trial.network.recipe
    hint = (
        f"cuDNN has no kernel for {trial.network.model.name} at batch size {recipe.batch_size} in "
        f"{recipe.precision} on this GPU, which has enough free memory. Install another torch, "
        "choose another GPU, or change recipe.batch_size or recipe.precision"
    )
    return TrialVerdict(is_final=True, hint=hint)
