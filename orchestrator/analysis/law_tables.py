"""Tables of the headline claims, of the exponent of N and of what decides the height of the losses."""

from __future__ import annotations

from itertools import groupby

from orchestrator.analysis.claims import QUESTION_WORDS
from orchestrator.analysis.fit_records import ScalingFits
from orchestrator.analysis.formats import Table, interval, number, p_value
from orchestrator.analysis.law_records import ExponentFit, LevelFit

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
