"""All fits of one results table: what the headline questions rest on always, and the exploratory rest on
request.

The law under study (Konz & Mazurowski 2024, Eq. 2): log L ≲ −(1/d_data) log N + log K_F + a. It is an upper
bound with a free constant; the slopes 1 and 1 are what its form would give, not something the theorem
promises. Its parts are fitted apart. **Exponent**: every curve (model, dataset, class pair) keeps its own
height, and d is one number per dataset and class pair, so a change of the unit of N, of the pixels' scale or
of the loss's base moves heights alone. **Height**: a covering argument has (V/N)^(1/d) with an unknown volume
V, so 1/d enters beside log K_F by itself; without it the coefficient of K_F would depend on the unit in which
N is counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from orchestrator.analysis import guessing as g
from orchestrator.analysis import inference as i
from orchestrator.analysis import table as t
from orchestrator.analysis.fit_records import (
    PAST_GUESSING,
    Estimate,
    Fit,
    Kind,
    ScalingFits,
    headline_claims,
    limits_of,
    summaries_of,
)
from orchestrator.analysis.inference import Array, Interval
from orchestrator.analysis.interventions import Arm, fit_interventions
from orchestrator.results import table as c

#: Other choices of d for the exponent: variant -> column.
OTHER_D = {"TwoNN": t.TWONN_REFERENCE, **{f"{k} neighbours": n for n, k in t.NEIGHBOR_REFERENCES.items()}}
#: d_repr and d_data by the same estimator, so that the comparison is not one of estimators.
ESTIMATORS = {"mle": (c.D_DATA_MLE, c.D_REPR_MLE), "twonn": (c.D_DATA_TWONN, c.D_REPR_TWONN)}
#: What else could decide the heights.
RIVALS = (
    (c.D_DATA_MLE,), (t.LOG_SHARPNESS,), (t.INVERSE_D,), (t.INVERSE_D, t.IS_MEDICAL),
    *((t.INVERSE_D, name) for name in (t.LOG_SHARPNESS, t.LOG_SMOOTHNESS, t.LOG_RELATIVE_SHARPNESS)),
)  # fmt: skip
#: The study's own regressions, pooled over N, although d_data's estimate grows with N while the loss falls,
#: which gives the slope on d_data a wrong sign: kept for comparison with the paper alone.
LOSS_ON_D_DATA, PREDICTED_FORM = (c.D_DATA_MLE,), (t.SCALED_LOG_TRAIN_SIZE, t.LOG_SHARPNESS)
_ON_SCALE = {t.LOG_SHARPNESS, t.LOG_SMOOTHNESS}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked table, the points of it, the scale of K_F, and what was left out on the way."""

    full: pd.DataFrame
    points: pd.DataFrame
    scale: t.SharpnessScale
    excluded: tuple[t.Exclusion, ...]
    num_used: int


def prepare(
    table: pd.DataFrame, *, sharpness_policy: t.Policy = "refuse", leave_out_chance: bool = False,
    arms: Sequence[Arm] = (),
) -> Prepared:  # fmt: skip
    """Check a table and reduce it to the points that fits and figures see; arguments as for the fits.

    Raises:
        DataError: if the table lacks a required column or contradicts itself.
    """
    full, unusable = t.normalise(table)
    copies = full[c.DATASET].isin([arm.dataset for arm in arms if arm.moves != "base"])
    reason = "arm of an intervention, a copy of its world's base: analysed beside it alone"
    of_arms = (t.Exclusion(reason, int(copies.sum())),) if copies.any() else ()
    full, scale = t.apply_policy(full[~copies].reset_index(drop=True), sharpness_policy)
    trials, excluded = t.usable_trials(full)
    guessed: tuple[t.Exclusion, ...] = ()
    if leave_out_chance:
        trials, guessed = g.without_guessing(trials)
    num_used = int(trials[t.LOG_LOSS].notna().sum())
    return Prepared(
        full, t.fitted_points(trials), scale, (*unusable, *of_arms, *excluded, *guessed), num_used
    )


