"""The report's tables as plain rows of text; the template only lays them out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from math import exp
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.analysis.findings import Finding
from orchestrator.analysis.fit_records import (
    POOLED,
    Association,
    Coefficient,
    Effect,
    ExponentFit,
    Gate,
    Interventions,
    LawFit,
    LevelFit,
    ScalingFits,
    Table,
    interval,
    number,
    p_value,
    with_range,
)
from orchestrator.analysis.laws import QUESTION_WORDS
from orchestrator.analysis.published import side_by_side
from orchestrator.results import table as c
from tasks.atomic import write_atomic

# Tables of the headline claims, of the exponent of N and of what decides the height of the losses.

_TERMS = {
    "inverse_d": "1/d",
    "log_sharpness": "log K_F",
    "log_smoothness": "log average smoothness",
    "log_relative_sharpness": "log K_F over exchanged labels'",
    "is_medical": "medical (against natural)",
    "d_data_mle": "d_data",
}
_RESPONSES = {"test_loss": "log loss", "test_error": "log error (0/1)", "label_sharpness": "log K_F"}


def claim_table(fits: ScalingFits) -> Table:
    """Return the headline questions with their p-values, alone and adjusted for their number."""
    rows = tuple(
        (
            QUESTION_WORDS[k.key],
            p_value(k.p_value),
            p_value(k.adjusted_p),
            "established" if k.established else "not established",
        )
        for k in fits.claims
    )
    return Table(
        "claims",
        "Headline questions",
        "p is the larger of the t test over datasets and the permutation (or wild cluster bootstrap) test; "
        "adjusted by "
        "Holm over these questions. Every other number in this report is exploratory.",
        ("question", "p", "adjusted p", "answer"),
        rows,
    )


def exponent_tables(fits: ScalingFits) -> list[Table]:
    """Return the within-dataset exponent, its rivals, and what it owes to the choice of d."""
    return [_exponents(fits), _rivals(fits), _sensitivity(fits)]


def _exponents(fits: ScalingFits) -> Table:
    rows = tuple(
        (
            _RESPONSES[f.response],
            f.model,
            f"{f.subset} ({f.num_datasets})",
            f"{f.num_curves - f.num_at_guessing} of {f.num_curves}",
            *_exponent_cells(f),
        )
        for f in fits.exponents
        if f.num_points or f.subset == "all"
    )
    return Table(
        "exponent",
        "Exponent of N within datasets, times d",
        "Log loss on −log N / d, every curve with its own height and one d per dataset and class pair (at "
        "its largest "
        "N). 1 is the law's bound, 0 no dependence. No unit of N, pixels or loss changes it. Where guessing "
        "holds losses down, curves clear of it alone are fitted.",
        (
            "response", "model", "datasets", "curves", "exponent · d", "interval", "p against 0", "wild p",
            "wild p against 1", "verdict",
        ),
        rows,
        numeric_from=3,
    )  # fmt: skip


def _exponent_cells(fit: ExponentFit) -> tuple[str, ...]:
    if fit.status != "ok":
        return ("", "", "", "", "", "not enough data: " + fit.reason)
    return (
        number(fit.value),
        interval(fit.interval),
        p_value(fit.p_value),
        p_value(fit.wild_p),
        p_value(fit.wild_p_predicted),
        fit.verdict,
    )


def _rivals(fits: ScalingFits) -> Table:
    rows = tuple(
        (
            _RESPONSES[fit.response],
            r.form,
            str(r.num_coefficients),
            number(r.rmse),
            "" if r.versus_none is None else interval(r.versus_none.interval),
        )
        for fit in fits.exponents
        if fit.model == "pooled" and fit.subset == "all"
        for r in fit.rivals
    )
    return Table(
        "exponent-rivals",
        "Rival exponents of N",
        "Error on the curves of datasets left out, their heights free: none; 1/d (the law); 4/d (Sharma & "
        "Kaplan 2022); "
        "one power for all; b/d with b fitted. The interval is of the difference in squared error from "
        "none; below 0 is "
        "better.",
        ("response", "exponent", "fitted", "held-out error", "against none"),
        rows,
        numeric_from=2,
    )


def _sensitivity(fits: ScalingFits) -> Table:
    rows = tuple(
        (
            _RESPONSES[f.response],
            f.dimension,
            f"{f.num_datasets}",
            number(f.value) if f.status == "ok" else "not enough data: " + f.reason,
            interval(f.interval),
        )
        for f in fits.sensitivity
    )
    return Table(
        "sensitivity",
        "What the exponent owes to the choice of d",
        "The last row is how K_F itself grows with N, times d: 2 where unlike labels lie mixed, 0 where "
        "classes are apart.",
        ("response", "d", "datasets", "exponent · d", "interval"),
        rows,
        numeric_from=3,
    )


def level_table(fits: ScalingFits) -> Table:
    """Return what decides the height of a dataset's losses: rivals on the same datasets."""
    rows = tuple(
        row
        for _, alike in groupby(
            fits.levels, key=lambda fit: (fit.response, fit.model, fit.subset, fit.reason)
        )
        for row in _level_rows(list(alike))
    )
    return Table(
        "levels",
        "Height of the losses over datasets, at equal N",
        "Dataset effects at equal model and train size; t intervals with (datasets − coefficients) degrees "
        "of freedom "
        "hold as often as they say. Permutation p of exchangeable datasets is exact (*). “Against label”: "
        "difference in "
        "squared held-out error from the bare domain label; below 0 is better. 1/d enters by itself, or the "
        "coefficients would depend on the unit of N.",
        (
            "response", "model", "datasets", "on", "coefficient of", "value", "interval", "permutation p",
            "held-out error", "against label",
        ),
        rows,
        numeric_from=5,
    )  # fmt: skip


