"""Records of version 1 still read, as the store of 2026-11 wrote them, and say the same."""

import json
from pathlib import Path

import pytest

from orchestrator.results.records import CellReport, FailureRecord, MeasureRecord, TrialFailure, TrialRecord
from orchestrator.results.store import ResultStore
from orchestrator.results.table import measure_metrics, trial_metrics
from tests.unit.orchestrator.results.examples import trial_result

EXAMPLES = Path(__file__).parents[3] / "data" / "records" / "v1"


def old(name):
    return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))["record"]


def read(tmp_path, kind, name):
    before = old(name)
    record_id = before["measure_id" if kind is MeasureRecord else "trial_id"]
    path = tmp_path / kind.folder / record_id / kind.file
    path.parent.mkdir(parents=True)
    path.write_bytes((EXAMPLES / f"{name}.json").read_bytes())
    return ResultStore(str(tmp_path)).read(kind, record_id)


@pytest.mark.parametrize("name", ["trial", "trial-diverged", "trial-undefined"])
def test_trials_of_version_1_say_the_same(tmp_path, name):
    record, before = read(tmp_path, TrialRecord, name), old(name)
    now = trial_metrics(record.result)
    assert now.pop("peak_memory_bytes") == before["peak_memory_bytes"]  # a column since version 2
    assert now == before["metrics"]
    assert record.trial_id == before["trial_id"]
    assert (record.result.status, record.result.reason) == (before["status"], before["reason"])
    assert [row.train_loss for row in record.result.history] == [
        row["train_loss"] for row in before["history"]
    ]
    assert record.spec.network.recipe.name == before["spec"]["recipe"]["name"]
    assert record.provenance.packages == before["provenance"]["packages"]
    reasons = {f"d_repr_{name}": e.reason for name, e in record.result.d_repr.items() if e.reason}
    assert reasons == before["records"]["absent"]


@pytest.mark.parametrize("name", ["measure", "measure-calibrated"])
def test_measures_of_version_1_say_the_same(tmp_path, name):
    record, before = read(tmp_path, MeasureRecord, name), old(name)
    assert record.result.to_json() == before["measures"]
    assert (
        measure_metrics(record, 40)["d_data_mle"]
        == record.result.sizes[-2 + (name != "measure")].d_data["mle"].value
    )


def test_failures_of_version_1_say_the_same(tmp_path):
    record, before = read(tmp_path, FailureRecord, "failure"), old("failure")
    assert record.row() == {key: before[key] for key in ("trial_id", "kind", "message")}
    assert (record.attempt, record.failure.traceback) == (2, before["traceback"])


def test_a_network_of_version_1_is_no_cell_of_todays_plans(tmp_path):
    """Its weights came from another seed, so it must not stand for the network that would be trained now."""
    record = read(tmp_path, TrialRecord, "trial")
    today = record.spec.network.model_copy(update={"schema_version": 1})
    assert today.network_id not in (record.trial_id, record.spec.trial_id)
    assert record.result.seed != today.derived_seed


def test_a_report_survives_its_way_from_the_worker(tmp_path):
    failure = TrialFailure(kind="lost_node", message="gone")
    for outcome in (trial_result(), failure):
        report = CellReport(started_at=1.0, finished_at=2.0, outcome=outcome)
        assert CellReport.model_validate_json(report.text()) == report


def test_a_report_with_a_number_that_is_none_is_refused():
    unsound = trial_result()
    object.__setattr__(unsound.d_repr["mle"], "value", float("inf"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        CellReport(started_at=1.0, finished_at=2.0, outcome=unsound).text()
