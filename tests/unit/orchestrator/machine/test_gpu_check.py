"""Test the check of a GPU, on a CPU: its parts, its file, and what plans make of its results."""

import getpass
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from orchestrator.machine import (
    gpu_bench,
    gpu_check,
    gpu_check_parts,
    gpu_check_summary,
    mps_daemon,
)
from orchestrator.machine.cluster import Resources
from orchestrator.machine.gpu_bench import Bench, make_bench
from orchestrator.machine.gpu_check import check, devices, run_part, without_names
from orchestrator.machine.gpu_hours import FULL_SIZE, MeasuredTimes, measured_hours
from orchestrator.machine.gpus import nvidia_smi, torch_gpus
from orchestrator.machine.gpus.records import Gpu, NodeGpus
from orchestrator.machine.gpus.visible import LOGICAL_GPUS
from orchestrator.machine.processes import ProgramOutput, environment
from orchestrator.machine.self_test import program, stored_verdicts
from orchestrator.machine.self_test.case import PASSED_LINE, Case
from orchestrator.machine.self_test.graph_trainings import Difference, TrainingComparison
from orchestrator.machine.self_test.verdict import PlainStepsCause, Verdict
from orchestrator.planning.costs.gpu_checks import gpu_check_folders, packing_pays, read_checks
from orchestrator.planning.costs.gpu_models import GPU_MODELS, GpuModel, gpu_model_from_driver
from orchestrator.planning.costs.needs import need_of
from orchestrator.planning.costs.networks import cost_of
from orchestrator.planning.costs.pass_times import EAGER_INTERVAL_S, pass_time
from orchestrator.planning.costs.passes import batch_passes
from orchestrator.planning.estimate import on_gpus
from orchestrator.planning.runtimes import RuntimeModel
from orchestrator.running.recovery.resource_policy import ResourcePolicy
from search_spaces.errors import ConfigError, SetupError
from search_spaces.models import PAPER_MODELS, model_spec
from tasks.measures.products import blas_product
from tasks.trials.cuda_graphs import CaptureError
from tasks.trials.records import CONTEXT_BYTES, EpochRecord
from tests.unit.orchestrator.machine.test_devices import listening_mps

TINY = Case(model_spec("small_cnn"), 8, num_images=18, image_size=16)


@pytest.mark.parametrize(
    "part", ["host", "correctness", "step_times", "passes", "memory", "faults"]
)
def test_a_part_that_needs_no_gpu_runs_on_a_cpu(monkeypatch, part):
    monkeypatch.setattr(gpu_bench, "SMALL_CASES", (TINY,))
    outcome = run_part(part, "cpu", {})
    assert (outcome["error"], outcome["ok"]) == ("", True)
    assert socket.gethostname() not in json.dumps(outcome["values"])


def test_a_trial_runs_twice_in_one_process_and_reports_time_and_memory():
    first, second, larger = gpu_check_parts.real_trials(make_bench("cpu"), "small_cnn")
    assert first["timings"].keys() >= {"build", "train", "evaluate"}
    assert (first["left_bytes"], first["energy_j"]) == (0, None)
    assert first["scores"] == second["scores"]
    assert larger["train_size"] > second["train_size"]
    assert json.dumps(first)


@pytest.mark.parametrize(
    "change_product",
    [lambda product: product[:-1], lambda product: product + np.eye(*product.shape, 2)],
)
def test_products_of_bytes_that_differ_from_the_cpu_are_named_by_their_sizes(
    monkeypatch, change_product
):
    monkeypatch.setattr(gpu_bench, "SMALL_CASES", (TINY,))
    assert list(gpu_check_parts.wrong_products(make_bench("cpu"))) == []
    monkeypatch.setattr(
        gpu_check_parts,
        "choose_product",
        lambda work: lambda a, b: change_product(blas_product(a, b)),
    )
    outcome = run_part("correctness", "cpu", {})
    assert [130, 257, 63] in outcome["values"]["products_that_differ"]
    assert outcome["error"] == "products of bytes differ between GPU and CPU"


def test_every_gpu_and_slice_is_checked_by_processes_that_see_only_this_one(monkeypatch, tmp_path):
    slices = [Gpu("NVIDIA A100 MIG 1g.10gb", f"MIG-{number}", 2**33, mig=True) for number in (1, 2)]
    described = []
    visible_in_parts = []

    def describe(visible):
        described.append(visible)
        return NodeGpus("a", tuple(slices))

    def run_part(*_):
        visible_in_parts.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return {"ok": True, "seconds": 1.0, "error": "", "values": {}}

    monkeypatch.setattr(gpu_check_parts, "describe", describe)
    monkeypatch.setattr(nvidia_smi, "slice_uuids", lambda: [gpu.uuid for gpu in slices])
    monkeypatch.setattr(gpu_check, "run_part", run_part)
    monkeypatch.setattr(gpu_check, "PARTS", {"host": None})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    paths = [check(gpu, tmp_path, lambda line: None)[0] for gpu in devices(None)]
    assert described == ["MIG-1,MIG-2"]
    assert visible_in_parts == ["MIG-1", "MIG-2"]
    assert [path.name for path in paths] == [
        "gpu-check-nvidia-a100-mig-1g-10gb-1.json",
        "gpu-check-nvidia-a100-mig-1g-10gb-2.json",
    ]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_hidden_gpus_are_not_checked_but_an_undivided_gpu_besides_slices_is(monkeypatch):
    described = []
    rows = [["GPU-0", "Enabled"], ["GPU-1", "Disabled"]]

    def describe(visible):
        described.append(visible)
        return NodeGpus("a")

    monkeypatch.setattr(gpu_check_parts, "describe", describe)
    monkeypatch.setattr(nvidia_smi, "slice_uuids", lambda: ["MIG-1", "MIG-2"])
    monkeypatch.setattr(nvidia_smi, "query", lambda fields: rows)
    for visible in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(SetupError, match="torch cannot use a GPU"):
            devices(None)
    assert described == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpu_check_parts.visible_gpu_list() == ()
    assert described == ["MIG-1,MIG-2,GPU-1"]


