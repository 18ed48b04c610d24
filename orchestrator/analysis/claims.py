"""The ledger: every claim of the study, with the published result and the answer of a sweep.

The claims are from Konz & Mazurowski (arXiv 2401.08865, 2408.08381). Their tests form two
families. In each family, the probability of any false verdict is at most 5 %:

- Some claims are headline questions or questions about class pairs. They have the same answers
  as in the report and in ``isweep fit``. Their p-values are Holm-adjusted over the tests of
  ``isweep fit``.
- The p-values of all other claims are Holm-adjusted over all tests of the ledger.

Theorem 5 is an approximate bound without a null value. Its verdict is *described*, and it
belongs to no family.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.answers import VERDICTS, Answer, Family, Question, holm_adjusted
from orchestrator.analysis.experiments.records import Arm
from orchestrator.analysis.findings import NOT_OF_SUGGESTED, of_dependent_datasets
from orchestrator.analysis.fits import (
    NO_FACTS,
    Prepared,
    ScalingFits,
    fits_of,
    prepare,
    why_no_sharpness,
    with_facts,
)
from orchestrator.analysis.headline import (
    ATTACKS,
    BELOW_BOUND,
    DIMENSION,
    LAW_SLOPE,
    SHARPNESS,
    answer_of,
    bound_p_value,
    strongest_attack,
)
from orchestrator.analysis.inference import MIN_DATASETS
from orchestrator.analysis.law_fits.detection import LargestCorrelation
from orchestrator.analysis.law_fits.estimates import slope_estimates
from orchestrator.analysis.law_fits.exponents import fit_exponents
from orchestrator.analysis.law_fits.heights import fit_headline
from orchestrator.analysis.limits import SweepFacts
from orchestrator.analysis.number_formats import interval, number, percent
from orchestrator.analysis.published import Score, score_table, scorecard
from orchestrator.analysis.results_tables.points import (
    INVERSE_D,
    IS_MEDICAL,
    LOG_SHARPNESS,
    POOLED,
    given,
)
from orchestrator.analysis.sentences.finding import (
    ASKED_AFTER_SEEING,
    influence,
    p_sentences,
    power_sentence,
)
from orchestrator.analysis.sentences.of_datasets import of_other_estimator
from orchestrator.analysis.tables.layout import Table, laid_out
from orchestrator.results.columns import (
    D_DATA_MLE,
    D_REPR_MLE,
    DATASET,
    DOMAIN,
    LABEL_SHARPNESS,
    MEDICAL,
    attack_columns,
)
from search_spaces.errors import plural

ONE_FAMILY = (
    "The p-values are adjusted together over the tests of {} (Holm). If the tests' "
    "assumptions hold, the chance of any false claim is at most 5 %."
)
"""Sentences on the family of tests of a ledger, if all tests belong to one family."""
TWO_FAMILIES = (
    "The p-values form two families (Holm). Claims that isweep fit tests too are adjusted over "
    "the tests of isweep fit. All other claims are adjusted over all tests of this ledger. If "
    "the tests' assumptions hold, the chance of any false claim is at most 5 % in each family. "
    "In both families together, the chance of any false claim is at most 10 %."
)
"""Sentences on the families of tests of a ledger, if its tests belong to two families."""
FAMILY_WORDS: dict[Family, str] = {
    "headline questions": "isweep fit",
    "class pairs": "isweep fit",
    "ledger": "this ledger",
}
"""Words for the command or document that contains the tests of a family, by name of the
family."""
TERMINAL_WIDTH = 80
"""Largest number of characters of a line in the terminal."""
NOT_MEASURED = "not measured by a sweep"
"""Reason for the verdict *not testable* if no sweep measures the number in the claim."""
PAIRS = "the question compares datasets; isweep fit shows the class pairs of this dataset"
"""Reason for the verdict *not testable* if a claim is about several datasets, but the table
contains only one."""
SHARED = (
    "the base datasets of an experiment share images, so they are not independent; isweep fit "
    "shows each condition"
)
"""Reason for the verdict *not testable* if a claim is about several datasets, but the table is
from an experiment."""
NO_CLAIM_OF_PAPERS = "isweep fit supports or contradicts {} beyond these claims."
"""Sentence on detected relations between class pairs that are not among the claims of the
study."""
ONLY_SUGGESTED = (
    "isweep fit suggests {}. A suggested relation is not confirmed, because results were known "
    "before its question was chosen."
)
"""Sentence on detected relations whose question was asked after results on the images were
known."""
LAYERS = f"the dimension of layers before the last is {NOT_MEASURED}"
UNMEASURED = (
    Answer(
        question=Question(
            key="thm2",
            source="Thm 2",
            claim="A network's sharpness K_f approaches K_F as N grows",
            estimand="ratio K_f / K_F against N",
            published="proved, never measured",
        ),
        reason=f"the Lipschitz constant of a network is {NOT_MEASURED}",
    ),
    Answer(
        question=Question(
            key="earlier_peak",
            source="2408.08381, 1",
            claim="Medical networks reach their peak dimension in earlier layers",
            estimand="depth of the layer of highest d_repr, medical minus natural",
            published="relative depth 0.35 against 0.57",
        ),
        reason=LAYERS,
    ),
    Answer(
        question=Question(
            key="peak_follows_d",
            source="2408.08381, 2",
            claim="The peak dimension follows d_data",
            estimand="correlation of the peak of d_repr over layers with d_data",
            published="strong",
        ),
        reason=LAYERS,
    ),
)
"""The claims about numbers that no sweep measures."""
DOMAIN_GAP = Question(
    key="domain_gap",
    source="Fig. 2b",
    claim="Medical sets have a higher loss than natural ones",
    estimand="log loss, medical minus natural, at equal model and N; t and exact permutation",
    published="1.1 to 2.0 by network, without the prostate set",
    power_of="a loss 2.7 times as high",
)
SHARPNESS_GAP = Question(
    key="sharpness_gap",
    source="Fig. 1",
    claim="Medical sets have sharper labels",
    estimand="mean log K_F, medical minus natural; t and exact permutation over datasets",
    published="0.90; 0.54 at equal channels",
    power_of="a K_F 1.6 times as high",
)
COMPRESSION = Question(
    key="compression",
    source="Thm 5",
    claim="d_repr is at most about d_data",
    estimand=(
        "share of points with d_repr ≤ d_data, mean over datasets; t interval over datasets, "
        "no test"
    ),
    published="an approximate bound for all",
    is_share=True,
    alternative="untested",
)
NO_TEST_OF_BOUND = "The bound states no largest ratio d_repr / d_data, so a share does not test it"
"""Sentence on why Theorem 5 is described and not tested."""
GAP_OF_POWER = 1.0
"""Difference of log losses for which the power is computed. It is a factor of 2.7 between
losses."""
SHARPNESS_GAP_OF_POWER = 0.5
"""Difference of log K_F for which the power is computed. It is a factor of 1.6 between values
of K_F."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All claims of the study, answered by one sweep.

    It may also compare the sweep with published numbers.

    Attributes:
        sweep: Name of the sweep.
        entries: The answer to each claim.
        scores: Agreement with published quantities; empty if no comparison was requested.
        left_out: Numbers of excluded rows and values, with the reasons.
        remarks: Sentences that are printed before the claims.
        families: Sentences on the families of tests; empty if nothing was tested.
    """

    sweep: str
    entries: tuple[Answer, ...]
    scores: tuple[Score, ...]
    left_out: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    families: str = ""

    def tables(self) -> list[Table]:
        """Return the table of claims, and the table of scores if there are any."""
        claims = laid_out(
            "claims",
            f"The study's claims against {self.sweep}",
            "Supported or contradicted: the adjusted p is at most 0.05 (Holm), and the "
            "interval excludes the null value. The replicates of the intervals are "
            f"{_replicates(self.entries)}. Each power is computed at Holm's strictest level. "
            f"{self.families}".rstrip(),
            self.entries,
            {
                "no.": lambda answer: answer.question.source,
                "claim": lambda answer: answer.question.claim,
                "decided by": lambda answer: answer.question.estimand,
                "published": lambda answer: answer.question.published,
                "here": shown_value,
                "95 % interval": shown_interval,
                "p": "p_value",
                "adjusted p": "adjusted_p",
                "over tests": _tests_of_family,
                "datasets or classes": lambda answer: str(answer.num_replicates or ""),
                "verdict": verdict_with_limits,
            },
            numeric_from=4,
        )
        if not self.scores:
            return [claims]
        return [claims, score_table(self.scores)]

    def lines(self) -> Iterator[str]:
        """Yield lines for a terminal: the number of claims for each verdict, then each claim."""
        verdicts = Counter(answer.verdict for answer in self.entries)
        counts = []
        for verdict in VERDICTS:
            # Most sweeps have no suggested answer, so a count of 0 suggested answers is not
            # printed.
            if verdict != "suggested" or verdicts[verdict]:
                counts.append(f"{verdicts[verdict]} {verdict}")
        texts = [f"{plural(len(self.entries), 'claim')}: {', '.join(counts)}.", *self.remarks]
        of_datasets = [answer for answer in self.entries if answer.reason == PAIRS]
        texts += [claim_line(answer) for answer in self.entries if answer.reason != PAIRS]
        if of_datasets:
            sources = ", ".join(answer.question.source for answer in of_datasets)
            texts.append(
                f"NOT TESTABLE  {sources}. These claims need several datasets. `isweep "
                "fit` answers questions on the class pairs of this dataset."
            )
        if self.families:
            texts.append(self.families)
        texts += [f"Left out: {text}." for text in self.left_out]
        for text in texts:
            yield from wrap(text, TERMINAL_WIDTH, subsequent_indent="  ")

    def markdown(self) -> str:
        """Return the tables as Markdown."""
        parts = []
        for table in self.tables():
            rows = [table.header, ("---",) * len(table.header), *table.rows]
            lines = []
            for row in rows:
                cells = " | ".join(cell.replace("|", "\\|") for cell in row)
                lines.append(f"| {cells} |")
            parts.append("\n".join([f"## {table.title}", "", *lines, "", table.note]))
        if self.left_out:
            parts.append("\n".join(f"- Left out: {text}" for text in self.left_out))
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return all claims and scores for ``json.dumps(allow_nan=False)``."""
        entries = []
        for answer in self.entries:
            entry = asdict(answer)
            question = entry.pop("question")
            entry["number"] = question.pop("source")
            entry |= question
            entry |= {"verdict": answer.verdict, "power": answer.power, "why": why(answer)}
            entries.append(entry)
        return {**asdict(self), "entries": entries}


