"""The published study's numbers: as a results table, beside a sweep's, and beside what was measured of a
source.

The numbers were recovered from the authors' poster and figures (``search_spaces/published/README.md`` says
how far each can be trusted). The per-run d_data of natural datasets was published for all models together
only, so their mean over models stands for each model.

The scorecard's rule: a quantity agrees where ours lies within its tolerance of the published one. The
tolerance is what the published value can be read to, plus what repeats of the study itself vary by: d 10 %,
K_F 25 % (a maximum), losses a factor 1.5, d_repr 25 %, loss gains a factor 2. Slopes of log loss on d_data
(of every model in every domain) are fitted to both on the cells that both have, and agree where ours lies in
the published one's 95 % interval. Data modes are scored apart: the corrected one is not expected to agree
where a fault of the released code made the published number (docs/faults.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis import table as t
from orchestrator.analysis.fit_records import Estimate, Fit, ScalingFits
from orchestrator.analysis.fits import LOSS_ON_D_DATA, fit_height, fit_published, fit_scaling_laws, prepare
from orchestrator.analysis.table import SharpnessScale, interval, number, p_value
from orchestrator.analysis.tables import Table
from orchestrator.results import table as c
from search_spaces.published import read_published

NATURAL_DATASETS = ("mnist", "cifar10", "svhn", "imagenet")
#: Most likely measured on three channels, the others on one; inferred from the bars' height, never stated.
RGB_DATASETS = ("cifar10", "svhn", "imagenet")

#: Of the published loss gains under attack; the epsilon is taken to be 2/255.
NOT_STATED, GAIN = "a model not stated", "fgsm_2_loss_gain"
_KEY = [c.DATASET, c.TRAIN_SIZE]
_RUN = [c.MODEL, *_KEY]


@cache
def _read(name: str) -> pd.DataFrame:
    return pd.DataFrame(read_published(name)).apply(_numbers)


def _numbers(column: pd.Series) -> pd.Series:
    """Numbers where every cell is one or blank, text otherwise."""
    try:
        return pd.to_numeric(column)
    except ValueError:
        return column.where(column != "")


def published_table() -> pd.DataFrame:
    """Return one row per published (model, dataset, train size), in the form of a results table.

    All 396 combinations of six models, eleven datasets and six sizes are there; a loss that cannot be read
    from the figures is missing. ``d_repr_mle`` is from Fig. 5, ``d_repr_twonn`` (VGG13 only) from Fig. 4.
    Eleven rows more hold the published FGSM loss gains, whose model and N are not stated: their model is
    :data:`NOT_STATED`.
    """
    representation = _read("d_repr")
    mle = representation[representation["figure"] == 5]
    twonn = representation[representation["figure"] == 4]
    key = [c.MODEL, *_KEY]
    table = mle[[*key, "d_repr"]].rename(columns={"d_repr": c.D_REPR_MLE})
    table = table.merge(
        twonn[[*key, "d_repr"]].rename(columns={"d_repr": c.D_REPR_TWONN}), on=key, how="left"
    )
    table = table.merge(_read("test_loss")[[*key, c.TEST_LOSS]], on=key, how="left")
    table = table.merge(_read("d_data")[[*_KEY, "d_data"]].rename(columns={"d_data": c.D_DATA_MLE}), on=_KEY)
    gains = published_loss_gains().rename(columns={"loss_gain": GAIN}).drop(columns=c.LABEL_SHARPNESS)
    last = table.drop_duplicates(c.DATASET, keep="last")[[*_KEY, c.D_DATA_MLE]]
    table = pd.concat(
        [table, last.merge(gains, on=c.DATASET).assign(**{c.MODEL: NOT_STATED})], ignore_index=True
    )
    table = table.merge(_read("label_sharpness")[[c.DATASET, c.LABEL_SHARPNESS]], on=c.DATASET)
    natural = table[c.DATASET].isin(NATURAL_DATASETS)
    channels = np.where(table[c.DATASET].isin(RGB_DATASETS), 3, 1)
    added: dict[str, Any] = {
        c.TRIAL_ID: [f"{m}-{d}-{n}" for m, d, n in table[key].itertuples(index=False)],
        c.SWEEP: "published",
        c.DOMAIN: np.where(natural, c.NATURAL, c.MEDICAL),
        c.CLASS_PAIR: "",
        c.SEED: 0,
        c.DATA_MODE: "as_released",
        c.STATUS: c.DONE,
        c.IMAGE_SIZE: 224,
        c.CHANNELS: channels,
        c.SHARPNESS_CHANNELS: channels,
        c.SHARPNESS_PIXEL_RANGE: 255.0,
    }
    return table.assign(**added)


def published_loss_gains() -> pd.DataFrame:
    """Return the published FGSM loss gain (nat) and K_F of each dataset; model and epsilon are not stated."""
    gains = _read("fgsm_loss_gain")[[c.DATASET, "loss_gain"]]
    return gains.merge(_read("label_sharpness")[[c.DATASET, c.LABEL_SHARPNESS]], on=c.DATASET)


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Set a sweep's measures and losses beside the published ones, at equal dataset and train size.

    Returns:
        One row per (dataset, train size) that both have: ``d_data``, ``label_sharpness`` and, averaged over
        the models that both have, the geometric-mean ``test_loss``; each with a ``_published`` twin. Empty
        when nothing matches.
    """
    theirs = published_table()
    shared = table[table[c.MODEL].isin(set(theirs[c.MODEL]))]
    ours = _averages(table).join(_losses(shared), how="left")
    reference = theirs[theirs[c.MODEL].isin(set(shared[c.MODEL]))] if len(shared) else theirs.iloc[:0]
    published = _averages(theirs).join(_losses(reference), how="left")
    return ours.join(published.add_suffix("_published"), how="inner").reset_index()


