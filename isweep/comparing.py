"""Compare sweeps, give verdicts on the study's claims, and simulate the power of a sweep."""

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
        """Return one row per quantity, with the change from the first to the second sweep.

        ``ratio`` is the geometric mean of the second sweep divided by the geometric mean of
        the first. For accuracies, it is the mean of the second sweep minus the mean of the
        first.
        """
        rows = []
        for change in self.record.changes:
            row = asdict(change)
            row["low"], row["high"] = row.pop("interval") or (None, None)
            rows.append(row)
        return pd.DataFrame(rows)

    displayed = to_frame

    def __repr__(self) -> str:
        return f"Comparison of the sweep {self.record.second} with the sweep {self.record.first}"


def compare(
    first: Sweep | str, second: Sweep | str, *, root: str | Path | None = None
) -> Comparison:
    """Compare two sweeps on the trials that both have.

    Seeds are averaged first, and each dataset counts once.

    Args:
        first: A sweep, or its name or path, as in :func:`isweep.open`.
        second: The other sweep. Each ratio is a value of this sweep divided by the same value
            of the first sweep.
        root: Folder of all results; None for ``$ISWEEP_ROOT`` or ``./isweep-root``.

    Returns:
        The change of losses, accuracies and measures.

    Raises:
        SweepError: A sweep has no results, or the sweeps have no combination of model, dataset
            and train size in common.

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
        record: The claims, with a comparison of the sweep with published numbers.
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
    """Return a verdict on every numbered claim of the study.

    Args:
        sweep: A sweep, or its name or path, as in :func:`isweep.open`. If it is None, use the
            numbers that the study published.
        root: Folder of all results; None for ``$ISWEEP_ROOT`` or ``./isweep-root``.

    Returns:
        The claims. A claim is decided only if its adjusted p-value is at most 0.05 and its
        95 % interval excludes the null value.

    Raises:
        SweepError: The sweep has no results.

    Example:
        >>> import isweep
        >>> "Thm 1" in set(isweep.claims().to_frame()["number"])
        True
    """
    from orchestrator.analysis.claims import ledger
    from orchestrator.analysis.published import published_table
    from orchestrator.analysis.report import arms_of, facts_of

    if sweep is None:
        return Claims(ledger(published_table(), sweep="the published numbers", compare=False))
    opened = _opened(sweep, root)
    arms = arms_of(opened.workspace)
    facts = facts_of(opened.workspace)
    return Claims(ledger(opened.results(), sweep=opened.name, arms=arms, facts=facts))


@dataclass(frozen=True, repr=False)
class Power(Displayed):
    """The probability that a planned sweep answers each of its questions.

    Attributes:
        record: The share of simulated sweeps that answer each question.
    """

    record: PowerRecord

    def to_frame(self) -> pd.DataFrame:
        """Return one row per question, with the share of simulated sweeps that answer the question.

        ``alone`` is this share without Holm's correction. ``adjusted`` is the share with
        Holm's correction.
        """
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
    """Simulate how often the analysis of a sweep would detect an effect, without training.

    Args:
        source: Name of a preset or of a sweep of the root, path of a sweep file, or its
            content.
        effect: The effect that exists in the simulation: the whole law (``law``), or only one
            part of it (``sharpness``, ``exponent`` or ``d_data``).
        num_tables: Number of simulated sweeps. The standard error of a share is at most
            ``0.5 / sqrt(num_tables)``.
        seed: Seed of the simulation.
        changes: New values by dotted key. They replace values of the source.
        root: Folder of all results; None for ``$ISWEEP_ROOT`` or ``./isweep-root``.

    Returns:
        For each question, the share of simulated sweeps that answer it.

    Raises:
        SweepError: The sweep is invalid, or has fewer than three datasets.

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
    """Return a sweep. If the caller gave its name or path, open it."""
    if isinstance(sweep, Sweep):
        return sweep
    return open(sweep, root=root)