def why(answer: Answer) -> str:
    """Return the reason why nothing was detected or tested, or a sentence on the power."""
    if answer.verdict != "undecided":
        return answer.reason
    return power_sentence(answer).rstrip(".")


def _replicates(entries: Sequence[Answer]) -> str:
    """Return words for the replicates of the intervals of these claims."""
    if any(answer.family == "class pairs" for answer in entries):
        return "the datasets, and for claims on class pairs the classes"
    return "the datasets"


def verdict_with_limits(answer: Answer) -> str:
    """Return the verdict in words, with the reason or the power, and with the note."""
    text: str = answer.verdict
    for limit in (why(answer), _note(answer)):
        if limit:
            text += f". {_sentence(limit)}"
    return text


def _note(answer: Answer) -> str:
    """Return the note of an answer, or its value without the most influential replicate."""
    if answer.note:
        return answer.note
    replicate = "class" if answer.family == "class pairs" else "dataset"
    return influence(answer, "it", replicate).rstrip(".")


def _tests_of_family(answer: Answer) -> str:
    """Return the number of tests of the claim's family, with the name of the family."""
    if not answer.family:
        return ""
    return f"{answer.num_tests} of {FAMILY_WORDS[answer.family]}"


def claim_line(answer: Answer) -> str:
    """Return sentences on a claim: verdict, statement, estimate, p-values, and reason or power."""
    question = answer.question
    text = f"{answer.verdict.upper()}  {question.source} {question.claim}."
    if answer.value is not None:
        measured = question.estimand.split(";")[0]
        bounds = ""
        if answer.interval is not None:
            of_all = ""
            if isinstance(answer.test, LargestCorrelation):
                of_all = " for all correlations together"
            bounds = f" (95 % interval{of_all} {shown_interval(answer)})"
        text += f" {_sentence(measured)}: {shown_value(answer)}{bounds}."
    of_family = f" of {FAMILY_WORDS.get(answer.family, 'this ledger')}"
    for sentence in p_sentences(answer, of_family):
        text += f" {sentence}"
    for limit in (why(answer), _note(answer)):
        if limit:
            text += f" {_sentence(limit)}."
    return text


