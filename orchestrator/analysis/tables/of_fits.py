"""Tables of fits and answers. Fits that could not be made are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.analysis.experiments.records import Effect, Gate, Interventions
from orchestrator.analysis.findings import adjusted_p_values
from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.law_fits.estimates import Estimate
from orchestrator.analysis.law_fits.records import (
    AnyFit,
    ExponentFit,
    FallFit,
    HeightFit,
    RepresentationFit,
)
from orchestrator.analysis.number_formats import interval, number, p_value, percent
from orchestrator.analysis.results_tables.points import WORDS
from orchestrator.analysis.tables.layout import Table, laid_out
from orchestrator.results.columns import attack_columns
from search_spaces.errors import plural

MAX_REASONS = 3
"""Largest number of reasons in the line on fits that could not be made."""


@dataclass(frozen=True, slots=True)
class FitRow:
    """A row of a table of fits: an estimate, and the fit that it belongs to."""

    fit: AnyFit
    estimate: Estimate


Column = Callable[[FitRow], str]


@dataclass(frozen=True, slots=True)
class FitTable:
    """The definition of a table of fits of some kinds.

    Attributes:
        key: Anchor on the page.
        kinds: Kinds of fits in the table.
        title: Heading.
        note: Explanation of the columns.
        columns: Function that returns the text of a cell, by name of the column.
        numeric_from: Index of the first column of numbers.
        notes_on_rows: Further sentences of the note. Each has a function that returns whether
            the sentence applies to a row. If it applies to any row, the note contains the
            sentence.
    """

    key: str
    kinds: tuple[str, ...]
    title: str
    note: str
    columns: Mapping[str, Column]
    numeric_from: int
    notes_on_rows: Mapping[str, Callable[[FitRow], bool]] = field(default_factory=dict)

    def note_on(self, rows: Sequence[FitRow]) -> str:
        """Return the note for these rows. Sentences that apply to none of the rows are left out."""
        sentences = [self.note]
        for sentence, applies_to in self.notes_on_rows.items():
            if any(applies_to(row) for row in rows):
                sentences.append(sentence)
        return " ".join(sentences)


def _model(row: FitRow) -> str:
    return row.fit.model


def _datasets(row: FitRow) -> str:
    return f"{row.fit.subset} ({row.fit.num_datasets})"


def _value(row: FitRow) -> str:
    return number(row.estimate.value)


def _interval(row: FitRow) -> str:
    return interval(row.estimate.interval)


def _p_by_t(row: FitRow) -> str:
    return p_value(row.estimate.p_value)


def _resampled_p(row: FitRow) -> str:
    """Return the p-value by resampling, with an asterisk if it is exact."""
    star = "*" if row.estimate.exact else ""
    return f"{p_value(row.estimate.resampled_p)}{star}"


def _is_exact(row: FitRow) -> bool:
    return row.estimate.exact


def _is_approximate(row: FitRow) -> bool:
    return row.estimate.resampled_p is not None and not row.estimate.exact


def _leaves_curves_out(row: FitRow) -> bool:
    return isinstance(row.fit, ExponentFit) and row.fit.num_at_chance > 0


def _without(row: FitRow) -> str:
    """Return the estimate without the most influential dataset, as text."""
    name = row.estimate.influential
    if name is None:
        return ""
    return f"{name}: {number(row.estimate.left_out[name])}"


def _variant(row: FitRow) -> str:
    return row.fit.variant


def _curves(row: FitRow) -> str:
    if not isinstance(row.fit, ExponentFit):
        return ""
    return f"{row.fit.num_curves - row.fit.num_at_chance} of {row.fit.num_curves}"


def _num_above_bound(row: FitRow) -> str:
    if not isinstance(row.fit, ExponentFit):
        return ""
    return f"{row.fit.num_above_bound} of {len(row.fit.by_dataset)}"


def _terms(row: FitRow) -> str:
    if not isinstance(row.fit, HeightFit):
        return ""
    return ", ".join(WORDS[name] for name in row.fit.terms)


def _coefficient(row: FitRow) -> str:
    return WORDS[row.estimate.name]


def _attack(row: FitRow) -> str:
    return attack_columns([row.fit.response])[0].words


def _num_points(row: FitRow) -> str:
    return str(row.fit.num_points)


def _num_held(row: FitRow) -> str:
    if not isinstance(row.fit, RepresentationFit):
        return ""
    return f"{row.fit.num_held} of {row.fit.num_points}"


def _median_ratio(row: FitRow) -> str:
    if not isinstance(row.fit, RepresentationFit):
        return ""
    return number(row.fit.median_ratio)


def _num_falling(row: FitRow) -> str:
    if not isinstance(row.fit, FallFit):
        return ""
    return f"{row.fit.num_falling} of {row.fit.num_datasets}"


def _sign_p(row: FitRow) -> str:
    if not isinstance(row.fit, FallFit):
        return ""
    return p_value(row.fit.sign_p)


def _slopes_of_datasets(row: FitRow) -> str:
    if not isinstance(row.fit, FallFit):
        return ""
    return ", ".join(f"{name} {number(slope)}" for name, slope in row.fit.by_dataset.items())


def _share(row: FitRow) -> str:
    return percent(row.estimate.value)


def _interval_of_share(row: FitRow) -> str:
    if row.estimate.interval is None:
        return ""
    low, high = row.estimate.interval
    return f"{percent(low)} to {percent(high)}"


def _shares_above(row: FitRow) -> str:
    if not isinstance(row.fit, RepresentationFit):
        return ""
    shares = sorted(row.fit.by_dataset.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{name} {percent(share)}" for name, share in shares)


FIT_TABLES = (
    FitTable(
        key="exponent",
        kinds=("exponent",),
        title="Exponent of N within datasets, times d",
        note=(
            "The exponent is the slope of log test loss on −log N / d. Every curve has its own "
            "intercept. Every dataset and class pair has one d, measured at its largest N. The "
            "law's bound is a slope of 1. A slope of 0 means that the loss does not depend on N. "
            "The column “curves” contains the number of fitted curves and the number of all "
            "curves. The column “above 1” contains the number of datasets whose own slope is "
            "above 1."
        ),
        notes_on_rows={
            "If not all curves are fitted, the other curves reach chance level.": (
                _leaves_curves_out
            ),
        },
        columns={
            "model": _model,
            "datasets": _datasets,
            "d or points": _variant,
            "curves": _curves,
            "exponent · d": _value,
            "interval": _interval,
            "p (t)": _p_by_t,
            "wild p": _resampled_p,
            "above 1": _num_above_bound,
            "without": _without,
        },
        numeric_from=3,
    ),
    FitTable(
        key="fall",
        kinds=("fall",),
        title="Fall of the loss with N, dataset by dataset",
        note=(
            "The slope is the slope of log test loss on log N within curves. All curves with two "
            "train sizes are used. In the mean slope, all datasets have the same weight. The "
            "interval of the mean slope is a t interval over datasets."
        ),
        columns={
            "datasets": _datasets,
            "falling": _num_falling,
            "mean slope": _value,
            "interval": _interval,
            "p (t)": _p_by_t,
            "p (signs)": _sign_p,
            "by dataset": _slopes_of_datasets,
        },
        numeric_from=1,
    ),
    FitTable(
        key="heights",
        kinds=("headline", "height"),
        title="Losses of datasets at equal N",
        note=(
            "The coefficients are from regressions of the mean log test loss of each dataset at "
            "equal model and train size. The intervals are t intervals. The last column contains "
            "the coefficient without the most influential dataset."
        ),
        notes_on_rows={
            "An asterisk (*) marks an exact p from all permutations of datasets.": _is_exact,
            "A permutation p without * is approximate. It comes from permuted residuals, or from a "
            "random sample of permutations.": _is_approximate,
        },
        columns={
            "model": _model,
            "datasets": _datasets,
            "on": _terms,
            "coefficient of": _coefficient,
            "value": _value,
            "interval": _interval,
            "p (t)": _p_by_t,
            "permutation p": _resampled_p,
            "without": _without,
        },
        numeric_from=4,
    ),
    FitTable(
        key="attacks",
        kinds=("attack",),
        title="Loss gained by attacks, with K_F",
        note=(
            "r is Pearson's correlation over datasets at equal model and train size. If there are "
            "two domains, r is within domains. The 95 % intervals of single models hold for all "
            "of these correlations together. The interval of a pooled row holds only for this "
            "row. The p-values are one-sided for a rise. They are adjusted for the number of "
            "single models and attacks, but not for the number of questions."
        ),
        columns={
            "attack": _attack,
            "model": _model,
            "datasets": _datasets,
            "r": _value,
            "interval": _interval,
            "p over the table": _resampled_p,
            "points": _num_points,
        },
        numeric_from=3,
    ),
    FitTable(
        key="representations",
        kinds=("representation",),
        title="d_repr against d_data",
        note=(
            "d_repr and d_data are maximum likelihood estimates. The ratio is d_repr / d_data. "
            "The bound d_repr ≲ d_data is approximate."
        ),
        columns={
            "model": _model,
            "datasets": _datasets,
            "at or below": _num_held,
            "median ratio": _median_ratio,
            "mean of datasets": _share,
            "interval": _interval_of_share,
            "share above": _shares_above,
        },
        numeric_from=2,
    ),
)


def fit_tables(fits: ScalingFits) -> list[Table]:
    """Return the table of answers and the tables of all fits. Empty tables are left out."""
    tables = [answer_table(fits)]
    if fits.interventions:
        tables += intervention_tables(fits.interventions)
    for table in FIT_TABLES:
        rows = []
        for fit in fits.fits:
            if fit.kind in table.kinds and fit.status == "ok":
                rows += [FitRow(fit, estimate) for estimate in fit.estimates]
        tables.append(
            laid_out(
                table.key,
                table.title,
                table.note_on(rows),
                rows,
                table.columns,
                numeric_from=table.numeric_from,
            )
        )
    return [table for table in tables if table.rows]


def not_fitted(fits: ScalingFits) -> str:
    """Return a line on the fits that could not be made; empty if all fits could be made."""
    reasons = Counter(fit.reason for fit in fits.fits if fit.status != "ok")
    if not reasons:
        return ""
    most = reasons.most_common(MAX_REASONS)
    num_others = reasons.total() - sum(count for _, count in most)
    named = "; ".join(f"{reason} ({count})" for reason, count in most)
    more = f"; {num_others} more" if num_others else ""
    verb = "was" if reasons.total() == 1 else "were"
    return f"{plural(reasons.total(), 'fit')} {verb} not possible: {named}{more}."


def answer_table(fits: ScalingFits) -> Table:
    """Return the table of the tested questions, with p before and after correction."""
    note = (
        "For attacks, p comes from a permutation test, one-sided for a rise. For all other "
        "questions, two two-sided tests are made, and p is the larger of their p-values. One is "
        "the t test over datasets. The other one is a permutation test or a wild cluster "
        "bootstrap. Intervals of correlations with attacks are from Fisher's z, and hold for all "
        "correlations together. All other intervals are t intervals. The adjusted p is corrected "
        "for all tests in this table (Holm)."
    )
    if fits.class_pairs:
        note = (
            "Intervals are from a jackknife over classes, with a t distribution of classes − "
            "1 degrees of freedom. For a slope between pairs, p is the larger p of two tests: "
            "this t test and a permutation of classes. All tests are two-sided. The adjusted "
            "p is corrected by Holm's method."
        )
    return laid_out(
        "answers",
        "Answers",
        note,
        adjusted_p_values(fits),
        {
            "estimand": lambda answer: answer.question.estimand,
            "value": "value",
            "interval": "interval",
            "p": "p_value",
            "adjusted p": "adjusted_p",
            "over tests": "num_tests",
            "datasets or classes": "num_replicates",
            "verdict": "verdict",
        },
    )


PROPERTY_NAMES = {"sharpness": "K_F", "dimension": "d", "nothing": "nothing (control)"}
"""Name in the table of the property that an arm should change."""


def intervention_tables(interventions: Interventions) -> list[Table]:
    """Return the table of effects, and the table of checked arms."""
    return [_effect_table(interventions.effects), _gate_table(interventions.gates)]


def _effect_table(effects: Sequence[Effect]) -> Table:
    return laid_out(
        "interventions",
        "Effects of changing one property",
        "A world is a base dataset with its conditions (arms). Values are means over worlds. Two "
        "95 % intervals are computed, and the table has the wider one. One is the t interval "
        "over worlds. The other one is from a jackknife over the classes that worlds share. "
        "Every arm is compared with the base dataset of its world at equal model and N. Only "
        "arms that pass their checks are used. Rows of single arms are exploratory.",
        effects,
        {
            "effect": _effect_words,
            "arms": lambda effect: effect.arm or "all",
            "worlds": "num_worlds",
            "classes": lambda effect: str(effect.num_classes or ""),
            "value": "value",
            "interval": "interval",
            "the law says": "theory",
            "p against it": "p_theory",
            "p against 0": "p_zero",
            "pairs": "num_cells",
        },
        numeric_from=2,
    )


def _effect_words(effect: Effect) -> str:
    """Return words for the estimand of an effect, with its training images and test images."""
    text = effect.estimand
    if effect.estimand == "exponent · d":
        text += f", {effect.response}"
    if effect.trained_on:
        text += f", trained on the {effect.trained_on}"
    if effect.tested_on:
        text += f", tested on the {effect.tested_on}"
    return text


def _gate_table(gates: Sequence[Gate]) -> Table:
    return laid_out(
        "intervention-gates",
        "Changes of K_F and d in each arm",
        "K_F and d of each arm (condition), divided by K_F and d of its base dataset at the "
        "largest common N. An arm is used if its property changed enough: K_F by a factor of 2, "
        "or d by a factor of 1.25. The logarithm of the other property must change by less than "
        "0.05.",
        gates,
        {
            "dataset": lambda gate: gate.arm.dataset,
            "should change": lambda gate: PROPERTY_NAMES.get(gate.arm.moves, ""),
            "K_F": lambda gate: _factor(gate.sharpness_moved),
            "d": lambda gate: _factor(gate.dimension_moved),
            "counts": lambda gate: "yes" if gate.counts else f"no: {gate.reason}",
        },
        numeric_from=2,
    )


def _factor(log_ratio: float | None) -> str:
    """Return a factor, computed from a log ratio, as text."""
    if log_ratio is None:
        return ""
    return f"× {number(float(np.exp(log_ratio)))}"