@pytest.mark.parametrize(
    ("needed", "largest", "expected"),
    [(0.30, 1.0, (0.3125, 0.28125)), (0.0, 0.5, (0.015625, 0.0)), (2.0, 1.0, (None, 0.96875))],
)
def test_the_smallest_share_is_found_by_bisection(needed, largest, expected):
    shares = []

    def run_in_share(share):
        shares.append(share)
        return "" if share >= needed else "out_of_memory"

    result = gpu_check_parts.smallest_share(run_in_share, largest)
    assert (result["smallest_share"], result["dies_with"]) == expected
    assert result["kind"] == ("out_of_memory" if result["dies_with"] else "")
    assert len(shares) == 5


@pytest.fixture
def cpu_as_gpu(monkeypatch):
    """Let a CPU count as a GPU: work needs a share above 0.2, and fails with the returned kind.

    The kind is the only item of a list, so that a test can replace it.
    """
    small = gpu_bench.paper_or_demo_trials(False, True)
    kinds = ["out_of_memory"]
    for name, value in {
        "on_gpu": True,
        "share_of": lambda bench, size: 0.25,
        "reserved_bytes": lambda bench: 0,
        "run_in_share": lambda bench, work, share=1.0: "" if 0.2 < share < 1 else kinds[0],
    }.items():
        monkeypatch.setattr(Bench, name, value)
    monkeypatch.setattr(gpu_bench, "paper_or_demo_trials", lambda on_gpu, bfloat16: small)
    return kinds


def test_the_smallest_share_is_measured_and_lack_of_memory_must_have_its_kind(cpu_as_gpu):
    bench = make_bench("cpu")
    row = dict(gpu_check_parts.measure_memory(bench))["small_cnn"]
    assert row["smallest_share"] == pytest.approx(0.2, abs=0.25 / 32)
    assert row["dies_with"] <= 0.2 < row["smallest_share"]
    assert (row["kind"], row["peak_bytes"] > 0) == ("out_of_memory", True)
    faults = dict(gpu_check_parts.exhaust_memory(bench))
    assert list(faults["kinds"]) == ["allocation", "step", "evaluation", "capture"]
    # cuDNN can compute in half of the peak memory with a smaller workspace.
    assert faults["fails"] == []
    assert faults["step_note"].startswith("half of the peak memory was enough")
    assert faults["evaluation_note"] == faults["step_note"]
    cpu_as_gpu[0] = ""
    faults = dict(gpu_check_parts.exhaust_memory(bench))
    message = "isweep records an out-of-memory error in {} as no failure"
    assert faults["fails"] == [message.format("allocation"), message.format("capture")]
    cpu_as_gpu[0] = "device_error"
    faults = dict(gpu_check_parts.exhaust_memory(bench))
    assert "isweep records an out-of-memory error in capture as device_error" in faults["fails"]


def test_a_larger_context_than_planned_is_noted_and_fails_no_part(cpu_as_gpu, monkeypatch):
    total = 24 << 30
    gpu = Gpu("NVIDIA L4", "GPU-1", total, held_bytes=1 << 30)
    monkeypatch.setattr(gpu_check_parts, "visible_gpu_list", lambda: (gpu,))
    free_bytes = iter([total - (3 << 29), total - (2 << 30)])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (next(free_bytes), total))
    values = dict(gpu_check_parts.measure_context(make_bench("cpu")))
    assert (values["start"], values["small_cnn"]) == (1 << 29, 1 << 30)
    expected = "a process uses 1.00 GiB besides its tensors. Plans and runs assume 1.00 GiB"
    assert values["note"].startswith(expected)
    assert "fails" not in values


@pytest.mark.parametrize(
    ("measured", "used"),
    [({"start": 1 << 29, "vgg16": 1 << 30, "note": "larger"}, 1 << 30), ({}, CONTEXT_BYTES)],
)
def test_shares_have_room_for_the_context_that_was_measured(measured, used):
    parts = parts_of(steps_of_a100(1.0), context=measured)
    bench = make_bench("cuda")
    summary = json.loads(json.dumps(dict(gpu_check_summary.summarize(bench, parts))))
    checks = {"NVIDIA A100-SXM4-80GB": summary}
    planned = gpu_model_from_driver("NVIDIA A100-SXM4-80GB", 79.3, 8.0, 108, checks)
    usual = replace(planned, context_gib=CONTEXT_BYTES / 2**30)
    trial = bench.trial("vgg16")
    assert planned.context_bytes == used
    more_bytes = need_of(trial, planned).memory_bytes - need_of(trial, usual).memory_bytes
    assert more_bytes == pytest.approx(used - CONTEXT_BYTES)
    policy = ResourcePolicy(Resources(1, 1.0), RuntimeModel(planned))
    assert policy.start_attempt(trial).context_bytes == used


def test_a_note_of_a_part_is_printed_after_pass(tmp_path, monkeypatch):
    lines = []
    part = {"ok": True, "seconds": 1.0, "error": "", "values": {"note": "larger than planned"}}
    monkeypatch.setattr(gpu_check, "run_part", lambda *_: part)
    monkeypatch.setattr(gpu_check, "PARTS", {"host": None})
    check(None, tmp_path, lines.append)
    assert lines == ["PASS host in 1.0 s: larger than planned"]


@pytest.mark.parametrize("mps_runs", [False, True])
def test_pairs_are_measured_with_and_without_mps(tmp_path, monkeypatch, mps_runs):
    """CUDA uses MPS only if a variable names the folder of its daemon."""
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    if mps_runs:
        daemon = listening_mps(tmp_path)  # noqa: F841 (it listens as long as this name exists)
    monkeypatch.setattr(
        gpu_check,
        "measure_gain",
        lambda bench, model: {"1": 9.0, "gain": 1.5 if mps_daemon.mps_runs() else 1},
    )
    expected = {"mps": mps_runs, "without_mps": {"small_cnn": {"1": 9.0, "gain": 1}}}
    if mps_runs:
        expected["with_mps"] = {"small_cnn": {"1": 9.0, "gain": 1.5}}
    else:
        expected["mps_note"] = "MPS needs a GPU, but this check runs on a CPU"
    assert dict(gpu_check.measure_pairs(make_bench("cpu"))) == expected
    assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path)