def _averages(table: pd.DataFrame) -> pd.DataFrame:
    means = table.groupby(_KEY)[[c.D_DATA_MLE, c.LABEL_SHARPNESS]].mean()
    return means.rename(columns={c.D_DATA_MLE: "d_data"})


def _losses(table: pd.DataFrame) -> pd.Series:
    positive = table[table[c.TEST_LOSS] > 0]
    logs = positive.assign(**{c.TEST_LOSS: np.log(positive[c.TEST_LOSS])})
    means = logs.groupby(_KEY)[c.TEST_LOSS].mean()
    return pd.Series(np.exp(means), name=c.TEST_LOSS)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A published column, by which key its cells are named, and by which factor ours may differ."""

    name: str
    column: str
    key: tuple[str, ...]
    factor: float
    num_published: int


QUANTITIES = (
    Quantity("d_data", c.D_DATA_MLE, tuple(_KEY), 1.10, 66),
    Quantity("K_F", c.LABEL_SHARPNESS, (c.DATASET,), 1.25, 11),
    Quantity("test loss", c.TEST_LOSS, tuple(_RUN), 1.5, 261),
    Quantity("d_repr (MLE)", c.D_REPR_MLE, tuple(_RUN), 1.25, 396),
    Quantity("d_repr (TwoNN)", c.D_REPR_TWONN, tuple(_RUN), 1.25, 66),
    Quantity("FGSM loss gain at 2/255", GAIN, (c.DATASET,), 2.0, 11),
)
SLOPES = "slope of log loss on d_data"
#: Of the six models in two domains, those whose published losses give a slope with an interval.
NUM_SLOPES = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many published cells of one quantity a sweep in one data mode has, and how many agree.

    ``tolerance`` is a factor, or None where it is the published value's own 95 % interval. ``median_ratio``
    is ours over theirs over the compared cells, 1 where they agree on the whole.
    """

    quantity: str
    data_mode: str
    num_published: int
    num_compared: int
    num_agreeing: int
    tolerance: float | None
    median_ratio: float | None
    apart: tuple[str, ...] = ()


