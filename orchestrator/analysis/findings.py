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
from orchestrator.analysis.class_pairs import DROP_ON_DELTA, pair_answer
from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.headline import num_tests, with_p_values
from orchestrator.analysis.inference import LEVEL
from orchestrator.analysis.law_fits.detection import verdict_level
from orchestrator.analysis.number_formats import per_cent_of
from orchestrator.analysis.sentences.finding import Finding
from orchestrator.analysis.sentences.of_class_pairs import of_class_pairs
from orchestrator.analysis.sentences.of_datasets import (
    FALL_QUESTION,
    datasets_needed_for_sharpness,
    of_datasets,
)
from orchestrator.analysis.sentences.of_experiments import of_experiment
from orchestrator.analysis.sentences.of_one_dataset import of_one_dataset
from search_spaces.errors import plural

MAX_SUMMARY_LINES = 70
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
    times = "once" if fits.num_used == 1 else f"{fits.num_used:,} times"
    data = plural(len(fits.datasets), "dataset")
    if fits.class_pairs:
        num_classes = max(slope.num_groups for slope in fits.class_pairs)
        data = f"pairs of the {num_classes} classes of {data}"
    done = f"{plural(len(fits.models), 'kind')} of network trained {times} on {data}."
    all_findings = findings(fits)
    by_verdict: dict[str, list[Finding]] = defaultdict(list)
    for finding in all_findings:
        by_verdict[finding.verdict].append(finding)
    decided = by_verdict["supported"] + by_verdict["contradicted"]
    undecided = by_verdict["undecided"]
    if decided:
        result = f"Found: {decided[0].claim} {decided[0].size}".strip()
        return done, result, _of_the_rest(decided[1:], undecided)
    if undecided:
        counted = plural(len(undecided), "question")
        verb = "is" if len(undecided) == 1 else "are"
        result = f"Nothing was decided: {counted} that could be tested {verb} undecided."
        of_fall = [finding for finding in all_findings if finding.question == FALL_QUESTION]
        if of_fall:
            result = f"{of_fall[0].sentences[0]} {result}"
        return (
            done,
            result,
            "Undecided does not mean that there is no relation. Each answer gives the estimate "
            "with its interval.",
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
        return f"{plural(len(undecided), 'other question')} stayed undecided."
    return "No other question could be tested."


def next_steps(fits: ScalingFits) -> tuple[str, ...]:
    """Return what to do next, as its answers suggest: sentences in the imperative."""
    steps = []
    slopes = {slope.on: slope for slope in fits.class_pairs}
    if DROP_ON_DELTA in slopes:
        if pair_answer(slopes[DROP_ON_DELTA]).verdict == "supported":
            steps.append("Expect images that resemble another class to fail first.")
        steps.append("Repeat it on another set before you rely on it.")
    elif any(answer.verdict == "undecided" for answer in fits.answers):
        needed = datasets_needed_for_sharpness(fits)
        if needed is not None:
            steps.append(f"To decide about K_F, plan about {needed:,} datasets.")
        steps.append("Let `isweep power` count how often your sweep would decide.")
    steps.append("Measure your own images: `isweep measure ./my-images`.")
    steps.append(
        "Ask how many you need: `isweep predict --curve results.csv --target-accuracy 0.9`."
    )
    return tuple(steps)


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
            "Classes are the replicates: pairs share them. Intervals are by a jackknife over "
            f"classes, each for itself. {_of_holm(tests)} δ is the mean distance of an image to "
            "the nearest image of the other class."
        )
    tests = num_tests(fits.answers)
    if not tests:
        return "No headline question could be tested; everything here is exploratory."
    return f"{_of_holm(tests)} Everything else here is exploratory."


def _of_holm(tests: int) -> str:
    """Say what the adjustment of a family promises, and at which level its powers are given."""
    return (
        f"The verdicts rest on {plural(tests, 'test')}, adjusted together (Holm). If each p is "
        f"right, the chance of any false verdict is at most {per_cent_of(LEVEL)}. Powers are for "
        f"the strictest level of Holm, {per_cent_of(verdict_level(tests))}."
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
    lines += wrap(family(fits), width)
    steps = " ".join(next_steps(fits)).replace("`", "")
    lines += wrap(f"Next: {steps}", width, break_on_hyphens=False)
    remarks = [*fits.caveats, *exclusions]
    for k, remark in enumerate(remarks):
        wrapped = wrap(f"- {remark}", width, subsequent_indent="  ")
        is_last = k + 1 == len(remarks)
        if len(lines) + len(wrapped) > most_lines - (not is_last):
            return [*lines, f"- {plural(len(remarks) - k, 'remark')} more, in the report."]
        lines += wrapped
    return lines
