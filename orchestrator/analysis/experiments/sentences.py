"""Sentences on the results of an experiment: on the checks of arms, slopes and controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from orchestrator.analysis.experiments.records import Effect, Gate
from orchestrator.analysis.number_formats import interval, listing, number
from search_spaces.errors import plural

HALF = "half the law's rate"
"""Words for the size of an effect that the registered rule can exclude."""


def experiment_answer(
    gates: Sequence[Gate], effects: Sequence[Effect], max_change_of_d: float
) -> str:
    """Return sentences on the used arms, the effects of K_F, and the controls.

    Args:
        gates: The checks of all arms.
        effects: Effects of the arms that are used.
        max_change_of_d: Largest change of log d of an arm that is used.
    """
    of_sharpness = [gate for gate in gates if gate.arm.moves == "sharpness"]
    num_passed = sum(gate.counts for gate in of_sharpness)
    sentences = [
        f"{num_passed} of {plural(len(of_sharpness), 'arm')} changed K_F by a factor of 2 or more "
        f"and log d by less than {max_change_of_d:g}.",
        followed(effects),
        *_controls(gates, effects),
    ]
    left_out = sorted({gate.arm.dataset for gate in of_sharpness if not gate.counts})
    if left_out:
        sentences.append(f"Left out because of failed checks: {listing(left_out)}.")
    return " ".join(sentences)


def _controls(gates: Sequence[Gate], effects: Sequence[Effect]) -> Iterator[str]:
    """Yield sentences on the controls. A control changes nothing that a network learns."""
    for effect in effects:
        if "controls" not in effect.estimand or effect.interval is None:
            continue
        changes = []
        for gate in gates:
            if gate.counts and gate.arm.moves == "nothing":
                changes.append(abs(gate.sharpness_moved or 0))
        verb = "changed" if effect.told_from_zero else "did not change detectably"
        yield (
            "In controls, which change nothing that is learned, K_F changed by up to a factor of "
            f"{number(float(np.exp(max(changes))))}. In these controls, log {effect.response} "
            f"{verb} ({number(effect.value)}, {interval(effect.interval)}; expected 0)."
        )


def followed(effects: Sequence[Effect]) -> str:
    """Return sentences on whether each response follows K_F if only K_F changes."""
    slopes = [e for e in effects if "Δ log K_F" in e.estimand and not e.arm]
    if any(effect.tested_on for effect in effects):
        return " ".join(_on_training(slopes))
    return " ".join(map(_on_all_images, slopes))


def _worlds(effect: Effect) -> str:
    """Return words on the number of worlds of an effect, and of the classes that they share."""
    text = plural(effect.num_worlds, "world")
    if effect.num_classes:
        text += f" that share {effect.num_classes} classes"
    return text


def _on_all_images(effect: Effect) -> str:
    """Return a sentence on whether a response follows K_F of all images."""
    start = "If K_F of training and test images is changed, "
    worlds = _worlds(effect)
    if effect.interval is None:
        return (
            f"{start}it is undecided whether log {effect.response} follows K_F ({worlds} "
            "with a usable arm; an interval needs at least 3 worlds with scatter)."
        )
    return (
        f"{start}log {effect.response} {_follows(effect)} ({effect.estimand} = "
        f"{number(effect.value)}, 95 % interval {interval(effect.interval)} over {worlds}; "
        f"the law says {number(effect.theory)})."
    )


def _direction(effect: Effect) -> str:
    """Return words on the direction in which the law lets the response change as K_F rises."""
    return "rises with K_F" if effect.theory > 0 else "falls as K_F rises"


def _follows(effect: Effect) -> str:
    """Return words on whether the response follows K_F.

    The interval, 0 and the law's rate decide.
    """
    low, high = effect.in_units_of_the_law
    agrees = low <= 1 <= high
    if not effect.told_from_zero:
        if agrees:
            return "may follow K_F as the law says or not at all"
        return "does not follow K_F as the law says"
    return _rate(effect, low, high)


def _rate(effect: Effect, low: float, high: float) -> str:
    """Return words on the direction of an effect, and on its rate compared with the law's rate."""
    if high < 0:
        return "moves against the law"
    direction = _direction(effect)
    if low <= 1 <= high:
        return f"{direction}, at a rate that agrees with the law"
    strength = "more strongly" if low > 1 else "more weakly"
    return f"{direction}, {strength} than the law says"


def _on_training(slopes: Sequence[Effect]) -> Iterator[str]:
    """Yield sentences on the effects of changed training images and of changed test images."""
    for effect in slopes:
        about = f"{_worlds(effect)}; an interval needs at least 3 worlds with scatter"
        if effect.interval is not None:
            about = (
                f"slope {number(effect.value)}, 95 % interval {interval(effect.interval)} "
                f"over {_worlds(effect)}"
            )
        if (effect.trained_on, effect.tested_on) == ("condition", "base"):
            yield (
                "In networks that were trained on images with changed K_F, and tested on "
                f"unchanged images, log {effect.response} {_registered_conclusion(effect)} "
                f"({about}; the law says {number(effect.theory)})."
            )
        elif effect.trained_on == "base":
            yield (
                "In networks that were trained on unchanged images, and tested on changed "
                f"images, log {effect.response} changes with log K_F ({about}). The K_F of "
                "training images cannot explain this change."
            )


def _registered_conclusion(effect: Effect) -> str:
    """Return the conclusion of the registered rule from a slope on K_F of training images."""
    if effect.interval is None:
        return "cannot be judged"
    if not effect.told_from_zero:
        if effect.smaller_than_half:
            return f"shows no effect, and an effect of {HALF} is ruled out"
        return (
            f"shows no effect, but the question is undecided, because effects of {HALF} are "
            "compatible with these data"
        )
    low, high = effect.in_units_of_the_law
    if effect.smaller_than_half and high >= 0:
        return f"{_direction(effect)}, by less than {HALF}"
    if effect.smaller_than_half:
        return f"moves against the law, by less than {HALF}"
    return _rate(effect, low, high)
