"""From what a worker reports to the record that is stored."""

from __future__ import annotations

from orchestrator.planning.plan import CellStatus, SweepPlan
from orchestrator.results import columns
from orchestrator.results.records import CellReport, TrialRecord
from orchestrator.results.tracking.provenance import provenance
from search_spaces.specs import Domain, pair_name
from search_spaces.trials import TrialSpec
from tasks.trials.result import TrialResult


def trial_record(
    cell: TrialSpec,
    report: CellReport,
    result: TrialResult,
    known: TrialRecord | None,
    sweep: str,
    domain: Domain | None,
    attempt: int,
) -> TrialRecord:
    """Return the record of a finished trial.

    Args:
        cell: What was asked for.
        report: What the worker says of its run.
        result: What it found.
        known: An earlier record of the same trial: where nothing was trained since, its times stay.
        sweep: Name of the sweep.
        domain: Of the dataset.
        attempt: Which one this was.
    """
    # Seconds of epochs are never the same twice: with equal histories nothing was trained.
    trained = known is None or known.result.history != result.history
    return TrialRecord(
        trial_id=cell.trial_id,
        sweep=sweep,
        spec=cell,
        domain=domain,
        data_fingerprint=report.data_fingerprint,
        shared_group_share=report.shared_group_share,
        gpu_share=report.gpu_share if trained or known is None else known.gpu_share,
        gpu_name=report.gpu_name if trained or known is None else known.gpu_name,
        attempt=attempt,
        started_at=report.started_at if trained or known is None else known.started_at,
        finished_at=report.finished_at if trained or known is None else known.finished_at,
        measured_at=None if trained else report.finished_at,
        provenance=provenance(),
        result=result,
    )


def start_tags(plan: SweepPlan, cell: TrialSpec, attempt: int) -> dict[str, str]:
    """Return what a tracker is told of a trial that starts."""
    network, dataset = cell.network, cell.network.subset.prepared.dataset
    return {
        columns.TRIAL_ID: cell.trial_id,
        columns.MODEL: network.model.name,
        columns.DATASET: dataset,
        columns.DOMAIN: plan.datasets[dataset].domain or "",
        columns.CLASS_PAIR: pair_name(network.subset.class_pair),
        columns.RECIPE: network.recipe.name,
        columns.TRAIN_SIZE: str(network.train_size),
        columns.SEED: str(network.seed),
        columns.ATTEMPT: str(attempt),
        columns.STATUS: str(CellStatus.RUNNING),
    }
