"""Sentences on the answers of one dataset."""

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
    """Yield the findings on one dataset, and one finding on the questions to several datasets."""
    if single.best:
        yield Finding(
            question=f"Which network is best on {single.dataset}?",
            verdict="described",
            sentences=single.best_sentences,
            notes=tuple(filter(None, [single.test_set_line, single.why_no_curves])),
        )
    for curve in single.curves:
        measured, *expected = (line.strip() for line in curve.lines())
        yield Finding(
            question=f"What would more images bring {curve.name}?",
            verdict="described",
            sentences=(" ".join(expected),),
            details=(measured,),
        )
    if single.robustness:
        line = single.robustness_line
        yield Finding(
            question="How easily are the networks fooled?",
            verdict="described",
            sentences=(f"{line[:1].upper()}{line[1:].rstrip('.')}.",),
        )
    representation = of_representations(fits)
    if representation.verdict == "described":
        yield representation
    yield not_testable(
        "What do d_data and K_F decide?",
        "the study's questions compare datasets, and this sweep has one",
        "add datasets: isweep power estimates how many are needed",
        notes=tuple(filter(None, [single.dimension_line])),
    )
