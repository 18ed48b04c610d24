"""A table fitted within and between its groups, with the pooled correlation beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from textwrap import wrap

import pandas as pd

from orchestrator.analysis.grouped_tables import sentences
from orchestrator.analysis.grouped_tables.between import MeanScatter, between_slopes
from orchestrator.analysis.grouped_tables.design import Design, Level
from orchestrator.analysis.grouped_tables.pooled import PooledCorrelation, pooled_correlation
from orchestrator.analysis.grouped_tables.rows import standardise
from orchestrator.analysis.grouped_tables.slopes import Slope, adjusted
from orchestrator.analysis.grouped_tables.user_table import UserTable
from orchestrator.analysis.grouped_tables.within import within_slopes

TERMINAL_WIDTH = 80


@dataclass(frozen=True, slots=True)
class GroupedFit:
    """Slopes of a table within and between its groups, and what a reader has to know beside them.

    Attributes:
        design: What was asked.
        num_rows: Rows that were fitted.
        num_groups: Units: groups, or combinations of several columns of groups.
        slopes: One per column and level.
        scatter: Scatter of rows in the groups' means, of columns that vary within groups.
        pooled: Correlation over all rows as if independent, one per column.
        remarks: Sentences on rows left out, suspicious values and unnamed columns.
    """

    design: Design
    num_rows: int
    num_groups: int
    slopes: tuple[Slope, ...]
    scatter: tuple[MeanScatter, ...]
    pooled: tuple[PooledCorrelation, ...]
    remarks: tuple[str, ...]

    def find(self, level: Level, on: str) -> Slope:
        """Return one slope."""
        return next(slope for slope in self.slopes if (slope.level, slope.on) == (level, on))

    def sentence(self, on: str) -> str:
        """Say what is claimed of one column at each level, and nothing else."""
        slopes = (self.find("within", on), self.find("between", on))
        scatter = next((part for part in self.scatter if part.on == on), None)
        return sentences.answer(self.design, self.num_groups, slopes, scatter)

    def why_pooled_misleads(self, pooled: PooledCorrelation) -> str:
        """Say what the pooled correlation is, and what it mixes."""
        return sentences.pooled_answer(self.design, self.num_rows, self.num_groups, pooled)

    def lines(self) -> Iterator[str]:
        """Yield what a terminal shows."""
        texts = [self.sentence(on) for on in self.design.on]
        texts += [self.why_pooled_misleads(pooled) for pooled in self.pooled]
        for text in (*texts, *self.remarks):
            yield from wrap(text, TERMINAL_WIDTH, subsequent_indent="  ", break_long_words=False)

    def to_json(self) -> dict[str, object]:
        """Return all numbers, with the sentences."""
        slopes = [{**asdict(slope), "established": slope.established} for slope in self.slopes]
        answers = [self.sentence(on) for on in self.design.on]
        return {**asdict(self), "slopes": slopes, "sentences": answers}


def fit_user_table(table: UserTable, design: Design) -> GroupedFit:
    """Fit a table that a user's file holds."""
    crossing = [column.name for column in table.crossing]
    fit = fit_groups(table.rows, design, crossing=crossing)
    return replace(fit, remarks=(*table.remarks, *fit.remarks))


def fit_groups(
    table: pd.DataFrame, design: Design, *, crossing: Sequence[str] = (), pairs: bool = False
) -> GroupedFit:
    """Fit rows within groups and between them.

    Args:
        table: Rows with the columns of the design and the crossing ones.
        design: What is asked.
        crossing: Columns that recur over groups and are not named: a claim must also hold when
            rows of one value are taken for dependent.
        pairs: Whether all columns of groups name the same things, as both classes of a pair do.
    """
    data = standardise(table, design, crossing, pairs)
    between = [*between_slopes(data)]
    standard = [*within_slopes(data), *(part.slope for part in between)]
    factors = dict(zip(design.on, data.units_per_slope.tolist(), strict=True))
    slopes = adjusted([slope.times(factors[slope.on]) for slope in standard])
    scatter = [part.scatter for part in between if part.scatter is not None]
    pooled: list[PooledCorrelation] = []
    if len(table) > 2:  # two rows lie on a line
        pooled = [
            pooled_correlation(name, data.response, data.columns[:, place], data.groups)
            for place, name in enumerate(design.on)
        ]
    return GroupedFit(
        design=design,
        num_rows=len(table),
        num_groups=len(data.groups.unit_names),
        slopes=slopes,
        scatter=tuple(part.times(factors[part.on]) for part in scatter),
        pooled=tuple(pooled),
        remarks=tuple(data.groups.remarks),
    )