def fit_scaling_laws(
    table: pd.DataFrame,
    *,
    seed: int = 0,
    sharpness_policy: t.Policy = "refuse",
    leave_out_chance: bool = False,
    arms: Sequence[Arm] = (),
    explore: bool = False,
) -> ScalingFits:
    """Fit the law of the study to a results table.

    Args:
        table: one row per trial; the columns of :mod:`orchestrator.results.table`.
        seed: decides drawn permutations, where there are too many to try all; everything else is exact.
        sharpness_policy: what to do where K_F was measured on unequal scales (side, channels, pixel range):
            ``refuse`` fits that compare it, ``rescale`` to the most common scale, or ``ignore``.
        leave_out_chance: leave out losses at guessing; they are counted either way.
        arms: datasets of an experiment that moves one property. Copies of one world are not independent
            datasets, so every other fit takes the worlds' bases alone.
        explore: fit what no answer rests on as well: single models, other terms, the published regressions.

    Returns:
        Fits with uncertainty over datasets. What could not be fitted is there too, with its reason.

    Raises:
        DataError: if the table lacks a required column or contradicts itself.
    """
    ready = prepare(table, sharpness_policy=sharpness_policy, leave_out_chance=leave_out_chance, arms=arms)
    points, scale = ready.points, ready.scale
    models = tuple(sorted(points[c.MODEL].unique()))
    guessed = g.count_at_guessing(points, left_out=leave_out_chance)
    found = [*_asked(ready, models, seed), *(_explored(points, models, scale, seed) if explore else ())]
    return ScalingFits(
        seed=seed,
        num_trials=len(table),
        num_used=ready.num_used,
        num_points=len(points),
        excluded=ready.excluded,
        datasets=summaries_of(ready.full, points),
        models=models,
        sharpness_scale=scale,
        fits=tuple(found),
        claims=headline_claims(found),
        at_guessing=guessed,
        explored=explore,
        caveats=limits_of(ready.full, points, guessed),
        interventions=fit_interventions(table, arms) if arms else None,
    )


def _asked(ready: Prepared, models: Sequence[str], seed: int) -> Iterator[Fit]:
    """What the answers rest on: all models together."""
    points, scale = ready.points, ready.scale
    if not models:
        return
    yield fit_headline(points, scale=scale, seed=seed)
    yield fit_height(points, (t.IS_MEDICAL,), scale=scale, seed=seed)
    yield fit_exponent(points)
    yield fit_exponent(g.past_guessing(g.clear_of_guessing(points), ready.full), variant=PAST_GUESSING)
    yield from fit_attacks(points, models, scale=scale, seed=seed)
    yield fit_representation(points, "mle")


def _explored(
    points: pd.DataFrame, models: Sequence[str], scale: t.SharpnessScale, seed: int
) -> Iterator[Fit]:
    names = (t.POOLED, *models)
    for response, column in t.RESPONSES.items():
        if not points[column].notna().any():
            continue
        for model in names:
            if (model, response) != (t.POOLED, c.TEST_LOSS):
                yield fit_headline(points, scale=scale, seed=seed, model=model, response=response)
                yield fit_height(
                    points, (t.IS_MEDICAL,), scale=scale, seed=seed, model=model, response=response
                )
                yield fit_exponent(points, model=model, response=response)
            for domain in c.DOMAINS:
                yield fit_height(
                    points,
                    (c.D_DATA_MLE,),
                    scale=scale,
                    seed=seed,
                    model=model,
                    subset=domain,
                    response=response,
                )
        for terms in (terms for terms in RIVALS if points[terms[-1]].notna().any()):
            yield fit_height(points, terms, scale=scale, seed=seed, response=response)
        for domain in c.DOMAINS:
            yield fit_exponent(points, subset=domain, response=response)
    for variant, column in OTHER_D.items():
        yield fit_exponent(points, dimension=column, variant=variant)
    yield sharpness_growth(points)
    for model in names:
        for estimator in ESTIMATORS:
            if (model, estimator) != (t.POOLED, "mle"):
                yield fit_representation(points, estimator, model=model)
        for domain in c.DOMAINS:
            yield fit_published(points, LOSS_ON_D_DATA, model=model, subset=domain, scale=scale)
        yield fit_published(points, PREDICTED_FORM, model=model, scale=scale)


