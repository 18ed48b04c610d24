"""What a worker reports arrives as it was, or not at all."""

import pytest

from orchestrator.results.records import CellReport, TrialFailure
from tests.unit.orchestrator.results.examples import trial_result


def test_a_report_survives_its_way_from_the_worker():
    failure = TrialFailure(kind="lost_node", message="gone")
    for outcome in (trial_result(), failure):
        report = CellReport(started_at=1.0, finished_at=2.0, outcome=outcome)
        assert CellReport.model_validate_json(report.text()) == report


def test_a_report_with_a_number_that_is_none_is_refused():
    unsound = trial_result()
    object.__setattr__(unsound.d_repr["mle"], "value", float("inf"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        CellReport(started_at=1.0, finished_at=2.0, outcome=unsound).text()
