"""Correlation over datasets between K_F and the loss that attacks add (Theorem 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from orchestrator.analysis.inference import (
    MIN_DATASETS_OF_A_CORRELATION,
    Array,
    Codes,
    centered,
    max_correlation_test,
)
from orchestrator.analysis.law_fits.estimates import Estimate, correlation_interval
from orchestrator.analysis.law_fits.records import AttackFit
from orchestrator.analysis.law_fits.rows import (
    complete_rows,
    effects_of,
    effects_without,
    effects_without_each,
)
from orchestrator.analysis.results_tables.points import ALL, POOLED
from orchestrator.analysis.results_tables.sharpness_scale import UNEQUAL_SCALES, SharpnessScale
from orchestrator.results.columns import DATASET, DOMAIN, LABEL_SHARPNESS, attack_columns


@dataclass(frozen=True, slots=True)
class AttackGain:
    """The loss that one attack adds to one network, for each dataset, compared at equal N.

    Attributes:
        fit: Record of the fit before the correlation is estimated.
        rows: The points that have K_F and a loss under this attack.
        gains: Added loss of each dataset, by name of the dataset. The added losses are dataset
            effects, which :func:`effects_of` computes.
    """

    fit: AttackFit
    rows: pd.DataFrame
    gains: pd.Series


def fit_attacks(
    points: pd.DataFrame, scale: SharpnessScale, models: Sequence[str]
) -> Iterator[AttackFit]:
    """Correlate the loss that attacks add with K_F, over datasets and within domains.

    Added losses and K_F are reduced to one effect per dataset, compared at equal model and
    train size. p-values are adjusted for the number of attacks and networks. If K_F was
    measured on several scales, only datasets with the most common scale are used.

    Args:
        points: One row per point, as :func:`fitted_points` returns them.
        scale: The scales on which K_F was measured.
        models: Names of the networks.

    Yields:
        One fit for each attack and network, and one fit of all networks for each attack.
    """
    variant = ""
    if not scale.comparable:
        variant, points = _of_commonest_scale(points, scale)
    tried: list[AttackGain] = []
    for attack in attack_columns(points.columns):
        if not points[attack.name].notna().any():
            continue
        for model in (*models, POOLED):
            gain = _gain(points, attack.name, model, variant)
            if isinstance(gain, AttackFit):
                yield gain
            else:
                tried.append(gain)
    if tried:
        yield from _correlated(points, tried)


def _of_commonest_scale(points: pd.DataFrame, scale: SharpnessScale) -> tuple[str, pd.DataFrame]:
    """Return the name of the most common scale of K_F, and the points of its datasets.

    A dataset with K_F on two scales is left out.
    """
    commonest, datasets = max(scale.scales, key=lambda entry: len(entry[1]))
    datasets_of_other_scales: set[str] = set()
    for name, its_datasets in scale.scales:
        if name != commonest:
            datasets_of_other_scales.update(its_datasets)
    return commonest, points[points[DATASET].isin(set(datasets) - datasets_of_other_scales)]


def _gain(points: pd.DataFrame, attack: str, model: str, variant: str) -> AttackGain | AttackFit:
    """Return the loss that an attack adds to a network.

    If it is unknown, return a fit with a reason.
    """
    rows = complete_rows(points, model, ALL, (attack, LABEL_SHARPNESS))
    unfitted = AttackFit(
        model=model,
        response=attack,
        variant=variant,
        num_points=len(rows),
        num_datasets=rows[DATASET].nunique(),
        num_needed=MIN_DATASETS_OF_A_CORRELATION,
    )
    effects = None
    if unfitted.num_datasets >= unfitted.num_needed:
        effects = effects_of(rows, (attack,))
    if effects is not None:
        return AttackGain(unfitted, rows, effects[attack])
    if variant:
        return replace(unfitted, status="refused", reason=UNEQUAL_SCALES)
    return replace(unfitted, reason=unfitted.too_few_datasets("with K_F and attacks at equal N"))


def _correlated(points: pd.DataFrame, tried: Sequence[AttackGain]) -> Iterator[AttackFit]:
    """Test all correlations in one test, and yield the fit of each correlation."""
    # If a dataset has no loss under an attack, its gain is NaN. The test of this attack then
    # leaves out the dataset.
    gains = pd.DataFrame({k: gain.gains for k, gain in enumerate(tried)}).sort_index()
    about = _sharpness_by_dataset(points)
    sharpness = about[LABEL_SHARPNESS][gains.index].to_numpy(dtype=float)
    domains = about[DOMAIN][gains.index].to_numpy(dtype=str).tolist()
    # A pooled fit uses the data of the single models again, so it does not count as a test.
    single = [k for k, gain in enumerate(tried) if gain.fit.model != POOLED]
    test = max_correlation_test(gains.to_numpy(dtype=float), sharpness, domains, single)
    largest = np.nanmax([-1.0, *test.r[single]])
    for gain, r, p in zip(tried, test.r.tolist(), test.adjusted_p.tolist(), strict=True):
        if np.isnan(r):
            reason = "K_F, or the loss that the attack adds, is the same for all datasets"
            yield replace(gain.fit, reason=reason)
            continue
        # The correlation and its interval hold the domain constant. Each domain after the
        # first costs one degree of freedom.
        num_domains = about[DOMAIN][gain.gains.index].nunique()
        adjusted_p = None if np.isnan(p) else p
        # The answer reports the largest of several correlations, so intervals are
        # simultaneous.
        critical = None if adjusted_p is None else test.critical
        estimate = Estimate(
            name="r",
            value=r,
            interval=correlation_interval(
                r, gain.fit.num_datasets, num_domains - 1, critical=critical
            ),
            resampled_p=adjusted_p,
            num_resamples=test.num_rearrangements,
            smallest_p=1 / test.num_rearrangements,
        )
        # Only the largest correlation answers the question, so only this one is also computed
        # without each dataset.
        if r == largest:
            estimate = replace(estimate, left_out=_without_each(gain, about))
        range_left_out = None
        if estimate.influential is not None:
            tested = [tried[k] for k in single]
            range_left_out = _range_without(estimate.influential, tested, about)
        yield replace(
            gain.fit,
            status="ok",
            range_left_out=range_left_out,
            estimates=(estimate,),
            interval_critical=test.critical,
            criticals=test.criticals,
        )


def _sharpness_by_dataset(points: pd.DataFrame) -> pd.DataFrame:
    """Return K_F, compared at equal model and N, and the domain, with one row per dataset.

    K_F grows with N. A plain mean would therefore be larger for datasets with larger train
    sizes. If datasets share no train size, the plain mean is returned nevertheless.
    """
    rows = points.dropna(subset=[LABEL_SHARPNESS])
    about = rows.groupby(DATASET).agg({LABEL_SHARPNESS: "mean", DOMAIN: "first"})
    effects = effects_of(rows, (LABEL_SHARPNESS,))
    if effects is not None:
        about[LABEL_SHARPNESS] = effects[LABEL_SHARPNESS]
    return about


def _without_each(gain: AttackGain, about: pd.DataFrame) -> dict[str, float]:
    """Return the correlation without each dataset, after estimating the effects again."""
    names = np.unique(gain.rows[DATASET].to_numpy(dtype=str))
    sharpness = about[LABEL_SHARPNESS][names].to_numpy(dtype=float)
    domains = about[DOMAIN][names].to_numpy(dtype=str)
    correlations = {}
    for name, gains in effects_without_each(gain.rows, (gain.fit.response,)):
        is_other = names != name
        correlations[name] = _correlation(gains[:, 0], sharpness[is_other], domains[is_other])
    return correlations


def _range_without(
    name: str, tested: Sequence[AttackGain], about: pd.DataFrame
) -> tuple[float, float] | None:
    """Return the smallest and the largest tested correlation after one dataset is left out.

    Returns None if the remaining datasets share no model and train size.
    """
    sharpness = about[LABEL_SHARPNESS].to_numpy(dtype=float)
    domains = about[DOMAIN].to_numpy(dtype=str)
    correlations = []
    for gain in tested:
        refit = effects_without(gain.rows, (gain.fit.response,), name)
        if refit is None:
            return None
        others, gains = refit
        places = about.index.get_indexer(pd.Index(others))
        correlations.append(_correlation(gains[:, 0], sharpness[places], domains[places]))
    if not correlations:
        return None
    return min(correlations), max(correlations)


def _correlation(gains: Array, sharpness: Array, domains: Codes) -> float:
    """Return Pearson's r within domains between added losses and K_F. All arrays are ``(G,)``."""
    residuals = centered(np.column_stack([gains, sharpness]), domains)
    # The columns are centered within domains, so this is the partial correlation given the
    # domain.
    lengths = np.prod(np.linalg.norm(residuals, axis=0))
    return float(np.prod(residuals, axis=1).sum() / max(lengths, 1e-300))