def _sentence(text: str) -> str:
    """Return a text whose first letter is a capital letter."""
    return f"{text[:1].upper()}{text[1:]}"


def shown_value(answer: Answer) -> str:
    """Return the value of an answer as text."""
    if answer.value is None or not answer.question.is_share:
        return number(answer.value)
    return percent(answer.value)


def shown_interval(answer: Answer) -> str:
    """Return the 95 % interval as text; empty if there is no value."""
    if answer.value is None:
        return ""
    if answer.interval is None or not answer.question.is_share:
        return interval(answer.interval)
    low, high = answer.interval
    return f"{percent(low)} to {percent(high)}"


def ledger(
    table: pd.DataFrame,
    *,
    sweep: str,
    compare: bool = True,
    arms: Sequence[Arm] = (),
    facts: SweepFacts = NO_FACTS,
) -> Ledger:
    """Answer every claim from a results table.

    Args:
        table: A results table with one row per trial.
        sweep: Name of the sweep.
        compare: True if the table is also compared with the published numbers.
        arms: Datasets of an experiment. If there are any, no claim about several datasets is
            testable, because base datasets share images.
        facts: Facts about the sweep that limit its answers.

    Raises:
        DataError: If a required column is missing, or if rows contradict each other.
    """
    prepared = prepare(table, arms=arms)
    fits = with_facts(fits_of(prepared), facts)
    entries: list[Answer] = [
        _slope(prepared, fits, DIMENSION, column=INVERSE_D),
        _slope(prepared, fits, SHARPNESS, column=LOG_SHARPNESS),
        _domain_gap(fits),
        _sharpness_gap(prepared, fits),
        _fall_with_size(prepared, fits, "Thm 1", "d_data", ""),
        _fall_with_size(prepared, fits, "Thm 4", "d_repr", D_REPR_MLE),
        _attacks(fits),
        _compression(fits),
    ]
    if fits.class_pairs:
        entries = [_asked_of_datasets(entry) for entry in entries]
        entries += _on_pairs(fits)
    if arms:
        entries = [Answer(question=entry.question, reason=SHARED) for entry in entries]
    adjusted = tuple(_adjusted(entries))
    return Ledger(
        sweep=sweep,
        entries=(*adjusted, *UNMEASURED),
        scores=scorecard(table) if compare else (),
        left_out=tuple(str(exclusion) for exclusion in prepared.excluded),
        remarks=tuple(_of_other_relations(fits)),
        families=_families(adjusted, fits),
    )


