"""A trial that was given a card computes on it or fails, naming node, driver and CUDA."""

import re
import socket
import time

import pytest
import torch

from orchestrator.running import gpus
from orchestrator.running.failures import classify
from search_spaces.errors import SetupError


def cell(share, fast="auto"):
    return {"num_gpus": share, "num_threads": 1, "fast": fast}


def options(share, fast="auto", *, own=False):
    return gpus.trial_options(cell(share, fast), own_network=own)


@pytest.fixture
def without_cuda(monkeypatch):
    """A node whose torch reaches no GPU."""
    monkeypatch.delenv(gpus.LOGICAL_GPUS, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpus, "driver_version", lambda: "570.82.01")


@pytest.mark.usefixtures("without_cuda")
def test_a_node_without_working_cuda_fails_its_trials_by_name():
    with pytest.raises(SetupError, match="never computes on CPUs instead") as caught:
        options(0.25)
    named = (socket.gethostname(), "driver 570.82.01", f"torch {torch.__version__}", "built for CUDA 13.0")
    way_out = "CUDA 13.0 needs a driver of branch 580 or later, this is 570.82.01: install one, or a torch of"
    for words in (*named, way_out):
        assert words in str(caught.value)
    assert classify(caught.value).kind == "setup"


@pytest.mark.parametrize(
    ("driver", "cuda", "way_out"),
    [
        ("", "13.0", "install NVIDIA's driver"),
        ("580.1", None, "install a torch with CUDA"),
        (
            "470.82",
            "12.6",
            r"CUDA 12\.6 needs a driver of branch 525 or later, this is 470\.82: install one$",
        ),
        ("550.1", "13.0", "branch 580 .* or a torch of PyTorch's cu126 wheels"),
        ("580.65", "13.0", "the driver is new enough"),
    ],
)
def test_what_brings_driver_and_torch_together(driver, cuda, way_out):
    assert re.match(way_out, gpus.driver_way_out(driver, cuda)) or re.search(
        way_out, gpus.driver_way_out(driver, cuda)
    )


@pytest.mark.usefixtures("without_cuda")
def test_cpu_trials_and_logical_gpus_need_no_cuda(monkeypatch):
    assert options(0)["device"] == "cpu"
    monkeypatch.setenv(gpus.LOGICAL_GPUS, "1")
    assert options(0.5) == {"device": "cpu", "num_threads": 1, "gpu_fraction": None, "graphs": False}


@pytest.mark.parametrize(
    ("fast", "own", "pays", "graphs"),
    [
        ("auto", False, True, True),
        ("auto", False, False, False),
        ("auto", True, True, False),
        ("on", False, False, True),
        ("on", True, False, True),
        ("off", False, True, False),
    ],
)
def test_steps_are_captured_where_it_pays_or_is_asked_for(without_cuda, monkeypatch, fast, own, pays, graphs):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpus, "graphs_off", lambda: "" if pays else "they are slower")
    found = options(0.5, fast, own=own)
    assert (found["device"], found["gpu_fraction"], found["graphs"]) == ("cuda", 0.5, graphs)


def test_a_gpu_rests_before_its_failure_is_told_until_its_process_has_finished_a_trial(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for num_finished in (0, 1, 5):
        gpus.rest(num_finished)
    assert pauses == [gpus.REST_S]


def test_a_command_that_is_absent_or_fails_says_nothing():
    assert gpus.output_of("no-such-command-anywhere") == ""
    assert gpus.output_of("false") == ""
    assert gpus.output_of("echo", "570.1") == "570.1"
