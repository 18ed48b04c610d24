"""Cells, results and a trainer made of a formula."""

from __future__ import annotations

import math
from typing import Any

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.tuning.cells import Point, TuningCell, tuning_cells
from orchestrator.tuning.rungs import Rungs
from orchestrator.tuning.search import Asked, Search, rungs_of
from search_spaces.sweeps import SweepSpec
from tasks.trials.search_result import SearchResult, SearchStatus, ValidationScore

BEST_RATE = 3e-3


def sweep(**changes: Any) -> SweepSpec:
    """The smoke sweep with nine epochs, so that there are rungs."""
    return load_sweep("smoke", {"recipe": {"from": "smoke", "epochs": 9}, **changes})


def cells(**changes: Any) -> tuple[TuningCell, ...]:
    return tuning_cells(plan_sweep(sweep(**changes)))


def loss_of(point: Point, epoch: int, run: int = 0) -> float:
    """A valley in the logarithm of the rate, deeper with every epoch."""
    return 0.1 * math.log10(point.learning_rate / BEST_RATE) ** 2 + 0.3 / epoch + 0.01 * run


def result(losses: list[float], status: str = "complete", **changes: Any) -> SearchResult:
    fields = {
        "status": status,
        "epochs": len(losses),
        "curve": tuple(
            ValidationScore(epoch=epoch, loss=loss, accuracy=0.5) for epoch, loss in enumerate(losses, 1)
        ),
        "num_train": 60,
        "num_validation": 20,
        "num_classes": 2,
        "chance_loss": math.log(2),
    }
    return SearchResult.model_validate(fields | changes)


def trained(asked: Asked, rungs: Rungs) -> SearchResult:
    """What the formula gives for a trial, stopped as a worker would be."""
    losses: list[float] = []
    for epoch in range(1, asked.cell.num_epochs + 1):
        losses.append(loss_of(asked.point, epoch, asked.run))
        if asked.run == 0 and epoch in rungs_of(asked.cell):
            among_best = rungs.come(asked.cell.key, asked.spec.trial_id, epoch, losses[-1])
            if not among_best and asked.may_be_pruned:
                return result(losses, "pruned")
    return result(losses)


def run_through(search: Search, most: int = 10_000) -> list[tuple[Asked, SearchResult]]:
    """Run a search one trial at a time; returns what ran."""
    rungs, ran = Rungs(), []
    while len(ran) < most and (asked := search.next()) is not None:
        found = trained(asked, rungs)
        assert search.finished(asked.spec.trial_id, found) == asked
        ran.append((asked, found))
    return ran


DIVERGED = {"status": SearchStatus.DIVERGED, "reason": "nan", "epochs": 1, "curve": ()}