def _of_other_relations(fits: ScalingFits) -> Iterator[str]:
    """Yield sentences on the number of detected relations that are not among the study's claims."""
    num_confirmed = 0
    num_suggested = 0
    for slope in fits.class_pairs:
        answer = fits.pair_answer(slope)
        if not answer.is_decided or answer.question.source:
            continue
        if answer.is_late:
            num_suggested += 1
        else:
            num_confirmed += 1
    if num_confirmed:
        yield NO_CLAIM_OF_PAPERS.format(plural(num_confirmed, "relation"))
    if num_suggested:
        yield ONLY_SUGGESTED.format(plural(num_suggested, "more relation"))


def _families(entries: Sequence[Answer], fits: ScalingFits) -> str:
    """Return sentences on the families of tests in the ledger; empty if nothing was tested."""
    places = {FAMILY_WORDS[entry.family] for entry in entries if entry.num_tests}
    if not places:
        return ""
    text = TWO_FAMILIES
    if len(places) == 1:
        text = ONE_FAMILY.format(*places)
    sentences = [text, *of_dependent_datasets(fits)]
    if any(entry.verdict == "suggested" for entry in entries):
        sentences.append(NOT_OF_SUGGESTED)
    return " ".join(sentences)


def _asked_of_datasets(entry: Answer) -> Answer:
    """Return an answer for a table of one dataset.

    If it has a reason, :data:`PAIRS` replaces it.
    """
    if not entry.reason:
        return entry
    return replace(entry, reason=PAIRS)