def scorecard(table: pd.DataFrame) -> tuple[Score, ...]:
    """Score a results table (a partial one too) against every published quantity, by data mode.

    Args:
        table: one row per trial, columns of :mod:`orchestrator.results.table`.

    Returns:
        One score per data mode and quantity; cells a sweep does not have yet count as not compared.
    """
    table, theirs = t.finished_trials(table)[0], published_table()
    scores: list[Score] = []
    for mode in sorted(table[c.DATA_MODE].unique()) if c.DATA_MODE in table else [""]:
        ours = table[table[c.DATA_MODE] == mode] if c.DATA_MODE in table else table
        scores += [_score(ours, theirs, quantity, str(mode)) for quantity in QUANTITIES]
        scores.append(_slope_score(ours, theirs, str(mode)))
    return tuple(scores)


def _score(ours: pd.DataFrame, theirs: pd.DataFrame, quantity: Quantity, mode: str) -> Score:
    both = pd.DataFrame({"ours": _means(ours, quantity), "theirs": _means(theirs, quantity)}).dropna()
    ratio = both["ours"] / both["theirs"]
    off = np.abs(np.log(ratio.to_numpy(dtype=float))) > np.log(quantity.factor) * (1 + 1e-9)
    keys = [key if isinstance(key, tuple) else (key,) for key in both.index[off]]
    names = ["-".join(f"{v:.15g}" if isinstance(v, float) else str(v) for v in key) for key in keys]
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


def _slope_score(ours: pd.DataFrame, theirs: pd.DataFrame, mode: str) -> Score:
    """Compare slopes of log loss on d_data on the published cells that both have, and no others."""
    keys = pd.MultiIndex.from_frame
    usable = ours[ours.get(c.TEST_LOSS, pd.Series(np.nan, ours.index)) > 0]
    both = keys(usable[_RUN]).intersection(keys(theirs.loc[theirs[c.TEST_LOSS] > 0, _RUN]))
    shared = [part[keys(part[_RUN]).isin(both)] for part in (usable, theirs)]
    found, published = (_slopes_of(part) if len(part) else {} for part in shared)
    compared = {name: (found[name], published[name]) for name in found if name in published}
    off = [
        name
        for name, (own, other) in compared.items()
        if other.interval and not other.interval[0] <= own.value <= other.interval[1]
    ]
    return Score(
        quantity=SLOPES,
        data_mode=mode,
        num_published=NUM_SLOPES,
        num_compared=len(compared),
        num_agreeing=len(compared) - len(off),
        tolerance=None,
        median_ratio=float(np.median([own.value / other.value for own, other in compared.values()]))
        if compared
        else None,
        apart=tuple(off),
    )


def _slopes_of(table: pd.DataFrame) -> dict[str, Estimate]:
    """The slope of log loss on d_data of every model and domain that has one with an interval."""
    points = prepare(table).points
    scale = SharpnessScale(comparable=False, policy="ignore", note="")
    found = {}
    for model in sorted(points[c.MODEL].unique()):
        for domain in c.DOMAINS:
            fit = fit_published(points, LOSS_ON_D_DATA, model=model, subset=domain, scale=scale)
            if fit.status == "ok" and fit.estimates[0].interval is not None:
                found[f"{model}-{domain}"] = fit.estimates[0]
    return found


