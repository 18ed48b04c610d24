"""The check of a GPU, on a CPU: its parts, its file, and what plans make of it."""

import getpass
import json
import os
import select
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from orchestrator.machine import self_test
from orchestrator.machine.gpus import LOGICAL_GPUS, Gpu, NodeGpus, gpu_check_folders
from orchestrator.planning.costs.gpu_checks import packing_pays, read_checks
from orchestrator.planning.costs.gpu_models import GPU_MODELS, GpuModel, gpu_model_there
from orchestrator.planning.costs.networks import cost_of
from orchestrator.planning.costs.pass_times import EAGER_INTERVAL_S, pass_time
from orchestrator.running import gpu_check
from orchestrator.running.gpu_check import Bench, bench_of, check, devices, nameless, run_part
from search_spaces.errors import ConfigError, SetupError
from tasks.measures.products import blas_product
from tasks.trials.training import CaptureError
from tests.unit.orchestrator.running.test_devices import mps_daemon


@pytest.mark.parametrize(
    "part", ["host", "correctness", "step_times", "passes", "memory", "faults"]
)
def test_a_part_that_needs_no_gpu_runs_on_a_cpu(monkeypatch, part):
    monkeypatch.setattr(self_test, "SMALL_CASES", (self_test.Case("small_cnn", 8, 18, 16),))
    found = run_part(part, "cpu", {})
    assert (found["error"], found["ok"]) == ("", True)
    assert socket.gethostname() not in json.dumps(found["values"])


def test_a_trial_runs_twice_in_one_process_and_says_what_it_took():
    first, second = gpu_check._two_trials(bench_of("cpu"), "small_cnn")
    assert first["timings"].keys() >= {"build", "train", "evaluate"}
    assert (first["left_bytes"], first["energy_j"]) == (0, None)
    assert first["scores"] == second["scores"]
    assert json.dumps(first)


@pytest.mark.parametrize(
    "harm", [lambda right: right[:-1], lambda right: right + np.eye(*right.shape, 2)]
)
def test_products_of_bytes_that_are_not_the_cpus_are_named_by_their_sizes(monkeypatch, harm):
    monkeypatch.setattr(self_test, "SMALL_CASES", (self_test.Case("small_cnn", 8, 18, 16),))
    assert list(gpu_check.wrong_products(bench_of("cpu"))) == []
    monkeypatch.setattr(
        gpu_check, "choose_product", lambda work: lambda a, b: harm(blas_product(a, b))
    )
    found = run_part("correctness", "cpu", {})
    assert [130, 257, 63] in found["values"]["products_that_differ"]
    assert found["error"] == "products of bytes differ from the CPU's"


def test_every_gpu_and_slice_is_checked_by_processes_that_see_it_alone(monkeypatch, tmp_path):
    found = [Gpu("NVIDIA A100 MIG 1g.10gb", f"MIG-{number}", 2**33, mig=True) for number in (1, 2)]
    asked, seen, described = [], [], NodeGpus("a", tuple(found))
    part = {"ok": True, "seconds": 1.0, "error": ""}

    def run_part(*_):
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return part

    monkeypatch.setattr(gpu_check, "describe", lambda visible: asked.append(visible) or described)
    monkeypatch.setattr(gpu_check, "slices", lambda: [its.uuid for its in found])
    monkeypatch.setattr(gpu_check, "run_part", run_part)
    monkeypatch.setattr(gpu_check, "PARTS", {"host": None})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    written = [check(its, tmp_path, lambda line: None)[0] for its in devices(None)]
    assert (asked, seen) == (["MIG-1,MIG-2"], ["MIG-1", "MIG-2"])
    assert [path.name for path in written] == [
        f"gpu-check-nvidia-a100-mig-1g-10gb-{n}.json" for n in (1, 2)
    ]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_hidden_gpus_are_not_checked_and_a_whole_one_beside_slices_is(monkeypatch):
    asked = []
    rows = [["GPU-0", "Enabled"], ["GPU-1", "Disabled"]]
    monkeypatch.setattr(
        gpu_check, "describe", lambda visible: asked.append(visible) or NodeGpus("a")
    )
    monkeypatch.setattr(gpu_check, "slices", lambda: ["MIG-1", "MIG-2"])
    monkeypatch.setattr(gpu_check, "nvidia_smi", lambda fields: rows)
    for visible in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(SetupError, match="needs a GPU"):
            devices(None)
    assert asked == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpu_check._seen() == ()
    assert asked == ["MIG-1,MIG-2,GPU-1"]


