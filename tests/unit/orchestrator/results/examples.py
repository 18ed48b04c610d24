"""Small, valid records for tests, as a worker and the measures would return them."""

from __future__ import annotations

from typing import Any

from orchestrator.results.outlines import TrialOutline
from orchestrator.results.records import (
    FailureKind,
    FailureRecord,
    MeasureRecord,
    Provenance,
    TrialFailure,
    TrialRecord,
)
from orchestrator.results.state import State
from search_spaces.models import model_spec
from search_spaces.recipes import recipe_spec
from search_spaces.specs import MeasureSpec, NetworkSpec, PreparedSpec, SubsetSpec, TrialSpec
from tasks.measures.estimators import IntrinsicDimension
from tasks.measures.records import MeasureResult, MeasureSettings, SizeRecord
from tasks.measures.sharpness import LabelSharpness, SharpnessScale
from tasks.trials.records import (
    AttackRecord,
    EpochRecord,
    NetworkScores,
    Timings,
    TrialResult,
    TrialStatus,
)

SUBSET = SubsetSpec(
    prepared=PreparedSpec(dataset="manifold_d4", image_size=16, channels=1), test_size=40
)


def trial_spec(train_size: int = 40) -> TrialSpec:
    model = "small_mlp"
    recipe = recipe_spec("smoke", model, "manifold_d4")
    network = NetworkSpec(
        model=model_spec(model), subset=SUBSET, train_size=train_size, recipe=recipe
    )
    return TrialSpec(network=network)


def dimension(name: str, value: float | None = 4.5) -> IntrinsicDimension:
    curve = [{"num_neighbors": number, "value": float(number)} for number in (3, 5, 10)]
    return IntrinsicDimension(name, value, 0.25, 40, 20, "by hand", details={"curve": curve})


def attack(epsilon: float, loss: float = 1.5) -> AttackRecord:
    rates = {"accuracy": 0.5, "accuracy_drop": 0.25, "robust_accuracy": 0.5, "num_unchanged": 0}
    return AttackRecord(method="fgsm", epsilon=epsilon, loss=loss, loss_gain=loss - 0.5, **rates)


def trial_result(test_loss: float = 0.5) -> TrialResult:
    return TrialResult(
        status=TrialStatus.DONE,
        seed=7,
        device="cpu",
        num_threads=1,
        scores=NetworkScores(
            num_parameters=10,
            train_loss=0.25,
            train_accuracy=0.875,
            test_loss=test_loss,
            test_accuracy=0.75,
        ),
        d_repr={name: dimension(name) for name in ("mle", "twonn")},
        attacks=tuple(attack(epsilon) for epsilon in (1.0, 2.0, 4.0, 8.0)),
        history=(EpochRecord(1, 0.75, 0.5, 0.1), EpochRecord(2, 0.25, 0.875, 0.1)),
        timings=Timings(build=0.1, train=0.2),
        peak_memory_bytes=1000,
    )


def diverged(reason: str = "loss is nan") -> TrialResult:
    return TrialResult(
        status=TrialStatus.DIVERGED, reason=reason, seed=7, device="cpu", num_threads=1
    )


def trial_record(result: TrialResult | None = None, **changes: object) -> TrialRecord:
    spec = trial_spec()
    fields: dict[str, object] = {
        "trial_id": spec.trial_id,
        "sweep": "s",
        "spec": spec,
        "domain": "natural",
        "data_fingerprint": "f",
        "attempt": 1,
        "started_at": 1000.0,
        "finished_at": 1002.5,
        "provenance": Provenance(code_version="1+é"),
        "result": result or trial_result(),
    }
    return TrialRecord.model_validate({**fields, **changes})


def measure_record(**changes: object) -> MeasureRecord:
    spec = MeasureSpec(subset=SUBSET, train_sizes=(40,))
    scale = SharpnessScale((0.0, 255.0), (16, 16), 1, 1000)
    sharpness = LabelSharpness(0.25, scale, 400, 40, (3, 8), 0.25)
    d_data = {name: dimension(name) for name in ("mle", "twonn", "gride")}
    size = SizeRecord(40, 2, 1, d_data, sharpness)
    result = MeasureResult(
        sizes=(size,), conflict_pairs=((1, 2),), settings=MeasureSettings(), precision="float32"
    )
    fields: dict[str, object] = {
        "measure_id": spec.measure_id,
        "spec": spec,
        "domain": "natural",
        "data_fingerprint": "f",
        "started_at": 900.0,
        "finished_at": 901.0,
        "result": result,
    }
    return MeasureRecord.model_validate({**fields, **changes})


def failure_record(attempt: int = 1) -> FailureRecord:
    spec = trial_spec()
    failure = TrialFailure(kind=FailureKind.CODE_ERROR, message="boom")
    return FailureRecord(trial_id=spec.trial_id, spec=spec, attempt=attempt, failure=failure)


def state_of(records: dict[str, TrialRecord], **fields: Any) -> State:
    """Return a state with the given results by trial id."""
    outlines = {trial_id: TrialOutline.of(record) for trial_id, record in records.items()}
    return State(outlines, trials=records, **fields)
