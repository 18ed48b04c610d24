"""NVIDIA's MPS for a private cluster. A script takes the place of nvidia-cuda-mps-control."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from orchestrator.machine import cluster, gpus, mps, mps_choice
from orchestrator.machine.mps import (
    PIPES,
    PRIVATE_FOLDER,
    PrivateMps,
    breaks_mps,
    end_use_of_all,
    leave_ended_mps,
)
from orchestrator.machine.mps_choice import why_no_mps
from orchestrator.machine.ray_folders import private_folder, remove_leftovers
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running import trial_device
from orchestrator.running.recovery.memory_verdicts import MAY_RETRY
from orchestrator.running.recovery.retries import Decision
from orchestrator.running.trials import Attempt, TrialLoop
from search_spaces.sweeps import ResourceSpec
from tests.unit.orchestrator.machine.test_gpu_situations import A100, H100, MIG, RTX4090, node

CONTROL = """#!{python}
import os, pathlib, shutil, signal, subprocess, sys, time
pipes = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
pid_file = pipes / "nvidia-cuda-mps-control.pid"
if sys.argv[1:] == ["-d"]:
    if os.environ.get("FAKE_START_ERROR"):
        sys.exit(os.environ["FAKE_START_ERROR"])
    daemon = subprocess.Popen(
        ["nvidia-cuda-mps-control", "600"],
        executable=shutil.which("sleep"),
        start_new_session=True,
    )
    pid_file.write_text(str(daemon.pid))
    (pipes.parent / "visible").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
else:
    command = sys.stdin.readline().strip()
    if command == "get_server_list":
        print(os.environ.get("FAKE_SERVERS", "4711"))
    elif command == "quit -t 10":
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        pid_file.unlink()
"""
UUIDS = ("GPU-1", "GPU-2")


@pytest.fixture
def control(tmp_path, monkeypatch) -> Path:
    """Put a stand-in for nvidia-cuda-mps-control on PATH; return the folder for MPS."""
    program = tmp_path / "bin" / mps.CONTROL
    program.parent.mkdir()
    program.write_text(CONTROL.replace("{python}", sys.executable), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(mps, "ATTACH", "print(2)")
    monkeypatch.setattr(mps, "MAX_PIPES_LENGTH", 200)  # the folders of pytest are long
    monkeypatch.delenv(PIPES, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "mps"


def daemon_pid(folder: Path) -> int:
    return int((folder / "pipe" / "nvidia-cuda-mps-control.pid").read_text())


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def test_mps_runs_in_the_block_for_the_gpus_by_uuid_and_ends_with_it(control):
    notes: list[str] = []
    service = PrivateMps(UUIDS, notes.append)
    with service.running(control):
        pid = daemon_pid(control)
        assert is_alive(pid)
        assert service.folder == control
        assert os.environ[PIPES] == str(control / "pipe")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
        assert (control / "visible").read_text() == "GPU-1,GPU-2"
    assert not is_alive(pid)
    assert service.folder is None
    assert PIPES not in os.environ
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert notes == ["Started NVIDIA's MPS for this sweep, so that several trials share each GPU"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_mps_ends_after_ctrl_c_and_after_an_error(control, error):
    pids = []

    def run() -> None:
        with PrivateMps(UUIDS, print).running(control):
            pids.append(daemon_pid(control))
            raise error("stop")

    with pytest.raises(error, match="stop"):
        run()
    assert not is_alive(pids[0])
    assert PIPES not in os.environ


DRIVER = """
import os, signal, sys
from pathlib import Path
from orchestrator.machine import mps
mps.ATTACH = "print(2)"
mps.MAX_PIPES_LENGTH = 200
with mps.PrivateMps(("GPU-1", "GPU-2"), lambda text: None).running(Path(sys.argv[1])):
    print(Path(sys.argv[1], "pipe", "nvidia-cuda-mps-control.pid").read_text(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_mps_ends_when_its_run_is_killed(control):
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, str(control)], capture_output=True, text=True, check=False
    )
    assert driver.returncode == -signal.SIGKILL
    pid = int(driver.stdout)
    while is_alive(pid):  # pytest's time limit ends this loop
        time.sleep(0.05)


