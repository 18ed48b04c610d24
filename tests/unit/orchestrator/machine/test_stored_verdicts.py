"""Verdicts of self-tests are kept per GPU, versions and network, while they are valid."""

import json
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest

from orchestrator.machine.gpus import nvidia_smi
from orchestrator.machine.processes import ProgramOutput
from orchestrator.machine.self_test import stored_verdicts
from orchestrator.machine.self_test.case import PASSED_LINE, Case
from orchestrator.machine.self_test.stored_verdicts import StoredVerdict, read_or_run_self_test
from search_spaces.models import model_spec

RESNET = Case(model_spec("resnet18"), 40)
VGG = Case(model_spec("vgg13"), 6)


@pytest.fixture
def simulated_machine(tmp_path, monkeypatch):
    """Simulate a driver and an empty cache; return a function that starts a new process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(nvidia_smi, "driver_version", lambda: "580.65")
    start_new_process(monkeypatch)
    return partial(start_new_process, monkeypatch)


@pytest.fixture
def simulated_tests(simulated_machine, monkeypatch):
    """The list of tested cases, and the outcome of the next tests."""
    tested_cases = []
    outcome = {"gpu_problem": "", "reason_for_plain_steps": "", "is_final": True}

    def simulate_test(case, file):
        tested_cases.append(case)
        return StoredVerdict(**outcome, tested_at=time.time(), file=file)

    monkeypatch.setattr(stored_verdicts, "_run_test", simulate_test)
    return tested_cases, outcome


def start_new_process(monkeypatch):
    """Forget what this process knows, as another process would not know it."""
    monkeypatch.setattr(stored_verdicts, "_verdicts_of_this_process", {})


def test_each_network_is_tested_once_per_gpu_and_driver(simulated_tests, monkeypatch):
    tested_cases, _ = simulated_tests
    other_batch = replace(RESNET, batch_size=12)  # as a search tries many
    for uuid, case in (
        ("GPU-1", RESNET),
        ("GPU-1", other_batch),
        ("GPU-1", VGG),
        ("GPU-2", RESNET),
    ):
        start_new_process(monkeypatch)
        read_or_run_self_test(uuid, case)
    assert tested_cases == [RESNET, VGG, RESNET]
    monkeypatch.setattr(nvidia_smi, "driver_version", lambda: "590.1")
    start_new_process(monkeypatch)
    read_or_run_self_test("GPU-1", RESNET)
    assert len(tested_cases) == 4


def test_a_verdict_that_is_not_final_is_valid_for_ten_minutes(simulated_tests, monkeypatch):
    tested_cases, outcome = simulated_tests
    outcome |= {"reason_for_plain_steps": "they take 2 s", "is_final": False}
    now = time.time()
    for seconds, num_tests in ((0, 1), (599, 1), (601, 2), (602, 2)):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: now + seconds)
        assert read_or_run_self_test("GPU-1", RESNET).reason_for_plain_steps == "they take 2 s"
        assert len(tested_cases) == num_tests
    outcome |= {"reason_for_plain_steps": "", "is_final": True}
    monkeypatch.setattr(time, "time", lambda: now + 1900)
    assert (
        read_or_run_self_test("GPU-1", RESNET).reason_for_plain_steps == ""
    )  # in the same process


def test_the_validity_of_verdicts_that_are_not_final_doubles_up_to_a_day(
    simulated_tests, monkeypatch
):
    tested_cases, outcome = simulated_tests
    outcome |= {"reason_for_plain_steps": "they take 2 s", "is_final": False}
    tested_at = time.time()
    for number, minutes in enumerate((10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440), start=1):
        for age_s in (0, 60 * minutes - 1):
            now = tested_at + age_s
            monkeypatch.setattr(time, "time", lambda now=now: now)
            start_new_process(monkeypatch)  # the validity is stored in the file
            assert read_or_run_self_test("GPU-1", RESNET).is_valid
            assert len(tested_cases) == number
        tested_at += 60 * minutes + 1


def test_the_verdict_of_a_wrong_gpu_is_valid_until_its_file_is_deleted(
    simulated_tests, monkeypatch
):
    tested_cases, outcome = simulated_tests
    outcome |= {"gpu_problem": "vgg13: the first loss is nan", "reason_for_plain_steps": "the same"}
    assert read_or_run_self_test("GPU-1", VGG).gpu_problem
    outcome |= {"gpu_problem": "", "reason_for_plain_steps": ""}
    start_new_process(monkeypatch)
    verdict = read_or_run_self_test("GPU-1", VGG)
    assert (verdict.gpu_problem, len(tested_cases)) == ("vgg13: the first loss is nan", 1)
    verdict.file.unlink()
    start_new_process(monkeypatch)
    assert read_or_run_self_test("GPU-1", VGG).gpu_problem == ""


@pytest.mark.parametrize("broken", ["home", "cache", "record"])
def test_a_verdict_that_cannot_be_saved_costs_one_test_per_process(
    simulated_tests, tmp_path, monkeypatch, broken
):
    tested_cases, _ = simulated_tests
    if broken == "home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "/proc/nowhere")
    elif broken == "cache":
        (tmp_path / "cache").write_text("a file where the folder should be")
    for num_tests in (1, 2):
        start_new_process(monkeypatch)
        for _ in range(3):
            assert read_or_run_self_test("GPU-1", RESNET).gpu_problem == ""
        assert len(tested_cases) == num_tests
        for path in (tmp_path / "cache").rglob("*.json"):
            path.write_text('{"is_final": true}')


def test_the_verdict_is_the_last_line_of_the_output(monkeypatch, tmp_path):
    fields = {"wrong": "", "plain_because": "vgg13: OutOfMemoryError", "is_final": False}
    fields |= {"doubt": "", "unchecked": ""}
    monkeypatch.setattr(
        stored_verdicts,
        "run_program",
        lambda *command, **options: ProgramOutput(f"a warning\n{json.dumps(fields)}"),
    )
    verdict = stored_verdicts._run_test(VGG, tmp_path / "verdict.json")
    assert (verdict.reason_for_plain_steps, verdict.is_final) == ("vgg13: OutOfMemoryError", False)


SELF_TEST = """#!/bin/sh
{prints}
{ends}
"""


@pytest.fixture
def self_test_program(tmp_path, monkeypatch):
    """Put a script in the place of the self-test's process: ``(what it prints, how it ends)``."""

    def replace_program(prints: str, ends: str) -> None:
        program = tmp_path / "self-test"
        program.write_text(SELF_TEST.format(prints=f"echo '{prints}'", ends=ends))
        program.chmod(0o755)
        monkeypatch.setattr(stored_verdicts.sys, "executable", str(program))
        monkeypatch.setattr(stored_verdicts, "TIMEOUT_S", 1.0 if "sleep" in ends else 60.0)

    return replace_program