def _means(table: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """Geometric mean of the positive values of every cell; empty where the table lacks the column."""
    if quantity.column not in table:
        return pd.Series(dtype=float)
    known = table[table[quantity.column] > 0]
    logs = pd.Series(np.log(known[quantity.column].to_numpy(dtype=float)), index=known.index)
    means = logs.groupby([known[name] for name in quantity.key]).mean()
    return pd.Series(np.exp(means.to_numpy()), index=means.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redone:
    """The paper's regressions of one model: the medical slope as published, and the gap between domains."""

    model: str
    datasets: str
    slope: Fit
    gap: Fit


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedReport:
    """What the published numbers say: the answers to the headline questions (K_F compared as it stands), and
    the paper's own regressions with and without the prostate set.
    """

    fits: ScalingFits
    redone: tuple[Redone, ...]

    def regressions(self) -> list[dict[str, object]]:
        """Return the medical slope and the domain gap of every model, with and without prostate."""
        return [
            {
                "model": one.model, "datasets": one.datasets,
                "slope": slope.value, "interval": slope.interval,
                "r_squared": one.slope.r_squared, "gap": gap.value, "gap_interval": gap.interval,
                "permutation_p": gap.resampled_p, "exact": gap.exact,
            }
            for one in self.redone
            for slope, gap in [(one.slope.estimates[0], one.gap.estimates[0])]
        ]  # fmt: skip

    def tables(self) -> list[Table]:
        """Return the regressions, their frailty, and the exact permutation tests, as tables of text."""
        slopes: dict[str, list[str]] = {}
        gaps: dict[str, list[str]] = {}
        for one in self.redone:
            slope, gap = one.slope.estimates[0], one.gap.estimates[0]
            cells = [number(slope.value), interval(slope.interval), number(one.slope.r_squared)]
            slopes.setdefault(one.model, [one.model]).extend(cells)
            gaps.setdefault(one.model, [one.model]).extend([interval(gap.interval), p_value(gap.resampled_p)])
        return [
            Table(
                "published-medical-slope", "Log test loss per unit of d_data, medical datasets",
                "As published (pooled over N), with and without the prostate set; 95 % jackknife intervals "
                "over datasets.",
                ("model", "slope", "interval", "R²", "without prostate", "interval", "R²"),
                tuple(map(tuple, slopes.values())),
            ),
            Table(
                "published-domain-gap", "Log test loss, medical against natural, at equal N",
                "t intervals over dataset means and exact permutation of the label, with and without the "
                "prostate set.",
                ("model", "gap", "exact p", "without prostate", "exact p"), tuple(map(tuple, gaps.values())),
            ),
        ]  # fmt: skip


def published_report() -> PublishedReport:
    """Redo the published regressions from the published numbers: what they say, and what they hang on."""
    table = published_table()
    redone = []
    for name, rows in (("all", table), ("without prostate", table[table[c.DATASET] != "prostate"])):
        ready = prepare(rows, sharpness_policy="ignore")
        for model in sorted(set(rows[c.MODEL]) - {NOT_STATED}):
            slope = fit_published(
                ready.points, LOSS_ON_D_DATA, model=model, subset=c.MEDICAL, scale=ready.scale
            )
            gap = fit_height(ready.points, (t.IS_MEDICAL,), scale=ready.scale, seed=0, model=model)
            redone.append(Redone(model=model, datasets=name, slope=slope, gap=gap))
    return PublishedReport(fits=fit_scaling_laws(table, sharpness_policy="ignore"), redone=tuple(redone))


def score_table(scores: tuple[Score, ...]) -> Table:
    """Return a scorecard as a table of text."""
    rows = tuple(
        (
            s.data_mode,
            s.quantity,
            f"{s.num_agreeing} of {s.num_compared}",
            f"{s.num_compared} of {s.num_published}",
            "its 95 % interval" if s.tolerance is None else f"{s.tolerance:g}",
            number(s.median_ratio),
            ", ".join(s.apart[:5]) + (f" and {len(s.apart) - 5} more" if len(s.apart) > 5 else ""),
        )
        for s in scores
    )
    return Table(
        "scorecard",
        "Against every published quantity",
        "A cell agrees where ours is within the factor of the published value, a slope where it lies in the "
        "published one's 95 % interval on the cells that both have; cells not in this sweep are not counted.",
        ("data mode", "quantity", "agree", "compared", "factor", "median ratio", "apart"),
        rows,
        numeric_from=2,
    )
