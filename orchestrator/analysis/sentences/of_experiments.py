"""Sentences on the results of an experiment."""

from __future__ import annotations

from orchestrator.analysis.experiments.records import Interventions
from orchestrator.analysis.experiments.sentences import followed
from orchestrator.analysis.sentences.finding import (
    Finding,
)
from search_spaces.errors import plural


def of_experiment(interventions: Interventions) -> Finding:
    """Return the finding on the effects of a change of one property."""
    effects = interventions.effects
    notes = [
        "The replicates are worlds. A world is a base dataset with its conditions (arms). "
        "Intervals hold for these kinds of images and networks. If worlds share classes, "
        "isweep prints the wider of two intervals.",
        "Arms with exchanged labels also raise the lowest loss that a network can reach.",
    ]
    overall = [effect for effect in effects if not effect.arm]
    num_at_chance = 0
    num_without = 0
    for effect in overall:
        if effect.response == "loss":
            num_at_chance += effect.num_at_chance
        if effect.response == "error":
            num_without += effect.num_without
    if num_at_chance:
        notes.append(
            f"Left out: {plural(num_at_chance, 'pair')} in which the loss of the base dataset "
            "is at least the chance loss."
        )
    if num_without:
        notes.append(
            f"Left out: {plural(num_without, 'pair')} in which one error is 0 and has no logarithm."
        )
    images = "in training and test images"
    if any(effect.tested_on for effect in effects):
        images = "in training images alone"
    return Finding(
        question=f"What happens if one property is changed {images}?",
        verdict="described",
        sentences=(followed(effects),),
        details=(interventions.answer,),
        notes=tuple(notes),
    )
