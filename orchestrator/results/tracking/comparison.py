"""What a tracker shows beside what the store holds: the store counts, and every difference is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.results import columns as c
from orchestrator.results.rows import Row

Value = str | int | float | None
MOST_SAID = 3


@dataclass(frozen=True)
class Difference:
    """One value of one trial that the tracker shows otherwise than the store."""

    trial_id: str
    column: str
    stored: Value
    tracked: Value

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.trial_id} {self.column}: {_spelled(self.tracked)}, stored {_spelled(self.stored)}"


@dataclass(frozen=True)
class Comparison:
    """How a tracker's rows differ from the store's.

    Attributes:
        missing: Trials that the store has and the tracker lacks.
        strange: Trials that the tracker has and the store lacks.
        differences: Values that differ, ordered by trial.
    """

    missing: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()

    def sentences(self, mend: str) -> list[str]:
        """Say what differs, if anything, and the command ``mend`` that mends it."""
        said = []
        if self.differences:
            trials = len({difference.trial_id for difference in self.differences})
            shown = "; ".join(map(str, self.differences[:MOST_SAID]))
            more = len(self.differences) - MOST_SAID
            shown += f"; and {more} more" if more > 0 else ""
            said.append(
                f"MLflow differs from the result store in {len(self.differences)} values of {trials} trials "
                f"({shown}); the store's are used. Mend MLflow with `{mend}`"
            )
        if self.missing:
            said.append(
                f"MLflow lacks {len(self.missing)} results that the store has: send them with `{mend}`"
            )
        if self.strange:
            said.append(
                f"MLflow shows {len(self.strange)} trials of which the sweep, as it is planned now, has no "
                "result; left out"
            )
        return said


def compare(stored: Iterable[Row], tracked: Iterable[Row]) -> Comparison:
    """Compare rows cell by cell; a column that is absent on one side is a difference too."""
    ours = {str(row[c.TRIAL_ID]): row for row in stored}
    theirs = {str(row[c.TRIAL_ID]): row for row in tracked}
    differences = [
        Difference(trial_id, column, row.get(column), shown.get(column))
        for trial_id, row in sorted(ours.items())
        if (shown := theirs.get(trial_id)) is not None
        for column in _names(row, shown)
        if row.get(column) != shown.get(column)
    ]
    return Comparison(
        tuple(sorted(ours.keys() - theirs.keys())),
        tuple(sorted(theirs.keys() - ours.keys())),
        tuple(differences),
    )


def _names(row: Row, shown: Row) -> list[str]:
    """Return the columns to compare: ours, and of the tracker's only those that are ours in kind."""
    strangers = {column.name for column in c.describe(shown) if column.origin is None}
    return [name for name in {**row, **shown} if name in row or name not in strangers]


def _spelled(value: Value) -> str:
    return "nothing" if value is None else repr(value)
