"""The regressions of log test loss: on d_data, in the predicted form, and on d_repr, each beside baselines.

The law under study (Konz & Mazurowski 2024, Eq. 2): log L ≲ −(1/d_data) log N + log K_F + a. It is an upper
bound with a free constant; the slopes 1 and 1 are what its form would give, not something the theorem
promises.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from orchestrator.analysis import table as t
from orchestrator.analysis.fit_records import (
    ALL,
    POOLED,
    Association,
    AttackFamily,
    AttackFit,
    Claim,
    Coefficient,
    Comparison,
    Difference,
    ExponentFit,
    ExponentRival,
    FormScore,
    Interval,
    LawFit,
    LevelFit,
    MeansCoefficient,
    RepresentationFit,
    SharpnessScale,
    TrainSizeFit,
)
from orchestrator.analysis.guessing import clear_of_guessing, flattened, unvaried
from orchestrator.analysis.inference import (
    MOST_EXACT,
    Array,
    Problem,
    Slope,
    Solution,
    aicc,
    dataset_effects,
    leave_one_out_weights,
    max_correlation_test,
    mean_interval,
    means_regression,
    normal_quantile,
    permutation_test,
    solve,
    t_quantile,
    t_tail,
    wild_cluster_p,
)
from orchestrator.analysis.table import few_datasets, listing, plural
from orchestrator.results import table as c

# When K_F may be compared: it is a label difference per pixel distance, so it depends on how pixels are
# counted.
#
# For the same pictures K_F ∝ 1 / (pixel range · image side · √channels): stretching the range stretches
# distances, and more pixels or channels add terms to them (Konz & Mazurowski 2024, README: equal channel
# counts are needed).

Policy = Literal["refuse", "rescale", "ignore"]

#: The short reason of every refusal; the long one, with the scales met, is the scale's note.
UNEQUAL_SCALES = "K_F was measured on unequal scales"
#: What a part of a scale is called that no record states.
UNRECORDED = "unrecorded"

#: What is measured on the scale of K_F and converted with it.
_MEASURED = (c.LABEL_SHARPNESS, c.LABEL_SHARPNESS_MEAN, c.LABEL_SHARPNESS_PERMUTED)
_SCALE = [c.SHARPNESS_PIXEL_RANGE, c.IMAGE_SIZE, c.SHARPNESS_CHANNELS]


def apply_policy(table: pd.DataFrame, policy: Policy) -> tuple[pd.DataFrame, SharpnessScale]:
    """Return the table with K_F on one scale (or as it is), and what was found and done.

    Args:
        table: normalised results table.
        policy: ``refuse`` leaves K_F alone and lets fits that need it refuse; ``rescale`` converts to the
        most
            common scale by the law above, which ignores the blur of resizing (about 8 % from 28 to 224
            pixels); ``ignore`` compares the numbers as they stand and says so.
    """
    measured = table[table[c.LABEL_SHARPNESS].notna()]
    scales = measured.groupby(_SCALE, dropna=False)[c.DATASET]
    found = [(spell_scale(key), tuple(sorted(names.unique()))) for key, names in scales]
    if len(found) <= 1:
        unrecorded = bool(len(measured)) and bool(measured[_SCALE].isna().any(axis=None))
        note = "The scale of K_F is not fully recorded; it is taken to be one." if unrecorded else ""
        return table, SharpnessScale(comparable=True, policy=policy, note=note, scales=tuple(found))
    listing = "; ".join(f"{scale}: {', '.join(names)}" for scale, names in found)
    if policy == "rescale" and not measured[_SCALE].isna().any(axis=None):
        reference = np.array(scales.size().idxmax(), dtype=float)
        note = (
            f"K_F was converted to {spell_scale(reference)} by K ∝ 1/(range · side · √channels); "
            f"measured on {listing}."
        )
        scale = SharpnessScale(comparable=True, policy=policy, note=note, scales=tuple(found))
        return table.assign(**{name: _rescaled(table, name, reference) for name in _MEASURED}), scale
    if policy == "ignore":
        note = (
            "K_F is compared over unequal scales as it stands, although more pixels or channels alone "
            f"make it smaller: {listing}."
        )
        return table, SharpnessScale(comparable=True, policy=policy, note=note, scales=tuple(found))
    note = (
        f"K_F was measured on unequal scales ({listing}), so fits that compare it over datasets are refused; "
        "measure at one size and channel count, or fit with sharpness_policy='rescale'."
    )
    return table, SharpnessScale(comparable=False, policy=policy, note=note, scales=tuple(found))


def scales_of(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the scales that a table's K_F was measured on, those alone that are recorded in full."""
    if not {c.LABEL_SHARPNESS, *_SCALE} <= set(table.columns):
        return ()
    known = table.loc[table[c.LABEL_SHARPNESS].notna(), _SCALE].dropna().drop_duplicates()
    return tuple(sorted(spell_scale(row) for row in known.itertuples(index=False, name=None)))


def _rescaled(table: pd.DataFrame, name: str, reference: np.ndarray) -> pd.Series:
    range_, side, channels = (table[part] / value for part, value in zip(_SCALE, reference, strict=True))
    return pd.Series(table[name] * range_ * side * np.sqrt(channels))


def spell_scale(key: object) -> str:
    """Spell the scale of a K_F: its (pixel range, side, channels), NaN where one is not recorded."""
    range_, side, channels = np.asarray(key, dtype=float)
    side_text = f"{UNRECORDED} size" if np.isnan(side) else f"{side:g}×{side:g} pixels"
    plural = "" if channels == 1 else "s"
    channel_text = f"{UNRECORDED} channels" if np.isnan(channels) else f"{channels:g} channel{plural}"
    range_text = f"{UNRECORDED} range" if np.isnan(range_) else f"range {range_:g}"
    return f"{side_text}, {channel_text}, {range_text}"


#: A regression needs this many points more than it has coefficients, or its residuals say nothing.
MIN_SPARE_POINTS = 3
#: With one dataset a slope over datasets does not exist.
MIN_DATASETS = 2


@dataclass(frozen=True, slots=True)
class Law:
    """A form of log L: its regressors, what theory says of each, and parts with slope fixed at 1.

    ``at_equal_size`` gives every model and train size its own intercept, so that only points of equal N
    are compared.
    """

    name: str
    regressors: tuple[str, ...] = ()
    theory: tuple[float | None, ...] = ()
    fixed: tuple[str, ...] = ()
    subsets: tuple[str, ...] = (ALL,)
    at_equal_size: bool = False

    @property
    def needs_sharpness(self) -> bool:
        """Whether K_F enters, so that unequal scales make the fit meaningless."""
        return t.LOG_SHARPNESS in (*self.regressors, *self.fixed)


PREDICTED_FORM = Law(
    "predicted_form", (t.SCALED_LOG_TRAIN_SIZE, t.LOG_SHARPNESS), (1.0, 1.0), subsets=(ALL, *c.DOMAINS)
)
DOMAIN_FORM = Law("domain_form", (t.SCALED_LOG_TRAIN_SIZE, t.IS_MEDICAL), (1.0, None))

