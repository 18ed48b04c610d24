"""Epochs on their way from trials to the driver."""

import pytest

from orchestrator.running import worker as module
from orchestrator.running.worker import EpochBoard, EpochTeller, IsweepEpochs
from tasks.trials.records import EpochRecord, EpochScore


def epoch(number: int) -> EpochRecord:
    return EpochRecord(number, 0.5, 0.7, 0.1)


def test_fast_epochs_are_told_together_and_slow_ones_at_once():
    sent, now = [], [0.0]
    teller = EpochTeller("t", sent.append, clock=lambda: now[0])
    for number in range(1, 11):
        now[0] += 0.125
        teller.ended(epoch(number))
    assert [[said.epoch.epoch for said in batch] for batch in sent] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    now[0] += 60
    teller.ended(epoch(11))
    assert [said.epoch.epoch for said in sent[-1]] == [9, 10, 11]


def test_a_score_goes_with_its_epoch_alone():
    sent, now = [], [0.0]
    teller = EpochTeller("t", sent.append, clock=lambda: now[0])
    for number, tested in ((1, False), (2, True), (3, False)):
        now[0] += 1
        if tested:
            teller.scored(EpochScore(epoch=number, test_loss=0.4, test_accuracy=0.8))
        teller.ended(epoch(number))
    assert [batch[0].score and batch[0].score.epoch for batch in sent] == [None, 2, None]


def test_the_board_gives_each_report_once_and_keeps_the_newest(monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT", 3)
    board = IsweepEpochs()
    for number in range(5):
        board.tell([number])
    assert board.take() == [2, 3, 4]
    assert board.take() == []


@pytest.mark.ray
def test_the_driver_hears_what_was_told_without_waiting(ray_local, monkeypatch):
    import time

    monkeypatch.setattr(module, "ASK_INTERVAL_S", 0.0)
    board = EpochBoard()
    monkeypatch.setattr(module, "TELL_INTERVAL_S", 0.0)
    board.teller("t").ended(epoch(1))
    heard, deadline = [], time.monotonic() + 60
    while not heard and time.monotonic() < deadline:
        heard += board.heard()
    assert [(said.trial_id, said.epoch.epoch) for said in heard] == [("t", 1)]
