"""Verdicts on trials that failed because of their request, with hints for the user.

A verdict says whether a further attempt can succeed. A trial fails because of its request if
it runs out of memory, or if cuDNN has no kernel for it.
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
    """The words of a hint about a memory that is too small for a trial.

    Attributes:
        clause_end: words that complete the sentence "... needs more memory than".
        fix: text about what the user can do.
    """

    clause_end: str
    fix: str


MACHINE = LimitText("this machine could give the trial", "Choose a larger machine")
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
        limit: words about the memory that is too small.
        suggest_splitting: If True, the hint also says how the sweep file allows isweep to
            split batches.
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