def _adjusted(entries: Sequence[Answer]) -> Iterator[Answer]:
    """Yield all entries. p-values without a family are adjusted over all tests of the ledger."""
    for entry, among_all in zip(entries, holm_adjusted(entries, "ledger"), strict=True):
        if entry.num_tests:
            yield entry
        else:
            yield among_all


def _slope(prepared: Prepared, fits: ScalingFits, question: Question, *, column: str) -> Answer:
    """Return the answer to the claim on d_data or K_F, with a note on the most influential dataset.

    Args:
        prepared: The points.
        fits: The fits to these points.
        question: :data:`DIMENSION` or :data:`SHARPNESS`.
        column: The regressor: :data:`INVERSE_D` or :data:`LOG_SHARPNESS`.
    """
    answer = fits.answer(question)
    conditions = given(fits.headline().terms, column)
    estimand = f"slope of log loss on log K_F{conditions}; t and permutation"
    if column == INVERSE_D:
        estimand = (
            f"slope of log loss on 1/d_data{conditions} (negative if the loss rises with d_data); "
            "t and permutation"
        )
    note = ""
    dataset = answer.most_influential
    if dataset is not None:
        points_without = prepared.points[prepared.points[DATASET] != dataset]
        estimate = fit_headline(points_without, prepared.scale).estimate(column)
        if estimate is not None:
            without = f"without {dataset}, the most influential dataset, the estimate is"
            if answer.is_decided_by(dataset):
                without = f"this estimate rests on one dataset: without {dataset}, the estimate is"
            note = f"{without} {number(estimate.value)} ({interval(estimate.interval)})"
    return replace(answer, question=replace(answer.question, estimand=estimand), note=note)


def _domain_gap(fits: ScalingFits) -> Answer:
    """Return the answer to the claim that medical datasets have a higher loss."""
    gap = fits.height(IS_MEDICAL)
    return answer_of(
        DOMAIN_GAP,
        gap.estimate(IS_MEDICAL),
        gap.num_datasets,
        degrees=gap.num_datasets - 2,
        effect=GAP_OF_POWER,
        reason=gap.reason or NOT_MEASURED,
    )


def _sharpness_gap(prepared: Prepared, fits: ScalingFits) -> Answer:
    """Return the answer to the claim that medical datasets have sharper labels."""
    rows_with_sharpness = prepared.full[prepared.full[LABEL_SHARPNESS] > 0]
    log_sharpness = np.log(rows_with_sharpness[LABEL_SHARPNESS])
    means = log_sharpness.groupby(
        [rows_with_sharpness[DATASET], rows_with_sharpness[DOMAIN]]
    ).mean()
    is_medical = np.asarray(means.index.get_level_values(1) == MEDICAL, dtype=np.float64)
    reason = why_no_sharpness(fits.datasets, fits.sharpness_scale)
    has_both = len(means) >= MIN_DATASETS and np.ptp(is_medical) > 0
    if not reason and not has_both:
        reason = "the question needs datasets of both domains"
    estimate = None
    if not reason:
        estimates = slope_estimates(
            np.asarray(means, dtype=np.float64),
            is_medical[:, None],
            (IS_MEDICAL,),
            [""] * len(means),
            tested={IS_MEDICAL},
        )
        if estimates is not None:
            (estimate,) = estimates
    return answer_of(
        SHARPNESS_GAP,
        estimate,
        len(means),
        degrees=len(means) - 2,
        effect=SHARPNESS_GAP_OF_POWER,
        reason=reason or NOT_MEASURED,
    )