def test_mps_that_does_not_run_is_started_to_measure_a_pair(tmp_path, monkeypatch):
    class SimulatedMps:
        """Sets the variable of MPS, and starts no program."""

        def __init__(self, uuids, note):
            assert uuids == ("GPU-1",)
            self.folder = None

        @contextmanager
        def running(self, folder):
            self.folder = folder
            with environment(CUDA_MPS_PIPE_DIRECTORY=str(tmp_path)):
                yield

    gpu = Gpu("NVIDIA H100 80GB HBM3", "GPU-1", 80 << 30, capability=9.0)
    node = NodeGpus("here", (gpu,), "580.82", "2.13.0", "13.0")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/nowhere")
    monkeypatch.setattr(torch_gpus, "describe", lambda visible: node)
    monkeypatch.setattr(nvidia_smi, "WSL", tmp_path)
    monkeypatch.setattr("orchestrator.machine.mps_choice.shutil.which", lambda name: name)
    monkeypatch.setattr(gpu_check, "PrivateMps", SimulatedMps)
    monkeypatch.setattr(
        gpu_check, "measure_gain", lambda *_: {"1": 1.0, "mps": mps_daemon.mps_runs()}
    )
    bench = replace(make_bench("cpu"), device=torch.device("cuda"))
    with listening_mps(tmp_path):
        values = dict(gpu_check.measure_pairs(bench))
    assert (values["mps"], values["mps_note"]) == (False, "MPS was started for this measurement")
    assert {row["mps"] for row in values["with_mps"].values()} == {True}
    assert {row["mps"] for row in values["without_mps"].values()} == {False}


@pytest.fixture
def exclusive_gpu(tmp_path, monkeypatch):
    """Simulate a GPU in the mode Exclusive_Process, which refuses every process without MPS."""
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))

    def rates(bench, model, number):
        if mps_daemon.mps_runs():
            return [50.0] * number, ""
        return [], "AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"

    monkeypatch.setattr(gpu_check, "_measure_together", rates)
    with listening_mps(tmp_path):
        yield


@pytest.mark.usefixtures("exclusive_gpu")
def test_a_pair_with_mps_is_measured_even_if_no_process_runs_without():
    pairs = dict(gpu_check.measure_pairs(make_bench("cpu")))
    assert list(pairs) == ["mps", "with_mps", "without_mps"]
    assert pairs["with_mps"]["small_cnn"]["gain"] == 2.0
    assert pairs["without_mps"]["small_cnn"]["error"].startswith("1 processes: AcceleratorError")


@pytest.mark.parametrize(
    ("num_fitting", "expected"),
    [
        (2, {"1": 50.0, "2": 100.0, "gain": 2.0, "error": "4 processes: full"}),
        (1, {"1": 50.0, "error": "2 processes: full"}),
        (0, {"error": "1 processes: full"}),
    ],
)
def test_earlier_measurements_are_kept_if_more_processes_do_not_fit(
    monkeypatch, num_fitting, expected
):
    def rates(bench, model, number):
        return ([50.0] * number, "") if number <= num_fitting else ([], "full")

    monkeypatch.setattr(gpu_check, "_measure_together", rates)
    assert gpu_check.measure_gain(make_bench("cuda"), "vgg16") == expected


def test_processes_are_measured_from_the_time_at_which_all_are_warm(tmp_path, monkeypatch):
    """If one process began two seconds later, a pair would seem to gain a tenth."""
    script = """
import json, sys, time
from pathlib import Path
index = int(Path(sys.argv[1]).name)
time.sleep(0.3 * index)
Path(sys.argv[1]).with_suffix(".ready").touch()
while not Path(sys.argv[1]).with_name("go").exists():
    time.sleep(0.001)
print(json.dumps({"images_per_second": time.time()}))
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    monkeypatch.setattr(
        gpu_check,
        "_start_part",
        lambda part, device, graphs, model, ready: subprocess.Popen(
            [sys.executable, "-c", script, ready], **pipes, process_group=0
        ),
    )
    starts, error = gpu_check._measure_together(make_bench("cpu"), "small_cnn", 3)
    assert error == ""
    assert max(starts) - min(starts) < 0.3


def test_no_process_waits_for_one_that_dies_before_it_is_warm(monkeypatch):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    monkeypatch.setattr(
        gpu_check,
        "_start_part",
        lambda *_: subprocess.Popen(["false"], **pipes, process_group=0),
    )
    assert gpu_check._measure_together(make_bench("cpu"), "small_cnn", 2) == ([], "exit code 1")


def test_a_process_that_is_measured_too_long_is_killed_after_its_gpu_work_has_ended(
    tmp_path, monkeypatch
):
    """NVIDIA's MPS may hang if a client is killed while the GPU computes for it."""
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(gpu_check, "PAIR_TIMEOUT_S", 0.2)
    processes = []
    ended = []

    def start(*_):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(["sleep", "600"], **pipes))
        return processes[-1]

    def end_gpu_work(pids):
        assert all(process.poll() is None for process in processes)
        ended.append(pids)

    monkeypatch.setattr(gpu_check, "_start_part", start)
    monkeypatch.setattr(gpu_check, "end_gpu_work", end_gpu_work)
    with listening_mps(tmp_path):
        rates, error = gpu_check._measure_together(make_bench("cpu"), "small_cnn", 2)
    assert rates == []
    assert error == "the process did not end within 0.2 s"
    assert ended == [{process.pid for process in processes}]
    assert [process.returncode for process in processes] == [-9, -9]
    processes.clear()
    gpu_check._measure_together(make_bench("cpu"), "small_cnn", 2)
    assert len(ended) == 1  # without MPS, nothing must end before
    assert [process.returncode for process in processes] == [-9, -9]