@pytest.mark.parametrize(
    ("needed", "largest", "expected"),
    [(0.30, 1.0, (0.3125, 0.28125)), (0.0, 0.5, (0.015625, 0.0)), (2.0, 1.0, (None, 0.96875))],
)
def test_the_smallest_share_is_found_by_bisection(needed, largest, expected):
    tried = []

    def ends(share):
        tried.append(share)
        return "" if share >= needed else "out_of_memory"

    found = gpu_check.smallest_share(ends, largest)
    assert (found["smallest_share"], found["dies_with"]) == expected
    assert found["kind"] == ("out_of_memory" if found["dies_with"] else "")
    assert len(tried) == 5


@pytest.fixture
def posing(monkeypatch):
    """A CPU that poses as a GPU: work runs with a share above 0.2, else dies of the kind in the
    list."""
    small, kinds = gpu_check.grid(False, True), ["out_of_memory"]
    for name, value in {
        "on_gpu": True,
        "share_of": lambda bench, size: 0.25,
        "left_bytes": lambda bench: 0,
        "failure": lambda bench, work, share=1.0: "" if 0.2 < share < 1 else kinds[0],
    }.items():
        monkeypatch.setattr(Bench, name, value)
    monkeypatch.setattr(gpu_check, "grid", lambda on_gpu, half: small)
    return kinds


def test_memory_is_measured_with_its_share_and_where_it_runs_out_must_be_taken_for_it(posing):
    bench = bench_of("cpu")
    row = dict(gpu_check.memory(bench))["small_cnn"]
    assert row["smallest_share"] == pytest.approx(0.2, abs=0.25 / 32)
    assert row["dies_with"] <= 0.2 < row["smallest_share"]
    assert (row["kind"], row["peak_bytes"] > 0) == ("out_of_memory", True)
    found = dict(gpu_check.faults(bench))
    assert list(found["kinds"]) == ["allocation", "step", "evaluation", "capture"]
    told = "memory that runs out in {} is taken for nothing"
    assert found["fails"] == [told.format("step"), told.format("evaluation")]
    posing[0] = "device_error"
    assert (
        "memory that runs out in capture is taken for device_error"
        in dict(gpu_check.faults(bench))["fails"]
    )


@pytest.mark.parametrize("runs", [False, True])
def test_pairs_with_and_without_mps_are_told_apart(tmp_path, monkeypatch, runs):
    """MPS is the folder that CUDA is told: without it a process computes as if there were none."""
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    if runs:
        daemon = mps_daemon(tmp_path)  # noqa: F841 (it listens while it is there)
    monkeypatch.setattr(
        gpu_check, "_gain", lambda bench, model: {"gain": 1.5 if gpu_check.mps_runs() else 1}
    )
    found = dict(gpu_check.pairs(bench_of("cpu")))
    with_mps = {"with_mps": {"small_cnn": {"gain": 1.5}}} if runs else {}
    assert found == {"mps": runs, "without_mps": {"small_cnn": {"gain": 1}}} | with_mps
    assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path)


@pytest.mark.parametrize(
    ("fit", "measured"),
    [
        (3, {"1": 50.0, "2": 100.0, "gain": 2.0, "error": "4 processes: full"}),
        (1, {"1": 50.0, "error": "2 processes: full"}),
    ],
)
def test_processes_that_do_not_fit_leave_what_was_measured_and_a_pair_that_does_not_no_gain(
    monkeypatch, fit, measured
):
    def answer(process):
        process.wait()
        return {"images_per_second": 50.0}, "" if len(started) <= fit else "full"

    started, start = [], gpu_check._start
    monkeypatch.setattr(gpu_check.sys, "executable", "/bin/true")
    monkeypatch.setattr(gpu_check, "_start", lambda *words: started.append(words) or start(*words))
    monkeypatch.setattr(gpu_check, "_answer", answer)
    assert gpu_check._gain(bench_of("cuda", graphs=True), "vgg16") == measured
    assert set(started) == {("rate", "cuda", True, "vgg16")}


