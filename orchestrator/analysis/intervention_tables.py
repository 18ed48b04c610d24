"""Tables and the finding of experiments that move one property."""

from __future__ import annotations

from math import exp

from orchestrator.analysis.findings import Finding
from orchestrator.analysis.formats import Table, interval, number, p_value
from orchestrator.analysis.intervention_records import Effect, Gate, Interventions

_MEANT = {"sharpness": "K_F", "dimension": "d", "nothing": "nothing (control)"}


def intervention_finding(found: Interventions) -> Finding:
    """Return what the experiment says, with what it does not show."""
    caveats = [
        "Worlds are the replicates; intervals are over them, for these kinds of images and these networks.",
        "Arms with exchanged labels also raise the loss that no network can go below.",
    ]
    cells = sum(e.num_at_chance for e in found.effects if e.response == "loss" and not e.arm)
    if cells:
        caveats.append(f"Left out: {cells} pairs in which the base itself learned nothing (loss at chance).")
    without = sum(e.num_without for e in found.effects if e.response == "error" and not e.arm)
    if without:
        caveats.append(f"{without} pairs have an error of 0 on one side, which has no logarithm.")
    return Finding("When only one property is moved, what follows?", found.answer, tuple(caveats))


def intervention_tables(found: Interventions) -> list[Table]:
    """Return effects, gates and the effect in every world."""
    return [_effects(found), _gates(found), _worlds(found)]


def _effects(found: Interventions) -> Table:
    return Table(
        "interventions",
        "What follows when one property is moved",
        "Mean over worlds with its 95 % t interval; every arm against the base of its own world at equal "
        "model and N. Only arms that pass the gate. Rows of single arms are exploratory.",
        (
            "effect",
            "arms",
            "worlds",
            "value",
            "interval",
            "the law says",
            "p against it",
            "p against 0",
            "pairs",
        ),
        tuple(_effect_row(effect) for effect in found.effects),
        numeric_from=2,
    )  # fmt: skip


def _effect_row(effect: Effect) -> tuple[str, ...]:
    name = effect.estimand
    if name == "exponent · d":
        name = f"{name}, {effect.response}"
    return (
        name,
        effect.arm or "all",
        str(effect.num_worlds),
        number(effect.value),
        interval(effect.interval),
        number(effect.theory),
        p_value(effect.p_theory),
        p_value(effect.p_zero),
        str(effect.num_cells),
    )


def _gates(found: Interventions) -> Table:
    return Table(
        "intervention-gates",
        "What each arm moved",
        "Factors on K_F and d against the world's base, at the largest N that both have. An arm counts if "
        "what it is to move moved (K_F by a factor 2, d by 1.25) and what it holds by less than 5 %.",
        ("dataset", "meant to move", "K_F", "d", "counts"),
        tuple(_gate_row(gate) for gate in found.gates),
        numeric_from=2,
    )


def _gate_row(gate: Gate) -> tuple[str, ...]:
    factors = (
        "" if moved is None else f"× {number(exp(moved))}"
        for moved in (gate.sharpness_moved, gate.dimension_moved)
    )
    meant = _MEANT.get(gate.arm.moves, "")
    return gate.arm.dataset, meant, *factors, "yes" if gate.counts else f"no: {gate.reason}"


def _worlds(found: Interventions) -> Table:
    rows = tuple(
        (effect.estimand, effect.response, effect.arm or "all", world, number(value))
        for effect in found.effects
        for world, value in effect.by_world.items()
    )
    return Table(
        "intervention-worlds", "What follows, in every world", "",
        ("effect", "response", "arms", "world", "value"), rows, numeric_from=4, folded=True,
    )  # fmt: skip