def test_the_next_run_kills_programs_of_mps_that_a_killed_run_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "isweep-ray-killed"
    folder.mkdir()
    (folder / "owner").touch()
    servers = []
    for pipes in (folder / "mps" / "pipe", tmp_path / "others"):
        servers.append(
            subprocess.Popen(
                ["nvidia-cuda-mps-server", "600"],
                executable="/bin/sleep",
                env={**os.environ, PIPES: str(pipes)},
            )
        )
    killed, others = servers
    assert remove_leftovers() == 1
    assert killed.wait() == -signal.SIGKILL
    assert others.poll() is None
    others.kill()
    others.wait()


def set_up_failure(name: str, monkeypatch) -> None:
    """Make the start of MPS fail in one way."""
    if name == "no program":
        monkeypatch.setattr(mps, "CONTROL", "nvidia-cuda-mps-absent")
    elif name == "refused":
        monkeypatch.setenv("FAKE_START_ERROR", "Cannot find MPS control daemon process")
    elif name == "process fails":
        monkeypatch.setattr(mps, "ATTACH", "raise SystemExit('Error 807: not ready')")
    elif name == "fewer GPUs":
        monkeypatch.setattr(mps, "ATTACH", "print(1)")
    elif name == "hangs":
        monkeypatch.setattr(mps, "ATTACH", "import time; time.sleep(600)")
        monkeypatch.setattr(mps, "ATTACH_TIMEOUT_S", 0.2)
    elif name == "not used":
        monkeypatch.setenv("FAKE_SERVERS", "")
    elif name == "no shell":
        monkeypatch.setattr(mps, "SHELL", "absent-shell")
    elif name == "long path":
        monkeypatch.setattr(mps, "MAX_PIPES_LENGTH", 10)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no program", "nvidia-cuda-mps-absent -d` failed: No such file or directory"),
        ("refused", "-d` failed: Cannot find MPS control daemon process"),
        ("process fails", "no process could compute through it: Error 807: not ready"),
        ("fewer GPUs", "no process could compute through it: a process computed on 1 GPUs"),
        ("hangs", "no process could compute through it: no answer in 0.2 s"),
        ("not used", "no process uses it: no server runs"),
        ("no shell", "No such file or directory: 'absent-shell'"),
        ("long path", "is too long for a socket; set TMPDIR to a shorter path"),
    ],
)
def test_if_mps_does_not_start_the_run_continues_without_it_and_a_note_has_the_reason(
    control, monkeypatch, name, reason
):
    set_up_failure(name, monkeypatch)
    notes: list[str] = []
    service = PrivateMps(UUIDS, notes.append)
    pids = []
    original = mps._start_daemon

    def start_daemon(output_file: Path) -> str:
        problem = original(output_file)
        with suppress(OSError):
            pids.append(daemon_pid(control))
        return problem

    monkeypatch.setattr(mps, "_start_daemon", start_daemon)
    with service.running(control):
        assert PIPES not in os.environ
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
        assert service.folder is None
        assert not any(is_alive(pid) for pid in pids)
    (note,) = notes
    assert reason in note
    assert note.endswith("set `resources.mps: never`")


def test_after_the_end_of_its_use_new_processes_compute_without_mps(control):
    notes: list[str] = []
    service = PrivateMps(UUIDS, notes.append)
    service.end_use("nothing runs")
    with service.running(control):
        leave_ended_mps()
        assert os.environ[PIPES] == str(control / "pipe")
        service.end_use("trial-1 failed (device_error)")
        service.end_use("trial-2 failed (device_error)")
        leave_ended_mps()
        # CUDA computes without MPS if this folder contains no socket; gpu-check relies on it too.
        assert not Path(os.environ[PIPES]).exists()
        assert not gpus.mps_runs()
    assert len(notes) == 2
    assert "do not use NVIDIA's MPS any more: trial-1 failed (device_error)" in notes[1]