def _level_rows(fits: list[LevelFit]) -> list[tuple[str, ...]]:
    """Return the rows of fits that all have numbers, or one row for all that lack them for one reason."""
    first = fits[0]
    if first.status == "ok":
        return [row for fit in fits for row in _rows_of_numbers(fit)]
    words = "refused: " if first.status == "refused" else "not enough data: "
    terms = "; ".join(map(_terms, fits))
    return [(*_about(first), terms, words + first.reason, "", "", "", "", "")]


def _about(fit: LevelFit) -> tuple[str, str, str]:
    return _RESPONSES[fit.response], fit.model, f"{fit.subset} ({fit.num_datasets})"


def _terms(fit: LevelFit) -> str:
    return ", ".join(_TERMS[name] for name in fit.terms) or "nothing"


def _rows_of_numbers(fit: LevelFit) -> list[tuple[str, ...]]:
    about = (*_about(fit), _terms(fit))
    against = "" if fit.versus_label is None else interval(fit.versus_label.interval)
    scores = (number(fit.held_out_rmse), against)
    if not fit.coefficients:
        return [(*about, "", "", "", "", *scores)]
    return [
        (
            *about,
            _TERMS[coefficient.name],
            number(coefficient.value),
            interval(coefficient.interval),
            p_value(coefficient.permutation_p) + ("*" if coefficient.exact else ""),
            *scores,
        )
        for coefficient in fit.coefficients
    ]


# Tables and the finding of experiments that move one property.

_MEANT = {"sharpness": "K_F", "dimension": "d", "nothing": "nothing (control)"}


def intervention_finding(found: Interventions) -> Finding:
    """Return what the experiment says, with what it does not show."""
    caveats = [
        "Worlds are the replicates; intervals are over them, for these kinds of images and these networks.",
        "Arms with exchanged labels also raise the loss that no network can go below.",
    ]
    cells = sum(e.num_at_chance for e in found.effects if e.response == "loss" and not e.arm)
    if cells:
        caveats.append(f"Left out: {cells} pairs in which the base itself learned nothing (loss at chance).")
    without = sum(e.num_without for e in found.effects if e.response == "error" and not e.arm)
    if without:
        caveats.append(f"{without} pairs have an error of 0 on one side, which has no logarithm.")
    return Finding("When only one property is moved, what follows?", found.answer, tuple(caveats))


