"""The findings in plain words, generated from the answers.

A sentence makes a claim only if the verdict of its answer is *supported* or *contradicted*.
Otherwise, it states the estimate, the interval and the power of the test.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from textwrap import wrap

from orchestrator.analysis.answers import Answer
from orchestrator.analysis.class_pairs import AT_DELTA, DROP_ON_DELTA
from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.headline import BELOW_BOUND, EXPONENT, num_tests, with_p_values
from orchestrator.analysis.inference import LEVEL
from orchestrator.analysis.number_formats import listing, per_cent_of
from orchestrator.analysis.one_dataset import MIN_SEEDS_FOR_INTERVAL
from orchestrator.analysis.sentences.finding import Finding
from orchestrator.analysis.sentences.of_class_pairs import all_are_late, of_class_pairs
from orchestrator.analysis.sentences.of_datasets import (
    FALL_QUESTION,
    datasets_needed_for_dimension,
    datasets_needed_for_sharpness,
    of_datasets,
)
from orchestrator.analysis.sentences.of_experiments import of_experiment
from orchestrator.analysis.sentences.of_one_dataset import of_one_dataset
from search_spaces.errors import plural

MAX_SUMMARY_LINES = 40
"""Number of lines of a summary. They fit into a terminal of 40 lines."""
CHANCE_OF_FALSE_CLAIM = (
    f"If their assumptions hold, the chance of any false claim is at most {per_cent_of(LEVEL)}."
)
"""Sentence on what Holm's adjustment of p-values guarantees for a family of tests."""
ALL_ARE_LATE = (
    "Results on these images were known when these questions or their settings were chosen, so "
    "none of the answers is a claim."
)
"""Sentence that replaces this guarantee if results were known before any question was
chosen."""
OF_INTERVALS = "Each dataset is one observation. All else is exploratory."
"""Sentence that follows the guarantee if several datasets are tested."""
NOT_OF_SUGGESTED = 'This chance does not cover a "suggested" answer.'
"""Sentence that follows the guarantee if an answer is suggested, because its question was
chosen after results were known."""


