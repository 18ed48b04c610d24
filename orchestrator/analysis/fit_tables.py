"""Tables of the fits for the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from orchestrator.analysis.fit_records import POOLED, Association, Coefficient, LawFit, ScalingFits
from orchestrator.analysis.formats import Table, interval, number, p_value
from orchestrator.analysis.intervention_tables import intervention_tables
from orchestrator.analysis.law_tables import claim_table, exponent_tables, level_table

_NAMES = {
    "scaled_log_train_size": "−log N / d_data",
    "log_sharpness": "log K_F",
    "is_medical": "medical (against natural)",
    "d_data_mle": "d_data",
    "d_repr_mle": "d_repr (MLE)",
    "d_repr_twonn": "d_repr (TwoNN)",
    "log_train_size": "log N",
    "loss_on_d_data": "log loss on d_data, pooled over N",
    "loss_on_d_data_at_equal_size": "log loss on d_data at equal N",
    "loss_on_d_data_with_offset": "log loss on d_data, domains offset",
    "predicted_form": "form in the unit of N (as published)",
    "domain_form": "domain label for K_F",
    "loss_on_d_repr_mle": "log loss on d_repr (MLE)",
    "loss_on_d_repr_twonn": "log loss on d_repr (TwoNN)",
    "constant": "constant",
    "pure_power": "pure power of N",
    "d_data_only": "−log N / d_data alone",
    "slopes_fixed_at_theory": "predicted form, slopes fixed at 1",
}


def fit_tables(fits: ScalingFits) -> list[Table]:
    """Return the tables of all fits, each split in all models together and each model."""
    moved = intervention_tables(fits.interventions) if fits.interventions else []
    first = [*moved, claim_table(fits), *exponent_tables(fits)]
    tables = (level_table, _train_size, _attacks, _representations, _laws, _comparisons)
    return [*first, *(part for table in tables for part in _by_model(table(fits)))]


def _by_model(table: Table) -> list[Table]:
    """Split a table in what holds for all models together and, folded away, what holds for each."""
    column = table.header.index("model")
    pooled = tuple(row for row in table.rows if row[column] == POOLED)
    single = tuple(row for row in table.rows if row[column] != POOLED)
    return [
        replace(table, rows=pooled),
        replace(
            table,
            key=f"{table.key}-by-model",
            title=f"{table.title}: each model",
            note="",
            rows=single,
            folded=True,
        ),
    ]


def _laws(fits: ScalingFits) -> Table:
    rows = tuple(row for fit in fits.laws if fit.num_points or fit.model == POOLED for row in _law_rows(fit))
    return Table(
        "laws",
        "Regressions of log test loss",
        "Exploratory. Intervals are 95 %, by leaving out each dataset. “Without” is the value when the "
        "dataset that moves it most is left out. R² is within models.",
        (
            "regression",
            "model",
            "datasets",
            "coefficient of",
            "value",
            "theory",
            "interval",
            "without",
            "R²",
            "held-out error",
            "points",
        ),
        rows,
        numeric_from=4,
    )


def _law_rows(fit: LawFit) -> Iterable[tuple[str, ...]]:
    about = (_NAMES[fit.law], fit.model, f"{fit.subset} ({fit.num_datasets})")
    if fit.status != "ok":
        words = "refused: " if fit.status == "refused" else "not enough data: "
        yield (*about, words + fit.reason, "", "", "", "", "", "", str(fit.num_points))
        return
    for coefficient in fit.coefficients[1:]:
        yield (
            *about,
            _NAMES[coefficient.name],
            number(coefficient.value),
            number(coefficient.theory),
            interval(coefficient.interval),
            _without(coefficient),
            number(fit.r_squared),
            number(fit.held_out_rmse),
            str(fit.num_points),
        )


def _without(coefficient: Coefficient) -> str:
    name = coefficient.influential
    return "" if name is None else f"{name}: {number(coefficient.left_out[name])}"


def _comparisons(fits: ScalingFits) -> Table:
    rows: list[tuple[str, ...]] = []
    for found in fits.comparisons:
        if found.status != "ok":
            rows.append((found.model, "not enough data: " + found.reason, "", "", "", str(found.num_points)))
        best = min((s.aicc for s in found.scores if s.aicc is not None), default=0.0)
        rows += [
            (
                found.model,
                _NAMES[s.form],
                number(s.r_squared),
                "" if s.aicc is None else f"{s.aicc - best:.1f}",
                number(s.held_out_rmse),
                str(found.num_points),
            )
            for s in found.scores
        ]
    return Table(
        "comparison",
        "Forms of the law beside simpler ones",
        "All on the same points. AICc is given above the best form's (0 is best) and takes points as "
        "independent; the held-out error, in log loss on datasets left out of the fit, does not.",
        ("model", "form", "R²", "AICc − best", "held-out error", "points"),
        tuple(rows),
        numeric_from=2,
    )


def _train_size(fits: ScalingFits) -> Table:
    rows = tuple(
        (
            f.dataset,
            f.model,
            number(f.exponent),
            interval(f.interval),
            number(f.predicted),
            f.verdict if f.status == "ok" else f"{f.status.replace('_', ' ')}: {f.reason}",
        )
        for f in fits.train_size
    )
    return Table(
        "train-size",
        "Exponent of N within one dataset",
        "Slope of log loss on log N beside −1/d_data. Models of one training subset are averaged first. "
        "Nested "
        "subsets share images, so these intervals are optimistic; exploratory.",
        ("dataset", "model", "exponent", "interval", "predicted", "verdict"),
        rows,
        numeric_from=2,
    )


def _attacks(fits: ScalingFits) -> Table:
    adjusted = {row[:3]: row[4] for row in fits.attack_family.adjusted}
    rows = tuple(
        (
            f"{f.attack.upper()} {f.epsilon:g}/255",
            f.model,
            *_association(f.on_sharpness, adjusted.get((f.attack, f.epsilon, f.model))),
            number(f.on_d_data.pearson),
        )
        for f in fits.attacks
    )
    return Table(
        "attacks",
        "Loss gained by attacks, against K_F",
        "r at equal N is Pearson's over dataset effects at equal model and train size, with its 95 % "
        "interval; the "
        "adjusted p holds over all attacks, epsilons and models together. d_data is shown for contrast.",
        (
            "attack",
            "model",
            "r with K_F over points",
            "r at equal N",
            "interval",
            "adjusted p",
            "r over dataset means",
            "Spearman over means",
            "slope (nat per unit of K_F)",
            "points",
            "r with d_data",
        ),
        rows,
        numeric_from=2,
    )


def _association(found: Association, adjusted: float | None) -> tuple[str, ...]:
    if found.status != "ok":
        reason = f"{found.status.replace('_', ' ')}: {found.reason}"
        return (reason, "", "", "", "", "", "", str(found.num_points))
    return (
        number(found.pearson),
        number(found.pearson_at_equal_size),
        interval(found.interval_at_equal_size),
        p_value(adjusted),
        number(found.pearson_dataset_means),
        number(found.spearman_dataset_means),
        number(found.slope.value if found.slope else None),
        str(found.num_points),
    )


def _representations(fits: ScalingFits) -> Table:
    rows = tuple(
        (
            f.estimator,
            f.model,
            "not enough data: " + f.reason if f.share_below is None else f"{f.num_below} of {f.num_points}",
            "" if f.share_of_datasets is None else f"{f.share_of_datasets:.0%}",
            "" if f.share_interval is None else f"{f.share_interval[0]:.0%} to {f.share_interval[1]:.0%}",
            ", ".join(f"{name} {above} of {size}" for name, (above, size) in f.violations.items()),
            number(f.association.pearson if f.association else None),
            str(f.num_points),
        )
        for f in fits.representations
        if f.num_points or f.model == POOLED
    )
    return Table(
        "representations",
        "d_repr against d_data",
        "The bound d_repr ≲ d_data is approximate.",
        ("estimator", "model", "at or below", "mean of datasets", "interval", "points above", "r", "points"),
        rows,
        numeric_from=6,
    )