#: The study's own regression pools over N, although d_data's estimate grows with N while the loss falls,
#: which gives the slope a wrong sign; it stays for comparison, and what is said and drawn is the one at
#: equal N.
AT_EQUAL_SIZE = Law(
    "loss_on_d_data_at_equal_size", (c.D_DATA_MLE,), (None,), subsets=c.DOMAINS, at_equal_size=True
)

PUBLISHED_SLOPE = Law("loss_on_d_data", (c.D_DATA_MLE,), (None,), subsets=c.DOMAINS)

LAWS = (
    AT_EQUAL_SIZE,
    PUBLISHED_SLOPE,
    Law("loss_on_d_data_with_offset", (c.D_DATA_MLE, t.IS_MEDICAL), (None, None)),
    PREDICTED_FORM,
    DOMAIN_FORM,
    Law("loss_on_d_repr_mle", (c.D_REPR_MLE,), (None,), subsets=c.DOMAINS),
    Law("loss_on_d_repr_twonn", (c.D_REPR_TWONN,), (None,), subsets=c.DOMAINS),
)

#: Forms compared on the same points, from nothing to everything.
FORMS = (
    Law("constant"),
    Law("pure_power", (t.LOG_TRAIN_SIZE,)),
    Law("d_data_only", (t.SCALED_LOG_TRAIN_SIZE,)),
    Law("slopes_fixed_at_theory", fixed=(t.SCALED_LOG_TRAIN_SIZE, t.LOG_SHARPNESS)),
    PREDICTED_FORM,
    DOMAIN_FORM,
)


def select(points: pd.DataFrame, model: str, subset: str = ALL) -> pd.DataFrame:
    """Return the points of one model (or all of them, pooled) and one domain (or both)."""
    rows = points if model == POOLED else points[points[c.MODEL] == model]
    return rows if subset == ALL else rows[rows[c.DOMAIN] == subset]


def problem(points: pd.DataFrame, law: Law, response: str = t.LOG_LOSS) -> Problem:
    """Return the regression of ``response`` on the regressors of ``law``."""
    fixed = points[list(law.fixed)].sum(axis=1).to_numpy(dtype=float) if law.fixed else None
    return Problem(
        response=points[response].to_numpy(dtype=float),
        regressors=points[list(law.regressors)]
        .to_numpy(dtype=float)
        .reshape(len(points), len(law.regressors)),
        intercepts=points[_intercept(law)].to_numpy(dtype=str),
        groups=points[c.DATASET].to_numpy(dtype=str),
        weights=points[t.WEIGHT].to_numpy(dtype=float),
        offset=fixed,
    )


def shortage(points: pd.DataFrame, num_regressors: int, intercept: str = c.MODEL) -> str:
    """Return why ``points`` are too few for that many regressors, or an empty text."""
    needed = points[intercept].nunique() + num_regressors + MIN_SPARE_POINTS
    datasets = points[c.DATASET].nunique()
    if len(points) == 0:
        return "no point has all the numbers this fit needs"
    if datasets < MIN_DATASETS:
        only = points[c.DATASET].iloc[0]
        return f"only 1 dataset ({only}): a slope over datasets needs at least {MIN_DATASETS}"
    if len(points) < needed:
        return f"{len(points)} points, at least {needed} needed"
    return ""


def refused_without(points: pd.DataFrame, num_regressors: int, intercept: str = c.MODEL) -> set[str]:
    """Return the datasets without which the fit would itself be refused by :func:`shortage`."""
    names = points[c.DATASET].to_numpy(dtype=str)
    keys = points[intercept].to_numpy(dtype=str)
    refused = set()
    for name in np.unique(names):
        kept = names != name
        needed = len(np.unique(keys[kept])) + num_regressors + MIN_SPARE_POINTS
        if len(np.unique(names[kept])) < MIN_DATASETS or kept.sum() < needed:
            refused.add(str(name))
    return refused


def fit_law(
    points: pd.DataFrame,
    law: Law,
    *,
    model: str,
    subset: str,
    scale: SharpnessScale,
) -> LawFit:
    """Fit one law to one model's points (or all models' together) in one domain (or both)."""
    rows, excluded = t.complete(select(points, model, subset), (t.LOG_LOSS, *law.regressors))
    blank = LawFit(
        law=law.name,
        model=model,
        subset=subset,
        status="not_enough_data",
        excluded=excluded,
        num_points=len(rows),
        num_datasets=int(rows[c.DATASET].nunique()),
        reason=_shortage(rows, law) or unvaried(rows),
    )
    if law.needs_sharpness and not scale.comparable:
        return replace(blank, status="refused", reason=UNEQUAL_SCALES)
    if blank.reason:
        return blank
    if reason := flattened(rows):
        return replace(blank, status="refused", reason=reason)
    solution = solve(problem(rows, law))
    if solution is None:
        return replace(blank, reason=_unidentified(rows, law))
    refused = refused_without(rows, len(law.regressors), _intercept(law))
    return replace(
        blank,
        status="ok",
        coefficients=coefficients(solution, law.regressors, law.theory, refused),
        r_squared=solution.r_squared,
        residual_std=_residual_std(solution),
        aicc=solution.aicc,
        held_out_rmse=solution.held_out_rmse,
        caveats=few_datasets(rows),
    )


def _shortage(rows: pd.DataFrame, law: Law) -> str:
    return shortage(rows, len(law.regressors), _intercept(law))


def _intercept(law: Law) -> str:
    return t.CELL if law.at_equal_size else c.MODEL


def _unidentified(rows: pd.DataFrame, law: Law) -> str:
    if t.IS_MEDICAL in law.regressors and rows[c.DOMAIN].nunique() < 2:
        return f"only {rows[c.DOMAIN].iloc[0]} datasets: an offset between domains needs both"
    return f"{' and '.join(law.regressors)} do not vary enough, or only together, to tell coefficients apart"


