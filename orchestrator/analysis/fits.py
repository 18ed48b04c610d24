"""All fits of one results table, and the one record of a number and of a fit that everything else
reads.

The law (Konz & Mazurowski 2024, Eq. 2): log L ≲ −(1/d_data) log N + log K_F + a, an upper bound.
**Exponent**: every curve keeps its own height, with one d per dataset and class pair. **Height**:
1/d enters beside log K_F by itself, since a covering argument has (V/N)^(1/d) with an unknown
volume V.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pandas as pd
from pydantic import TypeAdapter
from scipy import special

from orchestrator.analysis import guessing as g
from orchestrator.analysis import inference as i
from orchestrator.analysis import table as t
from orchestrator.analysis.class_pairs import fit_pairs
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.inference import Array, Interval
from orchestrator.analysis.interventions import Arm, Interventions, fit_interventions
from orchestrator.analysis.one_dataset import OneDataset, one_dataset
from orchestrator.results import columns as c

#: Dataset effects of log loss on 1/d, log K_F and the label, or on other terms (``height``); log
#: loss on −log N / d within curves; the loss gained by an attack, with K_F; how often d_repr ≤
#: d_data.
Kind = Literal["headline", "height", "exponent", "attack", "representation"]

DIMENSION, SHARPNESS, ATTACKS = "dimension", "sharpness_beyond_label", "attacks_on_sharpness"
EXPONENT, BELOW_BOUND = "exponent", "exponent_below_bound"
QUESTIONS = {
    DIMENSION: "loss on 1/d, given K_F and the domain label",
    SHARPNESS: "loss on K_F, given 1/d and the domain label",
    EXPONENT: "exponent of N within datasets (against none)",
    BELOW_BOUND: "exponent of N within datasets, slower than the bound 1/d",
    ATTACKS: (
        "loss gained by attacks rises with K_F, given the domain label (over all attacks and "
        "models)"
    ),
}
#: A correlation that is called strong; the published one, of FGSM over eleven datasets, is 0.84.
STRONG = 0.8
PAST_GUESSING = "N past guessing"
OTHER_D = {"TwoNN": c.D_DATA_TWONN, **{f"{k} neighbours": c.d_data_at(k) for k in c.NEIGHBORS_TOO}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One number of a fit with its 95 % interval; datasets are the replicates throughout.

    ``name`` is a column of the points, ``exponent``, ``r`` or ``share``. ``p_value`` is two-sided,
    by t; ``resampled_p`` by permutation of datasets or the wild cluster bootstrap, of
    ``num_resamples``; of ``r`` one-sided and adjusted for the number of attacks, epsilons and
    models. ``exact``: all rearrangements were tried, and datasets are exchangeable under the null.
    ``weights``: the share of each dataset in the value.
    """

    name: str
    value: float
    std_error: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    resampled_p: float | None = None
    num_resamples: int = 0
    exact: bool = False
    left_out: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def p(self) -> float | None:
        """The larger of both p-values: a claim needs both."""
        return max((p for p in (self.p_value, self.resampled_p) if p is not None), default=None)

    @property
    def is_tested(self) -> bool:
        """Whether datasets can be exchanged in enough ways for a p-value at the level."""
        return self.p is not None and (self.num_resamples == 0 or self.num_resamples >= 1 / i.LEVEL)

    @property
    def influential(self) -> str | None:
        """The dataset whose absence moves the value most; None if none can be left out."""
        moved = {name: abs(value - self.value) for name, value in sorted(self.left_out.items())}
        return max(moved, key=moved.__getitem__, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One fit of one model (or pooled) over one domain (or both); without estimates for the
    ``reason`` given.

    ``variant`` is a choice of d or of points. Of an exponent: ``num_curves`` with two train sizes
    and d, ``num_at_guessing`` of them left out since guessing holds their losses down, the p-value
    ``bound_p`` of "not slower than the bound", which only a slower fall can refute, and
    ``by_dataset`` its own values. Of a representation: ``num_held`` points at which d_repr ≤
    d_data, and ``by_dataset`` the share above.
    """

    kind: Kind
    model: str = t.POOLED
    subset: str = t.ALL
    response: str = c.TEST_LOSS
    terms: tuple[str, ...] = ()
    variant: str = ""
    status: Literal["ok", "not_enough_data", "refused"] = "not_enough_data"
    reason: str = ""
    num_datasets: int = 0
    num_needed: int = 0
    num_points: int = 0
    num_curves: int = 0
    num_at_guessing: int = 0
    num_held: int = 0
    estimates: tuple[Estimate, ...] = ()
    bound_p: float | None = None
    by_dataset: dict[str, float] = field(default_factory=dict)

    def estimate(self, name: str) -> Estimate | None:
        """Return the estimate called ``name``, None where the fit has none of it."""
        return next((found for found in self.estimates if found.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One headline question that could be tested: p-value, Holm's, whether p and interval establish
    it.
    """

    key: str
    p_value: float
    adjusted_p: float
    established: bool


def claims_of(found: Sequence[Fit]) -> tuple[Claim, ...]:
    """Return every headline question that could be tested, by the larger of two p-values."""
    asked: dict[
        str, tuple[float, Interval | None, float]
    ] = {}  # p-value, interval, and the null outside it
    pooled = [
        fit for fit in found if (fit.model, fit.subset, fit.status) == (t.POOLED, t.ALL, "ok")
    ]
    for fit in pooled:
        tested = [e for e in fit.estimates if fit.kind == "headline" and e.is_tested]
        keys = {t.INVERSE_D: DIMENSION, t.LOG_SHARPNESS: SHARPNESS}
        asked |= {keys[e.name]: (e.p or 0.0, e.interval, 0.0) for e in tested if e.name in keys}
        if (fit.kind, fit.variant) == ("exponent", ""):
            exponent = fit.estimates[0]
            asked[EXPONENT] = exponent.p or 0.0, exponent.interval, 0.0
            bounds = [fit, *(one for one in found if one.variant == PAST_GUESSING)]
            slower = max(1.0 if one.bound_p is None else one.bound_p for one in bounds)
            asked[BELOW_BOUND] = slower, exponent.interval, 1.0
    attacks = [(e.resampled_p, e) for fit in found if fit.kind == "attack" for e in fit.estimates]
    p_values = [(p, e.interval, 0.0) for p, e in attacks if p is not None and e.is_tested]
    if p_values:
        asked[ATTACKS] = min(p_values, key=itemgetter(0))
    tests = [(key, *asked[key]) for key in QUESTIONS if key in asked]
    return tuple(
        Claim(key=key, p_value=p, adjusted_p=at or 0.0, established=t.established(at, bounds, null))
        for (key, p, bounds, null), at in zip(
            tests, i.holm([test[1] for test in tests]), strict=True
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingFits:
    """All fits of one results table, with what was left out and what cannot be concluded."""

    schema_version: int = 4
    num_trials: int
    num_used: int
    num_points: int
    excluded: tuple[t.Exclusion, ...]
    datasets: tuple[t.DatasetSummary, ...]
    models: tuple[str, ...]
    sharpness_scale: t.SharpnessScale
    fits: tuple[Fit, ...]
    claims: tuple[Claim, ...]
    num_at_guessing: int
    caveats: tuple[str, ...] = ()
    class_pairs: tuple[Slope, ...] = ()
    interventions: Interventions | None = None
    one_dataset: OneDataset | None = None

    def find(
        self,
        kind: Kind,
        *terms: str,
        model: str = t.POOLED,
        subset: str = t.ALL,
        response: str = "",
        variant: str = "",
    ) -> Fit:
        """Return a fit; one never tried comes back as "not enough data". No terms or response:
        any.
        """
        for fit in self.fits:
            same = (fit.kind, fit.model, fit.subset, fit.variant) == (kind, model, subset, variant)
            if same and terms in (fit.terms, ()) and response in (fit.response, ""):
                return fit
        reason = "no usable trial" + ("" if model == t.POOLED else f" of {model}")
        return Fit(
            kind=kind, model=model, subset=subset, terms=terms, variant=variant, reason=reason
        )

    @property
    def attacks(self) -> list[Fit]:
        """The fits of single models that the question about attacks rests on."""
        return [fit for fit in self.fits if fit.kind == "attack" and fit.model != t.POOLED]

    @property
    def d_data_range(self) -> Interval:
        """The lowest and the highest d_data of a dataset with losses."""
        known = [d.d_data for d in self.datasets if d.d_data is not None and d.loss is not None]
        return min(known, default=1.0), max(known, default=1.0)

    @property
    def twice_as_high(self) -> float:
        """The slope of log loss on 1/d at which the loss doubles over that range."""
        low, high = self.d_data_range
        return float(np.log(2)) / max(1 / low - 1 / high, 1e-12)

    @property
    def why_no_sharpness(self) -> str:
        """Why K_F cannot be compared over these datasets, or an empty text."""
        known = [d.label_sharpness for d in self.datasets if d.label_sharpness is not None]
        if not known:
            return "K_F was not measured"
        same = t.SAME_SHARPNESS if len(known) > 1 and np.ptp(known) <= 1e-12 * max(known) else ""
        return same if self.sharpness_scale.comparable else t.UNEQUAL_SCALES

    def claim(self, key: str) -> Claim | None:
        """Return a headline claim, or None where it could not be tested."""
        return next((claim for claim in self.claims if claim.key == key), None)

    def to_json(self) -> dict[str, Any]:
        """Return what ``json.dumps(allow_nan=False)`` takes."""
        return cast(dict[str, Any], TypeAdapter(ScalingFits).dump_python(self, mode="json"))


class Prepared(NamedTuple):
    """A checked table, the points of it, the scale of K_F, and what was left out on the way."""

    full: pd.DataFrame
    points: pd.DataFrame
    scale: t.SharpnessScale
    excluded: tuple[t.Exclusion, ...]
    num_trials: int
    num_used: int


def prepare(
    table: pd.DataFrame, *, sharpness_policy: t.Policy = "refuse", arms: Sequence[Arm] = ()
) -> Prepared:
    """Check a table and reduce it to the points that fits and figures see; arguments as for the
    fits.
    """
    full, unusable = t.normalise(table)
    copies = full[c.DATASET].isin([arm.dataset for arm in arms if arm.moves != "base"])
    reason = "arms of interventions, which are compared with their own bases"
    of_arms = (t.Exclusion(reason, int(copies.sum())),) if copies.any() else ()
    full = full[~copies].reset_index(drop=True)
    points, excluded = t.fitted_points(full)
    scale, num_used = (
        t.sharpness_scale(full, sharpness_policy),
        len(full) - sum(e.count for e in excluded),
    )
    return Prepared(full, points, scale, (*unusable, *of_arms, *excluded), len(table), num_used)


def fit_scaling_laws(
    table: pd.DataFrame,
    *,
    sharpness_policy: t.Policy = "refuse",
    arms: Sequence[Arm] = (),
    explore: bool = False,
    predictions: pd.DataFrame | None = None,
) -> ScalingFits:
    """Fit the study's law to a table of :mod:`orchestrator.results.rows`, one row per trial.

    Where K_F was measured on unequal scales (side, channels, pixel range), ``refuse`` fits that
    compare it, or ``ignore`` that. Of an experiment's ``arms``, copies of one world, every other
    fit takes the bases alone. ``explore``: single models, domains and other d, too.
    ``predictions`` of each test image, where they are stored, compare the networks of one dataset.
    DataError if a column lacks or contradicts.
    """
    ready = prepare(table, sharpness_policy=sharpness_policy, arms=arms)
    single = one_dataset(ready.full, predictions)
    fits = replace(fits_of(ready, explore=explore), one_dataset=single)
    return replace(fits, interventions=fit_interventions(table, arms)) if arms else fits


def fits_of(ready: Prepared, *, explore: bool = False) -> ScalingFits:
    """Fit what the answers rest on, all models together; on ``explore`` single models, domains,
    other d.
    """
    points, scale = ready.points, ready.scale
    models = tuple(sorted(points[c.MODEL].unique()))
    found: list[Fit] = []
    if models:
        found = [fit_headline(points, scale), fit_height(points, scale, (t.IS_MEDICAL,))]
        found += [
            *fit_exponents(ready),
            *fit_attacks(points, scale, models),
            fit_representation(points),
        ]
    if models and explore:
        for model in models:
            found += [fit_headline(points, scale, model=model), fit_exponent(points, model=model)]
            found.append(fit_representation(points, model=model))
        found += [fit_exponent(points, subset=domain) for domain in c.DOMAINS]
        others = {name: d for name, d in OTHER_D.items() if points[d].notna().any()}
        found += [fit_exponent(points, dimension=d, variant=name) for name, d in others.items()]
    return ScalingFits(
        num_trials=ready.num_trials,
        num_used=ready.num_used,
        num_points=len(points),
        excluded=ready.excluded,
        datasets=t.summaries_of(ready.full, points),
        models=models,
        sharpness_scale=scale,
        fits=tuple(found),
        claims=claims_of(found),
        num_at_guessing=int(g.at_guessing(points[t.OF_GUESSING]).sum()),
        caveats=g.limits_of(ready.full, points),
        class_pairs=fit_pairs(points),
    )


def fit_exponents(ready: Prepared, dimension: str = "") -> tuple[Fit, Fit]:
    """Return the exponent, and that of N past guessing, where curves start flat whatever their
    law.
    """
    past = g.past_guessing(g.clear_of_guessing(ready.points), ready.full)
    whole = fit_exponent(ready.points, dimension=dimension)
    return whole, fit_exponent(past, dimension=dimension, variant=PAST_GUESSING)


def rows_of(points: pd.DataFrame, model: str, subset: str, names: Collection[str]) -> pd.DataFrame:
    """Return these columns, and the keys, of the points of a model and domain that have all of
    them.
    """
    keys = [c.MODEL, c.DATASET, c.DOMAIN, c.TRAIN_SIZE, t.CELL, t.CURVE, t.WEIGHT, t.OF_GUESSING]
    return t.select(points[[*dict.fromkeys([*keys, *names])]], model, subset).dropna(
        subset=[*names]
    )


def _blank(kind: Kind, rows: pd.DataFrame, **about: Any) -> Fit:
    """A fit of these rows that is not made yet."""
    return Fit(kind=kind, num_points=len(rows), num_datasets=rows[c.DATASET].nunique(), **about)


def fit_headline(points: pd.DataFrame, scale: t.SharpnessScale, *, model: str = t.POOLED) -> Fit:
    """Regress dataset effects on 1/d, log K_F and the label, as far as they can be told apart."""
    rows = rows_of(points, model, t.ALL, (t.LOG_LOSS, *(names := _properties(points, scale))))
    terms = (*names, *([t.IS_MEDICAL] if rows[c.DOMAIN].nunique() > 1 else []))
    return fit_height(points, scale, terms, model=model, kind="headline")


def _properties(points: pd.DataFrame, scale: t.SharpnessScale) -> tuple[str, ...]:
    known = scale.comparable and points[t.LOG_SHARPNESS].nunique() > 1
    return (t.INVERSE_D, t.LOG_SHARPNESS) if known else (t.INVERSE_D,)


def fit_height(
    points: pd.DataFrame,
    scale: t.SharpnessScale,
    terms: tuple[str, ...],
    *,
    model: str = t.POOLED,
    kind: Kind = "height",
) -> Fit:
    """Regress dataset effects of log loss at equal model and N on ``terms``; the headline of all
    models is tested by permutation too, and fitted without each dataset.
    """
    names = list(dict.fromkeys((t.LOG_LOSS, *terms, t.IS_MEDICAL, *_properties(points, scale))))
    rows, needed = rows_of(points, model, t.ALL, names), max(i.MIN_DATASETS, len(terms) + 2)
    blank = _blank(kind, rows, model=model, terms=terms, num_needed=needed)
    if (num := blank.num_datasets) < needed:
        found = f" ({t.listing(sorted(map(str, rows[c.DATASET].unique())))})"
        found *= len(found) < 60
        some = f"{num} of the {needed} datasets that it needs{found}"
        return replace(blank, reason=some if num else "no point has all the numbers this fit needs")
    if reason := g.flattened(rows):
        return replace(blank, status="refused", reason=reason)
    effects = _effects(rows, names)
    if effects is None:
        reason = (
            "the datasets share no model, train size and data mode: none can be compared at equal N"
        )
        return replace(blank, reason=reason)
    if not effects[t.LOG_LOSS].any():
        return replace(blank, reason="the losses are the same for all datasets")
    domains = rows.groupby(c.DATASET)[c.DOMAIN].first()[effects.index].tolist()
    claimed = (kind, model) == ("headline", t.POOLED)
    tested = (
        set(terms) - {t.IS_MEDICAL} if claimed else {t.IS_MEDICAL} if kind == "height" else set()
    )
    y, x = effects[t.LOG_LOSS].to_numpy(), effects[[*terms]].to_numpy()
    estimates = slope_estimates(y, x, terms, domains, tested=tested)
    if estimates is None:
        named = t.listing([t.WORDS[name] for name in terms])
        reason = f"{named} do not vary enough, or only together, to tell coefficients apart"
        if t.IS_MEDICAL in terms and len(set(domains)) < 2:
            reason = f"only {domains[0]} datasets: an offset between domains needs both"
        elif len(terms) == 1:
            reason = f"{named} does not vary enough over these datasets"
        return replace(blank, reason=reason)
    left_out: dict[str, Array] = {}
    for dataset in effects.index if claimed else ():
        less = _effects(rows[rows[c.DATASET] != dataset], names)
        slopes = (
            None if less is None else i.ols(less[t.LOG_LOSS].to_numpy(), less[[*terms]].to_numpy())
        )
        left_out |= {} if slopes is None else {dataset: slopes[0]}
    without = [
        {name: float(values[k]) for name, values in left_out.items()} for k in range(len(terms))
    ]
    refitted = (replace(one, left_out=own) for one, own in zip(estimates, without, strict=True))
    return replace(blank, status="ok", estimates=tuple(refitted))


def _effects(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame | None:
    """Effects of these columns, a row per dataset."""
    values, weights = rows[[*names]].to_numpy(dtype=float), rows[t.WEIGHT].to_numpy(dtype=float)
    found = i.dataset_effects(
        values, rows[t.CELL].to_numpy(), rows[c.DATASET].to_numpy(dtype=str), weights
    )
    return None if found is None else pd.DataFrame(found[1], found[0], [*names])


def slope_estimates(
    y: Array,
    x: Array,
    terms: Sequence[str],
    blocks: Sequence[str],
    *,
    tested: Collection[str],
    hopeless: float = 1.0,
) -> tuple[Estimate, ...] | None:
    """Regress effects y (G,) on x (G, q): by t, and by permutation for the terms ``tested`` unless
    t's p is above ``hopeless``; None where slopes are not identified. At equal label only datasets
    of one of the ``blocks`` (G,) are exchangeable.
    """
    slopes = i.ols(y, x)
    if slopes is None:
        return None
    values, errors, degrees = slopes
    p_values = i.t_p_values(values, errors, degrees).tolist()
    found = []
    for k, name in enumerate(terms):
        value, error = float(values[k]), float(errors[k])
        bounds = i.t_interval(value, error, degrees)
        estimate = Estimate(
            name=name, value=value, std_error=error, interval=bounds, p_value=p_values[k]
        )
        if name in tested and p_values[k] <= hopeless:
            others = set(terms) - {name}
            places = blocks if t.IS_MEDICAL in others else [""] * len(y)
            test = i.permutation_test(y, x[:, k], np.delete(x, k, axis=1), places)
            if test is not None:
                p, num, every = test
                exact = every and others <= {t.IS_MEDICAL}
                estimate = replace(estimate, resampled_p=p, num_resamples=num, exact=exact)
        found.append(estimate)
    return tuple(found)


def fit_exponent(
    points: pd.DataFrame,
    *,
    model: str = t.POOLED,
    subset: str = t.ALL,
    dimension: str = "",
    variant: str = "",
) -> Fit:
    """Fit the exponent of N within datasets, times d: log loss on −log N / d with an intercept per
    curve; d is what ``dimension`` has at the largest N (empty: maximum likelihood), ``variant``
    names the choice.
    """
    if dimension:
        points = points.assign(
            **{t.D_REFERENCE: t.at_largest_size(points, dimension, (*t.SUBSET, c.MODEL))}
        )
    rows = _curves(rows_of(points, model, subset, (t.LOG_LOSS, t.D_REFERENCE, t.LOG_TRAIN_SIZE)))
    num_curves = rows[t.CURVE].nunique()
    rows = _curves(g.clear_of_guessing(rows))
    blank = _blank(
        "exponent",
        rows,
        model=model,
        subset=subset,
        variant=variant,
        num_needed=i.MIN_DATASETS,
        num_curves=num_curves,
        num_at_guessing=num_curves - rows[t.CURVE].nunique(),
    )
    if blank.num_datasets < i.MIN_DATASETS:
        clear = " whose losses are clear of guessing" if blank.num_at_guessing else ""
        d = "_".join((dimension or c.D_DATA_MLE).split("_")[:2]) + f" by {variant}" * (
            variant in OTHER_D
        )
        counted = f"{t.plural(blank.num_datasets, 'dataset')} with two train sizes and {d}{clear}"
        return replace(blank, reason=f"{counted}, at least {i.MIN_DATASETS} needed")
    if same := g.unvaried(rows, within=t.CURVE):
        return replace(blank, reason=same)
    return with_exponent(blank, t.sums_of(rows, t.LOG_LOSS))


def _curves(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.groupby(t.CURVE)[c.TRAIN_SIZE].transform("nunique") > 1]


def with_exponent(blank: Fit, sums: i.Sums) -> Fit:
    """Return a fit with the exponent that the sums of its datasets give."""
    names, xx, xy = sums
    value, num = float(xy.sum() / xx.sum()), len(names)
    left_out = (xy.sum() - xy) / (xx.sum() - xx)
    error = i.jackknife_error(value, left_out)
    p_zero, p_bound = i.t_p_values(value - np.array([0.0, 1.0]), error, num - 1).tolist()
    estimate = Estimate(
        name="exponent",
        value=value,
        std_error=error,
        interval=i.t_interval(value, error, num - 1),
        p_value=p_zero,
        resampled_p=i.wild_cluster_p(sums),
        num_resamples=len(i.wild_draws(num)),
        left_out=dict(zip(names, left_out.tolist(), strict=True)),
        weights=dict(zip(names, (xx / xx.sum()).tolist(), strict=True)),
    )
    own = {name: float(y / x) for name, x, y in zip(*sums, strict=True) if x > 0}
    bound_p = 1.0 if value >= 1 else max(p_bound, i.wild_cluster_p(sums, null=1.0))
    return replace(blank, status="ok", estimates=(estimate,), by_dataset=own, bound_p=bound_p)


def fit_attacks(
    points: pd.DataFrame, scale: t.SharpnessScale, models: Sequence[str]
) -> Iterator[Fit]:
    """Correlate what attacks add to the loss with K_F (Theorem 3), over dataset effects at equal
    train size, within domains; p is adjusted over attacks and models. Of unequal scales of K_F the
    commonest is taken.
    """
    variant = ""
    if not scale.comparable:
        variant, names = max(scale.scales, key=lambda found: len(found[1]))
        others = [name for spelled, those in scale.scales if spelled != variant for name in those]
        points = points[points[c.DATASET].isin({*names} - {*others})]
    tried: list[tuple[Fit, pd.Series]] = []
    attacks = [a.name for a in c.attack_columns(points.columns) if points[a.name].notna().any()]
    for name, model in ((name, model) for name in attacks for model in (*models, t.POOLED)):
        rows = rows_of(points, model, t.ALL, (name, c.LABEL_SHARPNESS))
        about = {
            "model": model,
            "response": name,
            "terms": (c.LABEL_SHARPNESS,),
            "variant": variant,
        }
        blank = _blank("attack", rows, **about, num_needed=4)
        reduced = _effects(rows, (name,)) if blank.num_datasets >= blank.num_needed else None
        if reduced is None and variant:
            yield replace(blank, status="refused", reason=t.UNEQUAL_SCALES)
        elif reduced is None:
            counted = t.plural(blank.num_datasets, "dataset")
            yield replace(
                blank, reason=f"{counted} with K_F and attacks at equal N, at least 4 needed"
            )
        else:
            tried.append((blank, reduced[name]))
    if not tried:
        return
    gains = pd.DataFrame({k: gained for k, (_, gained) in enumerate(tried)}).sort_index()
    known = points.dropna(subset=[c.LABEL_SHARPNESS]).groupby(c.DATASET)
    x = known[c.LABEL_SHARPNESS].mean()[gains.index].to_numpy(dtype=float)
    values, blocks = (
        gains.to_numpy(dtype=float),
        known[c.DOMAIN].first()[gains.index].to_numpy(dtype=str),
    )
    single = [k for k, (blank, _) in enumerate(tried) if blank.model != t.POOLED]
    found, p_values, num, critical = i.max_correlation_test(values, x, blocks.tolist(), single)
    largest = np.nanmax([-1.0, *found[single]])
    for (blank, own), r, p in zip(tried, found.tolist(), p_values.tolist(), strict=True):
        if np.isnan(r):
            yield replace(blank, reason="K_F or the loss gained has the same value everywhere")
            continue
        num_given = len(set(known[c.DOMAIN].first()[own.index])) - 1
        adjusted_p = None if np.isnan(p) else p
        # The largest of several correlations is chosen: so are its intervals made for all at once.
        width = None if adjusted_p is None else critical
        bounds = correlation_interval(r, blank.num_datasets, num_given, critical=width)
        estimate = Estimate(
            name="r", value=r, interval=bounds, resampled_p=adjusted_p, num_resamples=num
        )
        if r == largest:
            rows = (
                known.agg({c.LABEL_SHARPNESS: "mean", c.DOMAIN: "first"})
                .loc[own.index]
                .assign(y=own)
            )
            less = ((name, rows.drop(index=name)) for name in map(str, own.index))
            estimate = replace(estimate, left_out={name: _correlation(part) for name, part in less})
        yield replace(blank, status="ok", estimates=(estimate,))


def _correlation(rows: pd.DataFrame) -> float:
    """Pearson's r of y with K_F within domains."""
    moved = i.centred(
        rows[["y", c.LABEL_SHARPNESS]].to_numpy(dtype=float), rows[c.DOMAIN].to_numpy(dtype=str)
    )
    return float(np.prod(moved, axis=1).sum() / max(np.prod(np.linalg.norm(moved, axis=0)), 1e-300))


def correlation_interval(
    r: float, num_datasets: int, num_given: int, *, critical: float | None = None
) -> Interval | None:
    """Return the 95 % interval of a (partial) correlation by Fisher's z; None below four datasets.

    ``critical`` is the half width in standard errors of z, if it is not that of one correlation.
    """
    spare = num_datasets - num_given - 3
    if spare < 1:
        return None
    if critical is None:
        critical = float(special.ndtri(1 - i.LEVEL / 2))
    half_width = critical / np.sqrt(spare)
    z = float(np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15)))
    return float(np.tanh(z - half_width)), float(np.tanh(z + half_width))


def t_power(effect: float, std_error: float | None, degrees: float) -> float | None:
    """How often a two-sided t test finds an effect; None without a standard error."""
    if not std_error:
        return None
    shift, bound = abs(effect) / std_error, i.t_quantile(1 - i.LEVEL / 2, degrees)
    if shift > 30:
        return 1.0
    below = special.nctdtr(degrees, shift, bound) - special.nctdtr(degrees, shift, -bound)
    return float(np.clip(1 - np.nan_to_num(below), 0.0, 1.0))  # far out scipy's value is NaN


def correlation_power(num_datasets: int, num_given: int) -> float:
    """How often at most a one-sided test finds a correlation of :data:`STRONG`, by Fisher's z."""
    shift = np.arctanh(STRONG) * np.sqrt(max(num_datasets - 3 - num_given, 0))
    return float(special.ndtr(shift - special.ndtri(1 - i.LEVEL)))


def fit_representation(points: pd.DataFrame, *, model: str = t.POOLED) -> Fit:
    """Count how often d_repr ≤ d_data, both by maximum likelihood (Theorem 5, an approximate
    bound).
    """
    rows = rows_of(points, model, t.ALL, (c.D_DATA_MLE, c.D_REPR_MLE))
    about = {"response": c.D_REPR_MLE, "terms": (c.D_DATA_MLE,)}
    blank = _blank("representation", rows, model=model, **about)
    if len(rows) == 0:
        return replace(blank, reason="no point has both d_repr and d_data")
    below = rows[c.D_REPR_MLE] <= rows[c.D_DATA_MLE]
    shares = below.astype(float).groupby(rows[c.DATASET]).mean()
    mean, error, bounds = i.mean_interval(np.asarray(shares, dtype=float))
    clipped = bounds and (max(0.0, bounds[0]), min(1.0, bounds[1]))
    above = {str(name): 1 - float(share) for name, share in shares.items() if share < 1}
    estimate = Estimate(name="share", value=mean, interval=clipped, std_error=error or None)
    held = int(below.sum())
    return replace(blank, status="ok", num_held=held, by_dataset=above, estimates=(estimate,))
