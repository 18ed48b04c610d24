"""Fit of a table within and between its groups, with the pooled correlation for comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from textwrap import wrap

import pandas as pd

from orchestrator.analysis.answers import holm_adjusted
from orchestrator.analysis.grouped_tables.between import between_slopes
from orchestrator.analysis.grouped_tables.design import Design, Level
from orchestrator.analysis.grouped_tables.pooled import PooledCorrelation, pooled_correlations
from orchestrator.analysis.grouped_tables.rows import standardize
from orchestrator.analysis.grouped_tables.scatter import MeanScatter
from orchestrator.analysis.grouped_tables.sentences import answer, pooled_answer
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.grouped_tables.user_table import UserTable
from orchestrator.analysis.grouped_tables.within import within_slopes

TERMINAL_WIDTH = 80
"""Largest number of characters of a line in the terminal."""


@dataclass(frozen=True, slots=True)
class GroupedFit:
    """The result of a fit of a table within and between its groups.

    Attributes:
        design: Columns of the fit.
        num_rows: Number of fitted rows.
        num_groups: Number of units. A unit is a group, or a combination of groups of several
            columns.
        slopes: One slope for each column and level.
        scatter: One entry for each column that varies within groups: the part of the variance
            of the groups' means that comes from scatter of rows.
        pooled: One correlation for each column, over all rows, computed as if rows were
            independent.
        remarks: Sentences on rows that were left out, on suspicious values and on crossing
            columns.
    """

    design: Design
    num_rows: int
    num_groups: int
    slopes: tuple[Slope, ...]
    scatter: tuple[MeanScatter, ...]
    pooled: tuple[PooledCorrelation, ...]
    remarks: tuple[str, ...]

    def find(self, level: Level, on: str) -> Slope:
        """Return the slope on a column at one level."""
        for slope in self.slopes:
            if slope.level == level and slope.on == on:
                return slope
        raise KeyError((level, on))

    def sentence(self, on: str) -> str:
        """Return the sentences on the slopes of one column."""
        within = self.find("within", on)
        between = self.find("between", on)
        scatter = None
        for part in self.scatter:
            if part.on == on:
                scatter = part
        return answer(self.design, self.num_groups, within, between, scatter)

    def why_pooled_misleads(self, pooled: PooledCorrelation) -> str:
        """Return the sentences on a pooled correlation, and on the relations that it mixes."""
        return pooled_answer(self.design, self.num_rows, self.num_groups, pooled)

    def lines(self) -> Iterator[str]:
        """Yield the sentences and remarks as lines for a terminal."""
        texts = [self.sentence(on) for on in self.design.on]
        texts += [self.why_pooled_misleads(pooled) for pooled in self.pooled]
        texts += self.remarks
        for text in texts:
            yield from wrap(text, TERMINAL_WIDTH, subsequent_indent="  ", break_long_words=False)

    def to_json(self) -> dict[str, object]:
        """Return all numbers, verdicts and sentences, ready for JSON."""
        document = asdict(self)
        for entry, slope in zip(document["slopes"], self.slopes, strict=True):
            entry["verdict"] = slope.verdict
        document["sentences"] = [self.sentence(on) for on in self.design.on]
        return document


def fit_user_table(table: UserTable, design: Design) -> GroupedFit:
    """Fit a table from a user's file. The fit also contains the remarks of :class:`UserTable`."""
    crossing = [column.name for column in table.crossing]
    fit = fit_groups(table.rows, design, crossing=crossing)
    remarks = table.remarks + fit.remarks
    return replace(fit, remarks=remarks)


def fit_groups(
    table: pd.DataFrame,
    design: Design,
    *,
    crossing: Sequence[str] = (),
    pairs: bool = False,
) -> GroupedFit:
    """Fit rows within groups and between groups.

    Args:
        table: Rows with the columns of the design and the crossing columns.
        design: Columns of the fit.
        crossing: Columns outside the design whose values recur in most groups. A claim must
            also hold if rows with the same value in such a column are dependent.
        pairs: True if all columns of groups contain names of the same kind, for example both
            classes of a pair.
    """
    data = standardize(table, design, crossing, pairs)
    factors = dict(zip(design.on, data.units_per_slope.tolist(), strict=True))
    slopes = []
    for within in within_slopes(data):
        factor = factors[within.on]
        slopes.append(within.times(factor))
    scatter = []
    for between in between_slopes(data):
        factor = factors[between.slope.on]
        slopes.append(between.slope.times(factor))
        if between.scatter is not None:
            scatter.append(between.scatter.times(factor))
    return GroupedFit(
        design=design,
        num_rows=len(table),
        num_groups=len(data.groups.unit_names),
        slopes=holm_adjusted(slopes, "table"),
        scatter=tuple(scatter),
        pooled=tuple(pooled_correlations(data)),
        remarks=tuple(data.groups.remarks),
    )