@pytest.mark.parametrize("graphs", [True, False])
def test_parts_after_the_self_test_take_the_steps_that_trials_take(posing, monkeypatch, graphs):
    """Memory, pairs and real trials; where no step can be captured nothing is tried by graphs."""
    started, taken = [], []
    earlier = {"correctness": {"values": {"self_test": {"graphs": graphs}}}}
    monkeypatch.setattr(gpu_check, "_start", lambda *words: started.append(words))
    monkeypatch.setattr(gpu_check, "_answer", lambda process: ({}, ""))
    run_part("memory", "cuda", earlier)
    run_part("host", "cuda", {})
    assert started == [("memory", "cuda", graphs), ("host", "cuda", False)]

    def trains(model, images, *_, graphs, on_epoch=None, **how):
        taken.append((graphs, len(images)))
        return [SimpleNamespace(seconds=1.0)] * 3

    monkeypatch.setattr(gpu_check, "train", trains)
    monkeypatch.setattr(gpu_check.isolation, "peak_bytes", lambda device: 1)
    bench = replace(bench_of("cpu"), graphs=graphs)
    list(gpu_check.memory(bench))
    list(gpu_check.rate(bench, "small_cnn"))
    network = bench.trial("small_cnn").network
    size = network.recipe.batch_size
    # As ragged as the trial whose peak is predicted.
    assert taken[0] == (graphs, 3 * size + network.train_size % size)
    assert {taken[-1][0], taken[-2][0]} == {graphs}
    monkeypatch.setattr(
        gpu_check, "run_trial", lambda *of, device, graphs: 1 / (graphs == bench.graphs)
    )
    with pytest.raises(AttributeError, match="model_dump"):
        gpu_check._two_trials(bench, "small_cnn")


@pytest.mark.parametrize(("part", "device"), [("pairs", "cpu"), ("memory", "cuda")])
def test_a_process_that_dies_is_a_part_that_failed(monkeypatch, part, device):
    monkeypatch.setattr(gpu_check.sys, "executable", "/bin/false")
    found = run_part(part, device, {})
    values = {} if device == "cuda" else {"mps": False}
    assert (found["ok"], found["values"]) == (False, values)
    assert found["error"].endswith("exit code 1")