ENDINGS = [
    ("exec sleep 600", "no answer in 1 s"),
    ("echo Segmentation fault >&2; exit 139", "Segmentation fault"),
    ("exit 0", "the process printed no verdict"),
]


@pytest.mark.parametrize("ends", ["kill -ABRT $$", "exec sleep 600"])
def test_a_printed_verdict_counts_although_the_process_fails_at_its_exit(
    self_test_program, tmp_path, ends
):
    fields = {"wrong": "", "plain_because": "", "is_final": True, "doubt": "", "unchecked": ""}
    self_test_program(json.dumps(fields), ends)
    verdict = stored_verdicts._run_test(VGG, tmp_path / "verdict.json")
    assert (verdict.reason_for_plain_steps, verdict.comparison_error, verdict.is_final) == (
        "",
        "",
        True,
    )


@pytest.mark.parametrize("ends", ["exec sleep 600", "kill -SEGV $$"])
def test_a_gpu_that_computed_wrongly_stays_out_if_the_second_comparison_does_not_end(
    self_test_program, simulated_machine, ends
):
    fields = {"wrong": "vgg13: the first loss is nan", "plain_because": "the same"}
    fields |= {"is_final": True, "doubt": "the second comparison did not end", "unchecked": ""}
    self_test_program(f"{json.dumps(fields)}\na warning of a library", ends)
    verdict = read_or_run_self_test("GPU-1", VGG)
    assert (verdict.gpu_problem, verdict.reason_for_doubt) == (fields["wrong"], fields["doubt"])
    simulated_machine()  # the next process reads the verdict from its file
    assert replace(read_or_run_self_test("GPU-1", VGG), tested_at=verdict.tested_at) == verdict


@pytest.mark.parametrize(("ends", "reason"), ENDINGS)
def test_a_self_test_that_ends_before_the_comparison_proves_nothing_about_the_gpu(
    self_test_program, tmp_path, ends, reason
):
    self_test_program("a warning of a library", ends)
    verdict = stored_verdicts._run_test(VGG, tmp_path / "verdict.json")
    expected = f"vgg13: the self-test ended before it had compared GPU and CPU: {reason}"
    assert verdict.comparison_error == expected
    assert (verdict.gpu_problem, verdict.is_valid) == ("", False)


@pytest.mark.parametrize(("ends", "reason"), ENDINGS[:2])
def test_after_the_comparison_with_the_cpu_only_graphs_are_in_doubt(
    self_test_program, tmp_path, ends, reason
):
    self_test_program(PASSED_LINE, ends)
    verdict = stored_verdicts._run_test(VGG, tmp_path / "verdict.json")
    expected = f"vgg13: the self-test ended before it had tested graphs: {reason}"
    assert verdict.reason_for_plain_steps == expected
    assert (verdict.gpu_problem, verdict.comparison_error) == ("", "")
    assert (verdict.is_final, verdict.is_valid) == (False, True)


def test_a_gpu_that_was_not_compared_is_tested_again_by_the_next_trial(
    simulated_tests, monkeypatch
):
    tested_cases, outcome = simulated_tests
    outcome |= {"comparison_error": "no answer in 300 s", "is_final": False}
    assert read_or_run_self_test("GPU-1", RESNET).comparison_error == "no answer in 300 s"
    outcome |= {"comparison_error": "", "is_final": True}
    assert read_or_run_self_test("GPU-1", RESNET).comparison_error == ""
    assert len(tested_cases) == 2
    start_new_process(monkeypatch)
    assert read_or_run_self_test("GPU-1", RESNET).comparison_error == ""
    assert len(tested_cases) == 2


def test_a_process_that_waited_for_a_test_uses_its_verdict(simulated_tests, monkeypatch):
    """Otherwise two trials that share a GPU which hangs would wait for two time limits."""
    tested_cases, outcome = simulated_tests
    outcome |= {"comparison_error": "no answer in 300 s", "is_final": False}
    waiting = []
    original_lock = stored_verdicts._locked

    @contextmanager
    def lock_after_other_test(path):
        if not waiting:
            waiting.append(path)
            # Another process tests the GPU while this process waits.
            monkeypatch.setattr(stored_verdicts, "_verdicts_of_this_process", {})
            read_or_run_self_test("GPU-1", RESNET)
            start_new_process(monkeypatch)
        with original_lock(path):
            yield

    monkeypatch.setattr(stored_verdicts, "_locked", lock_after_other_test)
    assert read_or_run_self_test("GPU-1", RESNET).comparison_error == "no answer in 300 s"
    assert len(tested_cases) == 1
