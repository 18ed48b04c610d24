"""What the store seals of a search: numbers that no search has are not believed, sealed or not."""

import json

import pytest

from orchestrator.results.store import ResultStore
from orchestrator.tuning.cells import Role, SearchRecord
from search_spaces.fingerprint import fingerprint
from tests.unit.orchestrator.tuning.examples import cells, result


@pytest.mark.parametrize(
    ("place", "value"),
    [(("run",), -1), (("run",), 2**63), (("result", "epochs"), -1), (("role",), "chosen")],
)
def test_a_record_sealed_anew_with_what_no_search_has_is_not_believed(tmp_path, place, value):
    """A run that is no seed would end every start; epochs below none, a budget that is never spent."""
    cell, store = cells()[0], ResultStore(str(tmp_path))
    trial = cell.trial(cell.own)
    record = SearchRecord(
        trial_id=trial.trial_id,
        sweep="smoke",
        role=Role.OWN,
        run=0,
        spec=trial,
        domain="natural",
        data_fingerprint="abc",
        started_at=1.0,
        finished_at=2.0,
        result=result([0.5] * 9),
    )
    store.save(record)
    assert store.scan(SearchRecord).records == {trial.trial_id: record}
    path = tmp_path / "trials" / trial.trial_id / "search.json"
    sealed = json.loads(path.read_text(encoding="utf-8"))
    part = sealed["record"]
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    path.write_text(json.dumps(sealed | {"sha256": fingerprint(sealed["record"])}), encoding="utf-8")
    scan = store.scan(SearchRecord)
    assert scan.records == {}
    assert ".".join(place) in scan.unreadable[0].reason