@pytest.mark.parametrize(
    ("ends", "error"),
    [
        ("raise OSError('capture failed')", "OSError: capture failed"),
        ("os._exit(7)", "exit code 7"),
        ("time.sleep(999)", "no end within 0.1 s"),
    ],
)
def test_a_part_keeps_what_it_has_however_it_ends(monkeypatch, ends, error):
    code = f"""
import json, os, time
print('a warning')
print(json.dumps({{'resnet18': {{'eager_ms': 7.5}}}}))
print('{{"cut short', end='', flush=True)
{ends}
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "process_group": 0}

    def start(*_):
        process = subprocess.Popen([sys.executable, "-c", code], **pipes)
        select.select([process.stdout], [], [])  # it has said all that it will
        return process

    monkeypatch.setattr(gpu_check, "PART_TIMEOUT_S", 0.1 if "sleep" in ends else 400.0)
    monkeypatch.setattr(gpu_check, "_start", start)
    found = run_part("step_times", "cuda", {})
    assert (found["values"], found["error"]) == ({"resnet18": {"eager_ms": 7.5}}, error)


def test_plain_steps_are_timed_before_any_is_captured(posing, monkeypatch):
    def epochs(bench, model, images, labels, number, *, graphs):
        if graphs:
            raise CaptureError("a step could not be captured")
        return [0.1] * number

    monkeypatch.setattr(Bench, "epochs", epochs)
    found = {}
    with pytest.raises(CaptureError):
        found.update(gpu_check.step_times(replace(bench_of("cpu"), models=("small_cnn",))))
    assert found["small_cnn"]["eager_ms"] == pytest.approx(10)


@pytest.fixture
def quick(monkeypatch):
    """Parts that take no time; one raises, one finds a fault, and one needs a GPU."""

    def broken(bench):
        raise RuntimeError(f"broken on {socket.gethostname()}")

    parts = {
        "host": lambda bench: iter([("cores", 2)]),
        "gpu": lambda bench: iter(()),
        "correctness": broken,
        "faults": lambda bench: iter([("fails", ["memory that runs out is taken for code_error"])]),
        "summary": lambda bench, parts: iter([("pair_gain", 1.2), ("seen", sorted(parts))]),
    }
    monkeypatch.setattr(gpu_check, "PARTS", parts)


@pytest.mark.usefixtures("quick")
def test_no_part_stops_the_next_and_the_file_is_written_after_each(tmp_path, monkeypatch):
    written, lines, write = [], [], gpu_check.write_atomic
    monkeypatch.setattr(
        gpu_check,
        "write_atomic",
        lambda path, data: written.append(json.loads(data)) or write(path, data),
    )
    path, ok = check(None, tmp_path / "gpu", lines.append)
    assert not ok
    assert [len(record["parts"]) for record in written] == [1, 2, 3, 4]
    parts = json.loads(path.read_text())["parts"]
    assert [part["ok"] for part in parts.values()] == [True, False, False, True]
    assert all(set(part) == {"ok", "seconds", "values", "error"} for part in parts.values())
    said = [line.partition(" in ")[0] for line in lines]
    assert said == ["PASS host", "FAIL correctness", "FAIL faults", "PASS summary"]
    assert parts["summary"]["values"]["seen"] == ["correctness", "faults", "host"]
    assert socket.gethostname() not in path.read_text()


@pytest.mark.usefixtures("quick")
def test_plans_read_the_files_leave_others_alone_and_what_was_measured_here_counts(tmp_path):
    *_, here = gpu_check_folders(tmp_path)
    path, _ = check(None, here, lambda line: None)
    assert path.parent == tmp_path / "gpu"
    (tmp_path / path.name).write_text(
        path.read_text().replace('"pair_gain": 1.2', '"pair_gain": 3')
    )
    assert read_checks([tmp_path, here, tmp_path / "absent"])["CPU"]["pair_gain"] == 1.2
    assert read_checks([here, tmp_path])["CPU"]["pair_gain"] == 3
    path.write_text("{}")
    (here / "gpu-check-broken.json").write_text("no JSON")
    assert read_checks([here]) == {}


@pytest.mark.usefixtures("quick")
def test_a_check_that_is_stopped_leaves_what_it_found_and_the_earlier_file_as_it_was(
    tmp_path, monkeypatch
):
    path, _ = check(None, tmp_path, lambda line: None)
    whole = path.read_text()

    def stopped(bench):
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu_check.PARTS, "faults", stopped)
    with pytest.raises(
        KeyboardInterrupt, match=r"gpu-check-cpu-cpu.unfinished; the command begins anew"
    ):
        check(None, tmp_path, lambda line: None)
    assert path.read_text() == whole
    left = json.loads(path.with_suffix(".unfinished").read_text())
    assert list(left["parts"]) == ["host", "correctness"]
    assert read_checks([tmp_path])["CPU"]["pair_gain"] == 1.2


@pytest.mark.parametrize(
    ("summary", "known"),
    [
        ({"row": {"half_tflops": 300, "compute_efficiency": 0.4}}, True),
        ({"row": {"half_tflops": 300, "field_of_an_older_version": []}}, True),
        ({"row": None, "pair_gain": None}, True),
        *(
            ({"row": {"compute_efficiency": value}}, False)
            for value in ("fast", -1, None, float("nan"))
        ),
        ({"row": 7}, False),
        ({"pair_gain": "much"}, False),
        (["PASS"], False),
        (None, False),
    ],
)
def test_a_file_of_another_form_breaks_no_plan(tmp_path, summary, known):
    record = {"gpu": "NVIDIA A100-SXM4-80GB", "parts": {"summary": {"values": summary}}}
    (tmp_path / "gpu-check-a100.json").write_text(json.dumps(record))
    checks = read_checks([tmp_path])
    assert (list(checks) == ["NVIDIA A100-SXM4-80GB"]) is known
    assert gpu_model_there("NVIDIA A100-SXM4-80GB", 79.3, 8.0, 108, checks).memory_gib == 79.3
    assert packing_pays("NVIDIA A100-SXM4-80GB", checks, mps=True)


@pytest.mark.parametrize("user", ["somebody", None])
def test_a_file_names_neither_machine_nor_user_nor_path(monkeypatch, user):
    """A container's user may have no name at all."""
    monkeypatch.setattr(getpass, "getuser", lambda: user or {}["uid not found: 1234"])
    monkeypatch.setattr(socket, "gethostname", lambda: "node1.lab.edu")
    said = nameless("somebody on node1.lab.edu, node1 and node12: /home/somebody/file.py failed")
    assert said == f"{'...' if user else 'somebody'} on ..., ... and node12: ... failed"
    found = {
        "reason": ["no node1"],
        "numbers": (1, 0.5, None, True),
        "of": {7: torch.device("cpu")},
    }
    kept = {"reason": ["no ..."], "numbers": [1, 0.5, None, True], "of": {"7": "cpu"}}
    assert nameless(found) == kept


