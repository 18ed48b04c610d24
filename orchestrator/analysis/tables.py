"""Tables as plain cells, declared as columns over records; a fit that could not be made is no
row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from orchestrator.analysis import table as t
from orchestrator.analysis.fits import QUESTIONS, Estimate, Fit, ScalingFits
from orchestrator.analysis.guessing import AT_GUESSING, is_guessing
from orchestrator.analysis.interventions import Interventions
from orchestrator.analysis.table import SEED_STD, WORDS, interval, number, p_value, plural
from orchestrator.results import columns as c
from search_spaces.errors import unknown_name


@dataclass(frozen=True, slots=True)
class Table:
    """Heading, what it shows, column names and cells; ``key`` is its anchor on the page."""

    key: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_from: int = 1


Column = str | Callable[[Any], str]


def laid_out(
    key: str,
    title: str,
    note: str,
    records: Iterable[Any],
    columns: Mapping[str, Column],
    *,
    numeric_from: int = 1,
) -> Table:
    """Return a table of a row per record, without columns that are empty in all."""

    def cell(record: Any, column: Column) -> str:
        if callable(column):
            return column(record)
        value = record.get(column) if isinstance(record, Mapping) else getattr(record, column)
        if column == "interval":
            return interval(value)
        if isinstance(value, Integral) and not isinstance(value, bool):
            return f"{value:,}"
        spelled = p_value if column.startswith(("p_", "adjusted_p")) else number
        return spelled(value) if value is None or isinstance(value, float) else str(value)

    rows = [[cell(record, column) for column in columns.values()] for record in records]
    filled = [k for k in range(len(columns)) if not rows or any(row[k] for row in rows)]
    header, start = [*columns], sum(k < numeric_from for k in filled)
    kept = (tuple(one[k] for k in filled) for one in (header, *rows))
    return Table(key, title, note, next(kept), tuple(kept), start)


_SPECIAL: dict[str, str | int | None] = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≲": r"$\lesssim$",
    "²": "$^2$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "ε": r"$\varepsilon$",
    "“": "``",
    "”": "''",
    "→": r"$\rightarrow$",
    "<": "$<$",
    ">": "$>$",
}


def escape(text: str) -> str:
    """Return text that LaTeX sets as it reads."""
    return text.translate(str.maketrans(_SPECIAL))


def to_latex(table: Table) -> str:
    """Render a table for the package booktabs; columns of long cells are broken and share half a
    line.
    """
    longest = [max(map(len, cells)) for cells in zip(*table.rows, strict=True)] or [0] * len(
        table.header
    )
    broken = rf"p{{{0.5 / max(1, sum(size > 24 for size in longest)):.2f}\linewidth}}"
    sides = ["l" if k < table.numeric_from else "r" for k in range(len(longest))]
    columns = "".join(broken if n > 24 else side for n, side in zip(longest, sides, strict=True))
    caption = (
        escape(". ".join(part.rstrip(".") for part in (table.title, table.note) if part)) + "."
    )
    rows = pd.DataFrame(table.rows, columns=[*map(escape, table.header)], dtype=str).map(escape)
    label = f"tab:{table.key}"
    text = rows.to_latex(
        index=False, escape=False, caption=caption, label=label, column_format=columns
    )
    return text.replace(r"\begin{table}", r"\begin{table}\small", 1)


Cell = Callable[[tuple[Fit, Estimate]], str]
_WHOSE: dict[str, Cell] = {
    "model": lambda row: row[0].model,
    "datasets": lambda row: f"{row[0].subset} ({row[0].num_datasets})",
}
_RESAMPLED: Cell = lambda row: p_value(row[1].resampled_p) + ("*" if row[1].exact else "")  # noqa: E731
_VALUE: Cell = lambda row: number(row[1].value)  # noqa: E731
_INTERVAL: dict[str, Cell] = {"interval": lambda row: interval(row[1].interval)}
_WITHOUT: Cell = lambda row: (  # noqa: E731
    f"{name}: {number(row[1].left_out[name])}" if (name := row[1].influential) is not None else ""
)
_T: dict[str, Cell] = {"p (t)": lambda row: p_value(row[1].p_value)}

#: Tables of fits: kinds, title, note, columns, and where numbers start.
_OF_FITS: dict[str, tuple[tuple[str, ...], str, str, dict[str, Cell], int]] = {
    "exponent": (
        ("exponent",),
        "Exponent of N within datasets, times d",
        "Slope of log test loss on −log N / d, every curve with its own height and one d per "
        "dataset and "
        "class pair (at its largest N). 1 is the law's bound, 0 no dependence; no unit of N, "
        "pixels or loss "
        "changes it. Curves: fitted, of all; where guessing holds losses down, those clear of it.",
        {
            **_WHOSE,
            "d or points": lambda row: row[0].variant,
            "curves": lambda row: (
                f"{row[0].num_curves - row[0].num_at_guessing} of {row[0].num_curves}"
            ),
            "exponent · d": _VALUE,
            **_INTERVAL,
            **_T,
            "wild p": _RESAMPLED,
            "without": _WITHOUT,
        },
        3,
    ),
    "heights": (
        ("headline", "height"),
        "Height of the losses over datasets, at equal N",
        "Dataset effects of log test loss at equal model and train size; t intervals. Permutation "
        "p of "
        "exchangeable datasets is exact (*). “Without”: the value without the dataset that moves "
        "it most.",
        {
            **_WHOSE,
            "on": lambda row: ", ".join(WORDS[name] for name in row[0].terms),
            "coefficient of": lambda row: WORDS[row[1].name],
            "value": _VALUE,
            **_INTERVAL,
            **_T,
            "permutation p": _RESAMPLED,
            "without": _WITHOUT,
        },
        4,
    ),
    "attacks": (
        ("attack",),
        "Loss gained by attacks, with K_F",
        "Pearson's r over dataset effects at equal model and train size, within domains where "
        "there are two, "
        "with its 95 % interval; p of a rise, adjusted over all attacks, epsilons and models of "
        "this table, "
        "before the adjustment over questions.",
        {
            "attack": lambda row: c.attack_columns([row[0].response])[0].words,
            **_WHOSE,
            "r": _VALUE,
            **_INTERVAL,
            "p over the table": _RESAMPLED,
            "points": lambda row: str(row[0].num_points),
        },
        3,
    ),
    "representations": (
        ("representation",),
        "d_repr against d_data",
        "Both by maximum likelihood; the bound d_repr ≲ d_data is approximate.",
        {
            **_WHOSE,
            "at or below": lambda row: f"{row[0].num_held} of {row[0].num_points}",
            "mean of datasets": lambda row: f"{row[1].value:.0%}",
            "interval": lambda row: " to ".join(f"{bound:.0%}" for bound in row[1].interval or ()),
            "share above": lambda row: ", ".join(
                f"{name} {row[0].by_dataset[name]:.0%}"
                for name in sorted(row[0].by_dataset, key=lambda name: -row[0].by_dataset[name])
            ),
        },
        2,
    ),
}


def fit_tables(fits: ScalingFits) -> list[Table]:
    """Return the tables of all fits, the headline questions first; those without a row are left
    out.
    """
    tables = [claim_table(fits), pair_table(fits)]
    tables += intervention_tables(fits.interventions) if fits.interventions else []
    for key, (kinds, title, note, columns, numeric_from) in _OF_FITS.items():
        made = [fit for fit in fits.fits if fit.kind in kinds and fit.status == "ok"]
        rows = [(fit, estimate) for fit in made for estimate in fit.estimates]
        tables.append(laid_out(key, title, note, rows, columns, numeric_from=numeric_from))
    return [table for table in tables if table.rows]


def not_fitted(fits: ScalingFits) -> str:
    """Say in one line how many fits could not be made, and for which reasons; empty where all
    could.
    """
    reasons = Counter(fit.reason for fit in fits.fits if fit.status != "ok")
    if not reasons:
        return ""
    most = reasons.most_common(3)
    rest = reasons.total() - sum(count for _, count in most)
    named = "; ".join(f"{reason} ({count})" for reason, count in most)
    more = f"; {rest} more." if rest else "."
    return f"Not fitted: {plural(reasons.total(), 'question')}: {named}{more}"


def claim_table(fits: ScalingFits) -> Table:
    """Return the headline questions that could be tested with their p-values, alone and
    adjusted.
    """
    return laid_out(
        "claims",
        "Headline questions",
        "p is the larger of the t test over datasets and the permutation (or wild cluster "
        "bootstrap) test, "
        "adjusted by Holm over the questions that could be tested. Of attacks it is one-sided.",
        fits.claims,
        {
            "question": lambda claim: QUESTIONS[claim.key],
            "p": "p_value",
            "adjusted p": "adjusted_p",
            "answer": lambda claim: f"{'' if claim.established else 'not '}established",
        },
    )


def pair_table(fits: ScalingFits) -> Table:
    """Return what class pairs answer."""
    return laid_out(
        "class-pairs",
        "Class pairs",
        "95 % intervals and p by a jackknife over classes, which pairs share; p adjusted by Holm.",
        [slope for slope in fits.class_pairs if slope.value is not None],
        {
            "estimand": "on",
            "value": "value",
            "interval": "interval",
            "p": "p_value",
            "adjusted p": "adjusted_p",
            "classes": "num_groups",
        },
    )


def loss_text(loss: float | None, num_classes: float | None) -> str:
    """Spell a loss, and say where it lies at guessing."""
    return number(loss) + (
        " (at guessing)" if loss is not None and is_guessing(loss, num_classes) else ""
    )


def seen_table(fits: ScalingFits) -> Table:
    """Return every dataset's properties, its loss at its largest N and what an attack adds to
    it.
    """
    attack = next((d.attack for d in fits.datasets if d.attack), "attacks")
    known = sorted((d.loss, d.dataset) for d in fits.datasets if d.loss is not None)
    ends = " to ".join(f"{number(loss)} ({name})" for loss, name in (known[:1] + known[1:][-1:]))
    said = f"At the largest train size the mean test loss is {ends}. " if known else ""
    return laid_out(
        "seen",
        "What was seen",
        f"{said}d_data by maximum likelihood at the largest N; K_F: mean over N and class pairs. "
        "Losses in "
        "nat: geometric means over models and class pairs, at the largest train size; at guessing "
        "there from "
        f"{AT_GUESSING:g} ln n on, of n classes ({number(AT_GUESSING * np.log(2))} of two).",
        fits.datasets,
        {
            "dataset": "dataset",
            "domain": "domain",
            "d_data": "d_data",
            "K_F": "label_sharpness",
            "largest N": lambda d: f"{d.train_sizes[-1]:,}" if d.train_sizes else "",
            "loss there": lambda d: loss_text(d.loss, d.num_classes),
            f"gained by {attack}": "loss_gain",
        },
        numeric_from=2,
    )


def intervention_tables(found: Interventions) -> list[Table]:
    """Return effects, and what each arm moved."""
    meant = {"sharpness": "K_F", "dimension": "d", "nothing": "nothing (control)"}

    def factor(log_ratio: float | None) -> str:
        return "" if log_ratio is None else f"× {number(np.exp(log_ratio))}"

    return [
        laid_out(
            "interventions",
            "What follows when one property is moved",
            "Mean over worlds with its 95 % interval, by t or by a jackknife over the classes that "
            "worlds "
            "share: the wider; every arm against the base of its own world at equal model and N. "
            "Only arms "
            "that pass the gate. Rows of single arms are exploratory.",
            found.effects,
            {
                "effect": lambda e: (
                    e.estimand
                    + (f", {e.response}" if e.estimand == "exponent · d" else "")
                    + (f", trained on the {e.trained_on}" if e.trained_on else "")
                    + (f", tested on the {e.tested_on}" if e.tested_on else "")
                ),
                "arms": lambda e: e.arm or "all",
                "worlds": "num_worlds",
                "classes": lambda e: str(e.num_classes or ""),
                "value": "value",
                "interval": "interval",
                "the law says": "theory",
                "p against it": "p_theory",
                "p against 0": "p_zero",
                "pairs": "num_cells",
            },
            numeric_from=2,
        ),
        laid_out(
            "intervention-gates",
            "What each arm moved",
            "Factors on K_F and d against the world's base, at the largest N that both have. An "
            "arm counts "
            "if what it is to move moved (K_F by 2, d by 1.25), and log of what it holds by less "
            "than 0.05.",
            found.gates,
            {
                "dataset": lambda gate: gate.arm.dataset,
                "meant to move": lambda gate: meant.get(gate.arm.moves, ""),
                "K_F": lambda gate: factor(gate.sharpness_moved),
                "d": lambda gate: factor(gate.dimension_moved),
                "counts": lambda gate: "yes" if gate.counts else f"no: {gate.reason}",
            },
            numeric_from=2,
        ),
    ]


BEST_COLUMNS = (
    c.DATASET,
    c.TRAIN_SIZE,
    c.MODEL,
    c.TEST_LOSS,
    "runner_up",
    "runner_up_loss",
    SEED_STD,
    c.TEST_ACCURACY,
    "num_models",
    "num_compared",
    c.NUM_CLASSES,
)


LOWER_IS_BETTER = (c.TEST_LOSS, c.TRAIN_LOSS, c.CALIBRATION_ERROR)
"""Scores of which a small value is a good one; all others rank downward."""


def best_models(table: pd.DataFrame, score: str = c.TEST_LOSS) -> pd.DataFrame:
    """Return the best model and the runner-up for each dataset and train size.

    Means are over the ``num_compared`` class pairs and seeds that every model has. ``seed_std``
    is the standard deviation of the best model's mean over seeds.

    Args:
        table: Rows of the results table.
        score: Column to rank by.

    Raises:
        ConfigError: If the table has no such column of numbers.
    """
    if score not in table or not is_numeric_dtype(table[score]):
        raise unknown_name("score", score, table.select_dtypes("number").columns)
    blank, cell = {c.CLASS_PAIR: "", c.SEED: 0}, [c.CLASS_PAIR, c.SEED]
    rows = t.split_by_recipe(table)
    names = {*rows, *cell, c.STATUS, c.TEST_ACCURACY, c.NUM_CLASSES}
    rows = rows.reindex(columns=sorted(names)).fillna(blank)
    rows = rows[rows[score].notna() & (rows[c.STATUS] == c.DONE)]
    runner_up_score = f"runner_up_{score.removeprefix('test_')}"
    columns = [score if name == c.TEST_LOSS else name for name in BEST_COLUMNS]
    columns[columns.index("runner_up_loss")] = runner_up_score
    found = []
    for (dataset, size), group in rows.groupby([c.DATASET, c.TRAIN_SIZE]):
        num_models = group[c.MODEL].nunique()
        kept = group[group.groupby(cell)[c.MODEL].transform("nunique") == num_models]
        row: dict[str, Any] = {c.DATASET: dataset, c.TRAIN_SIZE: size, "num_models": num_models}
        row["num_compared"] = kept.groupby(cell).ngroups
        means = kept.groupby(c.MODEL)[score].mean()
        means = means.sort_values(kind="stable", ascending=score in LOWER_IS_BETTER)
        ranked = [*means.items(), (None, np.nan), (None, np.nan)]
        (row[c.MODEL], row[score]), (row["runner_up"], row[runner_up_score]), *_ = ranked
        own = kept[kept[c.MODEL] == row[c.MODEL]]
        row[SEED_STD] = own.groupby(c.SEED)[score].mean().std()
        row |= own[[c.TEST_ACCURACY, c.NUM_CLASSES]].mean()
        found.append(row)
    return pd.DataFrame(found, columns=list(dict.fromkeys(columns))).astype({c.TRAIN_SIZE: int})


def best_table(full: pd.DataFrame) -> Table:
    """Return the model of lowest mean test loss per dataset and train size."""
    unnamed = "models share no class pair and seed"
    return laid_out(
        "best",
        "Best model per dataset and train size",
        "Lowest mean test loss over the class pairs and seeds (cells) that all models have, by "
        "arithmetic "
        "means; what was seen has geometric ones. Seed spread is the standard deviation over "
        "seeds; without "
        "it, or within it, the order of two models means nothing.",
        best_models(full).to_dict("records"),
        {
            "dataset": c.DATASET,
            "model": lambda row: str(row[c.MODEL]) if row["num_compared"] else unnamed,
            WORDS[c.TRAIN_SIZE]: c.TRAIN_SIZE,
            WORDS[c.TEST_LOSS]: lambda row: loss_text(row[c.TEST_LOSS], row[c.NUM_CLASSES]),
            WORDS[SEED_STD]: SEED_STD,
            WORDS[c.TEST_ACCURACY]: c.TEST_ACCURACY,
            "next": lambda row: "" if pd.isna(row["runner_up"]) else str(row["runner_up"]),
            "its loss": "runner_up_loss",
            "cells": "num_compared",
        },
        numeric_from=2,
    )