def intervention_tables(found: Interventions) -> list[Table]:
    """Return effects, gates and the effect in every world."""
    return [_effects(found), _gates(found), _worlds(found)]


def _effects(found: Interventions) -> Table:
    return Table(
        "interventions",
        "What follows when one property is moved",
        "Mean over worlds with its 95 % t interval; every arm against the base of its own world at equal "
        "model and N. Only arms that pass the gate. Rows of single arms are exploratory.",
        (
            "effect",
            "arms",
            "worlds",
            "value",
            "interval",
            "the law says",
            "p against it",
            "p against 0",
            "pairs",
        ),
        tuple(_effect_row(effect) for effect in found.effects),
        numeric_from=2,
    )  # fmt: skip


def _effect_row(effect: Effect) -> tuple[str, ...]:
    name = effect.estimand
    if name == "exponent · d":
        name = f"{name}, {effect.response}"
    return (
        name,
        effect.arm or "all",
        str(effect.num_worlds),
        number(effect.value),
        interval(effect.interval),
        number(effect.theory),
        p_value(effect.p_theory),
        p_value(effect.p_zero),
        str(effect.num_cells),
    )


def _gates(found: Interventions) -> Table:
    return Table(
        "intervention-gates",
        "What each arm moved",
        "Factors on K_F and d against the world's base, at the largest N that both have. An arm counts if "
        "what it is to move moved (K_F by a factor 2, d by 1.25) and what it holds by less than 5 %.",
        ("dataset", "meant to move", "K_F", "d", "counts"),
        tuple(_gate_row(gate) for gate in found.gates),
        numeric_from=2,
    )


def _gate_row(gate: Gate) -> tuple[str, ...]:
    factors = (
        "" if moved is None else f"× {number(exp(moved))}"
        for moved in (gate.sharpness_moved, gate.dimension_moved)
    )
    meant = _MEANT.get(gate.arm.moves, "")
    return gate.arm.dataset, meant, *factors, "yes" if gate.counts else f"no: {gate.reason}"


def _worlds(found: Interventions) -> Table:
    rows = tuple(
        (effect.estimand, effect.response, effect.arm or "all", world, number(value))
        for effect in found.effects
        for world, value in effect.by_world.items()
    )
    return Table(
        "intervention-worlds", "What follows, in every world", "",
        ("effect", "response", "arms", "world", "value"), rows, numeric_from=4, folded=True,
    )  # fmt: skip


# Tables of the fits for the report.

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


MEASURES_NOTE = (
    "d_data by every estimator: mle is maximum likelihood, twonn from two nearest neighbours, gride from "
    "up to sixteen. label_sharpness is K_F, label_sharpness_p99 what 99 % of the images stay below."
)


def all_tables(full: pd.DataFrame, fits: ScalingFits, summary: Mapping[str, Any]) -> dict[str, list[Table]]:
    """Return all tables that have rows, by section of the report."""
    sections = {
        "datasets": [_datasets(fits, summary)],
        "fits": fit_tables(fits),
        "published": [_published(full)],
        "measures": [_records("measures", "Measures", summary.get("measures", ()), MEASURES_NOTE, 2)],
        "unreadable": [
            _records("unreadable", "Stored results that cannot be read", summary.get("unreadable", ()))
        ],
        "failures": [_records("failures", "Failed trials", summary.get("failures", ()))],
    }
    return {name: [table for table in tables if table.rows] for name, tables in sections.items()}


