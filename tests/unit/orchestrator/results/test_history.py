"""The story of a cell: kept beside its result, for people alone."""

import pytest

from orchestrator.results.store import MOST_EVENTS, Event, ResultStore
from search_spaces.errors import CorruptStoreError


def event(what="started", attempt=1, **more):
    return Event(at=1000.0, what=what, attempt=attempt, **more)


def test_a_story_goes_on_where_a_killed_run_left_it(tmp_path):
    ResultStore(str(tmp_path)).tell("a", event())
    again = ResultStore(str(tmp_path))
    again.tell("a", event(attempt=2, node="10.0.0.1"))
    again.tell("a", event("finished", 2, said="done"), "first\nlast\n")
    assert again.story("a") == [
        event(),
        event(attempt=2, node="10.0.0.1"),
        event("finished", 2, said="done"),
    ]
    assert again.log("a", 2) == "first\nlast\n"
    assert again.log("a", 1) is None
    assert again.story("b") == []


@pytest.mark.parametrize("damage", [b"", b"[", b"{}", b'[{"at": 1}]', b"[" * 50_000, b"\xff\xfe"])
def test_a_damaged_story_is_said_and_costs_no_result(tmp_path, damage):
    history = ResultStore(str(tmp_path))
    history.tell("a", event())
    (tmp_path / "trials" / "a" / "history.json").write_bytes(damage)
    with pytest.raises(CorruptStoreError, match=r"story must be whole; found: .*history.json: .*delete it"):
        ResultStore(str(tmp_path)).story("a")
    anew = ResultStore(str(tmp_path))
    anew.tell("a", event(attempt=2))
    assert anew.story("a") == [event(attempt=2)]


def test_a_story_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "trials").write_text("in the way")
    ResultStore(str(tmp_path)).tell("a", event(), "log")
    assert "the story of a is not kept" in caplog.text


def test_a_cell_that_is_tried_for_ever_keeps_the_newest_of_its_story(tmp_path):
    history = ResultStore(str(tmp_path))
    for attempt in range(1, MOST_EVENTS + 6):
        history.tell("a", event("failed", attempt))
    assert [e.attempt for e in history.story("a")] == list(range(6, MOST_EVENTS + 6))
