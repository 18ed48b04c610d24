"""Tables as plain cells: declared as columns over fits, and written as text or LaTeX; pages lay them out
themselves.

A fit that could not be made is no row: :func:`not_fitted` says in one line how many there are, and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.fit_records import QUESTIONS, Estimate, Fit, ScalingFits
from orchestrator.analysis.guessing import is_guessing
from orchestrator.analysis.interventions import Interventions
from orchestrator.analysis.table import WORDS, interval, number, p_value, plural
from orchestrator.results import table as c
from tasks.atomic import write_atomic


@dataclass(frozen=True, slots=True)
class Table:
    """Heading, what it shows, column names and cells; ``key`` is its anchor on the page."""

    key: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_from: int = 1


def to_text(table: Table) -> str:
    """Render a table as aligned plain text."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(table.header))]
    body = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([table.title, *([table.note] if table.note else []), *body])


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
    """Render a table as a ``table`` environment with caption and label; needs the package booktabs."""
    num_text = min(table.numeric_from, len(table.header))
    columns = "l" * num_text + "r" * (len(table.header) - num_text)
    caption = ". ".join(part.rstrip(".") for part in (table.title, table.note) if part)
    header, *rows = (" & ".join(map(escape, cells)) + r" \\" for cells in (table.header, *table.rows))
    begin = [
        r"\begin{table}", rf"\caption{{{escape(caption)}.}}", rf"\label{{tab:{table.key}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule",
    ]  # fmt: skip
    return "\n".join([*begin, *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def write_latex(tables: Iterable[Table], folder: Path) -> None:
    """Write every table that has rows as ``{key}.tex``; files of tables that have none now are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {f"{table.key}.tex": to_latex(table) for table in tables if table.rows}
    for stale in folder.glob("*.tex"):
        if stale.name not in written:
            stale.unlink()
    for name, text in written.items():
        write_atomic(folder / name, text.encode(), durable=False)


Cell = Callable[[Fit, Estimate], str]


@dataclass(frozen=True, slots=True)
class Layout:
    """A table of fits: of which kinds, and one column per cell, a row per estimate."""

    key: str
    title: str
    note: str
    kinds: tuple[str, ...]
    columns: tuple[tuple[str, Cell], ...]
    numeric_from: int


def _without(fit: Fit, estimate: Estimate) -> str:
    name = estimate.influential
    return "" if name is None else f"{name}: {number(estimate.left_out[name])}"


def _above(fit: Fit, estimate: Estimate) -> str:
    worst = sorted(fit.by_dataset.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {share:.0%}" for name, share in worst)


def _permutation(fit: Fit, estimate: Estimate) -> str:
    return p_value(estimate.resampled_p) + ("*" if estimate.exact else "")


def _attack(fit: Fit) -> str:
    attack = c.attack_columns([fit.response])[0]
    return f"{attack.attack.upper()} {attack.epsilon:g}/255"


def _percent(value: float) -> str:
    return f"{value:.0%}"


_MODEL: tuple[str, Cell] = ("model", lambda fit, _: fit.model)
_RESPONSE: tuple[str, Cell] = ("response", lambda fit, _: WORDS.get(fit.response, fit.response))
_DATASETS: tuple[str, Cell] = ("datasets", lambda fit, _: f"{fit.subset} ({fit.num_datasets})")
_NAME: tuple[str, Cell] = ("coefficient of", lambda _, estimate: WORDS.get(estimate.name, estimate.name))
_VALUE: tuple[str, Cell] = ("value", lambda _, estimate: number(estimate.value))
_INTERVAL: tuple[str, Cell] = ("interval", lambda _, estimate: interval(estimate.interval))
_T: tuple[str, Cell] = ("p (t)", lambda _, estimate: p_value(estimate.p_value))
_POINTS: tuple[str, Cell] = ("points", lambda fit, _: str(fit.num_points))

LAYOUTS = (
    Layout(
        "exponent", "Exponent of N within datasets, times d",
        "Slope on −log N / d, every curve with its own height and one d per dataset and class pair (at its "
        "largest N). 1 is the law's bound, 0 no dependence; no unit of N, pixels or loss changes it. Where "
        "guessing holds losses down, curves clear of it alone are fitted. Of log K_F: 2 where unlike labels "
        "lie mixed, 0 where classes are apart.",
        ("exponent",),
        (
            _RESPONSE, _MODEL, _DATASETS, ("d or points", lambda fit, _: fit.variant),
            ("curves", lambda fit, _: f"{fit.num_curves - fit.num_at_guessing} of {fit.num_curves}"),
            ("exponent · d", _VALUE[1]), _INTERVAL, _T, ("wild p", _permutation), ("without", _without),
        ), 4,
    ),
    Layout(
        "heights", "Height of the losses over datasets, at equal N",
        "Dataset effects at equal model and train size; t intervals. Permutation p of exchangeable datasets "
        "is exact (*). “Without”: the value without the dataset that moves it most.",
        ("headline", "height"),
        (
            _RESPONSE, _MODEL, _DATASETS,
            ("on", lambda fit, _: ", ".join(WORDS[name] for name in fit.terms)), _NAME,
            _VALUE, _INTERVAL, _T, ("permutation p", _permutation), ("without", _without),
        ), 5,
    ),
    Layout(
        "attacks", "Loss gained by attacks, with K_F",
        "Pearson's r over dataset effects at equal model and train size, within domains where there are two, "
        "with its 95 % interval; the adjusted p holds over all attacks, epsilons and models together.",
        ("attack",),
        (
            ("attack", lambda fit, _: _attack(fit)), _MODEL, _DATASETS, ("r", _VALUE[1]), _INTERVAL,
            ("adjusted p", _permutation), _POINTS,
        ), 3,
    ),
    Layout(
        "representations", "d_repr against d_data", "The bound d_repr ≲ d_data is approximate.",
        ("representation",),
        (
            ("estimator", lambda fit, _: fit.variant), _MODEL, _DATASETS,
            ("at or below", lambda fit, _: f"{fit.num_held} of {fit.num_points}"),
            ("mean of datasets", lambda _, estimate: _percent(estimate.value)),
            ("interval", lambda _, e: "" if e.interval is None else " to ".join(map(_percent, e.interval))),
            ("share above", _above),
        ), 3,
    ),
    Layout(
        "published-form", "Regressions as published",
        "Pooled over N, one intercept per model; intervals by leaving out each dataset. d_data's estimate "
        "grows with N while the loss falls, so a slope on d_data has the wrong sign as soon as N spans "
        "enough.",
        ("published",),
        (
            _MODEL, _DATASETS, _NAME, _VALUE, _INTERVAL, ("without", _without),
            ("R² within models", lambda fit, _: number(fit.r_squared)), _POINTS,
        ), 3,
    ),
)  # fmt: skip


def fit_tables(fits: ScalingFits) -> list[Table]:
    """Return the tables of all fits, the headline questions first; those without a row are left out."""
    moved = intervention_tables(fits.interventions) if fits.interventions else []
    tables = [claim_table(fits), *moved, *(_laid_out(layout, fits.fits) for layout in LAYOUTS)]
    return [table for table in tables if table.rows]


def _laid_out(layout: Layout, fits: Sequence[Fit]) -> Table:
    rows = [
        tuple(cell(fit, estimate) for _, cell in layout.columns)
        for fit in fits
        if fit.kind in layout.kinds and fit.status == "ok"
        for estimate in fit.estimates
    ]
    header = tuple(name for name, _ in layout.columns)
    filled = [k for k in range(len(header)) if any(row[k] for row in rows)]
    return Table(
        layout.key,
        layout.title,
        layout.note,
        tuple(header[k] for k in filled),
        tuple(tuple(row[k] for k in filled) for row in rows),
        numeric_from=sum(k < layout.numeric_from for k in filled),
    )


def not_fitted(fits: ScalingFits) -> str:
    """Say in one line how many fits could not be made, and for which reasons; empty where all could."""
    reasons = Counter(fit.reason for fit in fits.fits if fit.status != "ok")
    if not reasons:
        return ""
    most = reasons.most_common(3)
    rest = sum(reasons.values()) - sum(count for _, count in most)
    named = "; ".join(f"{reason} ({count})" for reason, count in most)
    return f"Not fitted: {plural(sum(reasons.values()), 'question')}: {named}" + (
        f"; {rest} more." if rest else "."
    )


def claim_table(fits: ScalingFits) -> Table:
    """Return the headline questions with their p-values, alone and adjusted for their number."""
    rows = []
    for key, words in QUESTIONS.items():
        claim = fits.claim(key)
        if claim is None:
            rows.append((words, "", "", "cannot be tested"))
        else:
            verdict = "established" if claim.established else "not established"
            rows.append((words, p_value(claim.p_value), p_value(claim.adjusted_p), verdict))
    note = (
        "p is the larger of the t test over datasets and the permutation (or wild cluster bootstrap) test, "
        "adjusted by Holm over the questions that could be tested. Every other number in this report is "
        "exploratory."
    )
    return Table("claims", "Headline questions", note, ("question", "p", "adjusted p", "answer"), tuple(rows))


def seen_table(fits: ScalingFits) -> Table:
    """Return what was seen of every dataset: its properties, its loss at its largest N and what an attack
    adds.
    """
    rows = tuple(
        (
            d.dataset,
            d.domain,
            number(d.d_data),
            number(d.label_sharpness),
            f"{d.train_sizes[-1]:,}" if d.train_sizes else "",
            number(d.loss) + (" (at guessing)" if d.loss is not None and is_guessing(d.loss) else ""),
            number(d.loss_gain),
        )
        for d in fits.datasets
    )
    attack = next((d.attack for d in fits.datasets if d.attack), "attacks")
    note = "Losses in nat: geometric means over models and class pairs, at the largest train size."
    header = ("dataset", "domain", "d_data", "K_F", "largest N", "loss there", f"gained by {attack}")
    return Table("seen", "What was seen", note, header, rows, numeric_from=2)


def intervention_tables(found: Interventions) -> list[Table]:
    """Return effects, gates and the effect in every world."""
    meant = {"sharpness": "K_F", "dimension": "d", "nothing": "nothing (control)"}
    effects = tuple(
        (
            f"{e.estimand}, {e.response}" if e.estimand == "exponent · d" else e.estimand, e.arm or "all",
            str(e.num_worlds), number(e.value), interval(e.interval), number(e.theory), p_value(e.p_theory),
            p_value(e.p_zero), str(e.num_cells),
        )
        for e in found.effects
    )  # fmt: skip
    gates = tuple(
        (
            gate.arm.dataset,
            meant.get(gate.arm.moves, ""),
            *(
                "" if x is None else f"× {number(np.exp(x))}"
                for x in (gate.sharpness_moved, gate.dimension_moved)
            ),
            "yes" if gate.counts else f"no: {gate.reason}",
        )
        for gate in found.gates
    )
    worlds = tuple(
        (effect.estimand, effect.response, effect.arm or "all", world, number(value))
        for effect in found.effects
        for world, value in effect.by_world.items()
    )
    return [
        Table(
            "interventions", "What follows when one property is moved",
            "Mean over worlds with its 95 % t interval; every arm against the base of its own world at equal "
            "model and N. Only arms that pass the gate. Rows of single arms are exploratory.",
            ("effect", "arms", "worlds", "value", "interval", "the law says", "p against it", "p against 0",
             "pairs"),
            effects, numeric_from=2,
        ),
        Table(
            "intervention-gates", "What each arm moved",
            "Factors on K_F and d against the world's base, at the largest N that both have. An arm counts "
            "if what it is to move moved (K_F by a factor 2, d by 1.25) and what it holds by less than 5 %.",
            ("dataset", "meant to move", "K_F", "d", "counts"), gates, numeric_from=2,
        ),
        Table(
            "intervention-worlds", "What follows, in every world", "",
            ("effect", "response", "arms", "world", "value"), worlds, numeric_from=4,
        ),
    ]  # fmt: skip


BEST_COLUMNS = (
    c.DATASET, c.TRAIN_SIZE, c.MODEL, c.TEST_LOSS, "seed_std", c.TEST_ACCURACY, "runner_up", "runner_up_loss",
    "num_models", "num_compared",
)  # fmt: skip
"""``seed_std`` is the standard deviation over seeds (of means over class pairs); ``num_compared`` counts the
class pairs and seeds that every model has: the means are over these.
"""


def best_models(table: pd.DataFrame) -> pd.DataFrame:
    """Return the model of lowest mean test loss per dataset and train size, with its runner-up.

    Args:
        table: One row per trial; see :mod:`orchestrator.results.table`. Trials that diverged or have no loss
            are no candidates, and their cells are compared for no model.

    Returns:
        One row per dataset and train size, columns :data:`BEST_COLUMNS`. Where the models share no class pair
        and seed, ``num_compared`` is 0 and no model is named.
    """
    cell = [c.CLASS_PAIR, c.SEED]
    rows = table.reindex(columns=sorted({*table.columns, *cell, c.STATUS, c.TEST_ACCURACY, c.RECIPE}))
    rows = rows[rows[c.TEST_LOSS].notna() & rows[c.STATUS].isin([c.DONE])].fillna(
        {c.CLASS_PAIR: "", c.SEED: 0}
    )
    if rows[c.RECIPE].nunique() > 1:
        rows[c.MODEL] = rows[c.MODEL] + " (" + rows[c.RECIPE].astype(str) + ")"
    found = []
    for _, group in rows.groupby([c.DATASET, c.TRAIN_SIZE]):
        dataset, size = (group[name].iloc[0] for name in (c.DATASET, c.TRAIN_SIZE))
        num_models = group[c.MODEL].nunique()
        kept = group[group.groupby(cell)[c.MODEL].transform("nunique") == num_models]
        row: dict[str, Any] = {c.DATASET: dataset, c.TRAIN_SIZE: int(size), "num_models": num_models}
        row["num_compared"] = kept.groupby(cell).ngroups
        if len(kept):
            means = kept.groupby(c.MODEL)[c.TEST_LOSS].mean().sort_values(kind="stable")
            best = kept[kept[c.MODEL] == means.index[0]]
            row |= {
                c.MODEL: means.index[0],
                c.TEST_LOSS: float(means.iloc[0]),
                "seed_std": float(best.groupby(c.SEED)[c.TEST_LOSS].mean().std()),
                c.TEST_ACCURACY: float(best[c.TEST_ACCURACY].mean()),
            }
            if len(means) > 1:
                row |= {"runner_up": means.index[1], "runner_up_loss": float(means.iloc[1])}
        found.append(row)
    return pd.DataFrame(found, columns=list(BEST_COLUMNS))


def best_table(full: pd.DataFrame) -> Table:
    """Return the model of lowest mean test loss per dataset and train size."""
    rows = tuple(
        (
            str(row[c.DATASET]),
            str(row[c.MODEL]) if row["num_compared"] else "models share no class pair and seed",
            f"{row[c.TRAIN_SIZE]:,}",
            number(row[c.TEST_LOSS]) + (" (at guessing)" if is_guessing(row[c.TEST_LOSS]) else ""),
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