def coefficients(
    solution: Solution,
    names: tuple[str, ...],
    theory: tuple[float | None, ...],
    refused: Collection[str] = (),
) -> tuple[Coefficient, ...]:
    """Turn a solution into records: the mean intercept first, then the regressors.

    ``refused`` are datasets without which the fit would itself be refused, so that its value then says
    nothing.
    """
    # An interval made of refits that are refused one by one is no better than they are.
    covariance = None if refused else solution.covariance
    intervals = None if refused else solution.intervals()

    def left_out(position: int) -> dict[str, float | None]:
        return {
            name: None if name in refused else _number(values[position])
            for name, values in sorted(solution.left_out.items())
        }

    return tuple(
        Coefficient(
            name=name,
            value=float(solution.coefficients[k]),
            theory=expected,
            left_out=left_out(k),
            std_error=None if covariance is None else float(np.sqrt(covariance[k, k])),
            interval=None if intervals is None else (float(intervals[k, 0]), float(intervals[k, 1])),
        )
        for k, (name, expected) in enumerate(zip(("intercept", *names), (None, *theory), strict=True))
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _residual_std(solution: Solution) -> float:
    return float(np.sqrt(np.mean(solution.residuals**2)))


def compare_forms(points: pd.DataFrame, *, model: str, scale: SharpnessScale) -> Comparison:
    """Fit every form of :data:`FORMS` to the same points of one model (or pooled)."""
    forms = [form for form in FORMS if scale.comparable or not form.needs_sharpness]
    needed = sorted({t.LOG_LOSS} | {name for form in forms for name in (*form.regressors, *form.fixed)})
    rows, _ = t.complete(select(points, model), needed)
    blank = Comparison(
        model=model,
        status="not_enough_data",
        reason=shortage(rows, 2) or unvaried(rows),
        num_points=len(rows),
        num_datasets=int(rows[c.DATASET].nunique()),
    )
    if blank.reason:
        return blank
    scores = []
    for form in forms:
        solution = solve(problem(rows, form))
        if solution is not None:
            scores.append(
                FormScore(
                    form=form.name,
                    num_coefficients=len(solution.coefficients),
                    r_squared=solution.r_squared,
                    aicc=solution.aicc,
                    held_out_rmse=solution.held_out_rmse,
                )
            )
    left = "" if scale.comparable else "forms with K_F are left out: " + UNEQUAL_SCALES
    correlation = _domain_correlation(rows)
    return replace(
        blank, status="ok", reason=left, scores=tuple(scores), sharpness_domain_correlation=correlation
    )


def _domain_correlation(rows: pd.DataFrame) -> float | None:
    """Correlation of log K_F with the domain over dataset means: near 1, no fit can tell them apart."""
    means = rows.groupby(c.DATASET)[[t.LOG_SHARPNESS, t.IS_MEDICAL]].mean().dropna()
    if len(means) < 3 or (means.std() == 0).any():
        return None
    return float(np.corrcoef(means[t.LOG_SHARPNESS], means[t.IS_MEDICAL])[0, 1])


# What decides the height of a dataset's losses: its effects, at equal model and train size, on its
# properties.
#
# The law's height is log K_F + a + (1/d) · const: a covering argument has (V/N)^(1/d) with an unknown
# volume V, so 1/d enters by itself, and without it the coefficient of K_F would depend on the unit in which
# N is counted.

RESPONSES = {"test_loss": t.LOG_LOSS, "test_error": t.LOG_ERROR}
#: Published regressions of the loss on one property, within a domain; then rivals for the height over both
#: domains.
WITHIN_DOMAIN = ((c.D_DATA_MLE,),)
RIVALS: tuple[tuple[str, ...], ...] = (
    (),
    (t.IS_MEDICAL,),
    (c.D_DATA_MLE,),
    (t.LOG_SHARPNESS,),
    (t.INVERSE_D,),
    (t.INVERSE_D, t.IS_MEDICAL),
    (t.INVERSE_D, t.LOG_SHARPNESS),
    (t.INVERSE_D, t.LOG_SHARPNESS, t.IS_MEDICAL),
)
#: Rivals of K_F where they were measured: average smoothness (mean local slope; Ashlagi, Gottlieb &
#: Kontorovich, JMLR 25(117), 2024), and K_F over that of labels exchanged at random, which leaves out how
#: close neighbours are.
SHARPNESS_RIVALS = ((t.INVERSE_D, t.LOG_SMOOTHNESS), (t.INVERSE_D, t.LOG_RELATIVE_SHARPNESS))
ON_SCALE = {t.LOG_SHARPNESS, t.LOG_SMOOTHNESS}
WORDS = {
    c.D_DATA_MLE: "d_data", t.INVERSE_D: "1/d", t.LOG_SHARPNESS: "log K_F", t.IS_MEDICAL: "the domain label",
    t.LOG_SMOOTHNESS: "log average smoothness",
    t.LOG_RELATIVE_SHARPNESS: "log K_F over that of exchanged labels",
}  # fmt: skip
#: K_F beyond the label, and whether the label says more than K_F.
HEADLINE = (t.INVERSE_D, t.LOG_SHARPNESS, t.IS_MEDICAL)
#: Effects of datasets within this share of the largest value are equal up to rounding.
ROUNDING = 1e-12


def fit_levels(points: pd.DataFrame, *, model: str, scale: SharpnessScale, seed: int) -> tuple[LevelFit, ...]:
    """Return every level regression of one model (or pooled), for log loss and, where there is one, log
    error.
    """
    found = []
    for response, column in RESPONSES.items():
        if not points[column].notna().any():
            continue
        found += [
            fit_level(points, terms, response=response, model=model, subset=domain, scale=scale, seed=seed)
            for terms in WITHIN_DOMAIN
            for domain in c.DOMAINS
        ]
        found += [
            fit_level(points, terms, response=response, model=model, subset=ALL, scale=scale, seed=seed)
            for terms in (*RIVALS, *(pair for pair in SHARPNESS_RIVALS if points[pair[1]].notna().any()))
        ]
    return tuple(found)


def fit_level(
    points: pd.DataFrame,
    terms: tuple[str, ...],
    *,
    response: str,
    model: str,
    subset: str,
    scale: SharpnessScale,
    seed: int,
) -> LevelFit:
    """Regress dataset effects on ``terms``; the datasets are those that have all rivals' properties.

    Args:
        points: fitted points.
        terms: names of columns of ``points``.
        response: ``test_loss`` or ``test_error``.
        model: a model, or ``pooled``.
        subset: a domain, or ``all``.
        scale: whether K_F may be compared.
        seed: of drawn permutations.
    """
    blank = LevelFit(response=response, terms=terms, model=model, subset=subset, status="not_enough_data")
    if ON_SCALE & set(terms) and not scale.comparable:
        return replace(blank, status="refused", reason=UNEQUAL_SCALES)
    # Rivals are compared on equal datasets, so all properties that can be compared are asked of each.
    shared = {t.IS_MEDICAL, t.INVERSE_D, *([t.LOG_SHARPNESS] if scale.comparable else [])}
    needed = sorted(set(terms) | (shared if subset == ALL else set()))
    rows, _ = t.complete(select(points, model, subset), (RESPONSES[response], *needed))
    blank = replace(blank, num_points=len(rows), num_datasets=int(rows[c.DATASET].nunique()))
    if blank.num_datasets < 3:
        return replace(blank, reason=_few(rows))
    if reason := flattened(rows, RESPONSES[response]):
        return replace(blank, status="refused", reason=reason)
    reduced = _reduce(rows, (RESPONSES[response], *needed))
    if reduced is None:
        return replace(
            blank,
            reason="the datasets share no model, train size and data mode: none can be compared at equal N",
        )
    return _fitted(blank, rows, *reduced, needed, seed)


def _few(rows: pd.DataFrame) -> str:
    names = sorted(rows[c.DATASET].unique())
    if not names:
        return "no point has all the numbers this fit needs"
    listed = listing([str(name) for name in names])
    return f"only {len(names)} dataset{'' if len(names) == 1 else 's'} ({listed}): at least 3 needed"


def _reduce(rows: pd.DataFrame, names: tuple[str, ...]) -> tuple[list[str], Array] | None:
    values = rows[list(names)].to_numpy(dtype=float)
    found = dataset_effects(
        values,
        rows[t.CELL].to_numpy(dtype=str),
        rows[c.DATASET].to_numpy(dtype=str),
        rows[t.WEIGHT].to_numpy(dtype=float),
    )
    if found is None:
        return None
    datasets, effects = found
    # Means of equal numbers differ in their last digits; a slope on that is none.
    return datasets, np.where(np.ptp(effects, axis=0) <= ROUNDING * np.abs(values).max(axis=0), 0.0, effects)


def _fitted(
    blank: LevelFit, rows: pd.DataFrame, names: list[str], effects: Array, columns: list[str], seed: int
) -> LevelFit:
    y = effects[:, 0]
    x = effects[:, [1 + columns.index(term) for term in blank.terms]]
    if not y.any():
        return replace(blank, reason="the losses are the same for all datasets")
    slopes = means_regression(y, x)
    if slopes is None:
        return replace(blank, reason=_levels_unidentified(rows, blank.terms, len(names)))
    domains = rows.groupby(c.DATASET)[c.DOMAIN].first()
    blocks = [str(domains[name]) for name in names]
    coefficients = tuple(
        _coefficient(blank.terms, k, slope, y, x, blocks, seed) for k, slope in enumerate(slopes)
    )
    errors = held_out_errors(y, x)
    both = t.IS_MEDICAL in columns and len(set(blocks)) > 1
    label = effects[:, [1 + columns.index(t.IS_MEDICAL)]] if both else None
    return replace(
        blank,
        status="ok",
        coefficients=coefficients,
        held_out_rmse=None if errors is None else float(np.sqrt(np.mean(errors**2))),
        label_correlation=_label_correlation(effects, columns),
        versus_label=None
        if label is None or blank.terms in ((), (t.IS_MEDICAL,))
        else versus(errors, held_out_errors(y, label)),
    )


def _levels_unidentified(rows: pd.DataFrame, terms: tuple[str, ...], num_datasets: int) -> str:
    if num_datasets - len(terms) < 2:
        return f"{num_datasets} datasets for {len(terms)} slopes: at least {len(terms) + 2} needed"
    if t.IS_MEDICAL in terms and rows[c.DOMAIN].nunique() < 2:
        return f"only {rows[c.DOMAIN].iloc[0]} datasets: an offset between domains needs both"
    named = listing([WORDS[name] for name in terms])
    if len(terms) == 1:
        return f"{named} does not vary enough over these datasets"
    return f"{named} do not vary enough, or only together, to tell coefficients apart"


def _coefficient(
    terms: tuple[str, ...], k: int, slope: Slope, y: Array, x: Array, blocks: list[str], seed: int
) -> MeansCoefficient:
    others = np.delete(x, k, axis=1)
    # With the label in the fit, only datasets of one domain are exchangeable.
    held = t.IS_MEDICAL in terms and terms[k] != t.IS_MEDICAL
    places = blocks if held else [""] * len(y)
    found = permutation_test(y, x[:, k], others, places, seed=seed)
    exchangeable = set(terms) - {terms[k]} <= {t.IS_MEDICAL} and (held or len(terms) == 1)
    return MeansCoefficient(
        name=terms[k],
        value=slope.value,
        std_error=slope.std_error,
        interval=slope.interval,
        p_value=slope.p_value,
        permutation_p=None if found is None else found.p_value,
        num_permutations=0 if found is None else found.num,
        exact=bool(found and found.exact and exchangeable),
    )


def held_out_errors(y: Array, x: Array) -> Array | None:
    """Errors (G,) of predicting each dataset from a fit to the others; None where one of these is not
    identified.
    """
    design = np.column_stack([np.ones(len(y)), x])
    inverse = np.linalg.pinv(design.T @ design)
    leverage = np.einsum("gi,ij,gj->g", design, inverse, design)
    if len(y) <= design.shape[1] or (leverage > 1 - 1e-9).any():
        return None
    return np.asarray((y - design @ (inverse @ design.T @ y)) / (1 - leverage))


def versus(ours: Array | None, theirs: Array | None, against: str = t.IS_MEDICAL) -> Difference | None:
    """Difference of squared held-out errors, ours less theirs, as a mean over datasets with its t
    interval.
    """
    if ours is None or theirs is None:
        return None
    value, bounds = mean_interval(ours**2 - theirs**2)
    return Difference(against=against, value=value, interval=bounds)


def _label_correlation(effects: Array, columns: list[str]) -> float | None:
    if not {t.LOG_SHARPNESS, t.IS_MEDICAL} <= set(columns):
        return None
    sharpness, label = (effects[:, 1 + columns.index(name)] for name in (t.LOG_SHARPNESS, t.IS_MEDICAL))
    if min(float(sharpness.std()), float(label.std())) < 1e-12:
        return None
    return float(np.corrcoef(sharpness, label)[0, 1])


# The exponent of N within datasets, times d: the part of the law that no unit and no dataset's height can
# touch.
#
# Every curve (model, dataset, class pair) keeps its own height, and d is one number per dataset and class
# pair, so the regression of log loss on −log N / d sees only how losses fall with N. A change of the unit
# of N, of the pixels' scale or of the loss's base moves heights alone. Datasets are the replicates.

#: Fewer datasets have no spread that an interval could rest on.
EXPONENTS_MIN_DATASETS = 3
#: Share of a value below which its distance from the curve's mean is rounding.
NEGLIGIBLE = 1e-13
#: Exponents of rivals, in units of 1/d: none; the law's; Sharma & Kaplan (JMLR 23(9), 2022), for smooth
#: regression.
FIXED = {"none": 0.0, "1/d": 1.0, "4/d": 4.0}
#: The choice of points that the claim of a slower fall must hold for too.
PAST_GUESSING = "N past guessing"
#: The same estimator with the divisor k − 1 of the printed formula instead of k − 2, at k = 20.
PRINTED_CONVENTION = 19 / 18


@dataclass(frozen=True, slots=True)
class Sums:
    """What one regression needs of each dataset: names (G) and Σxx, Σxy, Σyy (G,), centred within curves.

    ``power_xx`` and ``power_xy`` are the same with −log N itself as x.
    """

    names: list[str]
    xx: Array
    xy: Array
    yy: Array
    power_xx: Array
    power_xy: Array
    num: Array


def dataset_sums(rows: pd.DataFrame, response: str, dimension: Array) -> Sums:
    """Reduce points to sums of squares and products per dataset, centred within every curve."""
    weights = rows[t.WEIGHT].to_numpy(dtype=float)
    _, curve = np.unique(rows[t.CURVE].to_numpy(dtype=str), return_inverse=True)
    names, group = np.unique(rows[c.DATASET].to_numpy(dtype=str), return_inverse=True)
    power = -rows[t.LOG_TRAIN_SIZE].to_numpy(dtype=float)
    values = np.column_stack([power / dimension, power, rows[response].to_numpy(dtype=float)])
    total = np.bincount(curve, weights)
    for k in range(values.shape[1]):
        rounding = NEGLIGIBLE * float(np.abs(values[:, k]).max())
        values[:, k] -= (np.bincount(curve, weights * values[:, k]) / total)[curve]
        values[np.abs(values[:, k]) <= rounding, k] = 0.0
    x, power, y = values.T

    def summed(products: Array) -> Array:
        return np.asarray(np.bincount(group, weights * products))

    return Sums(
        names=[str(name) for name in names],
        xx=summed(x * x), xy=summed(x * y), yy=summed(y * y),
        power_xx=summed(power * power), power_xy=summed(power * y),
        num=np.bincount(group, weights).astype(float),
    )  # fmt: skip


def fit_exponent(
    points: pd.DataFrame,
    *,
    model: str = POOLED,
    subset: str = ALL,
    response: str = "test_loss",
    dimension: str = t.D_REFERENCE,
    factor: float = 1.0,
    label: str = c.D_DATA_MLE,
) -> ExponentFit:
    """Fit the within-dataset exponent times d of one model (or all together) over one domain (or both).

    Args:
        points: fitted points.
        model: a model, or ``pooled``.
        subset: a domain, or ``all``.
        response: ``test_loss`` or ``test_error``.
        dimension: the column that holds one d per dataset and class pair.
        factor: what to multiply d by, to see what its bias would do.
        label: how to call this choice of d.
    """
    column = RESPONSES[response]
    rows, _ = t.complete(select(points, model, subset), (column, dimension))
    rows = rows[rows.groupby(t.CURVE)[c.TRAIN_SIZE].transform("nunique") > 1]
    num_curves = rows[t.CURVE].nunique()
    rows = clear_of_guessing(rows, column)
    rows = rows[rows.groupby(t.CURVE)[c.TRAIN_SIZE].transform("nunique") > 1]
    blank = ExponentFit(
        response=response, dimension=label, model=model, subset=subset, status="not_enough_data",
        num_datasets=int(rows[c.DATASET].nunique()), num_points=len(rows),
        num_curves=num_curves, num_at_guessing=num_curves - rows[t.CURVE].nunique(),
    )  # fmt: skip
    if blank.num_datasets < EXPONENTS_MIN_DATASETS:
        return replace(blank, reason=_too_few(blank))
    if same := unvaried(rows, column, within=t.CURVE):
        return replace(blank, reason=same)
    sums = dataset_sums(rows, column, rows[dimension].to_numpy(dtype=float) * factor)
    span = float(rows[c.TRAIN_SIZE].max() / rows[c.TRAIN_SIZE].min())
    return summarise(replace(blank, size_span=span), sums)


def _too_few(blank: ExponentFit) -> str:
    clear = " whose losses are clear of guessing" if blank.num_at_guessing else ""
    return (
        f"{plural(blank.num_datasets, 'dataset')} with two train sizes and d_data{clear}, at least "
        f"{EXPONENTS_MIN_DATASETS} needed"
    )


def summarise(blank: ExponentFit, sums: Sums) -> ExponentFit:
    """Turn sums of datasets into the pooled value, its interval and tests, and the rivals' scores."""
    value = float(sums.xy.sum() / sums.xx.sum())
    rest = sums.xx.sum() - sums.xx
    left = (sums.xy.sum() - sums.xy) / rest
    num = len(left)
    std_error = float(np.sqrt((num - 1) / num * ((left - value) ** 2).sum()))
    reach = t_quantile(0.975, num - 1) * std_error
    interval = (value - reach, value + reach) if std_error > 0 else None
    p_value = 2 * t_tail(abs(value) / std_error, num - 1) if std_error > 0 else None
    return replace(
        blank,
        status="ok",
        value=value,
        std_error=std_error,
        interval=interval,
        p_value=p_value,
        wild_p=wild_cluster_p(sums.xy, sums.xx),
        wild_p_predicted=wild_cluster_p(sums.xy - sums.xx, sums.xx),
        left_out={name: float(v) for name, v in zip(sums.names, left, strict=True)},
        by_dataset={
            name: float(xy / xx) for name, xy, xx in zip(sums.names, sums.xy, sums.xx, strict=True) if xx > 0
        },
        rivals=_rivals(sums, left),
        verdict=verdict(interval),
    )


def verdict(interval: tuple[float, float] | None) -> str:
    """Say what an interval of exponent · d means for the law, which is an upper bound."""
    if interval is None:
        return "no interval, so nothing can be said"
    low, high = interval
    if high < 1:
        none = "" if low > 0 else ", if at all"
        return f"slower than the law's bound allows{none}: this contradicts it"
    if low > 1:
        return "faster than the law's bound asks: this does not contradict it"
    if low <= 0:
        return "cannot tell the law's exponent from none"
    return "falls with N, and agrees with the law's exponent"


def _rivals(sums: Sums, left: Array) -> tuple[ExponentRival, ...]:
    """Mean squared distance from the curves of each dataset, whose exponent was fitted on the others."""
    power_left = (sums.power_xy.sum() - sums.power_xy) / (sums.power_xx.sum() - sums.power_xx)
    squares = {name: sums.yy - 2 * b * sums.xy + b * b * sums.xx for name, b in FIXED.items()}
    squares["power"] = sums.yy - 2 * power_left * sums.power_xy + power_left**2 * sums.power_xx
    squares["b/d"] = sums.yy - 2 * left * sums.xy + left**2 * sums.xx
    means = {name: values / sums.num for name, values in squares.items()}
    rivals = []
    for name, values in means.items():
        gap, bounds = mean_interval(values - means["none"])
        rivals.append(
            ExponentRival(
                form=name,
                num_coefficients=int(name not in FIXED),
                rmse=float(np.sqrt(max(values.mean(), 0.0))),
                versus_none=None
                if name == "none"
                else Difference(against="none", value=gap, interval=bounds),
            )
        )
    return tuple(rivals)


def fit_exponents(points: pd.DataFrame, *, model: str) -> tuple[ExponentFit, ...]:
    """Return the exponent over both domains and each, for log loss and, where there is one, log error."""
    return tuple(
        fit_exponent(points, model=model, subset=subset, response=response)
        for response, column in RESPONSES.items()
        if points[column].notna().any()
        for subset in (ALL, *c.DOMAINS)
    )


def fit_sensitivity(points: pd.DataFrame, full: pd.DataFrame) -> tuple[ExponentFit, ...]:
    """Return the pooled exponent under other choices of d and of N, and how K_F itself grows with N.

    ``full`` are all trials, diverged ones too.
    """
    variants = (
        ("TwoNN", t.TWONN_REFERENCE, 1.0),
        *((f"{k} neighbours", name, 1.0) for name, k in t.NEIGHBOR_REFERENCES.items()),
        ("divisor k − 1", t.D_REFERENCE, PRINTED_CONVENTION),
        ("d 20 % too low", t.D_REFERENCE, 1.2),
        ("d 20 % too high", t.D_REFERENCE, 0.8),
    )
    found = [
        fit_exponent(points, dimension=column, factor=factor, label=label)
        for label, column, factor in variants
    ]
    past = t.past_guessing(clear_of_guessing(points), full)
    found.append(fit_exponent(past, label=PAST_GUESSING))
    return (*found, sharpness_growth(points))


def sharpness_growth(points: pd.DataFrame) -> ExponentFit:
    """Fit log K_F on log N / d: 2 where unlike labels lie mixed (nearest pairs shrink as N^(−2/d)), 0
    where apart.
    """
    blank = ExponentFit(
        response=c.LABEL_SHARPNESS, dimension=c.D_DATA_MLE, model=POOLED, subset=ALL, status="not_enough_data"
    )
    rows, _ = t.complete(points, (t.LOG_SHARPNESS, t.D_REFERENCE))
    rows = rows.drop_duplicates([c.DATASET, c.CLASS_PAIR, c.DATA_MODE, c.TRAIN_SIZE])
    # A measure belongs to a subset, whichever model was trained on it.
    rows = rows.assign(**{t.CURVE: t.joined(rows, t.SUBSET)}).assign(**{t.WEIGHT: 1.0})
    rows = rows[rows.groupby(t.CURVE)[t.LOG_SHARPNESS].transform("nunique") > 1]
    num = int(rows[c.DATASET].nunique())
    if num < EXPONENTS_MIN_DATASETS:
        return replace(
            blank, num_datasets=num, reason=f"K_F was measured at several N for {num} datasets only"
        )
    sums = dataset_sums(rows, t.LOG_SHARPNESS, -rows[t.D_REFERENCE].to_numpy(dtype=float))
    found = summarise(replace(blank, num_datasets=num, num_points=len(rows)), sums)
    return replace(found, rivals=(), verdict="", wild_p_predicted=None)


# Log loss on log N within one dataset: the exponent that the theorem says is −1/d_data.

#: Below three sizes a power law passes through every point and shows nothing.
MIN_SIZES = 3
#: A power law is commonly asked to hold over a decade before its exponent is believed.
CONVINCING_SPAN = 10.0


def fit_train_size(points: pd.DataFrame, *, model: str, dataset: str) -> TrainSizeFit:
    """Fit one exponent to one model on one dataset, class pairs having their own coefficients.

    The published sizes (500 to 1,750) span a factor 3.5, over which −1/d_data changes the loss by a few per
    cent; the verdict therefore says whether the data can tell the predicted exponent from none at all.
    """
    rows = select(points, model)
    rows, _ = t.complete(rows[rows[c.DATASET] == dataset], (t.LOG_LOSS,))
    num_points = len(rows)
    sizes = sorted(rows[c.TRAIN_SIZE].unique())
    # Models share the training subset of a class pair and size, and with it its peculiarities: the subset,
    # not the point, is what repeats.
    held = flattened(rows)
    rows = _averaged_over_models(rows)
    curves = rows[t.CURVE]
    spare = len(rows) - curves.nunique() - 1
    blank = TrainSizeFit(
        model=model,
        dataset=dataset,
        status="not_enough_data",
        num_points=num_points,
        num_sizes=len(sizes),
        reason=f"{len(sizes)} train sizes and {num_points} points, at least {MIN_SIZES} sizes needed",
    )
    if len(sizes) < MIN_SIZES or spare < 1:
        return blank
    if same := unvaried(rows, within=t.CURVE):
        return replace(blank, reason=same)
    if held:
        return replace(blank, status="refused", reason=held)
    x = _within(rows[t.LOG_TRAIN_SIZE], curves)
    y = _within(rows[t.LOG_LOSS], curves)
    exponent = float(x @ y / (x @ x))
    squares = float(((y - exponent * x) ** 2).sum())
    reach = float(t_quantile(0.975, spare) * np.sqrt(squares / spare / float(x @ x)))
    interval = (exponent - reach, exponent + reach) if reach > 0 else None
    d_data = rows[t.D_REFERENCE].mean()
    predicted = float(-1 / d_data) if d_data > 0 else None
    span = float(sizes[-1] / sizes[0])
    return replace(
        blank,
        status="ok",
        reason="",
        exponent=exponent,
        interval=interval,
        predicted=predicted,
        size_span=span,
        aicc_power=aicc(squares, len(rows), int(curves.nunique()) + 2),
        aicc_constant=aicc(float(y @ y), len(rows), int(curves.nunique()) + 1),
        verdict=_verdict(interval, predicted, span),
    )


def _averaged_over_models(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per class pair, data mode and train size: the mean over models of what their own heights
    leave.
    """
    heights = rows.groupby(t.CURVE)[t.LOG_LOSS].transform("mean")
    key = [*t.SUBSET, c.TRAIN_SIZE]
    level = rows.assign(**{t.LOG_LOSS: rows[t.LOG_LOSS] - heights})
    means = level.groupby(key)[[t.LOG_LOSS, t.LOG_TRAIN_SIZE, t.D_REFERENCE]].mean().reset_index()
    return means.assign(**{t.CURVE: t.joined(means, t.SUBSET)})


def _within(values: pd.Series, curves: pd.Series) -> Array:
    return np.asarray((values - values.groupby(curves).transform("mean")).to_numpy(dtype=float))


def _verdict(interval: tuple[float, float] | None, predicted: float | None, span: float) -> str:
    if interval is None:
        return "no scatter to judge by"
    low, high = interval
    short = "" if span >= CONVINCING_SPAN else f" (N spans only a factor {span:.1f})"
    if predicted is None:
        return f"no d_data, so no prediction{short}"
    has_predicted, has_zero = low <= predicted <= high, low <= 0 <= high
    if has_predicted and has_zero:
        return f"cannot tell the predicted exponent from none{short}"
    if has_predicted:
        return f"agrees with the prediction{short}"
    if high < predicted:
        return f"loss falls faster with N than the bound asks, which does not contradict it{short}"
    return f"loss falls more slowly with N than the bound allows, or rises: this contradicts it{short}"


# Correlations over grouped points: what an attack gains against K_F, and d_repr against d_data.

#: d_repr and d_data by the same estimator, so that the comparison is not one of estimators.
ESTIMATORS = {"mle": (c.D_DATA_MLE, c.D_REPR_MLE), "twonn": (c.D_DATA_TWONN, c.D_REPR_TWONN)}
#: Of the family of attacks; the usual one.
LEVEL = 0.05


def weighted_pearson(x: Array, y: Array, weights: Array) -> Array:
    """Pearson's r for every row of ``weights`` (B, n); NaN where x or y does not vary."""
    x, y = _standardised(x), _standardised(y)
    total = weights.sum(axis=1)
    total = np.where(total > 0, total, np.nan)
    moments = weights @ np.column_stack([x, y, x * x, y * y, x * y]) / total[:, None]
    mean_x, mean_y, xx, yy, xy = moments.T
    spread = (xx - mean_x**2) * (yy - mean_y**2)
    # A sum of squares of rounding errors is not a spread: x and y are standardised, so 1e-12 is nothing.
    return np.asarray(
        np.where(spread > 1e-12, (xy - mean_x * mean_y) / np.sqrt(np.maximum(spread, 1e-12)), np.nan)
    )


def _standardised(values: Array) -> Array:
    spread = values.std()
    return np.asarray((values - values.mean()) / (spread if spread > 0 else 1.0))


def associate(points: pd.DataFrame, x: str, y: str, *, model: str, seed: int = 0) -> Association:
    """Measure how ``y`` goes with ``x`` over the points of one model (or pooled), respecting datasets."""
    rows, _ = t.complete(select(points, model), (x, y))
    law = Law("association", (x,), (None,))
    reason = shortage(rows, 1)
    if not reason and min(rows[x].nunique(), rows[y].nunique()) < 2:
        reason = f"{x} or {y} has the same value everywhere"
    blank = Association(
        x=x,
        y=y,
        model=model,
        status="not_enough_data",
        reason=reason,
        num_points=len(rows),
        num_datasets=int(rows[c.DATASET].nunique()),
    )
    if reason:
        return blank
    task = problem(rows, law, response=y)
    solution = solve(task)
    names, without = leave_one_out_weights(task.groups, task.weights)
    xs, ys = task.regressors[:, 0], task.response
    pearson = float(weighted_pearson(xs, ys, task.weights[None, :])[0])
    left = weighted_pearson(xs, ys, without)
    refused = refused_without(rows, 1)
    equal = _at_equal_size(rows, x, y, seed)
    means = rows.groupby([c.DOMAIN, c.DATASET])[[x, y]].mean()
    return replace(
        blank,
        status="ok",
        pearson=pearson,
        pearson_interval=None if refused else _fisher_interval(pearson, left),
        pearson_left_out={
            n: float(v) if np.isfinite(v) and n not in refused else None
            for n, v in zip(names, left, strict=True)
        },
        **equal,
        pearson_dataset_means=_correlation(means[x], means[y]),
        pearson_by_domain={
            str(domain): _correlation(part[x], part[y]) for domain, part in means.groupby(level=0)
        },
        spearman=_correlation(rows[x].rank(), rows[y].rank()),
        spearman_dataset_means=_correlation(means[x].rank(), means[y].rank()),
        slope=coefficients(solution, (x,), (None,), refused)[1] if solution else None,
        caveats=few_datasets(rows),
    )


def _at_equal_size(rows: pd.DataFrame, x: str, y: str, seed: int) -> dict[str, Any]:
    """R over dataset effects at equal model and train size, its interval by Fisher's z and its permutation
    p.
    """
    reduced = dataset_effects(
        rows[[x, y]].to_numpy(dtype=float),
        rows[t.CELL].to_numpy(dtype=str),
        rows[c.DATASET].to_numpy(dtype=str),
        rows[t.WEIGHT].to_numpy(dtype=float),
    )
    if reduced is None or len(reduced[0]) < 3:
        return {}
    first, second = reduced[1].T
    r = _correlation(pd.Series(first), pd.Series(second))
    if r is None:
        return {}
    num = len(first)
    bounds = None
    if num > 3 and abs(r) < 1:
        reach = float(normal_quantile(0.975) / np.sqrt(num - 3))
        bounds = (float(np.tanh(np.arctanh(r) - reach)), float(np.tanh(np.arctanh(r) + reach)))
    found = permutation_test(second, first, np.empty((num, 0)), [""] * num, seed=seed)
    return {
        "pearson_at_equal_size": r,
        "interval_at_equal_size": bounds,
        "permutation_p": None if found is None else found.p_value,
    }


def _correlation(x: pd.Series, y: pd.Series) -> float | None:
    """Pearson's r; None below three values (two always lie on a line) or where one does not vary."""
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _fisher_interval(pearson: float, left: Array) -> Interval | None:
    """Jackknife-t interval over datasets on z = artanh r, whose spread hardly depends on r (Fisher 1921)."""
    if len(left) < 3 or not np.isfinite(left).all() or abs(pearson) >= 1 or (np.abs(left) >= 1).any():
        return None
    moves = np.arctanh(left) - np.arctanh(pearson)
    std_error = np.sqrt((len(left) - 1) / len(left) * float(moves @ moves))
    reach = t_quantile(0.975, len(left) - 1) * std_error
    return float(np.tanh(np.arctanh(pearson) - reach)), float(np.tanh(np.arctanh(pearson) + reach))


def fit_attacks(
    points: pd.DataFrame, *, model: str, scale: SharpnessScale, seed: int = 0
) -> tuple[AttackFit, ...]:
    """Relate every attack's loss gain to K_F (Theorem 3: harder attacks need smaller K_F) and to d_data."""
    fits = []
    for name, attack, epsilon in c.attack_columns(points.columns):
        if points[name].notna().sum() == 0:
            continue
        on_sharpness = (
            associate(points, c.LABEL_SHARPNESS, name, model=model, seed=seed)
            if scale.comparable
            else Association(
                x=c.LABEL_SHARPNESS, y=name, model=model, status="refused", reason=UNEQUAL_SCALES
            )
        )
        on_d_data = associate(points, c.D_DATA_MLE, name, model=model, seed=seed)
        fits.append(
            AttackFit(
                attack=attack, epsilon=epsilon, model=model, on_sharpness=on_sharpness, on_d_data=on_d_data
            )
        )
    return tuple(fits)


def fit_representation(
    points: pd.DataFrame, *, estimator: str, model: str, seed: int = 0
) -> RepresentationFit:
    """Count how often d_repr ≤ d_data, overall and by dataset, and how the two go together."""
    d_data, d_repr = ESTIMATORS[estimator]
    rows, _ = t.complete(select(points, model), (d_data, d_repr))
    blank = RepresentationFit(
        estimator=estimator,
        model=model,
        status="not_enough_data",
        reason="no point has both dimensions by this estimator",
        num_points=len(rows),
        num_datasets=int(rows[c.DATASET].nunique()),
    )
    if len(rows) == 0:
        return blank
    below = rows[d_repr] <= rows[d_data]
    weights = rows[t.WEIGHT].to_numpy(dtype=float)
    by_dataset = (~below).groupby(rows[c.DATASET]).agg(["sum", "size"])
    shares = np.array([below[part.index].mean() for _, part in rows.groupby(c.DATASET)], dtype=float)
    of_datasets, bounds = mean_interval(shares)
    return replace(
        blank,
        status="ok",
        reason="",
        num_below=int(below.sum()),
        share_below=float(np.average(below, weights=weights)),
        share_of_datasets=of_datasets,
        share_interval=None if bounds is None else (max(0.0, bounds[0]), min(1.0, bounds[1])),
        share_by_domain={
            str(domain): float(np.average(below[part.index], weights=part[t.WEIGHT]))
            for domain, part in rows.groupby(c.DOMAIN)
        },
        violations={
            str(name): (int(row["sum"]), int(row["size"]))
            for name, row in by_dataset.iterrows()
            if row["sum"]
        },
        association=associate(points, d_data, d_repr, model=model, seed=seed),
    )


def fit_attack_family(
    points: pd.DataFrame, fits: tuple[AttackFit, ...], *, scale: SharpnessScale, seed: int
) -> AttackFamily:
    """Adjust the correlations with K_F of all attacks, epsilons and models (not pooled) for their number."""
    if not fits:
        return AttackFamily(status="not_enough_data", reason="no attack was run")
    if not scale.comparable:
        return AttackFamily(status="refused", reason=UNEQUAL_SCALES)
    keys, effects = _attack_effects(points)
    few = effects.index.nunique()
    if not keys or few < 4:
        reason = f"{few} dataset{'' if few == 1 else 's'} with K_F and attacks at equal N, at least 4 needed"
        return AttackFamily(status="not_enough_data", reason=reason, num_datasets=few)
    sharpness = effects.pop(c.LABEL_SHARPNESS).to_numpy(dtype=float)
    values = effects.to_numpy(dtype=float)
    found = max_correlation_test(values, sharpness, [""] * len(sharpness), seed=seed)
    if found is None:
        return AttackFamily(
            status="not_enough_data", reason="K_F or every gain has the same value everywhere"
        )
    adjusted, test = found
    rows = []
    for k, key in enumerate(keys):
        has = np.isfinite(values[:, k])
        r = _correlation(pd.Series(values[has, k]), pd.Series(sharpness[has]))
        if r is not None and np.isfinite(adjusted[k]):
            rows.append((*key, r, float(adjusted[k])))
    return AttackFamily(
        status="ok",
        num_datasets=len(sharpness),
        num_permutations=test.num,
        exact=test.exact and test.num <= MOST_EXACT,
        adjusted=tuple(rows),
        num_established=sum(p <= LEVEL for *_, p in rows),
    )


def _attack_effects(points: pd.DataFrame) -> tuple[list[tuple[str, float, str]], pd.DataFrame]:
    """Dataset effects at equal train size of every attack's gain for every model, and K_F: datasets by
    columns.
    """
    keys, columns = [], []
    for attack in c.attack_columns(points.columns):
        for model, rows in points.groupby(c.MODEL):
            used, _ = t.complete(rows, (attack.name, c.LABEL_SHARPNESS))
            if used[c.DATASET].nunique() < 3:
                continue
            reduced = dataset_effects(
                used[[attack.name]].to_numpy(dtype=float),
                used[t.CELL].to_numpy(dtype=str),
                used[c.DATASET].to_numpy(dtype=str),
                used[t.WEIGHT].to_numpy(dtype=float),
            )
            if reduced is None:
                continue
            key = (attack.attack, attack.epsilon, str(model))
            keys.append(key)
            columns.append(pd.Series(reduced[1][:, 0], index=reduced[0], name=str(key)))
    if not columns:
        return [], pd.DataFrame()
    table = pd.concat(columns, axis=1).sort_index()
    sharpness = points.dropna(subset=[c.LABEL_SHARPNESS]).groupby(c.DATASET)[c.LABEL_SHARPNESS].mean()
    return keys, pd.concat([table, sharpness.reindex(table.index)], axis=1)


# The headline questions of a report as one family: what is claimed holds for all of them at once.
#
# Every number in a report has an interval that misses the truth one time in twenty, so among dozens some
# exclude zero by chance. These few questions are asked beforehand; Holm's adjustment over them keeps the
# chance of any false claim at 5 %, and everything else is exploratory.

LOSS_ON_D_DATA = {domain: f"loss_on_d_data_{domain}" for domain in c.DOMAINS}
SHARPNESS, ATTACKS = "sharpness_beyond_label", "attacks_on_sharpness"
EXPONENT, BELOW_BOUND = "exponent", "exponent_below_bound"
QUESTION_WORDS = {
    LOSS_ON_D_DATA[c.NATURAL]: "loss on d_data among natural datasets, at equal N",
    LOSS_ON_D_DATA[c.MEDICAL]: "loss on d_data among medical datasets, at equal N",
    SHARPNESS: "loss on K_F, given 1/d and the domain label",
    EXPONENT: "exponent of N within datasets (against none)",
    BELOW_BOUND: "exponent of N within datasets, slower than the bound 1/d",
    ATTACKS: "loss gained by attacks on K_F (all attacks, epsilons and models)",
}
"""Question -> how it is called."""


def headline_claims(
    levels: Sequence[LevelFit],
    exponent: ExponentFit,
    attacks: AttackFamily,
    past_guessing: ExponentFit | None = None,
) -> tuple[Claim, ...]:
    """Adjust the p-values of the headline questions that could be tested (all models together).

    A question's own p-value is the larger of its t test and its permutation (or wild bootstrap) test, so
    that a claim needs both.

    Args:
        levels: the level regressions of log loss; those of one model are passed over by the caller.
        exponent: the pooled within-dataset exponent.
        attacks: the family of attacks.
        past_guessing: the exponent without N at which nothing was learned yet; None takes all as learned.
    """
    found: dict[str, float] = {}
    for fit in levels:
        if fit.status != "ok":
            continue
        if fit.terms == (c.D_DATA_MLE,) and fit.subset in LOSS_ON_D_DATA:
            found[LOSS_ON_D_DATA[fit.subset]] = _both(fit, c.D_DATA_MLE)
        if set(fit.terms) == {t.INVERSE_D, t.LOG_SHARPNESS, t.IS_MEDICAL}:
            found[SHARPNESS] = _both(fit, t.LOG_SHARPNESS)
    found |= exponent_p_values(exponent)
    if BELOW_BOUND in found and past_guessing is not None:
        # Curves start flat at guessing: what is slower only there is not slower than the bound.
        found[BELOW_BOUND] = max(found[BELOW_BOUND], exponent_p_values(past_guessing).get(BELOW_BOUND, 1.0))
    if attacks.status == "ok" and attacks.adjusted:
        found[ATTACKS] = min(p for *_, p in attacks.adjusted)
    return adjust(found)


def exponent_p_values(fit: ExponentFit) -> dict[str, float]:
    """Return the p-values of "no fall with N" and of "not slower than the bound", which only a slower fall
    can refute.
    """
    if fit.value is None or fit.std_error is None or fit.p_value is None:
        return {}
    from_bound = 2 * t_tail((1 - fit.value) / fit.std_error, fit.num_datasets - 1)
    return {
        EXPONENT: max(fit.p_value, fit.wild_p or 0.0),
        BELOW_BOUND: max(float(from_bound), fit.wild_p_predicted or 0.0) if fit.value < 1 else 1.0,
    }


def adjust(p_values: dict[str, float]) -> tuple[Claim, ...]:
    """Return one claim per p-value, adjusted by Holm's method."""
    if not p_values:
        return ()
    adjusted = _holm(p_values)
    return tuple(
        Claim(key=key, p_value=float(p), adjusted_p=adjusted[key], established=adjusted[key] <= LEVEL)
        for key, p in p_values.items()
    )


def _holm(p_values: Mapping[str, float]) -> dict[str, float]:
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, float(p_values[key]) * (len(p_values) - rank)))
        adjusted[key] = largest
    return adjusted


def _both(fit: LevelFit, name: str) -> float:
    coefficient = fit.coefficient(name)
    return max(coefficient.p_value, coefficient.permutation_p or 0.0)