def _rows(points: pd.DataFrame, model: str, subset: str, names: Collection[str]) -> pd.DataFrame:
    """Return the points that have all of ``names``, with these columns and the keys alone."""
    keys = [c.MODEL, c.DATASET, c.DOMAIN, c.TRAIN_SIZE, t.CELL, t.CURVE, t.WEIGHT]
    return t.complete(t.select(points[list(dict.fromkeys([*keys, *names]))], model, subset), names)


def _few(rows: pd.DataFrame, needed: int) -> str:
    names = sorted(map(str, rows[c.DATASET].unique()))
    if not names:
        return "no point has all the numbers this fit needs"
    found = f" ({t.listing(names)})" if len(names) <= 4 else ""
    return f"{len(names)} of the {needed} datasets that it needs{found}"


def fit_headline(
    points: pd.DataFrame,
    *,
    scale: t.SharpnessScale,
    seed: int,
    model: str = t.POOLED,
    response: str = c.TEST_LOSS,
) -> Fit:
    """Regress dataset effects on 1/d, log K_F and the label together.

    K_F is left out where it was measured on unequal scales or not at all, and the label where there is one
    domain.
    """
    with_sharpness = scale.comparable and bool(points[t.LOG_SHARPNESS].notna().any())
    names = (t.INVERSE_D, *([t.LOG_SHARPNESS] if with_sharpness else []))
    rows = _rows(points, model, t.ALL, (t.RESPONSES[response], *names))
    terms = (*names, *([t.IS_MEDICAL] if rows[c.DOMAIN].nunique() > 1 else []))
    return fit_height(points, terms, scale=scale, seed=seed, model=model, response=response, kind="headline")


def fit_height(
    points: pd.DataFrame,
    terms: tuple[str, ...],
    *,
    scale: t.SharpnessScale,
    seed: int,
    model: str = t.POOLED,
    subset: str = t.ALL,
    response: str = c.TEST_LOSS,
    kind: Kind = "height",
) -> Fit:
    """Regress dataset effects, at equal model and train size, on properties of datasets.

    Over both domains the datasets are those that have all properties, so that rivals are compared on equal
    datasets.

    Args:
        points: fitted points.
        terms: columns of ``points``.
        scale: whether K_F may be compared.
        seed: of drawn permutations.
        model: a model, or ``pooled``.
        subset: a domain, or ``all``.
        response: ``test_loss`` or ``test_error``.
        kind: ``height``, or ``headline`` for the terms that the questions are about.
    """
    column = t.RESPONSES[response]
    blank = Fit(kind=kind, model=model, subset=subset, response=response, terms=terms)
    if _ON_SCALE & set(terms) and not scale.comparable:
        return replace(blank, status="refused", reason=t.UNEQUAL_SCALES)
    known = scale.comparable and bool(points[t.LOG_SHARPNESS].notna().any())
    shared = [t.IS_MEDICAL, t.INVERSE_D, *([t.LOG_SHARPNESS] if known else [])] if subset == t.ALL else []
    names = list(dict.fromkeys((column, *terms, *shared)))
    rows = _rows(points, model, subset, names)
    needed = max(i.MIN_DATASETS, len(terms) + 2)
    blank = replace(blank, num_points=len(rows), num_datasets=rows[c.DATASET].nunique(), num_needed=needed)
    if blank.num_datasets < needed:
        return replace(blank, reason=_few(rows, needed))
    if reason := g.flattened(rows, column):
        return replace(blank, status="refused", reason=reason)
    reduced = _effects(rows, names)
    if reduced is None:
        reason = "the datasets share no model, train size and data mode: none can be compared at equal N"
        return replace(blank, reason=reason)
    datasets, effects = reduced
    if not (y := effects[column]).any():
        return replace(blank, reason="the losses are the same for all datasets")
    domains = rows.groupby(c.DATASET)[c.DOMAIN].first()
    blocks = [str(domains[name]) for name in datasets]
    # What is claimed is tested by permutation too, and the label alone, since it is exact and quick.
    claimed = kind == "headline" and (model, response) == (t.POOLED, c.TEST_LOSS)
    tested = set(terms) - {t.IS_MEDICAL} if claimed else {t.IS_MEDICAL} if len(terms) == 1 else set()
    x = _columns(effects, terms)
    estimates = slope_estimates(y, x, terms, blocks, tested=tested, seed=seed)
    if estimates is None:
        return replace(blank, reason=_unidentified(rows, terms))
    if claimed:
        estimates = _with_left_out(rows, names, terms, datasets, estimates)
    correlation = _correlation(effects.get(t.LOG_SHARPNESS), effects.get(t.IS_MEDICAL))
    return replace(blank, status="ok", estimates=estimates, label_correlation=correlation)