def findings(fits: ScalingFits) -> tuple[Finding, ...]:
    """Return the findings of a table, in the order of its questions.

    A table of several datasets answers the study's questions. There are other questions for a
    table of one dataset, for its class pairs, and for an experiment. If class pairs answer a
    question, questions about several datasets that cannot be tested are left out.
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


def opening_question(fits: ScalingFits) -> str:
    """Return the question at the start of the page. It is used if the sweep has no description."""
    if fits.one_dataset is not None:
        name = fits.one_dataset.dataset
        return f"Which network is best on {name}, and what would more images bring?"
    return "Do a dataset's intrinsic properties decide what networks learn from it?"


def what_was_found(fits: ScalingFits) -> tuple[str, ...]:
    """Return up to three texts: what was trained, what was found, and what is still undecided."""
    if fits.one_dataset is not None:
        best = fits.one_dataset.best_score
        texts = (_what_was_trained(fits), best.sentence, best.attacked_sentence)
        return tuple(filter(None, texts))
    by_verdict: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings(fits):
        by_verdict[finding.verdict].append(finding)
    # A suggested answer confirms nothing, so it comes after all other answers.
    decided = by_verdict["supported"] + by_verdict["contradicted"] + by_verdict["suggested"]
    described = by_verdict["described"]
    num_undecided = len(by_verdict["undecided"])
    trained = _what_was_trained(fits)
    if decided:
        prefix = _opening(decided[0], "Found", "Suggested, not confirmed")
        rest = _of_the_rest(decided[1:], num_undecided)
        return trained, f"{prefix}: {decided[0].claim}", rest
    if num_undecided:
        of_fall = []
        # If there is only one dataset, a count of datasets in which the loss fell is not
        # informative.
        if len(fits.datasets) > 1:
            of_fall = [finding.sentences[0] for finding in described if _is_of_fall(finding)]
        return trained, *of_fall, _nothing_decided(num_undecided)
    if described:
        return trained, described[0].sentences[0], "No verdict follows from these numbers."
    return trained, "No question could be tested.", "Each answer says what to add to the sweep."


def _opening(decided: Finding, if_confirmed: str, if_suggested: str) -> str:
    """Return the words that precede a finding."""
    return if_suggested if decided.verdict == "suggested" else if_confirmed


def _what_was_trained(fits: ScalingFits) -> str:
    """Return a sentence on the numbers of networks, trainings and datasets."""
    times = "once" if fits.num_used == 1 else f"{fits.num_used:,} times"
    data = plural(len(fits.datasets), "dataset")
    if fits.class_pairs:
        num_classes = max(slope.num_groups for slope in fits.class_pairs)
        data = f"pairs of the {num_classes} classes of {data}"
    verb = "was" if len(fits.models) == 1 else "were"
    return f"{plural(len(fits.models), 'kind')} of network {verb} trained {times} on {data}."


def _is_of_fall(finding: Finding) -> bool:
    """Return whether a finding counts the datasets in which the loss fell."""
    return finding.question == FALL_QUESTION


def _nothing_decided(num_undecided: int) -> str:
    """Return the sentence on a table whose tested questions are all undecided."""
    if num_undecided == 1:
        return "The one tested question is undecided: the data neither show nor exclude a relation."
    return (
        f"All {num_undecided} tested questions are undecided: the data neither show nor "
        "exclude these relations."
    )


def _of_the_rest(other_decided: Sequence[Finding], num_undecided: int) -> str:
    """Return sentences on the numbers of further detected effects and of undecided questions."""
    if other_decided:
        prefix = _opening(other_decided[0], "Also", "Also suggested")
        text = f"{prefix}: {other_decided[0].claim}"
        num_more = len(other_decided) - 1
        if num_more:
            verb = "was" if num_more == 1 else "were"
            text += f" {plural(num_more, 'more effect')} {verb} detected."
        return text
    if num_undecided:
        verb = "is" if num_undecided == 1 else "are"
        return f"{plural(num_undecided, 'other question')} {verb} undecided."
    return "No other question could be tested."


def next_steps(fits: ScalingFits, predict: str = "") -> tuple[str, ...]:
    """Return the next steps that the answers suggest, as sentences in the imperative.

    Args:
        fits: The fits.
        predict: The command ``isweep predict`` with the name of the sweep. It is empty if the
            table belongs to no sweep.
    """
    steps = []
    answers = {slope.on: fits.pair_answer(slope) for slope in fits.class_pairs}
    num_suggested = sum(finding.verdict == "suggested" for finding in of_class_pairs(fits))
    if num_suggested:
        noun = "question" if num_suggested == 1 else "questions"
        steps += [
            f"Ask the suggested {noun} again, on images that you have not seen yet.",
            "In a copy of the sweep file, replace the datasets and delete `asked_after_seeing`.",
        ]
    elif DROP_ON_DELTA in answers:
        if answers[DROP_ON_DELTA].verdict == "supported":
            steps.append(
                "Expect attacks to cost more accuracy between classes that lie close together."
            )
        steps.append("Repeat this sweep on another dataset before you rely on its answers.")
    elif any(answer.verdict == "undecided" for answer in fits.answers):
        needed = datasets_needed_for_sharpness(fits)
        if needed is None:
            steps.append("Plan a larger sweep: `isweep power FILE`.")
        else:
            steps.append(
                f"Use roughly {needed:,} datasets with the same scatter of K_F: if twice the K_F "
                "doubles the loss, 80 of 100 such studies would show it."
            )
            for_dimension = datasets_needed_for_dimension(fits)
            if for_dimension is not None and for_dimension > needed:
                steps.append(
                    f"For a doubling over the range of d_data, use roughly {for_dimension:,}."
                )
    if fits.one_dataset is not None:
        command = predict or "isweep predict --curve results.csv"
        if fits.one_dataset.target is not None:
            option = fits.one_dataset.target.option
            steps.append(f"Replace TARGET by your own target: `{command} {option}`.")
        if fits.one_dataset.num_seeds < MIN_SEEDS_FOR_INTERVAL:
            seeds = ",".join(map(str, range(MIN_SEEDS_FOR_INTERVAL)))
            steps.append(
                f"To see how much trainings vary, add `--set 'seeds=[{seeds}]'` to `isweep run`."
            )
        return tuple(steps)
    if fits.fall().status != "ok":
        steps.append(
            "For a learning curve, add `--set 'train_sizes=[60,120,240]'` to `isweep run`."
        )
        return tuple(steps)
    steps += [
        "Try your images: `isweep init ./my-images`.",
    ]
    return tuple(steps)


def family(fits: ScalingFits) -> str:
    """Return sentences on the number of tests that are adjusted together, and on the guarantee."""
    if fits.interventions:
        return "No claim is made about differences between base datasets: they share images."
    if fits.one_dataset:
        return "These answers describe one dataset. Nothing was tested on several datasets."
    if fits.class_pairs:
        tested = [slope for slope in fits.class_pairs if slope.adjusted_p is not None]
        num_at_delta = sum(slope.on in AT_DELTA for slope in tested)
        sentences = [_of_tests(len(tested), num_at_delta)]
        if all_are_late(fits):
            sentences.append(ALL_ARE_LATE)
        else:
            sentences.append(CHANCE_OF_FALSE_CLAIM)
            if any(finding.verdict == "suggested" for finding in of_class_pairs(fits)):
                sentences.append(NOT_OF_SUGGESTED)
        return " ".join(
            [*sentences, "Pairs share classes, so intervals are from a jackknife over classes."]
        )
    tests = num_tests(fits.answers)
    if not tests:
        return "No headline question could be tested. All results are exploratory."
    of_exponent = [fits.answer(EXPONENT), fits.answer(BELOW_BOUND)]
    sentences = [
        _of_tests(tests, num_tests(of_exponent)),
        CHANCE_OF_FALSE_CLAIM,
        *of_dependent_datasets(fits),
    ]
    return " ".join([*sentences, OF_INTERVALS])


def _of_tests(tests: int, num_of_one_question: int) -> str:
    """Return a sentence on the number of tests.

    Args:
        tests: Number of tests that are adjusted together.
        num_of_one_question: Largest number of these tests that belong to the same question. If
            it is above 1, the sentence states it, because there are more tests than questions.
    """
    of_one_question = ""
    if num_of_one_question > 1:
        of_one_question = f"; one question has {num_of_one_question}"
    return (
        f"The verdicts rest on {plural(tests, 'test')}, adjusted together (Holm){of_one_question}."
    )


def of_dependent_datasets(fits: ScalingFits) -> Iterator[str]:
    """Yield a sentence that names the datasets that are not independent, if there are any."""
    if not fits.dependent_datasets:
        return
    first, *others = map(listing, fits.dependent_datasets)
    text = f"This chance can be higher: {first} are not independent"
    if others:
        text += f", nor are {', nor '.join(others)}"
    yield f"{text}."


def adjusted_p_values(fits: ScalingFits) -> tuple[Answer, ...]:
    """Return the answers that have a p-value, for the table of adjusted p-values."""
    if fits.interventions:
        return ()
    if fits.class_pairs:
        return tuple(with_p_values(map(fits.pair_answer, fits.class_pairs)))
    return tuple(with_p_values(fits.answers))


def summary(
    fits: ScalingFits,
    *,
    predict: str = "",
    show_all: str = "isweep fit SWEEP --all",
    width: int = 80,
    most_lines: int = MAX_SUMMARY_LINES,
    with_details: bool = False,
) -> list[str]:
    """Return the lines that a terminal shows.

    Args:
        fits: The fits.
        predict: The command ``isweep predict`` with the name of the sweep.
        show_all: The command that shows every detail and remark. It is the last line.
        width: Characters of a line.
        most_lines: Largest number of lines. Remarks that do not fit are only counted. Answers
            are always shown completely. If the answers alone have more lines, the first remark
            is also shown.
        with_details: True if every detail and remark is shown, whatever ``most_lines`` is. The
            last line is then left out.
    """
    lines = wrap(" ".join(what_was_found(fits)), width)
    for finding in findings(fits):
        lines += wrap(f"{finding.verdict.upper()}: {finding.question}", width)
        paragraphs = [finding.line]
        if with_details:
            paragraphs += [" ".join(finding.details), *finding.notes]
        for paragraph in paragraphs:
            lines += wrap(paragraph, width, initial_indent="  ", subsequent_indent="  ")
    lines += wrap(family(fits), width)
    steps = " ".join(next_steps(fits, predict)).replace("`", "")
    lines += wrap(f"Next: {steps}", width, break_on_hyphens=False)
    exclusions = [f"Left out: {exclusion}." for exclusion in fits.excluded]
    remarks = [*exclusions, *fits.caveats]
    is_too_long = len(lines) >= most_lines
    num_shown = 0
    for remark in remarks:
        wrapped = wrap(f"- {remark}", width, subsequent_indent="  ")
        # One line is kept free for the last line. If the answers do not fit anyway, the reader
        # must scroll, so the first remark is also shown.
        fits_in = len(lines) + len(wrapped) < most_lines or (is_too_long and num_shown == 0)
        if not (with_details or fits_in):
            break
        lines += wrapped
        num_shown += 1
    if with_details:
        return lines
    hidden = "every number"
    if num_shown < len(remarks):
        hidden += f" and {plural(len(remarks) - num_shown, 'more remark')}"
    return [*lines, f"To see {hidden}, type: {show_all}"]
