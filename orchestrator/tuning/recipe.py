"""The recipe that a search writes: the best settings of each model and dataset, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.planning.plain_yaml import write_plain
from orchestrator.results.provenance import provenance
from orchestrator.tuning.outcome import CellOutcome, outcome_rows
from search_spaces.errors import SetupError
from search_spaces.sweeps import SweepSpec
from tasks.atomic import write_atomic

HEAD = """# Written by `isweep tune {name}`: the best recipe of each model and dataset, and why.
# A sweep uses it by `recipe: tuned-{name}` below the same root, or by this file's path.
"""


def write_recipe(
    path: Path, sweep: SweepSpec, found: Sequence[CellOutcome], fingerprints: dict[str, str]
) -> None:
    """Write the recipe of a finished search, whole or not at all.

    The recipe of ``sweep`` holds beside what was searched; cells of which nothing was ``found`` are
    named in its evidence. ``fingerprints`` are the content hashes of datasets.
    """
    base = sweep.recipe.model_dump(mode="json", exclude_unset=True, by_alias=True)
    rows = [
        {"models": [cell.model], "datasets": [cell.dataset], **cell.chosen.point.model_dump()}
        for cell in found
        if cell.chosen is not None
    ]
    cells = [
        {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in row.items()
        }
        | ({"not_tuned": "diverged or failed"} if cell.chosen is None else {})
        for cell, row in zip(found, outcome_rows(found), strict=True)
    ]
    origin = provenance()
    packages = {name: origin.packages[name] for name in ("torch", "ray") if name in origin.packages}
    document = {
        **base,
        "overrides": [*base.get("overrides", []), *rows],
        "tuned": {
            "sweep": sweep.name,
            "train_size": sweep.tune.train_size or max(sweep.train_sizes),
            "settings": sweep.tune.model_dump(mode="json", exclude_none=True),
            "loss": (
                "validation cross-entropy in nat, mean over runs; a run has its own seed and "
                "class pair"
            ),
            "cells": cells,
            "made_by": {
                "code_version": origin.code_version,
                "packages": packages,
                "data": fingerprints,
            },
        },
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (HEAD.format(name=sweep.name) + write_plain(document)).encode())
    except OSError as error:
        raise SetupError(
            "The recipe of a search must be writable",
            f"{path}: {error.strerror}",
            (
                "make room for it and run the same command again: every trial is kept, none is "
                "repeated"
            ),
        ) from None