@pytest.mark.long
def test_a_part_that_takes_too_long_can_clean_up_before_it_is_killed():
    """So it ends NVIDIA's MPS, also if the check was started in the background without SIGINT."""
    code = (
        "import signal, time; from orchestrator.machine import gpu_check as g\n"
        "def measure(bench):\n"
        "    try:\n"
        "        print('started', flush=True); time.sleep(600)\n"
        "    finally:\n"
        "        print('cleaned up', flush=True)\n"
        "    yield\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "g.PARTS['host'] = measure; g.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "host", "cpu", ""],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        process_group=0,
    )
    with process.stdout:
        assert process.stdout.readline() == "started\n"
        gpu_check.end_part(process)
        assert process.stdout.read() == "cleaned up\n"


def test_the_part_with_pairs_ends_later_than_its_processes():
    num_measurements = 2 * len(make_bench("cuda").slow_part_models) * 3
    assert gpu_check._timeout_s("pairs") > num_measurements * gpu_check.PAIR_TIMEOUT_S


@pytest.mark.parametrize("graphs", [["small_cnn"], []])
def test_parts_after_the_self_test_use_the_steps_of_trials(cpu_as_gpu, monkeypatch, graphs):
    """If no step can be captured, memory and real trials are measured without graphs."""
    started = []
    trainings = []
    earlier = {"correctness": {"values": {"graphs": graphs}}}
    monkeypatch.setattr(gpu_check, "_start_part", lambda *words: started.append(words))
    monkeypatch.setattr(gpu_check, "_wait_for_values", lambda *_: ({}, ""))
    monkeypatch.setattr(gpu_check, "end_part", lambda process: None)
    run_part("memory", "cuda", earlier)
    run_part("host", "cuda", {})
    assert started == [("memory", "cuda", graphs), ("host", "cuda", [])]

    def collect_training(model, images, *_, graphs, on_epoch=None, **options):
        trainings.append((graphs, len(images)))
        return [SimpleNamespace(seconds=1.0)] * 3

    monkeypatch.setattr(gpu_check_parts, "train", collect_training)
    monkeypatch.setattr(gpu_check_parts.isolation, "peak_bytes", lambda device: 1)
    bench = replace(make_bench("cpu"), graphs=frozenset(graphs))
    list(gpu_check_parts.measure_memory(bench))
    network = bench.network("small_cnn")
    size = network.recipe.batch_size
    # The last batch has the size of that of the trial whose peak is predicted.
    assert trainings[0] == (bool(graphs), 3 * size + network.train_size % size)
    assert trainings[1][0] is False  # the peak of plain steps
    graphs_of_trials = []
    result = SimpleNamespace(model_dump=lambda **_: {})
    monkeypatch.setattr(
        gpu_check_parts,
        "run_trial",
        lambda spec, data, compute: graphs_of_trials.append(compute.graphs) or result,
    )
    gpu_check_parts.real_trials(bench, "small_cnn")
    assert set(graphs_of_trials) == {bool(graphs)}


@pytest.mark.parametrize(("part", "device"), [("pairs", "cpu"), ("memory", "cuda")])
def test_a_process_that_dies_is_a_part_that_failed(monkeypatch, part, device):
    monkeypatch.setattr(gpu_check.sys, "executable", "/bin/false")
    outcome = run_part(part, device, {})
    assert not outcome["ok"]
    assert outcome["error"].endswith("exit code 1")


