"""A trial that was given a GPU computes on it or fails, naming node, driver and CUDA."""

import re
import socket
import time

import pytest
import torch

from orchestrator.running import gpus
from orchestrator.running.failures import classify
from search_spaces.errors import SetupError


def options(share, fast="auto", *, own=False):
    return gpus.trial_options({"num_gpus": share, "num_threads": 1, "fast": fast, "own_network": own})


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


def test_a_command_that_is_absent_or_fails_says_nothing():
    assert gpus.output_of("no-such-command-anywhere") == ""
    assert gpus.output_of("false") == ""
    assert gpus.output_of("echo", "570.1") == "570.1"


@pytest.mark.parametrize(
    ("capability", "built_for", "has"),
    [
        ((8, 6), ["sm_75", "sm_80", "sm_90"], True),
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((9, 0), ["sm_75", "sm_80"], False),
        ((12, 1), ["sm_75", "compute_120"], True),
        ((9, 0), ["sm_75", "sm_90a"], True),
    ],
)
def test_whether_torch_has_kernels_for_a_gpu(capability, built_for, has):
    assert gpus._has_kernels(capability, built_for) is has


def test_the_verdict_of_a_self_test_is_kept_per_gpu_and_version(tmp_path, monkeypatch):
    runs = []

    def tested():
        runs.append(1)
        return {"graphs": True, "finished": True, "reason": ""}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gpus, "_tested", tested)
    monkeypatch.setattr(gpus, "driver_version", lambda: "580.65")
    assert gpus.self_test("GPU-1")["graphs"]
    assert gpus.self_test("GPU-1")["graphs"]
    assert len(runs) == 1
    gpus.self_test("GPU-2")
    monkeypatch.setattr(gpus, "driver_version", lambda: "590.1")
    gpus.self_test("GPU-1")
    assert len(runs) == 3


def test_a_self_test_that_did_not_end_is_tried_again_after_a_day(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gpus, "_tested", lambda: runs.append(1) or {"finished": False})
    now = time.time()
    for later, number in ((0, 1), (3600, 1), (90_000, 2)):
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        gpus.self_test("GPU-1")
        assert len(runs) == number


def test_a_self_test_that_dies_takes_nobody_along(monkeypatch):
    monkeypatch.setattr(gpus.sys, "executable", "/bin/false")
    found = gpus._tested()
    assert found == {"graphs": False, "finished": False, "reason": "the self-test died: exit code 1"}


def test_plain_steps_are_said_in_one_line(monkeypatch, caplog):
    gpus.graphs_off.cache_clear()
    monkeypatch.setattr(gpus, "gpu_in_use", lambda: ("RTX 4090", "GPU-3f"))
    verdict = {"graphs": False, "reason": "vgg13: a weight differs by 1.0e-03"}
    monkeypatch.setattr(gpus, "self_test", lambda uuid: verdict)
    said = gpus.graphs_off()
    gpus.graphs_off.cache_clear()
    assert said == (
        f"GPU-3f (RTX 4090) of node {socket.gethostname()}: captured graphs off, plain steps are taken: "
        "vgg13: a weight differs by 1.0e-03"
    )
    assert said in caplog.text


def test_nvidia_smi_tells_of_gpus_without_torch(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA L4, GPU-1, 23034'\necho 'NVIDIA L4, GPU-2, 23034'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    card, number = gpus.gpu_to_plan_for(())
    assert (card.name, card.memory_gib, number) == ("l4", pytest.approx(22.5, abs=0.1), 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert len(gpus.gpus_here()) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.gpu_to_plan_for(()) == (None, 0)


def test_a_node_describes_itself_in_a_process_of_its_own():
    found = gpus.describe("")
    assert (found.gpus, found.torch) == ((), torch.__version__)
