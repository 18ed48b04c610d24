"""Cells, results and a trainer made of a formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.tuning.combinations import Combination, Point, combinations_to_tune
from orchestrator.tuning.search import RequestedTrial, Search
from orchestrator.tuning.search_records import RequestRecord
from orchestrator.tuning.search_trials import SearchQueue
from search_spaces.sweeps import SweepSpec
from tasks.trials.records import SearchResult, SearchStatus, ValidationScore

BEST_RATE = 3e-3


def sweep(**changes: Any) -> SweepSpec:
    """The smoke sweep with nine epochs."""
    return load_sweep("smoke", {"recipe": {"from": "smoke", "epochs": 9}, **changes})


def cells(**changes: Any) -> tuple[Combination, ...]:
    return combinations_to_tune(plan_sweep(sweep(**changes)))


def loss_of(point: Point, epoch: int, run: int = 0) -> float:
    """A valley in the logarithm of the rate, deeper with every epoch."""
    return 0.1 * math.log10(point.learning_rate / BEST_RATE) ** 2 + 0.3 / epoch + 0.01 * run


def result(losses: list[float], status: str = "complete", **changes: Any) -> SearchResult:
    fields = {
        "status": status,
        "epochs": len(losses),
        "curve": tuple(
            ValidationScore(epoch=epoch, loss=loss, accuracy=0.5)
            for epoch, loss in enumerate(losses, 1)
        ),
        "num_train": 60,
        "num_validation": 20,
        "num_classes": 2,
        "chance_loss": math.log(2),
    }
    return SearchResult.model_validate(fields | changes)


def trained(asked: RequestedTrial) -> SearchResult:
    """What the formula gives for a trial."""
    epochs = range(1, asked.combination.sweep_recipe.epochs + 1)
    return result([loss_of(asked.point, epoch, asked.run) for epoch in epochs])


def run_through(search: Search, most: int = 10_000) -> list[tuple[RequestedTrial, SearchResult]]:
    """Run a search one trial at a time; returns what ran."""
    ran = []
    while len(ran) < most and (asked := search.next_trial()) is not None:
        found = trained(asked)
        search.add_result(asked.spec.trial_id, found)
        ran.append((asked, found))
    return ran


Store = list[tuple[RequestRecord, SearchResult | None]]
"""What a search has asked for, in order, with what it gave."""


def drive(
    search: Search,
    store: Store,
    *,
    workers: int = 1,
    most: int = 10_000,
    ends: Callable[[list[str]], str] = itemgetter(0),
) -> Store:
    """Run one start of a search as a sweep does, killed after ``most`` results; returns what is
    stored then.

    ``store`` is what earlier starts left; ``ends`` chooses whose result comes next among those that
    run."""
    stored = {record.trial_id: (record, found) for record, found in store}

    def asked(one: RequestedTrial) -> None:
        about = {
            "role": one.role,
            "run": one.run,
            "spec": one.spec,
            "data_fingerprint": "",
            "number": 0,
        }
        trial_id = one.spec.trial_id
        stored.setdefault(trial_id, (RequestRecord(trial_id=trial_id, **about), None))

    queue = SearchQueue(search, {}, asked)
    search.resume(store)
    waiting: list[str] = []
    running: list[str] = []
    for number in range(most + 1):
        while (taken := queue.take(0.0)) is not None or (waiting and len(running) < workers):
            waiting += [taken] if taken is not None else []
            if len(running) < workers:
                running.append(waiting.pop(0))
                queue.running.add(running[-1])
        if not running or number == most:
            return list(stored.values())
        trial_id = ends(running)
        running.remove(trial_id)
        found = trained(search.running_trial(trial_id))
        search.add_result(trial_id, found)
        queue.remove(trial_id)
        stored[trial_id] = stored[trial_id][0], found
    return list(stored.values())


DIVERGED = {"status": SearchStatus.DIVERGED, "reason": "nan", "epochs": 1, "curve": ()}