def _datasets(fits: ScalingFits, summary: Mapping[str, Any]) -> Table:
    about = summary.get("datasets", {})
    rows = tuple(
        (
            d.dataset,
            d.domain,
            _describe(about.get(d.dataset)),
            f"{d.num_trials:,}",
            ", ".join(f"{n:,}" for n in d.train_sizes),
            with_range(d.d_data, d.d_data_range),
            with_range(d.label_sharpness, d.label_sharpness_range),
            "mixed" if d.image_size is None or d.channels is None else f"{d.image_size}² × {d.channels}",
        )
        for d in fits.datasets
    )
    return Table(
        "datasets",
        "Datasets",
        "d_data by maximum likelihood; ranges are over train sizes and class pairs.",
        ("dataset", "domain", "what it is", "trials", "train sizes", "d_data", "K_F", "side² × channels"),
        rows,
        numeric_from=3,
    )


def _describe(entry: object) -> str:
    if isinstance(entry, Mapping):
        return ". ".join(str(entry[key]).rstrip(".") for key in ("title", "description") if entry.get(key))
    return "" if entry is None else str(entry)


def synthetic_data(fits: ScalingFits, summary: Mapping[str, Any]) -> list[str]:
    """Return one sentence per dataset that is described as synthetic in any degree."""
    about = {d.dataset: _describe(summary.get("datasets", {}).get(d.dataset)) for d in fits.datasets}
    return [f"{name}: {text.rstrip('.')}." for name, text in about.items() if "synthetic" in text.lower()]


def _published(full: pd.DataFrame) -> Table:
    both = side_by_side(full)
    rows = tuple(
        (
            str(row["dataset"]),
            f"{row['train_size']:,.0f}",
            *(
                number(row[name + twin])
                for name in ("d_data", "label_sharpness", "test_loss")
                for twin in ("", "_published")
            ),
        )
        for _, row in both.iterrows()
    )
    return Table(
        "published",
        "Side by side with the published numbers",
        "At equal dataset and train size; losses are geometric means over the models that both have. The "
        "published data mode, class pairs, channels and image size differ from the corrected ones.",
        ("dataset", "train size", "d_data", "published", "K_F", "published", "test loss", "published"),
        rows,
    )


def _records(
    key: str,
    title: str,
    records: Iterable[Mapping[str, Any]],
    note: str = "",
    numeric_from: int | None = None,
) -> Table:
    """Lay out flat records under the union of their keys, in order of first appearance; as text throughout
    unless ``numeric_from`` says where numbers start.
    """
    found = list(records)
    names = tuple(dict.fromkeys(name for record in found for name in record))
    cells = tuple(tuple(_cell(record.get(name)) for name in names) for record in found)
    return Table(key, title, note, names, cells, len(names) if numeric_from is None else numeric_from)


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else "" if value is None else str(value)


# Tables of the fits as LaTeX, to be included in a paper as they are; needs the package booktabs.

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--",
    "≤": r"$\leq$", "≥": r"$\geq$", "≲": r"$\lesssim$", "²": "$^2$", "·": r"$\cdot$", "×": r"$\times$",
    "ε": r"$\varepsilon$", "“": "``", "”": "''", "→": r"$\rightarrow$", "<": "$<$", ">": "$>$",
}  # fmt: skip


def escape(text: str) -> str:
    """Return text that LaTeX sets as it reads."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    """Render a table as a ``table`` environment with caption and label."""
    columns = "l" * min(table.numeric_from, len(table.header)) + "r" * max(
        0, len(table.header) - table.numeric_from
    )
    caption = ". ".join(part.rstrip(".") for part in (table.title, table.note) if part)
    lines = [" & ".join(map(escape, cells)) + r" \\" for cells in (table.header, *table.rows)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escape(caption)}.}}",
            rf"\label{{tab:{table.key}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def write_latex(tables: Iterable[Table], folder: Path) -> None:
    """Write every table that has rows as ``{key}.tex``; files of tables that have none now are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {f"{table.key}.tex": to_latex(table) for table in tables if table.rows}
    for stale in folder.glob("*.tex"):
        if stale.name not in written:
            stale.unlink()
    for name, text in written.items():
        write_atomic(folder / name, text.encode(), durable=False)