def _fall_with_size(
    prepared: Prepared, fits: ScalingFits, source: str, name: str, column: str
) -> Answer:
    """Return the answer on whether the exponent b is below the law's bound of 1.

    For d_data, the answer has the p-values of the headline question.

    Args:
        prepared: The checked table and its points.
        fits: All fits of the table.
        source: Number of the claim in the study.
        name: Name of the dimension d in the claim.
        column: Column of d; empty if d is d_data.
    """
    question = Question(
        key=f"fall_by_{name}",
        source=source,
        claim=f"Loss falls with N at least as fast as N^(−1/{name})",
        null=1.0,
        estimand=(
            f"exponent b of N^(−b/{name}) within datasets; jackknife and wild cluster bootstrap"
        ),
        published="not tested",
        power_of="the difference between no fall and the bound",
    )
    if not prepared.points[column or D_DATA_MLE].notna().any():
        return Answer(question=question, reason=f"no point has {name}")
    fit, above_chance = fit_exponents(prepared.points, prepared.full, dimension=column)
    answer = answer_of(
        question,
        fit.estimate("exponent"),
        fit.num_datasets,
        degrees=fit.num_datasets - 1,
        effect=LAW_SLOPE,
        reason=fit.reason or NOT_MEASURED,
    )
    if answer.value is None:
        return answer
    if column:
        # Only the claim on d_data is a headline question. The claim on d_repr has its own
        # test.
        return replace(answer, p_value=bound_p_value(fit, above_chance))
    of_headline = fits.answer(BELOW_BOUND)
    notes = [influence(answer, "it"), *of_other_estimator(fits)]
    return replace(
        answer,
        note=" ".join(filter(None, notes)).rstrip("."),
        p_value=of_headline.p_value,
        adjusted_p=of_headline.adjusted_p,
        num_tests=of_headline.num_tests,
        family=of_headline.family,
    )


def _attacks(fits: ScalingFits) -> Answer:
    """Return the answer on the correlation of K_F with the loss that attacks add."""
    answer = fits.answer(ATTACKS)
    scales = {fit.variant for fit in fits.attacks if fit.variant}
    scale = f" (K_F of {scales.pop()} alone)" if scales else ""
    question = replace(
        answer.question,
        estimand=(
            "largest correlation r of the loss gained with K_F, over attacks and models"
            f"{scale}; max-r permutation"
        ),
    )
    return replace(answer, question=question, note=_of_largest_correlation(fits, answer))


def _of_largest_correlation(fits: ScalingFits, answer: Answer) -> str:
    """Return a note on the attack and network of the largest correlation.

    The note contains results without the most influential dataset: the same correlation, and
    the range of all correlations. Without this dataset, another attack or network can have the
    largest correlation.
    """
    tested = [fit for fit in fits.attacks if fit.model != POOLED]
    best = strongest_attack(tested)
    if best is None or answer.most_influential is None:
        return ""
    attack = attack_columns([best.response])[0].words
    sentences = [influence(answer, f"this r ({attack}, {best.model})")]
    num_correlations = sum(fit.status == "ok" for fit in tested)
    if best.range_left_out is not None and num_correlations > 1:
        smallest, largest = map(number, best.range_left_out)
        sentences.append(f"All {num_correlations} r then range from {smallest} to {largest}")
    return " ".join(sentences).rstrip(".")


def _on_pairs(fits: ScalingFits) -> Iterator[Answer]:
    """Yield the answers to claims that follow from slopes over class pairs.

    If a question was asked after somebody had seen the data, and an effect was detected, a
    note states that the answer confirms nothing.
    """
    for slope in fits.class_pairs:
        answer = fits.pair_answer(slope)
        if not answer.question.source:
            continue
        question = replace(
            answer.question,
            estimand=f"{slope.on}; jackknife over {slope.num_groups} classes, and permutation",
        )
        note = ""
        if answer.verdict == "suggested":
            note = ASKED_AFTER_SEEING.rstrip(".")
        yield replace(answer, question=question, note=note)


def _compression(fits: ScalingFits) -> Answer:
    """Return the share of points within the bound of Theorem 5, without a test.

    The bound d_repr ≲ d_data states no tolerance, so there is no share to test against.
    """
    fit = fits.representation()
    if fit.status != "ok":
        return Answer(question=COMPRESSION, reason=fit.reason)
    (share,) = fit.estimates
    bounds = share.interval
    if bounds == (0.0, 1.0):
        bounds = None  # every share is possible, so the interval is no information
    note = NO_TEST_OF_BOUND
    if fit.num_unfitted and fit.median_ratio_fitted is not None:
        note = (
            "Without networks that do not fit their training images, the median d_repr / d_data "
            f"is {number(fit.median_ratio_fitted)}. {note}"
        )
    elif fit.median_ratio is not None:
        note = f"The median d_repr / d_data is {number(fit.median_ratio)}. {note}"
    return Answer(
        question=COMPRESSION,
        value=share.value,
        interval=bounds,
        num_replicates=fit.num_datasets,
        note=note,
    )
