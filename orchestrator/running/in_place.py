"""Measuring on kept networks in the driver's own process: for seconds of work, starting Ray takes longer.

Whatever cannot be done here, for whatever reason, is left to the cluster, which tells what is wrong with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby

from orchestrator.planning.plan import Workspace
from orchestrator.planning.predict import array_key
from orchestrator.results.records import CellReport, TrialRecord
from orchestrator.results.state import StoredResults
from orchestrator.results.store import WeightStore
from orchestrator.results.table import MeasureIndex, flat_trial
from orchestrator.results.tracking import Tracker
from orchestrator.running.progress import Monitor
from orchestrator.running.trials import start_tags, trial_record
from search_spaces.errors import CorruptStoreError, SetupError
from search_spaces.specs import SubsetSpec, TrialSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import KeptFile, TrialResult

log = logging.getLogger(__name__)

BUDGET_S = 30.0
"""Seconds until the rest is left to a cluster, which measures several networks at a time."""
MOST_TRAINING_S = 60.0
"""Networks that took longer to train are too large for this: measuring one could take minutes."""


def measure_in_place(
    cells: Iterable[TrialSpec],
    *,
    workspace: Workspace,
    stored: StoredResults,
    tracker: Tracker,
    monitor: Monitor,
    measures: MeasureIndex,
    load: Callable[[SubsetSpec, int], TrialData],
) -> frozenset[str]:
    """Measure what ``cells`` lack on their kept networks, on CPUs, for as long as that takes seconds.

    Args:
        cells: Trials whose network is trained, and whose weights are kept.
        workspace: The sweep.
        stored: Everything in its store; results are saved through it.
        tracker: Who is told.
        monitor: Who shows it.
        measures: Stored measure records by subset id and train size.
        load: Reads the arrays of a subset, given how many training images.

    Returns:
        Ids of the cells that are done.

    Raises:
        SetupError: when results cannot be stored; whatever finished before is kept.
    """
    plan, done = workspace.plan, set()
    num_threads = max(1, int(plan.sweep.resources.num_cpus))
    weights = WeightStore(workspace.results_url)
    until = time.monotonic() + BUDGET_S
    for cell, data in _with_data(cells, workspace, stored, load):
        if time.monotonic() > until:
            break
        known = stored.trials[cell.trial_id]
        try:
            report, result = _measured(cell, known, data, weights, num_threads)
        except Exception as error:
            log.warning("%s is left to the cluster: %s", cell.trial_id, error)
            continue
        tracker.start_trial(cell.trial_id, start_tags(plan, cell, known.attempt))
        record = trial_record(cell, report, result, known, plan.sweep.name, known.domain, known.attempt)
        stored.save(record)
        tracker.finish(flat_trial(record, measures))
        monitor.trial_finished(cell.trial_id, record.result.status)
        monitor.advance(cell.trial_id)
        done.add(cell.trial_id)
    return frozenset(done)


def _with_data(
    cells: Iterable[TrialSpec],
    workspace: Workspace,
    stored: StoredResults,
    load: Callable[[SubsetSpec, int], TrialData],
) -> Iterator[tuple[TrialSpec, TrialData]]:
    """Yield the cells that may be measured here with their arrays, of which one is in memory at a time."""
    plan = workspace.plan
    small = [cell for cell in cells if _is_small(stored.trials[cell.trial_id])]
    for _, group in groupby(sorted(small, key=lambda cell: array_key(plan, cell)), partial(array_key, plan)):
        first, *rest = group
        network = first.network
        data = load(network.subset, plan.load_size(network.subset, network.train_size))
        yield from ((cell, data) for cell in (first, *rest))


def _kept_predictions(weights: WeightStore, trial_id: str, data: bytes) -> KeptFile | str:
    try:
        return weights.save_predictions(trial_id, data)
    except SetupError as error:
        return str(error)


def _is_small(known: TrialRecord) -> bool:
    seconds = known.result.timings.train
    return known.result.device == "cpu" and seconds is not None and seconds <= MOST_TRAINING_S


def _measured(
    cell: TrialSpec, known: TrialRecord, data: TrialData, weights: WeightStore, num_threads: int
) -> tuple[CellReport, TrialResult]:
    from tasks.trials.trial import measure_trial

    started_at = time.time()
    if known.result.weights is None:
        raise CorruptStoreError("Kept weights are needed to measure on", cell.trial_id)
    outcome = measure_trial(
        cell,
        data,
        weights.read(cell.trial_id, known.result.weights),
        known.result,
        known.lacks(cell),
        keep_predictions=partial(_kept_predictions, weights, cell.trial_id),
        num_threads=num_threads,
    )
    report = CellReport(
        started_at=started_at,
        finished_at=time.time(),
        outcome=outcome,
        data_fingerprint=data.data_fingerprint,
        shared_group_share=data.shared_group_share,
    )
    return report, outcome
