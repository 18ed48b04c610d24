"""Sentences on the answers to questions about one dataset."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.one_dataset import OneDataset
from orchestrator.analysis.sentences.finding import (
    Finding,
    not_testable,
)
from orchestrator.analysis.sentences.of_datasets import of_representations


def of_one_dataset(fits: ScalingFits, single: OneDataset) -> Iterator[Finding]:
    """Yield the findings on one dataset, and one finding on the questions about several datasets.

    Among the findings on learning curves, the curve of the best network comes first.
    """
    if single.best:
        yield Finding(
            question=f"Which network is best on {single.dataset}?",
            verdict="described",
            sentences=single.best_sentences,
            details=(single.best_by_size,),
            notes=tuple(filter(None, [single.test_set_line, single.why_no_curves])),
        )
    early_best = {early.model: early for early in single.early_best}
    for curve in sorted(single.curves, key=lambda curve: curve.name != single.best_model):
        needed = single.images_for_target(curve.name)
        sentences = [curve.expected_line, needed]
        details = [f"{curve.name}: {curve.measured_line}"]
        if needed and single.target is not None and curve.name == single.best_model:
            sentences += [single.target.reason, *single.target_remarks]
        if curve.name in early_best:
            sentences.insert(0, early_best[curve.name].advice)
            details.append(early_best[curve.name].sentence)
        yield Finding(
            question=f"What would more images bring {curve.name}?",
            verdict="described",
            sentences=tuple(filter(None, sentences)),
            details=tuple(details),
        )
    if single.robustness:
        yield Finding(
            question="How easily are the networks fooled?",
            verdict="described",
            sentences=(single.robustness_line,),
        )
    notes = [single.dimension_line]
    representation = of_representations(fits)
    if representation.verdict == "described":
        notes.append(representation.line)
    yield not_testable(
        "What do d_data and K_F decide?",
        "the study's questions compare datasets, and this sweep has one",
        "add datasets: isweep power estimates how many are needed",
        notes=tuple(filter(None, notes)),
    )