def test_a_worker_with_a_broken_gpu_ends_the_use_of_mps_before_the_driver_knows(control):
    with PrivateMps(UUIDS, print).running(control):
        end_use_of_all()
        leave_ended_mps()
        assert not gpus.mps_runs()
    assert PRIVATE_FOLDER not in os.environ
    end_use_of_all()  # without MPS of the run this changes nothing


def test_a_process_without_mps_is_left_as_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv(PIPES, raising=False)
    leave_ended_mps()
    assert PIPES not in os.environ
    monkeypatch.setenv(PIPES, str(tmp_path))
    leave_ended_mps()
    assert os.environ[PIPES] == str(tmp_path)


def test_a_worker_leaves_ended_mps_before_it_uses_cuda(monkeypatch):
    calls: list[str] = []

    def check_gpu(precision: str) -> None:
        calls.append("cuda")
        raise RuntimeError("no more is needed here")

    monkeypatch.setattr(trial_device, "leave_ended_mps", lambda: calls.append("left"))
    monkeypatch.setattr(trial_device, "check_gpu", check_gpu)
    monkeypatch.setattr(gpus, "is_logical", lambda: False)
    network = plan_sweep(load_sweep("demo")).trials[0].network
    with pytest.raises(RuntimeError, match="no more"):
        trial_device.device_for(cluster.Resources(1, 0.5), network)
    assert calls == ["left", "cuda"]


@pytest.mark.parametrize(
    ("kind", "facts", "breaks"),
    [
        (FailureKind.DEVICE_ERROR, {"device_lost": True}, True),
        (FailureKind.DEVICE_ERROR, {"capture_failed": True}, False),
        (FailureKind.HUNG, {}, True),
        (FailureKind.WORKER_CRASH, {}, True),
        (FailureKind.SETUP, {"unfit_node": True}, True),
        (FailureKind.OUT_OF_MEMORY, {"memory": "machine"}, True),
        (FailureKind.OUT_OF_MEMORY, {"memory": "gpu"}, False),
        (FailureKind.CODE_ERROR, {}, False),
    ],
)
def test_mps_is_used_no_more_after_a_failure_that_may_have_broken_it(kind, facts, breaks):
    assert breaks_mps(TrialFailure(kind=kind, message="", **facts)) is breaks


@pytest.mark.parametrize("kind", [FailureKind.DEVICE_ERROR, FailureKind.CODE_ERROR])
def test_after_a_device_error_of_a_trial_its_run_stops_using_mps(paper, kind):
    trial = paper[0]
    loop = MagicMock()
    loop._source.trials = {trial.trial_id: trial}
    loop._attempt.return_value = Attempt(1)
    loop._protect_other_trials = partial(TrialLoop._protect_other_trials, loop)
    loop._resources.failed.return_value = MAY_RETRY
    loop._retries.failed.return_value = Decision(1.0, "retried")
    TrialLoop._failed(loop, trial.trial_id, TrialFailure(kind=kind, message=""))
    calls = loop._run.cluster.mps.end_use.call_args_list
    reasons = [call.args[0] for call in calls]
    expected = [f"{trial.trial_id} failed (device_error)"]
    assert reasons == (expected if kind == FailureKind.DEVICE_ERROR else [])
    loop._retry_later.assert_called_once_with(trial.trial_id, 1.0)