def _columns(effects: dict[str, Array], terms: Sequence[str]) -> Array:
    return np.column_stack([effects[name] for name in terms])


def _effects(rows: pd.DataFrame, names: Sequence[str]) -> tuple[list[str], dict[str, Array]] | None:
    values = rows[list(names)].to_numpy(dtype=float)
    weights = rows[t.WEIGHT].to_numpy(dtype=float)
    found = i.dataset_effects(values, rows[t.CELL].to_numpy(), rows[c.DATASET].to_numpy(dtype=str), weights)
    if found is None:
        return None
    datasets, effects = found
    # Means of equal numbers differ in their last digits; a slope on that is none.
    even = np.ptp(effects, axis=0) <= 1e-12 * np.abs(values).max(axis=0)
    return datasets, dict(zip(names, np.where(even, 0.0, effects).T, strict=True))


def slope_estimates(
    y: Array, x: Array, terms: Sequence[str], blocks: Sequence[str], *, tested: Collection[str], seed: int,
    hopeless: float = 1.0,
) -> tuple[Estimate, ...] | None:  # fmt: skip
    """Regress effects y (G,) on x (G, q): by t, and by permutation for the terms ``tested``.

    Args:
        y: effects of datasets.
        x: those of the terms.
        terms: names of the columns of x.
        blocks: (G,) domains. With the label in the fit, only datasets of one domain are exchangeable.
        tested: terms to permute for.
        seed: of drawn permutations.
        hopeless: no permutation is tried where the t test's p-value is above.

    Returns:
        None where the slopes are not identified.
    """
    slopes = i.ols(y, x)
    if slopes is None:
        return None
    found = []
    for k, name in enumerate(terms):
        estimate = Estimate(
            name=name, value=float(slopes.values[k]), std_error=float(slopes.std_errors[k]),
            interval=slopes.interval(k), p_value=float(slopes.p_values[k]),
        )  # fmt: skip
        if name in tested and slopes.p_values[k] <= hopeless:
            held = t.IS_MEDICAL in terms and name != t.IS_MEDICAL
            places = blocks if held else [""] * len(y)
            test = i.permutation_test(y, x[:, k], np.delete(x, k, axis=1), places, seed=seed)
            if test is not None:
                alone = set(terms) - {name} <= ({t.IS_MEDICAL} if held else set())
                estimate = replace(
                    estimate, resampled_p=test.p_value, num_resamples=test.num, exact=test.exact and alone
                )
        found.append(estimate)
    return tuple(found)


def _with_left_out(
    rows: pd.DataFrame, names: Sequence[str], terms: Sequence[str], datasets: Sequence[str],
    estimates: tuple[Estimate, ...],
) -> tuple[Estimate, ...]:  # fmt: skip
    """Add the slopes without each dataset, where they can be fitted."""
    left_out: dict[str, Array] = {}
    for name in datasets:
        reduced = _effects(rows[rows[c.DATASET] != name], names)
        slopes = None if reduced is None else i.ols(reduced[1][names[0]], _columns(reduced[1], terms))
        if slopes is not None:
            left_out[name] = slopes.values
    return tuple(
        replace(found, left_out={name: float(values[k]) for name, values in left_out.items()})
        for k, found in enumerate(estimates)
    )


