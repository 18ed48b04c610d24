"""NVIDIA's MPS for a private cluster; a script simulates nvidia-cuda-mps-control."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from orchestrator.machine import cluster, mps, mps_choice, mps_daemon
from orchestrator.machine.gpus import nvidia_smi
from orchestrator.machine.mps import PrivateMps, may_break_mps
from orchestrator.machine.mps_choice import why_no_mps
from orchestrator.machine.mps_daemon import PIPES_VARIABLE
from orchestrator.machine.mps_worker import (
    PRIVATE_FOLDER,
    abandon_mps_in_run,
    avoid_abandoned_mps,
    end_gpu_work_of_child,
)
from orchestrator.machine.ray_folders import private_folder, remove_abandoned_folders
from orchestrator.machine.self_test import stored_verdicts
from orchestrator.machine.self_test.case import Case
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.attempts import Attempt
from orchestrator.running.messages import WorkerLocation
from orchestrator.running.outcomes import Outcomes
from orchestrator.running.queue import TRIAL_ID, TrialQueue
from orchestrator.running.recovery.memory_verdicts import MAY_RETRY
from orchestrator.running.recovery.retries import Decision
from orchestrator.running.trials import TrialLoop
from orchestrator.running.workers import trial_device
from search_spaces.errors import SetupError
from search_spaces.models import model_spec
from search_spaces.sweeps import ResourceSpec
from tests.unit.orchestrator.machine.test_gpu_situations import A100, H100, MIG, RTX4090, node

CONTROL_SCRIPT = """#!{python}
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
    with open(pipes.parent.parent / "commands", "a") as file:
        file.write(command + chr(10))
    if command == os.environ.get("FAKE_REFUSES"):
        sys.exit("Failed to " + command)
    if command == "get_server_list":
        print(os.environ.get("FAKE_SERVERS", "4711"))
    elif command == "get_client_list 4711":
        for client in os.environ.get("FAKE_CLIENTS", "11 12").split():
            if not (pipes.parent / client).exists():
                print(client)
    elif command.startswith("terminate_client"):
        reply = os.environ.get("FAKE_REPLY")
        if reply:
            print(reply)
        else:
            (pipes.parent / command.split()[-1]).touch()
    elif command == "quit -t 10":
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        pid_file.unlink()
"""
UUIDS = ("GPU-1", "GPU-2")


@pytest.fixture
def mps_folder(tmp_path, monkeypatch) -> Path:
    """Put a stand-in for nvidia-cuda-mps-control on PATH; return the folder for MPS."""
    program = tmp_path / "bin" / mps_daemon.CONTROL
    program.parent.mkdir()
    program.write_text(CONTROL_SCRIPT.replace("{python}", sys.executable), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(mps, "ATTACH_PROGRAM", "print(2)")
    monkeypatch.setattr(mps, "MAX_PIPES_LENGTH", 200)  # the folders of pytest are long
    monkeypatch.delenv(PIPES_VARIABLE, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "mps"


def daemon_pid(folder: Path) -> int:
    return int((folder / "pipe" / "nvidia-cuda-mps-control.pid").read_text())


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def test_mps_runs_inside_the_block_for_the_gpus_of_these_uuids(mps_folder):
    notes: list[str] = []
    service = PrivateMps(UUIDS, notes.append)
    with service.running(mps_folder):
        pid = daemon_pid(mps_folder)
        assert is_alive(pid)
        assert service.folder == mps_folder
        assert os.environ[PIPES_VARIABLE] == str(mps_folder / "pipe")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
        assert (mps_folder / "visible").read_text() == "GPU-1,GPU-2"
    assert not is_alive(pid)
    assert service.folder is None
    assert PIPES_VARIABLE not in os.environ
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert notes == ["Started NVIDIA's MPS for this sweep, so that several trials share each GPU"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_mps_ends_after_ctrl_c_and_after_an_error(mps_folder, error):
    daemon_pids = []

    def run() -> None:
        with PrivateMps(UUIDS, print).running(mps_folder):
            daemon_pids.append(daemon_pid(mps_folder))
            raise error("stop")

    with pytest.raises(error, match="stop"):
        run()
    assert not is_alive(daemon_pids[0])
    assert PIPES_VARIABLE not in os.environ


DRIVER_SCRIPT = """
import os, signal, sys
from pathlib import Path
from orchestrator.machine import mps
mps.ATTACH_PROGRAM = "print(2)"
mps.MAX_PIPES_LENGTH = 200
with mps.PrivateMps(("GPU-1", "GPU-2"), lambda text: None).running(Path(sys.argv[1])):
    print(Path(sys.argv[1], "pipe", "nvidia-cuda-mps-control.pid").read_text(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_mps_ends_when_its_run_is_killed(mps_folder):
    process = subprocess.run(
        [sys.executable, "-c", DRIVER_SCRIPT, str(mps_folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    pid = int(process.stdout)
    while is_alive(pid):  # pytest's time limit ends this loop
        time.sleep(0.05)


def test_the_next_run_kills_programs_of_mps_that_a_killed_run_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "isweep-ray-killed"
    folder.mkdir()
    (folder / "owner").touch()
    processes = []
    for pipes in (folder / "mps" / "pipe", tmp_path / "others"):
        processes.append(
            subprocess.Popen(
                ["nvidia-cuda-mps-server", "600"],
                executable="/bin/sleep",
                env={**os.environ, PIPES_VARIABLE: str(pipes)},
            )
        )
    process_of_killed_run, other_process = processes
    assert remove_abandoned_folders() == 1
    assert process_of_killed_run.wait() == -signal.SIGKILL
    assert other_process.poll() is None
    other_process.kill()
    other_process.wait()


def commands_of(folder: Path) -> list[str]:
    """Return the commands that MPS got, without those of its start."""
    commands = (folder.parent / "commands").read_text().splitlines()
    return commands[1:]  # the first one checks at the start whether a server runs


LIST_CLIENTS = ["get_server_list", "get_client_list 4711"]
END_BOTH = [
    *LIST_CLIENTS,
    "terminate_client 4711 11",
    "get_client_list 4711",
    "terminate_client 4711 12",
    "get_client_list 4711",
]


@pytest.mark.parametrize(("pids", "ended"), [(None, [11, 12]), ({12, 99}, [12]), ({99}, [])])
def test_mps_ends_the_gpu_work_of_the_processes_that_are_killed_next(mps_folder, pids, ended):
    service = PrivateMps(UUIDS, print)
    service.end_gpu_work(pids)  # MPS does not run, so nothing is asked
    with service.running(mps_folder):
        service.end_gpu_work(pids)
        expected = [*LIST_CLIENTS]
        for client in ended:
            expected += [f"terminate_client 4711 {client}", "get_client_list 4711"]
        assert commands_of(mps_folder) == expected


@pytest.mark.parametrize(
    ("refused", "num_commands", "message"),
    [
        ("get_server_list", 1, "cannot end the GPU work of processes: `get_server_list`"),
        ("terminate_client 4711 11", 6, "did not end the GPU work of process 11"),
    ],
)
def test_a_command_that_mps_refuses_is_logged_and_the_process_can_be_killed(
    mps_folder, monkeypatch, caplog, refused, num_commands, message
):
    service = PrivateMps(UUIDS, print)
    with service.running(mps_folder):
        monkeypatch.setenv("FAKE_REFUSES", refused)
        service.end_gpu_work()
        assert len(commands_of(mps_folder)) == num_commands
    assert message in caplog.text
    assert f"Failed to {refused}" in caplog.text


def daemon_with_a_silent_client(monkeypatch, seconds_per_command: float) -> list[str]:
    """Simulate a daemon that does not answer about client 11; return the list of its commands."""
    commands: list[str] = []

    def ask(command: str) -> str:
        commands.append(command)
        if command == "get_server_list":
            return "4711"
        if command.startswith("get_client_list") and len(commands) == 2:
            return "11\n12\n13"
        if command == "terminate_client 4711 12":
            return mps_daemon.SUCCESS
        raise mps_daemon.CommandFailedError("busy")

    clock = SimpleNamespace(monotonic=lambda: seconds_per_command * len(commands))
    monkeypatch.setattr(mps_daemon, "ask_daemon", ask)
    monkeypatch.setattr(mps_daemon, "time", clock)
    return commands


def test_mps_ends_the_gpu_work_of_the_other_clients_if_one_has_no_answer(monkeypatch, caplog):
    commands = daemon_with_a_silent_client(monkeypatch, 1.0)
    assert not mps_daemon.end_gpu_work({11, 12})
    assert "terminate_client 4711 12" in commands
    assert "terminate_client 4711 13" not in commands
    assert "did not end the GPU work of process 11: busy" in caplog.text


def test_the_end_of_gpu_work_has_a_total_time_limit(monkeypatch, caplog):
    commands = daemon_with_a_silent_client(monkeypatch, mps_daemon.COMMAND_TIMEOUT_S)
    assert not mps_daemon.end_gpu_work(None)
    assert "terminate_client 4711 11" in commands
    assert "terminate_client 4711 12" not in commands
    assert "takes too long to end the GPU work" in caplog.text


@pytest.mark.parametrize(
    ("reply", "is_logged"),
    [("Failed to terminate client", True), ("", False), ("CUDA_SUCCESS", False)],
    ids=["an error with exit code 0", "the client is gone", "the client is listed until it ends"],
)
def test_the_exit_code_of_mps_does_not_show_whether_the_gpu_work_has_ended(
    mps_folder, monkeypatch, caplog, reply, is_logged
):
    monkeypatch.setenv("FAKE_REPLY", reply)
    service = PrivateMps(UUIDS, print)
    with service.running(mps_folder):
        service.end_gpu_work({11})
    warning = "NVIDIA's MPS did not end the GPU work of process 11: Failed to terminate client"
    assert (warning in caplog.text) is is_logged


def test_the_gpu_work_of_a_self_test_ends_with_that_of_its_worker(mps_folder, monkeypatch):
    """The self-test is a client of its own, and the raylet kills it together with the worker."""
    child = subprocess.Popen(["sleep", "600"])
    monkeypatch.setenv("FAKE_CLIENTS", f"11 {child.pid}")
    service = PrivateMps(UUIDS, print)
    with service.running(mps_folder):
        service.end_gpu_work({os.getpid()})
        commands = commands_of(mps_folder)
    child.kill()
    child.wait()
    assert commands[2] == f"terminate_client 4711 {child.pid}"
    assert "terminate_client 4711 11" not in commands


@pytest.mark.parametrize("work_ends", [True, False])
def test_a_run_stops_using_mps_if_the_gpu_work_of_a_killed_child_does_not_end(
    mps_folder, monkeypatch, work_ends
):
    if not work_ends:
        monkeypatch.setenv("FAKE_REPLY", "Failed to terminate client")
    end_gpu_work_of_child(12)  # MPS does not run, so nothing is asked
    with PrivateMps(UUIDS, print).running(mps_folder):
        end_gpu_work_of_child(12)
        assert commands_of(mps_folder)[2] == "terminate_client 4711 12"
        avoid_abandoned_mps()
        assert (os.environ[PIPES_VARIABLE] == str(mps_folder / "pipe")) is work_ends
        num_commands = len(commands_of(mps_folder))
        end_gpu_work_of_child(12)
        # A process that avoids MPS has no children with GPU work in MPS.
        assert (len(commands_of(mps_folder)) > num_commands) is work_ends


def test_the_gpu_work_of_a_self_test_ends_before_it_is_killed_for_its_time(monkeypatch):
    states: list[bool] = []
    monkeypatch.setattr(stored_verdicts, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(
        stored_verdicts, "end_gpu_work_of_child", lambda pid: states.append(is_alive(pid))
    )
    fields = stored_verdicts.run_in_separate_process(
        Case(model_spec("small_cnn"), 8, image_size=16)
    )
    assert "no answer in 0.2 s" in fields["unchecked"]
    assert states == [True]


def test_the_gpu_work_of_a_trial_that_hangs_ends_before_its_process_is_killed():
    calls: list[object] = []
    trial = SimpleNamespace(config={TRIAL_ID: "trial-1"})
    loop = MagicMock()
    loop._backend.killer_of.return_value = lambda: calls.append("killed")
    loop._run.cluster.mps.end_gpu_work = calls.append
    location = WorkerLocation("trial-1", "actor", "node", pid=12)
    loop._attempts.of.return_value = Attempt(number=1, location=location)
    kill = TrialLoop._killer_of(loop, trial)
    assert kill is not None
    assert calls == []
    kill()
    assert calls == [{12}, "killed"]


def test_a_start_of_mps_that_is_interrupted_leaves_no_daemon(mps_folder, monkeypatch):
    def interrupt(process: subprocess.Popen[str], timeout: float) -> int:
        monkeypatch.undo()
        raise KeyboardInterrupt

    started: list[subprocess.Popen[str]] = []
    original_init = subprocess.Popen.__init__

    def remember(process: subprocess.Popen[str], *args: object, **options: object) -> None:
        original_init(process, *args, **options)
        started.append(process)

    program = Path(shutil.which(mps_daemon.CONTROL))
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    output_file = mps_folder.parent / "start.log"
    monkeypatch.setattr(subprocess.Popen, "__init__", remember)
    monkeypatch.setattr(subprocess.Popen, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mps_daemon.start_daemon(output_file)
    (process,) = started
    assert process.returncode == -signal.SIGKILL


def simulate_start_failure(name: str, monkeypatch) -> None:
    """Make the start of MPS fail in one way."""
    if name == "no program":
        monkeypatch.setattr(mps_daemon, "CONTROL", "nvidia-cuda-mps-absent")
    elif name == "refused":
        monkeypatch.setenv("FAKE_START_ERROR", "Cannot find MPS control daemon process")
    elif name == "process fails":
        monkeypatch.setattr(mps, "ATTACH_PROGRAM", "raise SystemExit('Error 807: not ready')")
    elif name == "fewer GPUs":
        monkeypatch.setattr(mps, "ATTACH_PROGRAM", "print(1)")
    elif name == "hangs":
        monkeypatch.setattr(mps, "ATTACH_PROGRAM", "import time; time.sleep(600)")
        monkeypatch.setattr(mps, "ATTACH_TIMEOUT_S", 0.2)
    elif name == "not used":
        monkeypatch.setenv("FAKE_SERVERS", "")
    elif name == "no shell":
        monkeypatch.setattr(mps_daemon, "SHELL", "absent-shell")
    elif name == "long path":
        monkeypatch.setattr(mps, "MAX_PIPES_LENGTH", 10)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no program", "nvidia-cuda-mps-absent -d` failed: No such file or directory"),
        ("refused", "-d` failed: Cannot find MPS control daemon process"),
        ("process fails", "a test process could not compute through MPS: Error 807: not ready"),
        (
            "fewer GPUs",
            "a test process could not compute through MPS: a process computed on 1 GPUs",
        ),
        ("hangs", "a test process could not compute through MPS: no answer in 0.2 s"),
        ("not used", "the test process did not use MPS: no server of MPS runs"),
        ("no shell", "No such file or directory: 'absent-shell'"),
        ("long path", "is too long for a socket. Set TMPDIR to a shorter path"),
    ],
)
def test_if_mps_does_not_start_the_run_continues_and_a_note_gives_the_reason(
    mps_folder, monkeypatch, name, reason
):
    simulate_start_failure(name, monkeypatch)
    notes: list[str] = []
    service = PrivateMps(UUIDS, notes.append)
    daemon_pids = []
    original_start = mps_daemon.start_daemon

    def start_daemon(output_file: Path) -> str:
        problem = original_start(output_file)
        with suppress(OSError):
            daemon_pids.append(daemon_pid(mps_folder))
        return problem

    monkeypatch.setattr(mps_daemon, "start_daemon", start_daemon)
    with service.running(mps_folder):
        assert PIPES_VARIABLE not in os.environ
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
        assert service.folder is None
        assert not any(is_alive(pid) for pid in daemon_pids)
    (note,) = notes
    assert reason in note
    assert note.endswith("set `resources.mps: never`")


def test_new_processes_compute_without_mps_after_the_end_of_its_use(mps_folder):
    notes: list[str] = []
    service = PrivateMps(UUIDS, notes.append)
    service.abandon("nothing runs", "")
    with service.running(mps_folder):
        avoid_abandoned_mps()
        assert os.environ[PIPES_VARIABLE] == str(mps_folder / "pipe")
        service.abandon("trial-1 failed (device_error)", "New trials have a whole GPU each")
        service.abandon("trial-2 failed (device_error)", "New trials have a whole GPU each")
        avoid_abandoned_mps()
        # CUDA computes without MPS if this folder contains no socket. gpu-check relies on it too.
        assert not Path(os.environ[PIPES_VARIABLE]).exists()
        assert not mps_daemon.mps_runs()
    assert len(notes) == 2
    assert "do not use NVIDIA's MPS any more: trial-1 failed (device_error)" in notes[1]
    assert notes[1].endswith("isweep retries the ended trials. New trials have a whole GPU each")


def test_a_worker_with_a_broken_gpu_ends_the_use_of_mps_itself(mps_folder):
    with PrivateMps(UUIDS, print).running(mps_folder):
        abandon_mps_in_run()
        avoid_abandoned_mps()
        assert not mps_daemon.mps_runs()
    assert PRIVATE_FOLDER not in os.environ
    abandon_mps_in_run()  # without MPS of the run this changes nothing


def test_leaving_ended_mps_changes_nothing_in_a_process_without_it(monkeypatch, tmp_path):
    monkeypatch.delenv(PIPES_VARIABLE, raising=False)
    avoid_abandoned_mps()
    assert PIPES_VARIABLE not in os.environ
    monkeypatch.setenv(PIPES_VARIABLE, str(tmp_path))
    avoid_abandoned_mps()
    assert os.environ[PIPES_VARIABLE] == str(tmp_path)


def test_a_worker_leaves_ended_mps_before_it_uses_cuda(monkeypatch):
    calls: list[str] = []

    def check_gpu(precision: str) -> None:
        calls.append("cuda")
        raise RuntimeError("no more is needed here")

    monkeypatch.setattr(trial_device, "avoid_abandoned_mps", lambda: calls.append("left"))
    monkeypatch.setattr(trial_device, "check_gpu", check_gpu)
    monkeypatch.setattr(trial_device, "gpus_are_simulated", lambda: False)
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
        (FailureKind.SETUP, {"unfit_node": True, "device_lost": True}, True),
        # A self-test refused the GPU, and no process died.
        (FailureKind.SETUP, {"unfit_node": True}, False),
        (FailureKind.OUT_OF_MEMORY, {"memory": "machine"}, True),
        (FailureKind.OUT_OF_MEMORY, {"memory": "gpu"}, False),
        (FailureKind.CODE_ERROR, {}, False),
    ],
)
def test_failures_that_may_have_broken_mps_end_its_use(kind, facts, breaks):
    assert may_break_mps(TrialFailure(kind=kind, message="", **facts)) is breaks


@pytest.mark.parametrize("kind", [FailureKind.DEVICE_ERROR, FailureKind.CODE_ERROR])
def test_a_run_stops_using_mps_after_a_device_error(paper, kind):
    trial = paper[0]
    outcomes = MagicMock()
    outcomes._source.trials = {trial.trial_id: trial}
    outcomes._attempts.of.return_value = Attempt(1)
    outcomes._protect_other_trials = partial(Outcomes._protect_other_trials, outcomes)
    outcomes.resources.failed.return_value = MAY_RETRY
    outcomes.abandon_mps = partial(Outcomes.abandon_mps, outcomes)
    outcomes.resources.shares_without_mps_text = "New trials have a whole GPU each"
    outcomes._retries.failed.return_value = Decision(1.0, "retried")
    Outcomes._process_failure(outcomes, trial.trial_id, TrialFailure(kind=kind, message=""))
    end_calls = outcomes._run.cluster.mps.abandon.call_args_list
    arguments = [call.args for call in end_calls]
    expected = [(f"{trial.trial_id} failed (device_error)", "New trials have a whole GPU each")]
    assert arguments == (expected if kind == FailureKind.DEVICE_ERROR else [])
    outcomes._retry_later.assert_called_once_with(trial.trial_id, 1.0)


def test_the_gpu_work_of_all_trials_ends_before_an_error_that_stops_the_run():
    """After an error in a callback, Tune kills the processes of all trials."""
    calls: list[str] = []
    error = SetupError("The disk is full")
    loop = MagicMock()
    loop._queue = TrialQueue(deque(), stop_error=error)
    loop._run.cluster.mps.end_gpu_work = lambda: calls.append("GPU work ended")
    loop._raise_if_stopped = partial(TrialLoop._raise_if_stopped, loop)
    with pytest.raises(SetupError, match="The disk is full"):
        TrialLoop.on_step_begin(loop, 1, [])
    assert calls == ["GPU work ended"]
    loop._queue = TrialQueue(deque())
    TrialLoop.on_step_begin(loop, 1, [])
    assert calls == ["GPU work ended"]


@pytest.mark.parametrize("is_running", [True, False])
def test_a_run_stops_using_mps_in_words_after_tune_killed_running_trials(paper, is_running):
    """Tune calls nothing before it kills processes, so their GPU work cannot be ended first."""
    trial_id = paper[0].trial_id
    notes: list[str] = []
    loop = MagicMock()
    loop._outcomes.num_tune_failures = 0
    loop._queue = TrialQueue(deque(), submitted={trial_id})
    if is_running:
        loop._queue.start(trial_id)
    loop._outcomes._run.cluster.mps = PrivateMps(UUIDS, notes.append)
    loop._outcomes._run.cluster.mps.folder = Path("/nowhere")
    shares = "New trials have a whole GPU each"
    loop._outcomes.resources.shares_without_mps_text = shares
    loop._outcomes.abandon_mps = partial(Outcomes.abandon_mps, loop._outcomes)
    TrialLoop._process_tune_failure(loop, RuntimeError("a bug in Tune"))
    expected = (
        "New trials of this run do not use NVIDIA's MPS any more: Ray Tune failed, and may have "
        "killed trials while they computed. With MPS, the failure of one trial can also end other "
        "trials on the same GPU. isweep retries the ended trials. New trials have a whole GPU each"
    )
    assert notes == ([expected] if is_running else [])


WAITING_WORKER = "import time; print('started', flush=True); time.sleep(600)"


class SimulatedRay:
    """Ray without processes, except one worker that outlives Ray's shutdown."""

    def __init__(self) -> None:
        self.folder = Path()
        self.commands_before_shutdown: list[str] = []
        self.worker: subprocess.Popen[bytes] | None = None

    def init(self, **settings: object) -> SimpleNamespace:
        self.folder = Path(os.environ[PIPES_VARIABLE]).parent
        session = str(settings["_temp_dir"])
        # As in Ray, the worker's command line contains the folder.
        command = [sys.executable, "-c", WAITING_WORKER, f"{session}/session"]
        self.worker = subprocess.Popen(command, stdout=subprocess.PIPE)
        # The kernel shows an empty command line until the program has started.
        self.worker.stdout.readline()
        return SimpleNamespace(dashboard_url="")

    def shutdown(self) -> None:
        self.commands_before_shutdown = commands_of(self.folder)
        assert is_alive(daemon_pid(self.folder))


@pytest.mark.parametrize("ending", ["end", "Ctrl-C"])
@pytest.mark.usefixtures("mps_folder")
def test_clients_end_before_ray_and_ray_ends_before_mps(monkeypatch, tmp_path, ending):
    ray = SimulatedRay()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(cluster, "_imported_ray", lambda: ray)
    monkeypatch.setattr(cluster, "_gpu_settings", dict)
    monkeypatch.setattr(cluster, "_cluster_info", lambda *_, **__: cluster.cpu_cluster_here())
    monkeypatch.setattr(cluster, "watch_servers", lambda *_, **__: closing_with(ray.shutdown))
    daemon_pids = []

    def run() -> None:
        with cluster.connect(num_cpus=1, mps=PrivateMps(UUIDS, print)):
            daemon_pids.append(daemon_pid(ray.folder))
            if ending == "Ctrl-C":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if ending == "Ctrl-C" else nullcontext():
        run()
    assert ray.commands_before_shutdown == END_BOTH
    assert not is_alive(daemon_pids[0])
    assert not [*tmp_path.glob("isweep-ray-*")]


@contextmanager
def closing_with(end):
    """Call a function at the end of a block."""
    try:
        yield
    finally:
        end()


def test_mps_quits_when_no_worker_is_left(mps_folder, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ray = SimulatedRay()
    workers_at_quit: list[int | None] = []
    running = PrivateMps.running

    @contextmanager
    def observed(service: PrivateMps, folder: Path):
        with running(service, folder):
            yield
            workers_at_quit.append(ray.worker.wait(10))

    monkeypatch.setattr(PrivateMps, "running", observed)
    with cluster._started_with_retries(ray, PrivateMps(UUIDS, print)):
        assert ray.worker.poll() is None
    assert workers_at_quit == [-signal.SIGKILL]


@pytest.fixture(scope="module")
def paper():
    return plan_sweep(load_sweep("paper")).trials


@pytest.fixture
def program_installed(monkeypatch):
    monkeypatch.setattr(mps_choice.shutil, "which", lambda name: f"/usr/bin/{name}")


H100_CHECK = {H100.name: {"row": {}, "pair_gain_mps": 1.02}}
A100_CHECK = {A100.name: {"row": {}, "pair_gain_mps": 1.3}}


@pytest.mark.parametrize(
    ("simulated_node", "resources", "checks", "reason"),
    [
        (node(H100), {}, {}, "the gain from MPS is unknown; to measure the gain, run `isweep"),
        (node(H100, A100), {}, A100_CHECK, "NVIDIA H100 80GB HBM3: the gain from MPS is unknown"),
        (node(RTX4090), {"num_gpus": 0.5}, {}, ""),
        (
            node(H100),
            {},
            H100_CHECK,
            "NVIDIA H100 80GB HBM3: with MPS, the trials would be only 1.02 ",
        ),
        (node(A100), {}, A100_CHECK, ""),
        (node(H100), {"num_gpus": 1}, {}, "resources.num_gpus is 1, so trials do not share a GPU"),
        (node(H100), {"num_gpus": 0}, {}, "resources.num_gpus is 0"),
        (node(H100), {"mps": "never"}, {}, "resources.mps is never"),
        (node(H100, mps=True), {}, {}, "MPS runs already"),
        (node(MIG), {"num_gpus": 0.5}, {}, "the GPU is divided into slices"),
        (node(replace(H100, compute_mode="Exclusive_Process")), {}, {}, "compute mode is Exclus"),
        (node(replace(H100, capability=6.1)), {}, {}, "compute capability 6.1 is below 7.0"),
        (node(replace(H100, name="NVIDIA Novel")), {}, {}, "the gain from MPS is unknown"),
        (node(), {}, {}, "trials run on CPUs"),
    ],
)
@pytest.mark.usefixtures("program_installed")
def test_mps_is_started_where_it_is_possible_and_saves_time(
    paper, tmp_path, monkeypatch, simulated_node, resources, checks, reason
):
    monkeypatch.setattr(nvidia_smi, "WSL", tmp_path)
    why_not = why_no_mps([simulated_node], ResourceSpec(**resources), paper, checks)
    assert bool(why_not) == bool(reason)
    assert reason in why_not


@pytest.mark.usefixtures("program_installed")
def test_mps_is_not_started_in_wsl_or_for_few_trials(paper, tmp_path, monkeypatch):
    monkeypatch.setattr(nvidia_smi, "WSL", tmp_path)
    nodes = [node(H100, H100)]
    checks = {H100.name: {"row": {}, "pair_gain_mps": 1.12}}
    reason = why_no_mps(nodes, ResourceSpec(), paper[:2], checks)
    assert reason == "each trial can have a whole GPU"
    assert "MPS would save only" in why_no_mps(nodes, ResourceSpec(), paper[:3], checks)
    assert why_no_mps(nodes, ResourceSpec(), paper, checks) == ""
    (tmp_path / "libcuda.so.1").touch()
    assert why_no_mps(nodes, ResourceSpec(), paper, checks) == "Linux runs inside Windows (WSL)"


def test_mps_is_not_started_without_its_program(paper, monkeypatch):
    monkeypatch.setattr(mps_choice.shutil, "which", lambda name: None)
    reason = why_no_mps([node(H100)], ResourceSpec(), paper, {})
    assert reason == "no folder on PATH contains the program nvidia-cuda-mps-control"


def test_the_option_mps_changes_no_trial_id():
    default_plan = plan_sweep(load_sweep("demo"))
    plan_without_mps = plan_sweep(load_sweep("demo", changes={"resources.mps": "never"}))
    assert plan_without_mps.sweep.resources.mps == "never"
    default_ids = [trial.trial_id for trial in default_plan.trials]
    assert [trial.trial_id for trial in plan_without_mps.trials] == default_ids


def test_a_folder_of_a_run_is_short_enough_for_the_socket(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    with private_folder() as folder:
        pipes = Path(folder).parent / "mps" / "pipe"
        assert len(str(pipes)) <= mps.MAX_PIPES_LENGTH
