"""Packed records come out as they went in, and are small."""

import gc
import json
import tracemalloc

import pytest

from orchestrator.results.records import TrialRecord
from orchestrator.results.rows import flat_trial
from orchestrator.results.state import Records, StoredResults
from orchestrator.results.store import ResultStore
from orchestrator.results.tracking import Tracker
from search_spaces.specs import Domain
from tasks.trials.records import EpochRecord
from tests.unit.orchestrator.results.examples import diverged, trial_record, trial_result, trial_spec


def long_record(trial_id="long", num_epochs=100):
    epochs = tuple(EpochRecord(i + 1, 1 / (i + 3), i / num_epochs, 0.1 * i) for i in range(num_epochs))
    return trial_record(trial_result().model_copy(update={"history": epochs}), trial_id=trial_id)


def test_what_comes_out_equals_what_went_in_to_the_last_bit_and_shares_its_spec(tmp_path):
    packed = Records(ResultStore(str(tmp_path)))
    for record in (long_record("a"), trial_record(diverged(), trial_id="b", domain=None)):
        packed[record.trial_id] = record
        assert packed[record.trial_id] == record
        assert packed[record.trial_id].text() == record.text()
    assert isinstance(packed["a"].domain, str | Domain)
    assert (list(packed), len(packed), "a" in packed, "c" in packed) == (["a", "b"], 2, True, False)
    del packed["a"]
    with pytest.raises(KeyError, match="a"):
        packed["a"]


def test_what_was_read_stays_as_it_is(tmp_path):
    record = trial_record()
    assert Records(ResultStore(str(tmp_path)), {record.trial_id: record})[record.trial_id] is record


def test_a_run_keeps_less_than_a_fifth_of_what_its_records_would_take(tmp_path):
    stored, spec = StoredResults.read(str(tmp_path)), trial_spec()
    texts = {name: long_record(name).text() for name in (f"trial-{place}" for place in range(20))}

    def made(text):
        return TrialRecord.model_validate({**json.loads(text), "spec": spec}, strict=False)

    stored.save(long_record("first"))  # whatever is made once
    as_objects, _ = taken(lambda: [made(text) for text in texts.values()])
    packed, _ = taken(lambda: [stored.save(made(text)) for text in texts.values()])
    assert packed < as_objects / 5
    assert {name: stored.trials[name].text() for name in texts} == texts


def test_a_run_that_waits_for_mlflow_takes_a_fifth(monkeypatch):
    monkeypatch.setattr("orchestrator.results.tracking.STOP_PATIENCE_S", 0.0)

    def away():
        raise ConnectionError("no route")

    tracker = Tracker(away)
    tracker.check()
    runs = [flat_trial(long_record(f"trial-{place}"), {}) for place in range(20)]
    as_objects, _ = taken(lambda: [flat_trial(long_record(f"trial-{place}"), {}) for place in range(20)])
    waiting, _ = taken(lambda: [tracker.finish(run) for run in runs])
    tracker.close("KILLED")
    assert tracker.num_behind == 22  # with the sweep's own run and its end
    assert waiting < as_objects / 5


def taken(make):
    """Return the bytes that are kept of what ``make`` makes, and what it returns."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        return tracemalloc.get_traced_memory()[0], made
    finally:
        tracemalloc.stop()