def _unidentified(rows: pd.DataFrame, terms: Sequence[str]) -> str:
    if t.IS_MEDICAL in terms and rows[c.DOMAIN].nunique() < 2:
        return f"only {rows[c.DOMAIN].iloc[0]} datasets: an offset between domains needs both"
    named = t.listing([t.WORDS[name] for name in terms])
    if len(terms) == 1:
        return f"{named} does not vary enough over these datasets"
    return f"{named} do not vary enough, or only together, to tell coefficients apart"


def _correlation(x: Array | None, y: Array | None) -> float | None:
    if x is None or y is None or min(float(x.std()), float(y.std())) < 1e-12:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def fit_exponent(
    points: pd.DataFrame,
    *,
    model: str = t.POOLED,
    subset: str = t.ALL,
    response: str = c.TEST_LOSS,
    dimension: str = t.D_REFERENCE,
    variant: str = "",
) -> Fit:
    """Fit the exponent of N within datasets, times d: log loss on −log N / d with an intercept for every
    curve.

    1 is the law's bound, 0 no dependence on N.

    Args:
        points: fitted points.
        model: a model, or ``pooled``.
        subset: a domain, or ``all``.
        response: ``test_loss`` or ``test_error``.
        dimension: the column that holds one d per dataset and class pair.
        variant: how to call this choice of d or of points.
    """
    column = t.RESPONSES[response]
    rows = _curves(_rows(points, model, subset, (column, dimension, t.LOG_TRAIN_SIZE)))
    num_curves = rows[t.CURVE].nunique()
    rows = _curves(g.clear_of_guessing(rows, column))
    kept = rows[t.CURVE].nunique()
    blank = Fit(
        kind="exponent", model=model, subset=subset, response=response, variant=variant, num_points=len(rows),
        num_datasets=rows[c.DATASET].nunique(), num_needed=i.MIN_DATASETS, num_curves=num_curves,
        num_at_guessing=num_curves - kept,
    )  # fmt: skip
    if blank.num_datasets < i.MIN_DATASETS:
        clear = " whose losses are clear of guessing" if blank.num_at_guessing else ""
        counted = f"{t.plural(blank.num_datasets, 'dataset')} with two train sizes and d_data{clear}"
        return replace(blank, reason=f"{counted}, at least {i.MIN_DATASETS} needed")
    if same := g.unvaried(rows, column, within=t.CURVE):
        return replace(blank, reason=same)
    sums = sums_of(rows, column, rows[dimension].to_numpy(dtype=float))
    return with_exponent(blank, sums)


def _curves(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.groupby(t.CURVE)[c.TRAIN_SIZE].transform("nunique") > 1]


def sums_of(rows: pd.DataFrame, column: str, dimension: Array) -> i.Sums:
    """Reduce points to sums per dataset for the slope of ``column`` on −log N / d within curves."""
    y, size = (rows[name].to_numpy(dtype=float) for name in (column, t.LOG_TRAIN_SIZE))
    groups, weights = rows[c.DATASET].to_numpy(dtype=str), rows[t.WEIGHT].to_numpy(dtype=float)
    return i.curve_sums(y, -size / dimension, rows[t.CURVE].to_numpy(), groups, weights)


def with_exponent(blank: Fit, sums: i.Sums) -> Fit:
    """Return a fit with the exponent that the sums of its datasets give."""
    found = i.slope_within_curves(sums)
    error, degrees = np.array([found.std_error]), len(sums.names) - 1
    p_values = [float(i.t_p_values(np.array([found.value - null]), error, degrees)[0]) for null in (0.0, 1.0)]
    interval = found.interval()
    slower = interval is not None and found.value < 1
    estimate = Estimate(
        name="exponent", value=found.value, std_error=found.std_error, interval=interval,
        p_value=None if interval is None else p_values[0], resampled_p=i.wild_cluster_p(sums),
        num_resamples=i.NUM_DRAWN if len(sums.names) > 12 or len(sums.names) < 8 else 2 ** len(sums.names),
        left_out=dict(zip(sums.names, found.left_out.tolist(), strict=True)),
        weights=dict(zip(sums.names, (sums.xx / sums.xx.sum()).tolist(), strict=True)),
    )  # fmt: skip
    own = {name: float(xy / xx) for name, xx, xy in zip(*sums, strict=True) if xx > 0}
    bound_p = max(p_values[1], i.wild_cluster_p(sums, null=1.0) or 0.0) if slower else 1.0
    return replace(
        blank,
        status="ok",
        estimates=(estimate,),
        by_dataset=own,
        bound_p=None if interval is None else bound_p,
    )


