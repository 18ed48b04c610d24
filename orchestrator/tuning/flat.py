"""A trial of a search as a tracker shows it."""

from __future__ import annotations

from orchestrator.results import columns as c
from orchestrator.results.rows import FlatRun, _milliseconds, _params
from orchestrator.tuning.records import SearchRecord
from search_spaces.specs import pair_name

VALIDATION_LOSS = "validation_loss"
VALIDATION_ACCURACY = "validation_accuracy"
EPOCHS = "epochs"


def flat_search(record: SearchRecord) -> FlatRun:
    """Return a stored trial of a search as one flat run: its validation losses are a series over epochs."""
    network, result = record.spec.network, record.result
    started = _milliseconds(record.started_at)
    metrics: dict[str, float] = {EPOCHS: result.epochs, c.WALL_TIME_S: record.finished_at - record.started_at}
    if result.loss is not None:
        metrics |= {VALIDATION_LOSS: result.loss, VALIDATION_ACCURACY: result.curve[-1].accuracy}
    tags = {
        c.TRIAL_ID: record.trial_id,
        c.SWEEP: record.sweep,
        c.MODEL: network.model.name,
        c.RECIPE: network.recipe.name,
        c.DATASET: network.subset.prepared.dataset,
        c.DOMAIN: record.domain or "",
        c.CLASS_PAIR: pair_name(network.subset.class_pair),
        c.TRAIN_SIZE: str(network.train_size),
        c.SEED: str(network.seed),
        c.STATUS: str(result.status),
        c.ATTEMPT: str(record.attempt),
        c.DATA_FINGERPRINT: record.data_fingerprint,
        c.CODE_VERSION: record.provenance.code_version,
        "role": str(record.role),
    }
    return FlatRun(
        record.trial_id,
        "trial",
        tags,
        _params(network.model_dump(mode="json")),
        metrics,
        tuple(
            (c.EPOCH_PREFIX + name, score.epoch, value, started)
            for score in result.curve
            for name, value in ((VALIDATION_LOSS, score.loss), (VALIDATION_ACCURACY, score.accuracy))
        ),
        started,
        _milliseconds(record.finished_at),
        _milliseconds(record.finished_at),
    )
