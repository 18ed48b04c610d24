"""The results of an experiment in sentences: gates, the rule for each slope, and controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from orchestrator.analysis.experiments.records import Effect, Gate
from orchestrator.analysis.number_formats import interval, listing, number
from search_spaces.errors import plural

HALF = "half the law's rate"


def experiment_answer(
    gates: Sequence[Gate], effects: Sequence[Effect], max_change_of_d: float
) -> str:
    """Say what losses do when only K_F is moved, whichever way it came out.

    Args:
        gates: Gates of all arms.
        effects: Effects of those that count.
        max_change_of_d: Largest change of log d of an arm that counts.
    """
    of_sharpness = [gate for gate in gates if gate.arm.moves == "sharpness"]
    num_passed = sum(gate.counts for gate in of_sharpness)
    sentences = [
        f"{num_passed} of {plural(len(of_sharpness), 'arm')} moved K_F by a factor 2 or more and "
        f"log d by less than {max_change_of_d:g}.",
        followed(effects),
        *_controls(gates, effects),
    ]
    left_out = sorted({gate.arm.dataset for gate in of_sharpness if not gate.counts})
    if left_out:
        sentences.append(f"Left out by the gate: {listing(left_out)}.")
    return " ".join(sentences)


def _controls(gates: Sequence[Gate], effects: Sequence[Effect]) -> Iterator[str]:
    """Say what controls do, which change nothing that is learned."""
    for effect in effects:
        if "controls" not in effect.estimand or effect.interval is None:
            continue
        changes = []
        for gate in gates:
            if gate.counts and gate.arm.moves == "nothing":
                changes.append(abs(gate.sharpness_moved or 0))
        verb = "moved" if effect.told_from_zero else "did not move beyond its interval"
        yield (
            "In controls, which change nothing that is learned, K_F moved by up to a factor "
            f"{number(float(np.exp(max(changes))))}. There log {effect.response} {verb} "
            f"({number(effect.value)}, {interval(effect.interval)}; expected 0)."
        )


def followed(effects: Sequence[Effect]) -> str:
    """Say of every response whether it follows K_F when only that is moved."""
    slopes = [e for e in effects if "Δ log K_F" in e.estimand and not e.arm]
    if any(effect.tested_on for effect in effects):
        return " ".join(_on_training(slopes))
    return " ".join(map(_on_all_images, slopes))


def _worlds(effect: Effect) -> str:
    """Return the replicates of an effect."""
    text = plural(effect.num_worlds, "world")
    if effect.num_classes:
        text += f" that share {effect.num_classes} classes"
    return text


def _on_all_images(effect: Effect) -> str:
    """Say whether a response follows K_F of training and test images together."""
    start = "When K_F is moved in training and test images, "
    worlds = _worlds(effect)
    if effect.interval is None:
        return (
            f"{start}whether log {effect.response} follows is undecided ({worlds} with such an "
            "arm, at least 3 with scatter needed)."
        )
    return (
        f"{start}log {effect.response} {_follows(effect)} ({effect.estimand} = "
        f"{number(effect.value)}, 95 % interval {interval(effect.interval)} over {worlds}; the law "
        f"says {number(effect.theory)})."
    )


def _direction(effect: Effect) -> str:
    """Return the direction that the law gives the response."""
    return "rises with it" if effect.theory > 0 else "falls as it rises"


def _follows(effect: Effect) -> str:
    """Compare an interval with no effect and with the law's rate."""
    low, high = effect.in_units_of_the_law
    agrees = low <= 1 <= high
    if not effect.told_from_zero:
        if agrees:
            return "may follow it as the law says or not at all"
        return "does not follow it as the law says"
    return _rate(effect, low, high)


def _rate(effect: Effect, low: float, high: float) -> str:
    """Say at which rate a response that moves follows, of the law's own."""
    if high < 0:
        return "moves against the law"
    direction = _direction(effect)
    if low <= 1 <= high:
        return f"{direction}, at a rate that agrees with the law"
    strength = "more strongly" if low > 1 else "more weakly"
    return f"{direction}, {strength} than the law says"


def _on_training(slopes: Sequence[Effect]) -> Iterator[str]:
    """Say whether responses follow K_F of the training images alone, and what harder test images
    do by themselves.
    """
    for effect in slopes:
        about = f"{_worlds(effect)}, at least 3 with scatter needed"
        if effect.interval is not None:
            about = (
                f"slope {number(effect.value)}, 95 % interval {interval(effect.interval)} over "
                f"{_worlds(effect)}"
            )
        if (effect.trained_on, effect.tested_on) == ("condition", "base"):
            yield (
                "Trained on images whose K_F was moved and tested on the base's: log "
                f"{effect.response} {_registered_conclusion(effect)} ({about}; the law says "
                f"{number(effect.theory)})."
            )
        elif effect.trained_on == "base":
            yield (
                "Trained on the base and tested on moved images, which no K_F of training images "
                f"can explain: log {effect.response} on log K_F has {about}."
            )


def _registered_conclusion(effect: Effect) -> str:
    """Return what the registered rule concludes of a slope on log K_F of the training images."""
    if effect.interval is None:
        return "cannot be judged"
    if not effect.told_from_zero:
        if effect.smaller_than_half:
            return f"shows no effect, and an effect of {HALF} is ruled out"
        return f"shows no effect, but effects of {HALF} are compatible with these data: undecided"
    low, high = effect.in_units_of_the_law
    if effect.smaller_than_half and high >= 0:
        return f"{_direction(effect)}, by less than {HALF}"
    if effect.smaller_than_half:
        return f"moves against the law, by less than {HALF}"
    return _rate(effect, low, high)
