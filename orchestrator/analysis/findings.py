"""The findings in plain words, written from the answers and never by hand.

A sentence claims something only where the answer's verdict is *supported* or *contradicted*. Else
it says that no effect was detected, which effects are compatible with the data, and what would
detect one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from textwrap import wrap

from orchestrator.analysis.answers import Answer
from orchestrator.analysis.class_pairs import (
    pair_answer,
)
from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.headline import (
    ATTACKS,
    BELOW_BOUND,
    DIMENSION,
    EXPONENT,
    SHARPNESS,
    num_tests,
    with_p_values,
)
from orchestrator.analysis.inference import LEVEL
from orchestrator.analysis.number_formats import percent
from orchestrator.analysis.sentences.finding import Finding
from orchestrator.analysis.sentences.of_class_pairs import of_class_pairs
from orchestrator.analysis.sentences.of_datasets import of_datasets
from orchestrator.analysis.sentences.of_experiments import of_experiment
from orchestrator.analysis.sentences.of_one_dataset import of_one_dataset
from search_spaces.errors import plural

MAX_SUMMARY_LINES = 40
"""Lines that a terminal shows of a sweep; remarks beyond them are counted."""


def findings(fits: ScalingFits) -> tuple[Finding, ...]:
    """Return what a table answers.

    Several datasets answer the study's questions; one dataset answers its own, and its class pairs
    others; an experiment says what followed. What class pairs answer stands in place of what cannot
    be tested.
    """
    if fits.one_dataset is not None:
        return tuple(of_one_dataset(fits, fits.one_dataset))
    if fits.interventions is not None:
        all_findings = [of_experiment(fits.interventions)]
    else:
        all_findings = [*of_datasets(fits)]
    of_pairs = [*of_class_pairs(fits)]
    if of_pairs:
        all_findings = [finding for finding in all_findings if finding.verdict != "not testable"]
    return (*of_pairs, *all_findings)


def what_was_found(fits: ScalingFits) -> tuple[str, str, str]:
    """Return the first screen: what was done, what was found, and what that means, a sentence
    each.
    """
    done = (
        f"{plural(len(fits.models), 'network')} learned {plural(len(fits.datasets), 'dataset')} in "
        f"{plural(fits.num_used, 'training')}."
    )
    all_findings = findings(fits)
    by_verdict: dict[str, list[Finding]] = defaultdict(list)
    for finding in all_findings:
        by_verdict[finding.verdict].append(finding)
    decided = by_verdict["supported"] + by_verdict["contradicted"]
    undecided = by_verdict["undecided"]
    if decided:
        return done, f"Found: {decided[0].claim}", _of_the_rest(decided[1:], undecided)
    if undecided:
        counted = plural(len(undecided), "question")
        verb = "is" if len(undecided) == 1 else "are"
        return (
            done,
            f"No effect was detected: {counted} that could be tested {verb} undecided.",
            "This does not show that there is none; each answer says which effects are compatible "
            "with these data.",
        )
    described = by_verdict["described"]
    if described:
        return done, described[0].sentences[0], "Nothing here is tested; it describes these data."
    return (
        done,
        "No question could be tested.",
        "Each answer says what to add to the sweep to test it.",
    )


def _of_the_rest(decided: Sequence[Finding], undecided: Sequence[Finding]) -> str:
    """Say what else was found, and how many questions stay undecided."""
    if decided:
        return f"Also: {decided[0].claim}"
    if undecided:
        return f"{plural(len(undecided), 'other question')} stayed undecided: no effect detected."
    return "No other question could be tested."


def family(fits: ScalingFits) -> str:
    """Say over how many tests the verdicts are adjusted, and that the rest is exploratory."""
    if fits.interventions:
        return (
            "Its worlds share images: no claim is made of what holds between them; see "
            "docs/fits.md."
        )
    if fits.class_pairs:
        tests = sum(slope.adjusted_p is not None for slope in fits.class_pairs)
        return (
            f"Intervals over class pairs are by a jackknife over classes, p-values by Holm over "
            f"{plural(tests, 'slope')}. R̂ is the distance to another decision, δ the mean distance "
            "to the nearest unlike image; see docs/fits.md."
        )
    tests = num_tests(fits.answers)
    if not tests:
        return "No headline question could be tested; everything here is exploratory."
    return (
        f"The verdicts rest on {plural(tests, 'test')}, adjusted together (Holm): the chance of "
        f"any false claim is at most {percent(LEVEL)}. Everything else here is exploratory."
    )


def adjusted_p_values(fits: ScalingFits) -> tuple[Answer, ...]:
    """Return the answers with their adjusted p-values: the one table that shows these."""
    if fits.interventions:
        return ()
    if fits.class_pairs:
        return tuple(with_p_values(map(pair_answer, fits.class_pairs)))
    return tuple(with_p_values(fits.answers))


def summary(
    fits: ScalingFits, *, width: int = 80, most_lines: int = MAX_SUMMARY_LINES
) -> list[str]:
    """Return what a terminal shows.

    Args:
        fits: The fits.
        width: Characters of a line.
        most_lines: Lines; remarks beyond them are counted, an answer is never cut.
    """
    exclusions = [f"Left out: {exclusion}." for exclusion in fits.excluded]
    lines = wrap(" ".join(what_was_found(fits)), width)
    for finding in findings(fits):
        lines += wrap(f"{finding.verdict.upper()}: {finding.question}", width)
        lines += wrap(finding.line, width, initial_indent="  ", subsequent_indent="  ")
    answers = adjusted_p_values(fits)
    text = family(fits)
    if answers and not fits.class_pairs:
        named = "; ".join(f"{SHORT_NAMES[a.question.key]} {_p(a)}" for a in answers)
        text = f"Adjusted p: {named}. {text}"
    lines += wrap(text, width)
    remarks = [*fits.caveats, *exclusions]
    for k, remark in enumerate(remarks):
        wrapped = wrap(f"- {remark}", width, subsequent_indent="  ")
        is_last = k + 1 == len(remarks)
        if len(lines) + len(wrapped) > most_lines - (not is_last):
            return [*lines, f"- {plural(len(remarks) - k, 'remark')} more, in the report."]
        lines += wrapped
    return lines


SHORT_NAMES = {
    DIMENSION.key: "d_data",
    SHARPNESS.key: "K_F",
    EXPONENT.key: "fall with N",
    BELOW_BOUND.key: "slower than the bound",
    ATTACKS.key: "attacks",
}
"""Question -> its name in the line of p-values."""


def _p(answer: Answer) -> str:
    """Return the adjusted p-value to two figures."""
    adjusted_p = answer.adjusted_p
    if adjusted_p is None:
        return "–"
    return "< 0.001" if adjusted_p < 1e-3 else f"{adjusted_p:.2g}"
