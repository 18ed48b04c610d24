"""Combinations, results and a training that is a formula, for tests of the search."""

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


def smoke_sweep(**changes: Any) -> SweepSpec:
    """Return the smoke sweep with nine epochs."""
    return load_sweep("smoke", {"recipe": {"from": "smoke", "epochs": 9}, **changes})


def smoke_combinations(**changes: Any) -> tuple[Combination, ...]:
    return combinations_to_tune(plan_sweep(smoke_sweep(**changes)))


def loss_of(point: Point, epoch: int, run: int = 0) -> float:
    """Return a loss with a valley in the logarithm of the learning rate, lower at every epoch."""
    return 0.1 * math.log10(point.learning_rate / BEST_RATE) ** 2 + 0.3 / epoch + 0.01 * run


def search_result(losses: list[float], status: str = "complete", **changes: Any) -> SearchResult:
    curve = [
        ValidationScore(epoch=epoch, loss=loss, accuracy=0.5)
        for epoch, loss in enumerate(losses, 1)
    ]
    fields = {
        "status": status,
        "epochs": len(losses),
        "curve": tuple(curve),
        "num_train": 60,
        "num_validation": 20,
        "num_classes": 2,
        "chance_loss": math.log(2),
    }
    return SearchResult.model_validate(fields | changes)


def train_by_formula(request: RequestedTrial) -> SearchResult:
    """Return the result of a trial whose losses are those of the formula."""
    epochs = range(1, request.combination.sweep_recipe.epochs + 1)
    return search_result([loss_of(request.point, epoch, request.seed) for epoch in epochs])


def run_search(search: Search) -> list[tuple[RequestedTrial, SearchResult]]:
    """Run a search to its end, one trial at a time, and return its trials with their results."""
    trials = []
    request = search.next_trial()
    while request is not None:
        result = train_by_formula(request)
        search.add_result(request.spec.trial_id, result)
        trials.append((request, result))
        request = search.next_trial()
    return trials


Store = list[tuple[RequestRecord, SearchResult | None]]
"""Requested trials of a search in order, each with its result or None."""


def run_one_start(
    search: Search,
    store: Store,
    *,
    workers: int = 1,
    max_results: int = 10_000,
    choose_next: Callable[[list[str]], str] = itemgetter(0),
) -> Store:
    """Run a search as one start of a sweep does, and return the requests and results it stored.

    Args:
        search: A new search.
        store: Requests and results of earlier starts.
        workers: Number of trials that run at the same time.
        max_results: Number of results after which the start is killed.
        choose_next: Chooses which of the running trials ends next.
    """
    stored = {record.trial_id: (record, result) for record, result in store}

    def store_request(request: RequestedTrial) -> None:
        trial_id = request.spec.trial_id
        record = RequestRecord(
            trial_id=trial_id,
            role=request.role,
            run=request.seed,
            spec=request.spec,
            data_fingerprint="",
            number=0,
        )
        stored.setdefault(trial_id, (record, None))

    queue = SearchQueue(search, {}, store_request)
    search.resume(store)
    waiting: list[str] = []
    running: list[str] = []

    def start_trials() -> None:
        """Take trials from the queue until it gives none and no worker is free for a waiting one."""
        while True:
            next_id = queue.take(0.0)
            if next_id is not None:
                waiting.append(next_id)
            elif not waiting or len(running) >= workers:
                return
            if len(running) < workers:
                running.append(waiting.pop(0))
                queue.start(running[-1])

    for _ in range(max_results):
        start_trials()
        if not running:
            return list(stored.values())
        trial_id = choose_next(running)
        running.remove(trial_id)
        result = train_by_formula(search.running_trial(trial_id))
        search.add_result(trial_id, result)
        queue.remove(trial_id)
        stored[trial_id] = (stored[trial_id][0], result)
    start_trials()
    return list(stored.values())


DIVERGED = {"status": SearchStatus.DIVERGED, "reason": "nan", "epochs": 1, "curve": ()}