def test_the_processes_of_ray_start_with_mps_and_end_before_it(control, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    alive: list[bool] = []
    pids: list[int] = []

    def init(**settings: object) -> SimpleNamespace:
        pids.append(daemon_pid(Path(os.environ[PIPES]).parent))
        return SimpleNamespace()

    def shutdown() -> None:
        alive.append(is_alive(pids[0]))

    ray = SimpleNamespace(init=init, shutdown=shutdown)
    with cluster._private_cluster(ray, PrivateMps(UUIDS, print), num_cpus=1):
        shutdown()
    assert alive == [True]
    assert not is_alive(pids[0])
    assert not [*tmp_path.glob("isweep-ray-*")]


@pytest.fixture(scope="module")
def paper():
    return plan_sweep(load_sweep("paper")).trials


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(mps_choice.shutil, "which", lambda name: f"/usr/bin/{name}")


H100_CHECK = {H100.name: {"row": {}, "pair_gain_mps": 1.02}}
A100_CHECK = {A100.name: {"row": {}, "pair_gain_mps": 1.3}}


@pytest.mark.parametrize(
    ("there", "resources", "checks", "reason"),
    [
        (node(H100), {}, {}, "the gain by MPS is unknown; `isweep gpu-check` measures it"),
        (node(H100, A100), {}, A100_CHECK, "NVIDIA H100 80GB HBM3: the gain by MPS is unknown"),
        (node(RTX4090), {"num_gpus": 0.5}, {}, ""),
        (node(H100), {}, H100_CHECK, "NVIDIA H100 80GB HBM3: MPS would make the trials only 1.02 "),
        (node(A100), {}, A100_CHECK, ""),
        (node(H100), {"num_gpus": 1}, {}, "resources.num_gpus is 1, so no trials share a GPU"),
        (node(H100), {"num_gpus": 0}, {}, "resources.num_gpus is 0"),
        (node(H100), {"mps": "never"}, {}, "resources.mps is never"),
        (node(H100, mps=True), {}, {}, "MPS runs already"),
        (node(MIG), {"num_gpus": 0.5}, {}, "the GPU is divided into slices"),
        (node(replace(H100, compute_mode="Exclusive_Process")), {}, {}, "compute mode is Exclus"),
        (node(replace(H100, capability=6.1)), {}, {}, "compute capability 6.1 is below 7.0"),
        (node(replace(H100, name="NVIDIA Novel")), {}, {}, "the gain by MPS is unknown"),
        (node(), {}, {}, "trials run on CPUs"),
    ],
)
@pytest.mark.usefixtures("installed")
def test_mps_is_started_where_it_is_possible_and_saves_time(
    paper, tmp_path, monkeypatch, there, resources, checks, reason
):
    monkeypatch.setattr(gpus, "WSL", tmp_path)
    found = why_no_mps([there], ResourceSpec(**resources), paper, checks)
    assert bool(found) == bool(reason)
    assert reason in found


@pytest.mark.usefixtures("installed")
def test_no_mps_in_wsl_nor_for_few_trials(paper, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "WSL", tmp_path)
    there = [node(H100, H100)]
    checks = {H100.name: {"row": {}, "pair_gain_mps": 1.12}}
    one_each = why_no_mps(there, ResourceSpec(), paper[:2], checks)
    assert one_each == "each trial can have a whole GPU"
    assert "MPS would save only" in why_no_mps(there, ResourceSpec(), paper[:3], checks)
    assert why_no_mps(there, ResourceSpec(), paper, checks) == ""
    (tmp_path / "libcuda.so.1").touch()
    assert why_no_mps(there, ResourceSpec(), paper, checks) == "Linux runs inside Windows (WSL)"


def test_no_mps_without_its_program(paper, monkeypatch):
    monkeypatch.setattr(mps_choice.shutil, "which", lambda name: None)
    reason = why_no_mps([node(H100)], ResourceSpec(), paper, {})
    assert reason == "no folder on PATH contains nvidia-cuda-mps-control"


def test_the_option_changes_no_id():
    usual = plan_sweep(load_sweep("demo"))
    without = plan_sweep(load_sweep("demo", changes={"resources.mps": "never"}))
    assert without.sweep.resources.mps == "never"
    assert [trial.trial_id for trial in without.trials] == [t.trial_id for t in usual.trials]


def test_a_folder_of_a_run_is_short_enough_for_the_socket(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    with private_folder() as folder:
        pipes = Path(folder).parent / "mps" / "pipe"
        assert len(str(pipes)) <= mps.MAX_PIPES_LENGTH
