"""Judge sweeps: against each other, against the study's claims, and by what they could detect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from isweep.display import Displayed
from isweep.measuring import root_text
from isweep.sweeps import Sweep, open
from orchestrator.planning.sweep_file import SweepSource
from orchestrator.planning.workspace import Workspace

if TYPE_CHECKING:
    from orchestrator.analysis.claims import Ledger
    from orchestrator.analysis.power import Power as PowerRecord
    from orchestrator.analysis.published import SweepComparison


@dataclass(frozen=True, repr=False)
class Comparison(Displayed):
    """Differences between the results of two sweeps.

    Attributes:
        record: The change of each quantity, with its 95 % interval over datasets.
    """

    record: SweepComparison

    def to_frame(self) -> pd.DataFrame:
        """Return one row per quantity: the second sweep over the first.

        ``ratio`` is a ratio of geometric means; for accuracies it is a difference of means.
        """
        rows = []
        for change in self.record.changes:
            row = asdict(change)
            row["low"], row["high"] = row.pop("interval") or (None, None)
            rows.append(row)
        return pd.DataFrame(rows)

    displayed = to_frame

    def __repr__(self) -> str:
        return f"Comparison: {self.record.second} over {self.record.first}"


def compare(
    first: Sweep | str, second: Sweep | str, *, root: str | Path | None = None
) -> Comparison:
    """Compare two sweeps on the trials that both have.

    Seeds are averaged first, and each dataset counts once.

    Args:
        first: A sweep, or its name as :func:`isweep.open` takes it.
        second: The other sweep; ratios are of this one over the first.
        root: Folder that holds all results; None takes ``$ISWEEP_ROOT`` or ``./isweep-root``.

    Returns:
        The change of losses, accuracies and measures.

    Raises:
        SweepError: If a sweep has no results, or no combination of model, dataset and train size
            is in both.

    Example:
        >>> import isweep
        >>> same = isweep.compare("smoke", isweep.open("smoke"))
        >>> same.to_frame().set_index("quantity").loc["test_loss", "ratio"]
        np.float64(1.0)
    """
    from orchestrator.analysis.published import compare as compare_tables

    sweeps = [_opened(sweep, root) for sweep in (first, second)]
    tables = [sweep.results() for sweep in sweeps]
    names = (sweeps[0].name, sweeps[1].name)
    return Comparison(compare_tables(tables[0], tables[1], names=names))


@dataclass(frozen=True, repr=False)
class Claims(Displayed):
    """The study's numbered claims, each with a verdict.

    Attributes:
        record: The ledger of claims, with how the sweep agrees with published numbers.
    """

    record: Ledger

    def to_frame(self) -> pd.DataFrame:
        """Return one row per claim: its number, value, 95 % interval, p-values and verdict."""
        return pd.DataFrame(self.record.to_json()["entries"])

    def displayed(self) -> pd.DataFrame:
        """Return each claim with its verdict and the reason."""
        return self.to_frame()[["number", "claim", "verdict", "why"]]

    def __repr__(self) -> str:
        return "\n".join(self.record.lines())


def claims(sweep: Sweep | str | None = None, *, root: str | Path | None = None) -> Claims:
    """Decide every numbered claim of the study, from a sweep or from the published numbers.

    Args:
        sweep: A sweep, or its name as :func:`isweep.open` takes it. None takes the numbers that
            the study published.
        root: Folder that holds all results; None takes ``$ISWEEP_ROOT`` or ``./isweep-root``.

    Returns:
        The claims. A claim needs an adjusted p-value of at most 0.05 and a 95 % interval that
        excludes the null value.

    Raises:
        SweepError: If the sweep has no results.

    Example:
        >>> import isweep
        >>> "Thm 1" in set(isweep.claims().to_frame()["number"])
        True
    """
    from orchestrator.analysis.claims import ledger
    from orchestrator.analysis.published import published_table
    from orchestrator.analysis.report import arms_of

    if sweep is None:
        return Claims(ledger(published_table(), sweep="the published numbers", compare=False))
    opened = _opened(sweep, root)
    arms = arms_of(opened.workspace)
    return Claims(ledger(opened.results(), sweep=opened.name, arms=arms))


@dataclass(frozen=True, repr=False)
class Power(Displayed):
    """Chances that a planned sweep answers its questions.

    Attributes:
        record: The share of simulated sweeps with an answer, by question.
    """

    record: PowerRecord

    def to_frame(self) -> pd.DataFrame:
        """Return one row per question: the share of answers, alone and after Holm's correction."""
        rows = []
        for question, alone in self.record.alone.items():
            adjusted = self.record.adjusted[question]
            rows.append({"question": question, "alone": alone, "adjusted": adjusted})
        return pd.DataFrame(rows, columns=["question", "alone", "adjusted"])

    displayed = to_frame

    def __repr__(self) -> str:
        return "\n".join(self.record.lines())


def power(
    source: SweepSource,
    *,
    effect: str = "law",
    num_tables: int = 200,
    seed: int = 0,
    changes: Mapping[str, object] | None = None,
    root: str | Path | None = None,
) -> Power:
    """Simulate how often a sweep's own analysis would detect an effect. Nothing is trained.

    Args:
        source: Name of a preset or of a sweep of the root, path of a sweep file, or its content.
        effect: What is true in the simulation: ``law`` (all of it), or ``sharpness``,
            ``exponent`` or ``d_data`` alone.
        num_tables: Number of simulated sweeps; the standard error of a share is at most
            ``0.5 / sqrt(num_tables)``.
        seed: Seed of the simulation.
        changes: Values that replace those of the source, by dotted key.
        root: Folder that holds all results; None takes ``$ISWEEP_ROOT`` or ``./isweep-root``.

    Returns:
        The share of simulated sweeps in which each question was answered.

    Raises:
        SweepError: If the sweep is invalid, or has fewer than three datasets.

    Example:
        >>> import isweep
        >>> found = isweep.power("demo", num_tables=20)
        >>> bool(found.to_frame()["alone"].between(0, 1).all())
        True
    """
    from orchestrator.analysis.power import planned_power

    workspace = Workspace.open(source, root_text(root), changes=changes)
    record = planned_power(workspace.plan, effect=effect, num_tables=num_tables, seed=seed)
    return Power(record)


def _opened(sweep: Sweep | str, root: str | Path | None) -> Sweep:
    """Return the sweep; a name or path is opened."""
    if isinstance(sweep, Sweep):
        return sweep
    return open(sweep, root=root)
