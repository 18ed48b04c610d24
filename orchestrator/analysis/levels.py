"""What decides the height of a dataset's losses: its effects, at equal model and train size, on its
properties.

The law's height is log K_F + a + (1/d) · const: a covering argument has (V/N)^(1/d) with an unknown volume
V, so 1/d enters by itself, and without it the coefficient of K_F would depend on the unit in which N is
counted.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from orchestrator.analysis import points as t
from orchestrator.analysis.clusters import (
    Slope,
    dataset_effects,
    mean_interval,
    means_regression,
    permutation_test,
)
from orchestrator.analysis.fit_records import SharpnessScale
from orchestrator.analysis.guessing import flattened
from orchestrator.analysis.law_records import ALL, Difference, LevelFit, MeansCoefficient
from orchestrator.analysis.laws import select
from orchestrator.analysis.regression import Array
from orchestrator.analysis.sharpness import UNEQUAL_SCALES
from orchestrator.analysis.words import listing
from orchestrator.results import columns as c

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
        return replace(blank, reason=_unidentified(rows, blank.terms, len(names)))
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


def _unidentified(rows: pd.DataFrame, terms: tuple[str, ...], num_datasets: int) -> str:
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
