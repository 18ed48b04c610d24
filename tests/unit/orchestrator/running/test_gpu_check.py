"""The check of a GPU, on a CPU: its parts, its file, and what plans make of it."""

import getpass
import json
import socket
from dataclasses import asdict

import pytest

from orchestrator.planning.predict import CARDS, card_there, cost_of, pass_time, read_checks
from orchestrator.running import gpu_check
from orchestrator.running.gpu_check import PARTS, bench_of, check, devices, run_part, without_names
from orchestrator.running.gpus import LOGICAL_GPUS
from search_spaces.errors import SetupError


@pytest.mark.parametrize("part", ["host", "step_times", "memory"])
def test_a_part_that_needs_no_gpu_runs_on_a_cpu(part):
    found = run_part(part, "cpu", {})
    assert (found["error"], found["ok"]) == ("", True)
    assert socket.gethostname() not in json.dumps(found["values"])


def test_the_parts_are_all_there():
    assert list(PARTS) == [*("host", "gpu", "correctness", "step_times", "memory", "pairs", "summary")]


@pytest.fixture
def quick(monkeypatch):
    """Parts that take no time; one raises, one finds a fault, and one needs a GPU."""

    def broken(bench):
        raise RuntimeError(f"broken on {socket.gethostname()}")

    parts = {
        "host": lambda bench: {"cores": 2},
        "gpu": lambda bench: {},
        "correctness": broken,
        "faults": lambda bench: {"fails": ["memory that runs out is taken for code_error"]},
        "summary": lambda bench, parts: {"pair_gain": 1.2, "seen": sorted(parts)},
    }
    monkeypatch.setattr(gpu_check, "PARTS", parts)


@pytest.mark.usefixtures("quick")
def test_no_part_stops_the_next_and_the_file_is_written_after_each(tmp_path, monkeypatch):
    written, lines = [], []

    def write(path, data):
        written.append(json.loads(data))
        path.write_bytes(data)

    monkeypatch.setattr(gpu_check, "write_atomic", write)
    path, ok = check("cpu", tmp_path / "gpu", lines.append)
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
def test_plans_read_the_file_and_leave_others_alone(tmp_path):
    path, _ = check("cpu", tmp_path, lambda line: None)
    assert read_checks([tmp_path, tmp_path / "absent"])["CPU"]["pair_gain"] == 1.2
    path.write_text("{}")
    (tmp_path / "gpu-check-broken.json").write_text("no JSON")
    assert read_checks([tmp_path]) == {}


def test_a_message_names_neither_machine_nor_user_nor_path():
    said = without_names(f"{getpass.getuser()} on {socket.gethostname()}: /home/somebody/file.py failed")
    assert said == "... on ...: ... failed"


def test_the_summary_gives_the_planner_a_row():
    """A GPU that is twice as fast as its row says gets twice the shares, and fewer hours."""
    card, bench = CARDS["a100"], bench_of("cuda:0")
    times = {}
    for model in bench.models:
        step = cost_of(bench.trial(model).network).step
        half = 500 * pass_time(step, card, interval=gpu_check.EAGER_INTERVAL_S).seconds
        times[model] = {"eager_ms": half, "graph_ms": half}
    parts = {
        "gpu": {"planned_as": asdict(card)},
        "step_times": times,
        "pairs": {"mps": False, "resnet18": {"1": 100.0, "2": 130.0, "gain": 1.3}},
        "correctness": {"self_test": {"graphs": False}},
    }
    found = gpu_check.summary(bench, {name: {"ok": True, "values": v} for name, v in parts.items()})
    assert found["row"]["compute_efficiency"] == pytest.approx(2 * card.compute_efficiency)
    assert found["hours"] < found["predicted_hours"]
    assert (found["pair_gain"], found["num_gpus"]) == (1.3, "left out: trials share a GPU")
    measured = card_there("NVIDIA A100-SXM4-80GB", 79.3, {"NVIDIA A100-SXM4-80GB": found})
    assert measured.compute_efficiency == pytest.approx(2 * card.compute_efficiency)


def test_a_machine_without_a_gpu_is_told_what_to_do(monkeypatch):
    monkeypatch.setenv(LOGICAL_GPUS, "1")
    with pytest.raises(SetupError, match="isweep doctor says why; --device cpu tries the check"):
        devices(None)
    assert devices("cpu") == ["cpu"]


def test_a_part_on_a_gpu_dies_alone(monkeypatch):
    monkeypatch.setattr(gpu_check.sys, "executable", "/bin/false")
    found = run_part("memory", "cuda:0", {})
    assert (found["ok"], found["values"], found["error"]) == (False, None, "exit code 1")