# Which model did best: per dataset and train size, over the class pairs and seeds that all models have.

COLUMNS = (
    c.DATASET,
    c.TRAIN_SIZE,
    c.MODEL,
    c.TEST_LOSS,
    "seed_std",
    c.TEST_ACCURACY,
    "runner_up",
    "runner_up_loss",
    "num_models",
    "num_compared",
)
"""``seed_std`` is the standard deviation over seeds (of means over class pairs); ``num_compared`` counts the
class pairs and seeds that every model has: the means are over these."""

_CELL = [c.CLASS_PAIR, c.SEED]


def best_models(table: pd.DataFrame) -> pd.DataFrame:
    """Return the model of lowest mean test loss per dataset and train size, with its runner-up.

    Args:
        table: One row per trial; see :mod:`orchestrator.results.table`. Trials that diverged or have no
            loss are no candidates, and their cells are compared for no model.

    Returns:
        One row per dataset and train size, columns :data:`COLUMNS`. Where the models share no class pair and
        seed, ``num_compared`` is 0 and no model is named.
    """
    rows = table.reindex(columns=sorted({*table.columns, *_CELL, c.STATUS, c.TEST_ACCURACY, c.RECIPE}))
    rows = rows[rows[c.TEST_LOSS].notna() & rows[c.STATUS].isin([c.DONE])].fillna(
        {c.CLASS_PAIR: "", c.SEED: 0}
    )
    if rows[c.RECIPE].nunique() > 1:
        rows[c.MODEL] = rows[c.MODEL] + " (" + rows[c.RECIPE].astype(str) + ")"
    found = [_best(key, group) for key, group in rows.groupby([c.DATASET, c.TRAIN_SIZE])]
    return pd.DataFrame(found, columns=list(COLUMNS))


def _best(key: Any, group: pd.DataFrame) -> dict[str, Any]:
    num_models = group[c.MODEL].nunique()
    shared = group.groupby(_CELL)[c.MODEL].transform("nunique") == num_models
    kept = group[shared]
    row = {c.DATASET: key[0], c.TRAIN_SIZE: int(key[1]), "num_models": num_models}
    if kept.empty:
        return row | {"num_compared": 0}
    means = kept.groupby(c.MODEL)[c.TEST_LOSS].mean().sort_values(kind="stable")
    best = kept[kept[c.MODEL] == means.index[0]]
    return row | {
        "num_compared": int(kept.groupby(_CELL).ngroups),
        c.MODEL: means.index[0],
        c.TEST_LOSS: float(means.iloc[0]),
        "seed_std": float(best.groupby(c.SEED)[c.TEST_LOSS].mean().std()),
        c.TEST_ACCURACY: float(best[c.TEST_ACCURACY].mean()),
        "runner_up": means.index[1] if len(means) > 1 else None,
        "runner_up_loss": float(means.iloc[1]) if len(means) > 1 else None,
    }


# The report's table of trials, as data that the page itself sorts, filters and pages.

TEXT_COLUMNS = {
    c.MODEL: "model",
    c.RECIPE: "recipe",
    c.DATASET: "dataset",
    c.CLASS_PAIR: "pair",
    c.STATUS: "status",
}
NUMBER_COLUMNS = {
    c.TRAIN_SIZE: "N",
    c.SEED: "seed",
    c.TEST_LOSS: "test loss",
    c.TEST_ACCURACY: "accuracy",
    c.AUC: "AUC",
    "seed_std": "seed spread",
    c.D_DATA_MLE: "d_data",
    c.LABEL_SHARPNESS: "K_F",
    c.WALL_TIME_S: "time (s)",
}
"""Columns with their headings; those that a sweep does not have, or that are empty, are left out."""

