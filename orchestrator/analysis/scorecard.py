"""A sweep against every published quantity: which agree, by a stated rule, and which cannot be compared yet.

The rule: a quantity agrees where ours lies within its tolerance of the published one. The tolerance is
what the published value can be read to, plus what repeats of the study itself vary by: d 10 %, K_F 25 % (a
maximum), losses a factor 1.5, d_repr 25 %, loss gains a factor 2, and a derived slope its own 95 %
interval. Data modes are scored apart: the corrected one is not expected to agree where a fault of the
released code made the published number (docs/faults.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from orchestrator.analysis.fit_records import ScalingFits
from orchestrator.analysis.fits import fit_scaling_laws
from orchestrator.analysis.formats import Table, interval, number, p_value
from orchestrator.analysis.published import published_loss_gains, published_table
from orchestrator.analysis.text import to_text
from orchestrator.results import columns as c

_CELL = [c.DATASET, c.TRAIN_SIZE]
_RUN = [c.MODEL, *_CELL]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A published column, by which key its cells are named, and by which factor ours may differ."""

    name: str
    column: str
    key: tuple[str, ...]
    factor: float
    num_published: int


QUANTITIES = (
    Quantity("d_data", c.D_DATA_MLE, tuple(_CELL), 1.10, 66),
    Quantity("K_F", c.LABEL_SHARPNESS, (c.DATASET,), 1.25, 11),
    Quantity("test loss", c.TEST_LOSS, tuple(_RUN), 1.5, 261),
    Quantity("d_repr (MLE)", c.D_REPR_MLE, tuple(_RUN), 1.25, 396),
    Quantity("d_repr (TwoNN)", c.D_REPR_TWONN, tuple(_RUN), 1.25, 66),
    Quantity("FGSM loss gain at 2/255", "fgsm_2_loss_gain", (c.DATASET,), 2.0, 11),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many published cells of one quantity a sweep in one data mode has, and how many agree.

    ``median_ratio`` is ours over theirs over the compared cells, 1 where they agree on the whole.
    """

    quantity: str
    data_mode: str
    num_published: int
    num_compared: int
    num_agreeing: int
    tolerance: float
    median_ratio: float | None
    apart: tuple[str, ...] = ()


def scorecard(table: pd.DataFrame) -> tuple[Score, ...]:
    """Score a results table (a partial one too) against every published quantity, by data mode.

    Args:
        table: one row per trial, columns of :mod:`orchestrator.results.columns`.

    Returns:
        One score per data mode and quantity; cells a sweep does not have yet count as not compared.
    """
    theirs = published_table()
    gains = published_loss_gains().rename(columns={"loss_gain": "fgsm_2_loss_gain"})
    modes = sorted(table[c.DATA_MODE].unique()) if c.DATA_MODE in table else [""]
    return tuple(
        _score(
            table[table[c.DATA_MODE] == mode] if c.DATA_MODE in table else table,
            gains if quantity.column == "fgsm_2_loss_gain" else theirs,
            quantity,
            str(mode),
        )
        for mode in modes
        for quantity in QUANTITIES
    )


def _score(ours: pd.DataFrame, theirs: pd.DataFrame, quantity: Quantity, mode: str) -> Score:
    both = pd.DataFrame(
        {"ours": _means(ours, quantity), "theirs": _means(theirs, quantity)}
    ).dropna()  # fmt: skip
    ratio = both["ours"] / both["theirs"]
    off = np.abs(np.log(ratio.to_numpy(dtype=float))) > np.log(quantity.factor) * (1 + 1e-9)
    names = ["-".join(map(str, key if isinstance(key, tuple) else (key,))) for key in both.index[off]]
    return Score(
        quantity=quantity.name,
        data_mode=mode,
        num_published=quantity.num_published,
        num_compared=len(both),
        num_agreeing=int((~off).sum()),
        tolerance=quantity.factor,
        median_ratio=float(ratio.median()) if len(both) else None,
        apart=tuple(names),
    )


def _means(table: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """Geometric mean of the positive values of every cell; empty where the table lacks the column."""
    if quantity.column not in table:
        return pd.Series(dtype=float)
    known = table[table[quantity.column] > 0]
    logs = pd.Series(np.log(known[quantity.column].to_numpy(dtype=float)), index=known.index)
    means = logs.groupby([known[name] for name in quantity.key]).mean()
    return pd.Series(np.exp(means.to_numpy()), index=means.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedReport:
    """The paper's own regressions redone on its published numbers, with and without the prostate set."""

    with_prostate: ScalingFits
    without_prostate: ScalingFits

    def tables(self) -> list[Table]:
        """Return the regressions, their frailty, and the exact permutation tests, as tables of text."""
        return [_slopes(self), _gaps(self)]

    def to_text(self) -> str:
        """Return the tables as plain text."""
        return "\n\n".join(to_text(table) for table in self.tables())


def published_report() -> PublishedReport:
    """Redo the published regressions from the published numbers: what they say, and what they hang on."""
    table = published_table()
    rest = table[table[c.DATASET] != "prostate"]
    return PublishedReport(
        with_prostate=fit_scaling_laws(table, sharpness_policy="ignore"),
        without_prostate=fit_scaling_laws(rest, sharpness_policy="ignore"),
    )


def _slopes(report: PublishedReport) -> Table:
    rows = []
    for model in report.with_prostate.models:
        cells: list[str] = [model]
        for fits in (report.with_prostate, report.without_prostate):
            fit = fits.law("loss_on_d_data", model=model, subset=c.MEDICAL)
            slope = fit.coefficients[1]
            cells += [number(slope.value), interval(slope.interval), number(fit.r_squared)]
        rows.append(tuple(cells))
    return Table(
        "published-medical-slope",
        "Log test loss per unit of d_data, medical datasets",
        "As published (pooled over N), with and without the prostate set; 95 % jackknife intervals over "
        "datasets.",
        ("model", "slope", "interval", "R²", "without prostate", "interval", "R²"),
        tuple(rows),
    )


def _gaps(report: PublishedReport) -> Table:
    rows = []
    for model in report.with_prostate.models:
        cells: list[str] = [model]
        for fits in (report.with_prostate, report.without_prostate):
            gap = fits.level("is_medical", model=model).coefficient("is_medical")
            cells += [interval(gap.interval), p_value(gap.permutation_p)]
        rows.append(tuple(cells))
    return Table(
        "published-domain-gap",
        "Log test loss, medical against natural, at equal N",
        "t intervals over dataset means and exact permutation of the label, with and without the prostate "
        "set.",
        ("model", "gap", "exact p", "without prostate", "exact p"),
        tuple(rows),
    )


def score_table(scores: tuple[Score, ...]) -> Table:
    """Return a scorecard as a table of text."""
    rows = tuple(
        (
            s.data_mode,
            s.quantity,
            f"{s.num_agreeing} of {s.num_compared}",
            f"{s.num_compared} of {s.num_published}",
            f"{s.tolerance:g}",
            number(s.median_ratio),
            ", ".join(s.apart[:5]) + (f" and {len(s.apart) - 5} more" if len(s.apart) > 5 else ""),
        )
        for s in scores
    )
    return Table(
        "scorecard",
        "Against every published quantity",
        "A cell agrees where ours is within the factor of the published value; cells not in this sweep are "
        "not counted.",
        ("data mode", "quantity", "agree", "compared", "factor", "median ratio", "apart"),
        rows,
        numeric_from=2,
    )
