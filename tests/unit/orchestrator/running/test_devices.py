"""A trial that was given a card computes on it or fails, naming node, driver and CUDA."""

import socket
import time

import pytest
import torch

from orchestrator.running import gpus
from orchestrator.running.failures import classify
from search_spaces.errors import SetupError


@pytest.fixture
def without_cuda(monkeypatch):
    """A node whose torch reaches no card; returns how long trials waited there."""
    pauses: list[float] = []
    monkeypatch.delenv(gpus.LOGICAL_GPUS, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpus, "driver_version", lambda: "470.82.01")
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_a_node_without_working_cuda_fails_its_trials_by_name(without_cuda):
    with pytest.raises(SetupError, match="never computes on CPUs instead") as caught:
        gpus.computes_on_gpu(0.25)
    for named in (socket.gethostname(), "driver 470.82.01", f"torch {torch.__version__}", "CUDA 13.0"):
        assert named in str(caught.value)
    assert classify(caught.value).kind == "setup"
    # It waits before it fails: a node that fails at once would be given every cell of the sweep.
    assert without_cuda == [gpus.PAUSE_S]


def test_a_missing_driver_is_called_absent(without_cuda, monkeypatch):
    monkeypatch.setattr(gpus, "driver_version", lambda: "")
    with pytest.raises(SetupError, match="NVIDIA driver absent"):
        gpus.computes_on_gpu(1)


def test_cpu_trials_and_logical_cards_need_no_cuda(without_cuda, monkeypatch):
    assert not gpus.computes_on_gpu(0)
    monkeypatch.setenv(gpus.LOGICAL_GPUS, "1")
    assert not gpus.computes_on_gpu(0.5)
    assert without_cuda == []


def test_a_card_that_answers_is_computed_on(without_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpus.computes_on_gpu(0.5)


def test_a_command_that_is_absent_or_fails_says_nothing():
    assert gpus.output_of("no-such-command-anywhere") == ""
    assert gpus.output_of("false") == ""
    assert gpus.output_of("echo", "570.1") == "570.1"