_TRIAL_TABLE_CELL = [c.MODEL, c.RECIPE, c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE]


def trial_data(
    full: pd.DataFrame, devices: Mapping[str, str], runs: Mapping[str, str] | None = None, pages: str = ""
) -> dict[str, Any]:
    """Return header and rows of all trials, ready for JSON; numbers stay numbers.

    Rows are ordered by model, dataset, class pair, N and seed.

    Args:
        full: The results table.
        devices: What each trial ran on, by its id, as far as is known.
        runs: What the tracker calls each trial's run, by trial id, as far as is known.
        pages: What stands before that in the address of its page.
    """
    order = [name for name in (*_TRIAL_TABLE_CELL, c.SEED) if name in full]
    rows = full.sort_values(order, kind="stable") if order else full.copy()
    if c.RECIPE in rows and rows[c.RECIPE].nunique() < 2:
        rows = rows.drop(columns=c.RECIPE)
    keys = [name for name in _TRIAL_TABLE_CELL if name in rows]
    if len(rows):
        rows["seed_std"] = rows.groupby(keys, dropna=False)[c.TEST_LOSS].transform("std")
    rows["device"] = [devices.get(str(name), "") for name in rows[c.TRIAL_ID]]
    text = {name: title for name, title in TEXT_COLUMNS.items() if name in rows}
    numbers = {name: title for name, title in NUMBER_COLUMNS.items() if name in rows}
    ends = {"device": "device", c.TRIAL_ID: "trial"}
    columns = {name: title for name, title in (text | numbers | ends).items() if not _is_empty(rows[name])}
    cells = [[_plain(value) for value in row] for row in rows[[*columns]].itertuples(index=False, name=None)]
    numeric = [name in numbers for name in columns]
    known = runs or {}
    return {
        "header": [*columns.values()],
        "numeric": numeric,
        "rows": cells,
        "pages": pages,
        "runs": [known.get(str(name), "") for name in rows[c.TRIAL_ID]] if known else [],
    }


def best_table(full: pd.DataFrame) -> Table:
    """Return the model of lowest mean test loss per dataset and train size."""
    rows = tuple(
        (
            str(row[c.DATASET]),
            str(row[c.MODEL]) if row["num_compared"] else "models share no class pair and seed",
            f"{row[c.TRAIN_SIZE]:,}",
            number(row[c.TEST_LOSS]),
            number(row["seed_std"]),
            number(row[c.TEST_ACCURACY]),
            "" if pd.isna(row["runner_up"]) else str(row["runner_up"]),
            number(row["runner_up_loss"]),
            str(row["num_compared"]),
        )
        for row in best_models(full).to_dict("records")
    )
    header = ("dataset", "model", "N", "test loss", "seed spread", "accuracy", "next", "its loss", "cells")
    note = (
        "Lowest mean test loss over the class pairs and seeds (cells) that all models have. Seed spread is "
        "the standard deviation over seeds; without it, or within it, the order of two models means nothing."
    )
    return Table("best", "Best model per dataset and train size", note, header, rows, numeric_from=2)


def script_json(document: object) -> str:
    """Return JSON that may stand inside a ``script`` element, whatever users named things."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def point_data(points: pd.DataFrame) -> dict[str, Any]:
    """Return the points that figures draw, one row per cell, averaged over seeds."""
    cells = [[_plain(value) for value in row] for row in points.itertuples(index=False, name=None)]
    return {"columns": [str(name) for name in points.columns], "data": cells}


def _is_empty(column: pd.Series) -> bool:
    return len(column) > 0 and bool((column.isna() | (column == "")).all())


def _plain(value: Any) -> str | int | float | None:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return None
    found = float(value)
    if not math.isfinite(found):
        return "∞" if found > 0 else "−∞"
    return int(found) if found.is_integer() and abs(found) < 1e15 else float(f"{found:.6g}")