def sharpness_growth(points: pd.DataFrame) -> Fit:
    """Fit log K_F on log N / d: 2 where unlike labels lie mixed (nearest pairs shrink as N^(−2/d)), 0 where
    apart.
    """
    blank = Fit(kind="exponent", response=c.LABEL_SHARPNESS, num_needed=i.MIN_DATASETS)
    rows = t.complete(points, (t.LOG_SHARPNESS, t.D_REFERENCE))
    # A measure belongs to a subset, whichever model was trained on it.
    rows = rows.drop_duplicates([*t.SUBSET, c.TRAIN_SIZE])
    rows = rows.assign(**{t.CURVE: rows.groupby(t.SUBSET).ngroup()}).assign(**{t.WEIGHT: 1.0})
    rows = rows[rows.groupby(t.CURVE)[t.LOG_SHARPNESS].transform("nunique") > 1]
    num = rows[c.DATASET].nunique()
    if num < i.MIN_DATASETS:
        reason = f"K_F was measured at several N for {t.plural(num, 'dataset')} only"
        return replace(blank, num_datasets=num, reason=reason)
    sums = sums_of(rows, t.LOG_SHARPNESS, -rows[t.D_REFERENCE].to_numpy(dtype=float))
    return with_exponent(replace(blank, num_datasets=num, num_points=len(rows)), sums)


def fit_published(
    points: pd.DataFrame, terms: tuple[str, ...], *, model: str, scale: t.SharpnessScale, subset: str = t.ALL
) -> Fit:
    """Regress log loss over points pooled over N, one intercept per model, as the paper does; jackknife
    intervals.
    """
    rows = _rows(points, model, subset, (t.LOG_LOSS, *terms))
    blank = Fit(
        kind="published", model=model, subset=subset, terms=terms, num_points=len(rows), num_needed=2,
        num_datasets=rows[c.DATASET].nunique(),
    )  # fmt: skip
    if _ON_SCALE & set(terms) and not scale.comparable:
        return replace(blank, status="refused", reason=t.UNEQUAL_SCALES)
    needed = rows[c.MODEL].nunique() + len(terms) + i.MIN_SPARE_POINTS
    if blank.num_datasets < 2:
        return replace(blank, reason=_few(rows, 2))
    if len(rows) < needed:
        return replace(blank, reason=f"{len(rows)} points, at least {needed} needed")
    if reason := g.unvaried(rows):
        return replace(blank, reason=reason)
    if reason := g.flattened(rows):
        return replace(blank, status="refused", reason=reason)
    found = i.pooled_slopes(
        rows[t.LOG_LOSS].to_numpy(dtype=float), rows[list(terms)].to_numpy(dtype=float),
        rows[c.MODEL].to_numpy(dtype=str), rows[c.DATASET].to_numpy(dtype=str),
        rows[t.WEIGHT].to_numpy(dtype=float),
    )  # fmt: skip
    if found is None:
        return replace(blank, reason=_unidentified(rows, terms))
    estimates = []
    for k, name in enumerate(terms):
        known = dict(zip(found.names, found.left_out[:, k].tolist(), strict=True))
        whole = len(known) >= i.MIN_DATASETS and bool(np.isfinite(found.left_out).all())
        jack = i.jackknife(float(found.values[k]), found.left_out[:, k])
        estimates.append(
            Estimate(
                name=name, value=jack.value, std_error=jack.std_error if whole else None,
                interval=jack.interval() if whole else None,
                left_out={n: value for n, value in known.items() if np.isfinite(value)},
            )
        )  # fmt: skip
    return replace(blank, status="ok", estimates=tuple(estimates), r_squared=found.r_squared)