@pytest.mark.parametrize(
    ("last_statement", "error"),
    [
        ("raise OSError('capture failed')", "OSError: capture failed"),
        ("os._exit(7)", "exit code 7"),
        ("time.sleep(999)", "the process did not end within 0.1 s"),
    ],
)
def test_a_part_keeps_its_measurements_however_it_ends(monkeypatch, last_statement, error):
    code = f"""
import json, os, time
print('a warning')
print(json.dumps({{'resnet18': {{'eager_ms': 7.5}}}}))
print('{{"cut short', end='', flush=True)
{last_statement}
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "process_group": 0}

    def start(*_):
        process = subprocess.Popen([sys.executable, "-c", code], **pipes)
        select.select([process.stdout], [], [])  # the process has printed everything
        return process

    limit_s = 0.1 if "sleep" in last_statement else 400.0
    monkeypatch.setattr(gpu_check, "_timeout_s", lambda part: limit_s)
    monkeypatch.setattr(gpu_check, "_start_part", start)
    outcome = run_part("step_times", "cuda", {})
    assert (outcome["values"], outcome["error"]) == ({"resnet18": {"eager_ms": 7.5}}, error)


@pytest.fixture
def timed_steps(cpu_as_gpu, monkeypatch):
    """Simulate a GPU with a load in nvidia-smi, and return the order of its timed steps."""
    order = []
    gpu = Gpu("NVIDIA L4", "GPU-1", 2**34)
    monkeypatch.setattr(gpu_check_parts, "visible_gpu_list", lambda: (gpu,))
    monkeypatch.setattr(gpu_check_parts, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(nvidia_smi, "query", lambda field, gpu: [[f"{field} of {gpu}"]])

    def step_seconds(bench, model, duration_s, *, graphs, sample_load=lambda: None):
        sample_load()
        order.append((model, graphs, torch.backends.cudnn.deterministic))
        if model == "broken" and graphs:
            raise CaptureError("a step could not be captured")
        time.sleep(0.05)
        return [0.01 * len(order)] * 3

    monkeypatch.setattr(Bench, "step_seconds", step_seconds)
    monkeypatch.setattr(Bench, "batch_size", lambda bench, model: 6)
    return order


def test_plain_steps_and_graphs_are_timed_in_turn_with_the_load_of_the_gpu(timed_steps):
    times = dict(gpu_check_parts.measure_step_times(make_bench("cpu")))
    deterministic = timed_steps[0][2]
    first_four = [(graphs, is_deterministic) for _, graphs, is_deterministic in timed_steps[:4]]
    assert first_four == [(graphs, deterministic) for graphs in (False, True, False, True)]
    assert timed_steps[4][1:] == (False, False)  # what deterministic kernels cost
    row = times["small_cnn"]
    assert (row["eager_ms"], row["graph_ms"], row["not_deterministic_ms"]) == pytest.approx(
        (20, 30, 50)
    )
    load = row["graph_ms_load"]
    assert load["power.draw"] == "power.draw of --id=GPU-1"
    assert {"clocks.current.sm", "temperature.gpu", "clocks_event_reasons.active"} <= set(load)
    assert times["fails"] == []


def test_the_load_is_sampled_in_the_middle_of_the_training_which_lasts_until_then(monkeypatch):
    """A VGG is built on the CPU for seconds, in which the GPU is idle."""
    epochs = []
    sampled_at = []
    epoch_40_has_ended = threading.Event()

    def train(bench, model, images, labels, num_epochs, *, graphs, on_epoch):
        for epoch in range(1, num_epochs):
            epochs.append(epoch)
            if epoch == 40:
                epoch_40_has_ended.set()
            on_epoch(EpochRecord(epoch, 0.7, 0.5, seconds=1.0))
            time.sleep(0.001)

    def sample_load():
        sampled_at.append(len(epochs))
        assert epoch_40_has_ended.wait(60)

    monkeypatch.setattr(Bench, "train_network", train)
    seconds = make_bench("cpu").step_seconds(
        "small_cnn", 10.0, graphs=False, sample_load=sample_load
    )
    # Half of ten measured seconds, after the warm-up.
    assert sampled_at[0] >= gpu_bench.WARM_UP_EPOCHS + 5
    assert epochs[-1] >= 40
    assert seconds == [1.0 / gpu_bench.BATCHES_PER_EPOCH] * (epochs[-1] - gpu_bench.WARM_UP_EPOCHS)


def test_a_network_whose_graphs_fail_keeps_its_plain_times_and_stops_no_other(timed_steps):
    bench = replace(make_bench("cpu"), models=("broken", "small_cnn"))
    times = dict(gpu_check_parts.measure_step_times(bench))
    assert times["broken"]["eager_ms"] == pytest.approx(10)
    assert times["small_cnn"]["graph_ms"] > 0
    assert times["fails"] == ["broken: CaptureError: a step could not be captured"]


def test_each_network_is_tested_although_one_fails_and_every_difference_is_named(monkeypatch):
    equal = Difference(0.0, 0.0)
    slow = TrainingComparison("resnet50", equal, equal, plain_s=1, again_s=1, graph_s=2)
    verdicts = {
        "resnet18": Verdict("", "resnet18: CaptureError: unsupported", PlainStepsCause.ERROR),
        "resnet34": Verdict(),
        "resnet50": Verdict("", slow.slowness, PlainStepsCause.SLOW_GRAPHS, trainings=(slow,)),
        "vgg13": Verdict("vgg13: the first loss is nan", "the same", PlainStepsCause.WRONG_GPU),
        "vgg16": Verdict("", "vgg16: a weight differs", PlainStepsCause.DIFFERENT_GRAPHS),
        "vgg19": Verdict(
            "vgg19: a loss",
            "the same",
            PlainStepsCause.WRONG_GPU,
            reason_for_doubt="later it was right",
        ),
    }
    tested = []

    def run(case, device):
        tested.append(case)
        return verdicts[case.model.name]

    monkeypatch.setattr(program, "run_self_test", run)
    cases = make_bench("cuda").self_test_cases()
    bench = make_bench("cpu")
    monkeypatch.setattr(Bench, "self_test_cases", lambda bench: cases)
    correctness = dict(gpu_check_parts.check_correctness(bench))
    assert [case.model.name for case in tested] == list(PAPER_MODELS)
    # Batches have the sizes of the sweep: other sizes use other kernels.
    networks = [trial.network for trial in make_bench("cuda").trials]
    batch_sizes = {network.model.name: network.recipe.batch_size for network in networks}
    assert {case.model.name: case.batch_size for case in tested} == batch_sizes
    assert correctness["graphs"] == ["resnet34"]
    assert correctness["fails"] == [
        "trials cannot use captured graphs: resnet18: CaptureError: unsupported",
        "the GPU computes wrongly: vgg13: the first loss is nan",
        "trials cannot use captured graphs: vgg16: a weight differs",
        "the GPU computed wrongly once: vgg19: a loss. However, later it was right",
    ]
    assert len(correctness["self_test"]) == 6


@pytest.mark.parametrize("kind", ["product", "convolution"])
def test_tensorfloat_32_is_detected_in_products_and_in_convolutions(monkeypatch, kind):
    """PyTorch uses TensorFloat-32 by default for convolutions and not for products."""
    monkeypatch.setattr(gpu_bench, "SMALL_CASES", (TINY,))

    def round_to_tf32(tensor):
        """Keep ten bits of the mantissa."""
        return (tensor.view(torch.int32) & -(2**13)).view(torch.float32)

    owner, name = {
        "product": (torch, "matmul"),
        "convolution": (torch.nn.functional, "conv2d"),
    }[kind]
    exact = getattr(owner, name)

    def with_tf32(left, right, *arguments, **options):
        if left.dtype == torch.float32 and left.shape in ((512, 512), (8, 64, 56, 56)):
            left = round_to_tf32(left)
            right = round_to_tf32(right)
        return exact(left, right, *arguments, **options)

    monkeypatch.setattr(owner, name, with_tf32)
    errors = gpu_check_parts.float32_errors(make_bench("cpu"))
    assert errors[kind] > 1e-4
    other_kind = {"product": "convolution", "convolution": "product"}[kind]
    assert errors[other_kind] < 1e-6
    outcome = run_part("correctness", "cpu", {})
    assert f"a {kind} in float32 has a relative error of" in outcome["error"]


@pytest.fixture
def quick_parts(monkeypatch):
    """Replace the parts by quick ones: one raises, one has a fault, and one needs a GPU."""

    def fail(bench):
        raise RuntimeError(f"broken on {socket.gethostname()}")

    parts = {
        "host": lambda bench: iter([("cores", 2)]),
        "gpu": lambda bench: iter(()),
        "correctness": fail,
        "faults": lambda bench: iter([("fails", ["memory that runs out is taken for code_error"])]),
        "summary": lambda bench, parts: iter([("pair_gain", 1.2), ("seen", sorted(parts))]),
    }
    monkeypatch.setattr(gpu_check, "PARTS", parts)


@pytest.mark.usefixtures("quick_parts")
def test_no_part_stops_the_next_and_the_file_is_written_after_each(tmp_path, monkeypatch):
    written = []
    lines = []
    write_atomic = gpu_check.write_atomic

    def collect_and_write(path, data):
        written.append(json.loads(data))
        return write_atomic(path, data)

    monkeypatch.setattr(gpu_check, "write_atomic", collect_and_write)
    path, ok = check(None, tmp_path / "gpu", lines.append)
    assert not ok
    # The file is written after each part, and once more under the name of the finished file.
    assert [len(record["parts"]) for record in written] == [1, 2, 3, 4, 4]
    parts = json.loads(path.read_text())["parts"]
    assert [part["ok"] for part in parts.values()] == [True, False, False, True]
    assert all(set(part) == {"ok", "seconds", "values", "error"} for part in parts.values())
    outcomes = [line.partition(" in ")[0] for line in lines]
    assert outcomes == ["PASS host", "FAIL correctness", "FAIL faults", "PASS summary"]
    assert parts["summary"]["values"]["seen"] == ["correctness", "faults", "host"]
    assert socket.gethostname() not in path.read_text()


@pytest.mark.usefixtures("quick_parts")
def test_plans_read_valid_files_and_the_last_folder_counts(tmp_path):
    *_, folder = gpu_check_folders(tmp_path)
    path, _ = check(None, folder, lambda line: None)
    assert path.parent == tmp_path / "gpu"
    other_text = path.read_text().replace('"pair_gain": 1.2', '"pair_gain": 3')
    (tmp_path / path.name).write_text(other_text)
    assert read_checks([tmp_path, folder, tmp_path / "absent"])["CPU"]["pair_gain"] == 1.2
    assert read_checks([folder, tmp_path])["CPU"]["pair_gain"] == 3
    path.write_text("{}")
    (folder / "gpu-check-broken.json").write_text("no JSON")
    assert read_checks([folder]) == {}


@pytest.mark.usefixtures("quick_parts")
def test_a_stopped_check_keeps_its_results_and_the_earlier_file(tmp_path, monkeypatch):
    path, _ = check(None, tmp_path, lambda line: None)
    text = path.read_text()

    def interrupt(bench):
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu_check.PARTS, "faults", interrupt)
    with pytest.raises(
        KeyboardInterrupt, match=r"gpu-check-cpu-cpu\.unfinished\. If you run the same command"
    ):
        check(None, tmp_path, lambda line: None)
    assert path.read_text() == text
    unfinished = json.loads(path.with_suffix(".unfinished").read_text())
    assert list(unfinished["parts"]) == ["host", "correctness"]
    assert read_checks([tmp_path])["CPU"]["pair_gain"] == 1.2


@pytest.mark.parametrize(
    ("summary", "is_read"),
    [
        ({"row": {"half_tflops": 300, "compute_efficiency": 0.4}}, True),
        ({"row": {"half_tflops": 300, "field_of_an_older_version": []}}, True),
        ({"row": None, "pair_gain": None}, True),
        *(
            ({"row": {"compute_efficiency": value}}, False)
            for value in ("fast", -1, None, float("nan"))
        ),
        ({"row": {"network_factors": [["vgg16", 1.2]]}}, True),
        ({"row": {"network_factors": [["vgg16", -1]]}}, False),
        ({"row": {"network_factors": 7}}, False),
        ({"row": 7}, False),
        ({"pair_gain": "much"}, False),
        (["PASS"], False),
        (None, False),
    ],
)
def test_a_file_of_another_form_breaks_no_plan(tmp_path, summary, is_read):
    record = {"gpu": "NVIDIA A100-SXM4-80GB", "parts": {"summary": {"values": summary}}}
    (tmp_path / "gpu-check-a100.json").write_text(json.dumps(record))
    checks = read_checks([tmp_path])
    assert (list(checks) == ["NVIDIA A100-SXM4-80GB"]) is is_read
    assert gpu_model_from_driver("NVIDIA A100-SXM4-80GB", 79.3, 8.0, 108, checks).memory_gib == 79.3
    assert packing_pays("NVIDIA A100-SXM4-80GB", checks, mps=True)


@pytest.mark.parametrize("user", ["somebody", None])
def test_a_file_names_neither_machine_nor_user_nor_path(monkeypatch, user):
    """The user of a container may have no name."""
    monkeypatch.setattr(getpass, "getuser", lambda: user or {}["uid not found: 1234"])
    monkeypatch.setattr(socket, "gethostname", lambda: "node1.lab.edu")
    text = without_names(
        "somebody on node1.lab.edu, node1 and node12: /home/somebody/file.py failed"
    )
    assert text == f"{'...' if user else 'somebody'} on ..., ... and node12: ... failed"
    values = {
        "reason": ["no node1"],
        "numbers": (1, 0.5, None, True),
        "of": {7: torch.device("cpu")},
    }
    expected = {"reason": ["no ..."], "numbers": [1, 0.5, None, True], "of": {"7": "cpu"}}
    assert without_names(values) == expected


def test_processes_of_a_part_end_with_the_part():
    """A process that a part started would otherwise compute during the next part."""
    code = (
        "import subprocess; subprocess.Popen(['sh', '-c', 'echo started; exec sleep 99']); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], **pipes, process_group=0)
    with process.stdin, process.stdout:
        assert process.stdout.readline() == "started\n"
        gpu_check.end_part(process)
        assert process.stdout.read() == ""  # returns when no process has the pipe open


def test_a_gpu_without_bfloat16_is_measured_in_float32():
    for bfloat16, precision in ((True, "bfloat16"), (False, "float32")):
        trial = replace(make_bench("cuda"), bfloat16=bfloat16).trial("vgg16")
        assert trial.network.recipe.precision == precision


def parts_of(step_ms, graphs=(), **changes):
    """Return the parts of a check in which the steps of each network took ``step_ms``."""
    parts = {
        "gpu": {"planned_as": asdict(GPU_MODELS["a100"]), "capability": 8.0},
        "step_times": {
            model: {"eager_ms": milliseconds, "graph_ms": milliseconds / 2}
            for model, milliseconds in step_ms.items()
        },
        "passes": {model: {"evaluate_16": 2000.0, "fgsm": 500.0} for model in step_ms},
        "trial": {
            model: [
                {"train_size": size, "timings": {"build": 1.0, "train": 9.0, "d_repr": d_repr}}
                for size, d_repr in ((500, 0.1), (FULL_SIZE, 2.0))
            ]
            for model in ("resnet18", "vgg16")
        },
        "correctness": {"graphs": list(graphs), "self_test": dict.fromkeys(step_ms)},
        "memory": dict.fromkeys(step_ms),
    }
    return {name: {"ok": True, "values": values} for name, values in (parts | changes).items()}


def steps_of_a100(factor):
    """Return the predicted milliseconds of a step on an A100 for each network, times a factor."""
    bench = make_bench("cuda")
    step_ms = {}
    for model in bench.models:
        step = cost_of(bench.network(model)).step
        predicted = pass_time(step, GPU_MODELS["a100"], interval=EAGER_INTERVAL_S)
        step_ms[model] = factor * 1000 * predicted.seconds
    return step_ms


def test_the_summary_gives_the_planner_a_row():
    """A GPU that is twice as fast as its row predicts gets twice the efficiency."""
    gpu = GPU_MODELS["a100"]
    parts = parts_of(steps_of_a100(0.5))
    summary = dict(gpu_check_summary.summarize(make_bench("cuda"), parts))
    assert summary["row"]["compute_efficiency"] == pytest.approx(2 * gpu.compute_efficiency)
    assert GpuModel(**summary["row"]).origin == "gpu-check: 2.00 times as fast as predicted"
    names = "resnet18, resnet34, resnet50, vgg13, vgg16, vgg19"
    assert summary["verdict"] == f"PASS; plain steps for {names}"
    with_fault = parts | {"faults": {"ok": False, "values": {}}}
    failed_summary = dict(gpu_check_summary.summarize(make_bench("cuda"), with_fault))
    assert failed_summary["verdict"].startswith("FAIL: faults; plain steps")
    checks = {"NVIDIA A100-SXM4-80GB": summary}
    measured = gpu_model_from_driver("NVIDIA A100-SXM4-80GB", 79.3, 8.0, 108, checks)
    assert measured.compute_efficiency == pytest.approx(2 * gpu.compute_efficiency)


def test_the_verdict_names_the_networks_that_a_part_did_not_reach():
    """A part that is ended at its time limit keeps the networks before."""
    models = make_bench("cuda").models
    parts = parts_of(steps_of_a100(1.0), graphs=models)
    for part, measured_models in (("step_times", models[:4]), ("passes", models[:5])):
        values = parts[part]["values"]
        parts[part]["values"] = {model: values[model] for model in measured_models}
    del parts["correctness"]["values"]["self_test"]["vgg19"]
    parts["memory"] = {"ok": False, "values": {}}
    verdict = dict(gpu_check_summary.summarize(make_bench("cuda"), parts))["verdict"]
    expected = "FAIL: memory; correctness lacks vgg19; step_times lacks vgg16, vgg19; "
    assert verdict == f"{expected}passes lacks vgg19; memory lacks {', '.join(models)}"


def test_a_self_test_that_hangs_has_its_own_limit_and_the_next_network_is_tested(monkeypatch):
    """Six networks shared one limit: the first that hung took the results of the others."""
    passing_verdict = Verdict().as_fields()
    outputs = {
        "resnet18": ProgramOutput(json.dumps(passing_verdict)),
        "resnet34": ProgramOutput("", "no answer in 300 s", timed_out=True),
        "vgg13": ProgramOutput("", "no answer in 300 s", True, f"{PASSED_LINE}\n"),
        "vgg16": ProgramOutput(json.dumps(passing_verdict)),
    }
    limits = []

    def run_program(*command, timeout_s, **options):
        limits.append(timeout_s)
        return outputs[Case.from_json(command[-1]).model.name]

    bench = make_bench("cpu")
    cases = tuple(replace(TINY, model=model_spec(name)) for name in outputs)
    monkeypatch.setattr(Bench, "on_gpu", True)
    monkeypatch.setattr(Bench, "self_test_cases", lambda bench: cases)
    monkeypatch.setattr(stored_verdicts, "run_program", run_program)
    monkeypatch.setattr(gpu_check_parts, "_attack_and_features", lambda bench: (1.0, 0.0))
    monkeypatch.setattr(gpu_check_parts, "wrong_products", lambda bench: [])
    values = dict(gpu_check_parts.check_correctness(bench))
    assert limits == [stored_verdicts.TIMEOUT_S] * 4
    assert values["graphs"] == ["resnet18", "vgg16"]
    unknown = "resnet34: the self-test ended before it had compared GPU and CPU"
    no_graphs = "vgg13: the self-test ended before it had tested graphs"
    assert values["fails"] == [
        f"it is unknown whether the GPU computes correctly: {unknown}: no answer in 300 s",
        f"trials cannot use captured graphs: {no_graphs}: no answer in 300 s",
    ]
    longest = len(PAPER_MODELS) * stored_verdicts.TIMEOUT_S
    assert gpu_check._timeout_s("correctness") > longest


@pytest.mark.parametrize("part", ["step_times", "passes", "memory"])
def test_a_part_has_time_for_all_networks_on_a_slow_gpu(part):
    """Five measurements, each with a build of 5 s; twice for captures; twice on a busy machine."""
    seconds_per_network = 5 * (gpu_check_parts.STEP_SECONDS + 5.0)
    assert gpu_check._timeout_s(part) > 2 * 2 * len(PAPER_MODELS) * seconds_per_network


def test_the_part_with_trials_ends_later_than_its_trials():
    num_networks = len(make_bench("cuda").slow_part_models)
    assert gpu_check._timeout_s("trial") > num_networks * gpu_check_parts.TRIAL_TIMEOUT_S


def test_hours_are_the_sum_of_the_measured_times():
    """Compare with a calculation by hand for the 972 trials of the study."""
    bench = make_bench("cuda")
    step_ms = {model: 7.0 + index for index, model in enumerate(bench.models)}
    summary = dict(gpu_check_summary.summarize(bench, parts_of(step_ms, graphs=bench.models)))
    assert summary["verdict"] == "PASS"
    seconds = 0.0
    for trial in bench.trials:
        network = trial.network
        recipe = network.recipe
        num_steps = recipe.epochs * -(-network.train_size // recipe.batch_size)
        seconds += num_steps * step_ms[network.model.name] / 2 / 1000
        seconds += 1.0 + 2.0 * (network.train_size / FULL_SIZE) ** 2
        cost = cost_of(network)
        batches = batch_passes(trial, cost)
        seconds += batches.evaluations * cost.evaluation_batch / 2000
        seconds += batches.gradients * cost.attack_batch / 500
    assert summary["hours"] == pytest.approx(seconds / 3600, rel=1e-9)


def test_a_plan_predicts_the_measured_hours():
    """One network may be slower than the others, so one factor for all is not enough."""
    bench = make_bench("cuda")
    step_ms = {model: 5.0 + 4 * index for index, model in enumerate(bench.models)}
    summary = dict(gpu_check_summary.summarize(bench, parts_of(step_ms, graphs=bench.models)))
    checks = {"NVIDIA A100-SXM4-80GB": json.loads(json.dumps(summary))}
    planned = gpu_model_from_driver("NVIDIA A100-SXM4-80GB", 79.3, 8.0, 108, checks)
    hours = sum(need_of(trial, planned, fixed_share=1.0).seconds for trial in bench.trials) / 3600
    assert hours == pytest.approx(summary["hours"])
    assert on_gpus(bench.trials, planned, 1, share=1.0)["hours"] == pytest.approx(summary["hours"])


@pytest.mark.parametrize("slower", ["vgg", "resnet"])
def test_a_slower_network_adds_the_hours_of_its_own_steps(slower):
    """One factor for all networks once gave 17.2 hours instead of 20.1 measured hours."""
    bench = make_bench("cuda")
    equal_step_ms = steps_of_a100(1.0)
    unequal_step_ms = dict(equal_step_ms)
    for model in equal_step_ms:
        if model.startswith(slower):
            unequal_step_ms[model] *= 2

    def hours_with(step_ms):
        values = {name: part["values"] for name, part in parts_of(step_ms).items()}
        return measured_hours(bench.trials, MeasuredTimes.of_parts(values, ()))

    added_ms = 0.0
    for network in [trial.network for trial in bench.trials]:
        if network.model.name.startswith(slower):
            steps_per_epoch = -(-network.train_size // network.recipe.batch_size)
            num_steps = network.recipe.epochs * steps_per_epoch
            added_ms += num_steps * equal_step_ms[network.model.name]
    added_hours = hours_with(unequal_step_ms) - hours_with(equal_step_ms)
    assert added_hours == pytest.approx(added_ms / 3.6e6)


@pytest.mark.parametrize("missing", ["passes", "trial", "step_times"])
def test_without_a_measurement_the_hours_are_unknown(missing):
    parts = parts_of(steps_of_a100(1.0))
    values = parts[missing]["values"]
    for model in [model for model in values if model.startswith("vgg")]:
        del values[model]
    summary = dict(gpu_check_summary.summarize(make_bench("cuda"), parts))
    assert summary["hours"] is None
    assert summary["hours_note"].startswith("the hours are unknown")


@pytest.mark.parametrize(
    ("mps", "gain_without_mps", "gain_with_mps", "num_gpus"),
    [
        (False, 1.2, 1.05, "left out: trials share a GPU"),
        (True, 1.2, 1.05, 1),
        (True, 1.0, 1.3, "left out: trials share a GPU"),
        # A run also shares a GPU under MPS if no pair was measured with MPS.
        (True, 1.0, None, "left out: trials share a GPU"),
        # Without MPS, a run starts MPS if it gains enough.
        (False, None, 1.3, "left out: trials share a GPU"),
        (False, 1.0, 1.4, "left out: trials share a GPU"),
        (False, 1.0, 1.05, 1),
        (False, None, None, 1),
    ],
)
def test_the_advice_on_sharing_agrees_with_a_run(mps, gain_without_mps, gain_with_mps, num_gpus):
    pairs = {"mps": mps, "without_mps": {}, "with_mps": {"vgg16": {"error": "full"}}}
    for name, gain in (("without_mps", gain_without_mps), ("with_mps", gain_with_mps)):
        if gain is not None:
            pairs[name]["resnet18"] = {"gain": gain}
    parts = parts_of({}, pairs=pairs)
    summary = dict(gpu_check_summary.summarize(make_bench("cuda"), parts))
    assert (summary["pair_gain"], summary["pair_gain_mps"]) == (gain_without_mps, gain_with_mps)
    assert summary["num_gpus"] == num_gpus


def test_a_gpu_is_chosen_by_its_number_and_a_machine_without_one_gets_a_hint(monkeypatch):
    first = Gpu("A", "GPU-1", 2**34)
    second = Gpu("B", "GPU-2", 2**34)
    monkeypatch.setattr(gpu_check, "visible_gpu_list", lambda: (first, second))
    assert devices(None) == [first, second]
    assert devices("1") == [second]
    assert devices("cpu") == [None]
    for wrong in ("2", "-1", "cuda:0"):
        with pytest.raises(
            ConfigError,
            match=f"`--device {wrong}` is not the number .* one of these numbers: 0, 1[.] Or",
        ):
            devices(wrong)
    monkeypatch.setenv(LOGICAL_GPUS, "1")
    with pytest.raises(
        SetupError, match=r"Run `isweep doctor` to see the cause\. .* `--device cpu`"
    ):
        devices(None)
