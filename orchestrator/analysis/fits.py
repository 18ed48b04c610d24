"""All fits of one results table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from orchestrator.analysis import table as t
from orchestrator.analysis.fit_records import (
    ALL,
    POOLED,
    ChanceCount,
    Claim,
    DatasetSummary,
    Growth,
    Interval,
    LawFit,
    ScalingFits,
    SharpnessScale,
    TrainSizeFit,
)
from orchestrator.analysis.interventions import Arm, fit_interventions
from orchestrator.analysis.laws import (
    ESTIMATORS,
    LAWS,
    PAST_GUESSING,
    Policy,
    apply_policy,
    compare_forms,
    fit_attack_family,
    fit_attacks,
    fit_exponents,
    fit_law,
    fit_levels,
    fit_representation,
    fit_sensitivity,
    fit_train_size,
    headline_claims,
)
from orchestrator.analysis.prediction import fit_growth
from orchestrator.analysis.table import few_datasets, listing, plural
from orchestrator.results import table as c


def fit_scaling_laws(
    table: pd.DataFrame,
    *,
    seed: int = 0,
    sharpness_policy: Policy = "refuse",
    leave_out_chance: bool = False,
    arms: Sequence[Arm] = (),
) -> ScalingFits:
    """Fit every law of the study to a results table, for each model and pooled over models.

    Args:
        table: one row per trial; the columns of :mod:`orchestrator.results.table`.
        seed: decides drawn permutations, where there are too many to try all; everything else is exact.
        sharpness_policy: what to do where K_F was measured on unequal scales (side, channels, pixel range):
            ``refuse`` fits that compare it, ``rescale`` to the most common scale, or ``ignore``.
        leave_out_chance: leave out losses at or above ln 2 (guessing); they are counted either way.
        arms: datasets of an experiment that moves one property. Copies of one world are not independent
            datasets, so every other fit takes the worlds' bases alone.

    Returns:
        Fits with uncertainty over datasets. What could not be fitted is there too, with its reason.

    Raises:
        DataError: if the table lacks a required column or contradicts itself.
    """
    full, infinities = t.normalise(table)
    full, copies = t.without_copies(full, {arm.dataset for arm in arms if arm.moves != "base"})
    full, scale = apply_policy(full, sharpness_policy)
    trials, excluded = t.usable_trials(full, leave_out_chance=leave_out_chance)
    points = t.fitted_points(trials)
    models = tuple(sorted(points[c.MODEL].unique()))
    # With one model the pooled fit is that model's fit again, but readers should not have to know that.
    names = (*models, POOLED) if models else ()
    attacks = tuple(f for m in names for f in fit_attacks(points, model=m, scale=scale, seed=seed))
    fits = ScalingFits(
        seed=seed,
        num_trials=len(table),
        num_used=int(trials[t.LOG_LOSS].notna().sum()),
        num_points=len(points),
        excluded=(*infinities, *copies, *excluded),
        datasets=_summaries(full, points),
        models=models,
        sharpness_scale=scale,
        laws=_laws(points, names, scale),
        comparisons=tuple(compare_forms(points, model=m, scale=scale) for m in names),
        train_size=_train_sizes(points, names),
        attacks=attacks,
        representations=tuple(
            fit_representation(points, estimator=e, model=m, seed=seed) for m in names for e in ESTIMATORS
        ),
        levels=tuple(f for m in names for f in fit_levels(points, model=m, scale=scale, seed=seed)),
        exponents=tuple(f for m in names for f in fit_exponents(points, model=m)),
        sensitivity=fit_sensitivity(points, full) if names else (),
        attack_family=fit_attack_family(points, attacks, scale=scale, seed=seed),
        growth=_growths(points, names, scale),
        at_chance=_at_chance(points, leave_out_chance),
        caveats=_caveats(full, points, scale),
        interventions=fit_interventions(table, arms) if arms else None,
    )
    return replace(fits, claims=_claims(fits))


def _laws(points: pd.DataFrame, names: tuple[str, ...], scale: SharpnessScale) -> tuple[LawFit, ...]:
    return tuple(
        fit_law(points, law, model=m, subset=s, scale=scale)
        for m in names
        for law in LAWS
        for s in law.subsets
    )


def _train_sizes(points: pd.DataFrame, names: tuple[str, ...]) -> tuple[TrainSizeFit, ...]:
    datasets = sorted(points[c.DATASET].unique())
    return tuple(fit_train_size(points, model=m, dataset=d) for m in names for d in datasets)


def _growths(points: pd.DataFrame, names: tuple[str, ...], scale: SharpnessScale) -> tuple[Growth, ...]:
    return tuple(fit_growth(points, model=m, subset=s, scale=scale) for m in names for s in (ALL, *c.DOMAINS))


def _claims(fits: ScalingFits) -> tuple[Claim, ...]:
    levels = [f for f in fits.levels if f.model == POOLED and f.response == "test_loss"]
    past = next((f for f in fits.sensitivity if f.dimension == PAST_GUESSING), None)
    return headline_claims(levels, fits.exponent(), fits.attack_family, past)


def _at_chance(points: pd.DataFrame, left_out: bool) -> ChanceCount:
    known = points[points[c.TEST_LOSS].notna()]
    guessed = known[c.TEST_LOSS] >= t.CHANCE_LOSS
    counts = guessed.groupby(known[c.DATASET]).agg(["sum", "size"])
    return ChanceCount(
        num_points=len(known),
        num_at_chance=int(guessed.sum()),
        by_dataset={
            str(name): (int(row["sum"]), int(row["size"])) for name, row in counts.iterrows() if row["sum"]
        },
        left_out=left_out,
    )


def _summaries(full: pd.DataFrame, points: pd.DataFrame) -> tuple[DatasetSummary, ...]:
    return tuple(
        DatasetSummary(
            dataset=str(name),
            domain=str(rows[c.DOMAIN].iloc[0]),
            num_trials=len(rows),
            num_points=int((points[c.DATASET] == name).sum()),
            train_sizes=tuple(sorted(int(n) for n in rows[c.TRAIN_SIZE].dropna().unique())),
            d_data=_mean(rows[c.D_DATA_MLE]),
            d_data_range=_range(rows[c.D_DATA_MLE]),
            label_sharpness=_mean(rows[c.LABEL_SHARPNESS]),
            label_sharpness_range=_range(rows[c.LABEL_SHARPNESS]),
            image_size=_only(rows[c.IMAGE_SIZE]),
            channels=_only(rows[c.CHANNELS]),
        )
        for name, rows in full.groupby(c.DATASET)
    )


def _mean(values: pd.Series) -> float | None:
    return float(values.mean()) if values.notna().any() else None


def _range(values: pd.Series) -> Interval | None:
    return (float(values.min()), float(values.max())) if values.notna().any() else None


def _only(values: pd.Series) -> int | None:
    """The one value of a column, or None where there are several or none."""
    distinct = values.dropna().unique()
    return int(distinct[0]) if len(distinct) == 1 else None


def _caveats(full: pd.DataFrame, points: pd.DataFrame, scale: SharpnessScale) -> tuple[str, ...]:
    found = list(few_datasets(points))
    absent = [domain for domain in c.DOMAINS if domain not in set(points[c.DOMAIN])]
    found += [
        f"No {domain} dataset: nothing can be said about differences between domains." for domain in absent
    ]
    if scale.note:
        found.append(scale.note)
    diverged = int((full[c.STATUS] != c.DONE).sum())
    if diverged:
        found.append(
            f"{plural(diverged, 'trial')} diverged and had no loss to fit; the fits describe the others."
        )
    modes = sorted(full[c.DATA_MODE].unique())
    if len(modes) > 1:
        found.append(f"Trials of several data modes ({listing(modes)}) are fitted together.")
    conflicts = sorted(full.loc[full[c.NUM_CONFLICTS] > 0, c.DATASET].unique())
    if conflicts:
        found.append(
            f"Identical images with different labels in {listing(conflicts)}: there K_F has no finite value."
        )
    return tuple(found)