def fit_attacks(
    points: pd.DataFrame, models: Sequence[str], *, scale: t.SharpnessScale, seed: int
) -> Iterator[Fit]:
    """Correlate what every attack adds to the loss with K_F (Theorem 3: sharper labels are easier to attack).

    Over dataset effects at equal train size, for every model and for all together; within domains where there
    are two, so that what the label explains has no part in it. The p-values of single models are adjusted
    together.
    """
    attacks = [a for a in c.attack_columns(points.columns) if points[a.name].notna().any()]
    known = points.dropna(subset=[c.LABEL_SHARPNESS]).groupby(c.DATASET)
    sharpness, domains = known[c.LABEL_SHARPNESS].mean(), known[c.DOMAIN].first()
    keys, columns = [], {}
    for attack in attacks:
        for model in (*models, t.POOLED):
            rows = _rows(points, model, t.ALL, (attack.name, c.LABEL_SHARPNESS))
            blank = Fit(
                kind="attack", model=model, response=attack.name, terms=(c.LABEL_SHARPNESS,), num_needed=4,
                num_datasets=rows[c.DATASET].nunique(), num_points=len(rows),
            )  # fmt: skip
            reduced = _effects(rows, (attack.name,)) if len(rows) and scale.comparable else None
            if not scale.comparable:
                yield replace(blank, status="refused", reason=t.UNEQUAL_SCALES)
            elif blank.num_datasets < 4 or reduced is None:
                counted = t.plural(blank.num_datasets, "dataset")
                reason = f"{counted} with K_F and attacks at equal N, at least 4 needed"
                yield replace(blank, reason=reason)
            else:
                keys.append(blank)
                columns[len(keys)] = pd.Series(reduced[1][attack.name], index=reduced[0])
    if not keys:
        return
    gains = pd.DataFrame(columns).sort_index()
    values, x = gains.to_numpy(dtype=float), sharpness[gains.index].to_numpy(dtype=float)
    blocks = domains[gains.index].to_numpy(dtype=str)
    single = [k for k, blank in enumerate(keys) if blank.model != t.POOLED]
    p_values, num = i.max_correlation_test(values[:, single], x, blocks.tolist(), seed=seed)
    known_p = dict(zip(single, p_values.tolist(), strict=True))
    for k, blank in enumerate(keys):
        has = np.isfinite(values[:, k])
        r = i.correlation_within(values[has, k], x[has], blocks[has].tolist())
        if r is None:
            yield replace(blank, reason="K_F or the loss gained has the same value everywhere")
            continue
        num_given = len(set(blocks[has])) - 1
        estimate = Estimate(
            name="r", value=r, interval=i.correlation_interval(r, blank.num_datasets, num_given),
            resampled_p=known_p.get(k), num_resamples=num,
        )  # fmt: skip
        yield replace(blank, status="ok", estimates=(estimate,))


def fit_representation(points: pd.DataFrame, estimator: str, *, model: str = t.POOLED) -> Fit:
    """Count how often d_repr ≤ d_data (Theorem 5, an approximate bound), overall and by dataset."""
    d_data, d_repr = ESTIMATORS[estimator]
    rows = _rows(points, model, t.ALL, (d_data, d_repr))
    blank = Fit(
        kind="representation", model=model, response=d_repr, terms=(d_data,), variant=estimator,
        num_points=len(rows), num_datasets=rows[c.DATASET].nunique(),
        reason="no point has both dimensions by this estimator",
    )  # fmt: skip
    if len(rows) == 0:
        return blank
    below = rows[d_repr] <= rows[d_data]
    shares = below.astype(float).groupby(rows[c.DATASET]).mean()
    mean, bounds = i.mean_interval(np.asarray(shares, dtype=float))
    clipped: Interval | None = None if bounds is None else (max(0.0, bounds[0]), min(1.0, bounds[1]))
    above = {str(name): 1 - float(share) for name, share in shares.items() if share < 1}
    return replace(
        blank, status="ok", reason="", num_held=int(below.sum()), by_dataset=above,
        estimates=(Estimate(name="share", value=mean, interval=clipped),),
    )  # fmt: skip
