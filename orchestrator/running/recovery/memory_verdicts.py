"""Verdicts on trials that failed with their request: can a further attempt succeed, and hints.

A trial fails with its request if it ran out of memory, or if cuDNN has no kernel for it.
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
class LimitText:
    """The texts about a memory that is too little for a trial.

    Attributes:
        clause_end: end of the sentence "... needs more memory than".
        fix: text about what the user can do.
    """

    clause_end: str
    fix: str


MACHINE = LimitText("the machine gave", "Choose a larger machine")
WHOLE_GPU = LimitText("a whole GPU has", "Choose a larger GPU")
OCCUPIED_GPU = LimitText(
    "other processes leave on the GPU", "End the other processes, choose another GPU"
)


def too_little_memory(
    trial: TrialSpec, limit: LimitText, *, suggest_splitting: bool
) -> TrialVerdict:
    """Return the final verdict on a trial that cannot get enough memory.

    Args:
        trial: the trial.
        limit: texts about the memory that is too little.
        suggest_splitting: If True, add that the sweep can allow isweep to split the batches.
    """
    recipe = trial.network.recipe
    hint = (
        f"{trial.network.model.name} at batch size {recipe.batch_size} needs more memory than "
        f"{limit.clause_end}. {limit.fix}, or lower recipe.batch_size"
    )
    if suggest_splitting:
        hint = (
            f"{hint}. Or set `resources.micro_batches: on`. isweep then splits each batch, "
            "and batch norm uses the statistics of smaller batches"
        )
    return TrialVerdict(is_final=True, hint=hint)


def no_kernel_verdict(trial: TrialSpec) -> TrialVerdict:
    """Return the final verdict on a trial for which cuDNN has no kernel on its GPU."""
    recipe = trial.network.recipe
    hint = (
        f"cuDNN has no kernel for {trial.network.model.name} at batch size {recipe.batch_size} in "
        f"{recipe.precision} on this GPU, which has enough free memory. Install another torch, "
        "choose another GPU, or change recipe.batch_size or recipe.precision"
    )
    return TrialVerdict(is_final=True, hint=hint)
