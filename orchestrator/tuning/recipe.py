"""Write the recipe of a search: the chosen values of each combination, with evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.planning.plain_yaml import write_plain
from orchestrator.results.provenance import provenance
from orchestrator.tuning.outcome import CombinationOutcome, outcome_rows
from orchestrator.tuning.search_records import Row
from search_spaces.errors import SetupError
from search_spaces.sweeps import SweepSpec
from tasks.atomic import write_atomic

HEAD = """# Written by `isweep tune {name}`: the chosen recipe of each model and dataset.
# To use it, write `recipe: tuned-{name}` in a sweep of the same root, or write this file's path.
"""
"""First lines of a recipe file."""
PACKAGES = ("torch", "ray")
"""Packages whose versions isweep writes into the recipe."""


def write_recipe(
    path: Path,
    sweep: SweepSpec,
    outcomes: Sequence[CombinationOutcome],
    fingerprints: dict[str, str],
) -> None:
    """Write the recipe of a finished search, completely or not at all.

    If a field was not searched, it has the value of the sweep's recipe. If a combination has
    no chosen point, the evidence contains ``not_tuned`` for it.

    Args:
        path: Path of the recipe.
        sweep: The tuned sweep.
        outcomes: Outcomes of all combinations.
        fingerprints: Content hashes of the datasets by name.

    Raises:
        SetupError: The file cannot be written.
    """
    recipe = sweep.recipe.model_dump(mode="json", exclude_unset=True, by_alias=True)
    overrides = list(recipe.get("overrides", []))
    for outcome in outcomes:
        if outcome.chosen is not None:
            point = outcome.chosen.point.model_dump()
            overrides.append({"models": [outcome.model], "datasets": [outcome.dataset], **point})
    document = {
        **recipe,
        "overrides": overrides,
        "tuned": _evidence(sweep, outcomes, fingerprints),
    }
    text = HEAD.format(name=sweep.name) + write_plain(document)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    except OSError as error:
        raise SetupError(
            f"The recipe {path} cannot be written: {error.strerror}",
            hint="Free some space or correct the permissions. Then run the same command "
            "again. Finished trials are kept",
        ) from None


def _evidence(
    sweep: SweepSpec, outcomes: Sequence[CombinationOutcome], fingerprints: dict[str, str]
) -> dict[str, Any]:
    """Return the evidence for a recipe: settings, results, versions and data of its search."""
    origin = provenance()
    rows = outcome_rows(outcomes)
    combinations = list(map(_evidence_row, outcomes, rows))
    packages = {name: origin.packages[name] for name in PACKAGES if name in origin.packages}
    return {
        "sweep": sweep.name,
        "train_size": sweep.tune.train_size or max(sweep.train_sizes),
        "settings": sweep.tune.model_dump(mode="json", exclude_none=True),
        "loss": "validation cross-entropy in nat, mean over runs; each run has another seed "
        "and class pair",
        # Existing recipe files have this key, so it must not change.
        "cells": combinations,
        "made_by": {
            "code_version": origin.code_version,
            "packages": packages,
            "data": fingerprints,
        },
    }


def _evidence_row(outcome: CombinationOutcome, row: Row) -> Row:
    """Return a combination's row with numbers rounded to four digits."""
    evidence: Row = {}
    for name, value in row.items():
        evidence[name] = value
        if isinstance(value, float):
            evidence[name] = float(f"{value:.4g}")
    if outcome.chosen is None:
        evidence["not_tuned"] = "diverged or failed"
    return evidence
