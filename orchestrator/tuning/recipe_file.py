"""The recipe that a search writes: a recipe file that any sweep can start from, with its evidence inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.planning.plain_yaml import read_plain, write_plain
from orchestrator.planning.tuned import searched_cells, split_tuned
from orchestrator.results.tracking.provenance import provenance
from orchestrator.tuning.outcome import CellOutcome
from search_spaces.errors import ConfigError, SetupError
from search_spaces.sweeps import SweepSpec
from tasks.atomic import write_atomic

HEAD = """# Written by `isweep tune {name}`: the searched recipe of each model and dataset, with its evidence.
# A sweep uses it by `recipe: tuned-{name}` below the same root, or by this file's path.
"""


def write_recipe(
    path: Path, sweep: SweepSpec, found: Sequence[CellOutcome], fingerprints: dict[str, str]
) -> None:
    """Write the recipe of a finished search, whole or not at all.

    Args:
        path: Where.
        sweep: The sweep that was tuned; its recipe holds beside what was searched.
        found: What was found; cells of which nothing was are left out, and named.
        fingerprints: Content hash of each dataset.

    Raises:
        SetupError: when it cannot be written.
    """
    base = sweep.recipe.model_dump(mode="json", exclude_unset=True, by_alias=True)
    rows = [
        {"models": [cell.model], "datasets": [cell.dataset], **cell.chosen.point.model_dump()}
        for cell in found
        if cell.chosen is not None
    ]
    document = {
        **base,
        "overrides": [*base.get("overrides", []), *rows],
        "tuned": {
            "sweep": sweep.name,
            "train_size": sweep.tune.train_size or max(sweep.train_sizes),
            "settings": sweep.tune.model_dump(mode="json", exclude_none=True),
            "loss": "validation cross-entropy in nat, mean over runs; a run has its own seed and class pair",
            "cells": [_evidence(cell) for cell in found],
            "made_by": _made_by(fingerprints),
        },
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (HEAD.format(name=sweep.name) + write_plain(document)).encode())
    except OSError as error:
        raise SetupError(
            "The recipe of a search must be writable",
            f"{path}: {error.strerror}",
            "make room for it and run the same command again: every trial is kept, none is repeated",
        ) from None


def lost_cells(path: Path, found: Sequence[CellOutcome]) -> list[str]:
    """Name the cells that a recipe file has a choice for and a search written in its place does not know."""
    try:
        document = read_plain(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError, ConfigError):
        return []  # none there, or not one of ours any more
    _, tuned = split_tuned(document)
    here = [(cell.model, cell.dataset) for cell in found]
    return [
        f"{model} on {dataset}"
        for model, dataset in searched_cells(tuned or {})
        if (model, dataset) not in here
    ]


def _evidence(cell: CellOutcome) -> dict[str, Any]:
    found: dict[str, Any] = {"model": cell.model, "dataset": cell.dataset}
    if cell.chosen is None:
        found["not_tuned"] = "diverged or failed"
    else:
        found |= {
            "validation_loss": _digits(cell.chosen.mean),
            "std_error": _digits(cell.chosen.std_error),
            "runs": len(cell.chosen.losses),
            "own_recipe_loss": None if cell.own is None else _digits(cell.own.mean),
            "gain": _digits(cell.gain),
            "gain_std_error": _digits(cell.gain_std_error),
        }
    return found | {
        "flat_learning_rates": None if cell.flat is None else list(cell.flat),
        "trials": cell.num_trials,
        "pruned": cell.num_pruned,
        "divergence_rate": _digits(cell.divergence_rate),
        "trainings": _digits(cell.spent),
        "finalist_trainings": _digits(cell.finalist_trainings),
        "budget": cell.budget,
    }


def _made_by(fingerprints: dict[str, str]) -> dict[str, Any]:
    origin = provenance()
    return {
        "code_version": origin.code_version,
        "packages": {name: origin.packages[name] for name in ("torch", "ray") if name in origin.packages},
        "data": fingerprints,
    }


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