def test_what_a_part_started_ends_with_it():
    """It would compute beside the next part."""
    code = (
        "import subprocess; subprocess.Popen(['sh', '-c', 'echo started; exec sleep 99']); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], **pipes, process_group=0)
    with process.stdin, process.stdout:
        assert process.stdout.readline() == "started\n"
        gpu_check.end_group(process)
        assert process.stdout.read() == ""  # ends when nobody holds the other end any more


def test_a_gpu_without_bfloat16_is_measured_in_float32():
    for half, precision in ((True, "bfloat16"), (False, "float32")):
        trial = replace(bench_of("cuda"), half=half).trial("vgg16")
        assert trial.network.recipe.precision == precision


@pytest.mark.parametrize(("mps", "num_gpus"), [(False, "left out: trials share a GPU"), (True, 1)])
def test_the_summary_gives_the_planner_a_row(mps, num_gpus):
    """A GPU that is twice as fast as its row says gets twice the shares, and fewer hours."""
    gpu, bench = GPU_MODELS["a100"], bench_of("cuda")
    times = {}
    for model in bench.models:
        step = cost_of(bench.trial(model).network).step
        half = 500 * pass_time(step, gpu, interval=EAGER_INTERVAL_S).seconds
        times[model] = {"eager_ms": half, "graph_ms": half}
    parts = {
        "gpu": {"planned_as": asdict(gpu), "capability": 8.0},
        "step_times": times,
        "pairs": {
            "mps": mps,
            "without_mps": {"resnet18": {"gain": 1.3}, "vgg16": {"gain": 1.2}},
            "with_mps": {
                "resnet18": {"gain": 1.05},
                "vgg16": {"error": "2 processes: exit code 1"},
            },
        },
        "correctness": {"self_test": {"graphs": False}},
    }
    told = {name: {"ok": True, "values": v} for name, v in parts.items()}
    found = dict(gpu_check.summary(bench, told))
    assert found["row"]["compute_efficiency"] == pytest.approx(2 * gpu.compute_efficiency)
    assert found["hours"] < found["predicted_hours"]
    assert (found["pair_gain"], found["pair_gain_mps"], found["num_gpus"]) == (1.2, 1.05, num_gpus)
    assert GpuModel(**found["row"]).origin == "gpu-check: 2.00 times as fast as predicted"
    assert found["verdict"] == "PASS"
    broken = told | {"faults": {"ok": False, "values": {}}}
    assert dict(gpu_check.summary(bench, broken))["verdict"] == "FAIL: faults"
    measured = gpu_model_there(
        "NVIDIA A100-SXM4-80GB", 79.3, 8.0, 108, {"NVIDIA A100-SXM4-80GB": found}
    )
    assert measured.compute_efficiency == pytest.approx(2 * gpu.compute_efficiency)


def test_a_gpu_is_chosen_by_its_number_and_a_machine_without_is_told_what_to_do(monkeypatch):
    first, second = Gpu("A", "GPU-1", 2**34), Gpu("B", "GPU-2", 2**34)
    monkeypatch.setattr(gpu_check, "_seen", lambda: (first, second))
    assert (devices(None), devices("1"), devices("cpu")) == ([first, second], [second], [None])
    for wrong in ("2", "-1", "cuda:0"):
        with pytest.raises(
            ConfigError, match=f"--device must be the number .*{wrong}.*one of 0, 1"
        ):
            devices(wrong)
    monkeypatch.setenv(LOGICAL_GPUS, "1")
    with pytest.raises(SetupError, match="isweep doctor says why; --device cpu tries the check"):
        devices(None)
