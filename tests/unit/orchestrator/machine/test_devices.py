"""Test that a trial with a GPU computes on it or fails with the node, the driver and CUDA."""

import json
import re
import socket
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace

import pytest
import torch

from orchestrator.machine import doctor, gpu_problems, mps_daemon, processes
from orchestrator.machine.cluster import Resources, cpu_cluster_here, trial_resources
from orchestrator.machine.gpus import driver_hints, nvidia_smi, this_machine, torch_gpus
from orchestrator.machine.gpus.records import Gpu, GpuInUse, NodeGpus
from orchestrator.machine.gpus.visible import LOGICAL_GPUS
from orchestrator.machine.processes import ProgramOutput
from orchestrator.machine.self_test import stored_verdicts
from orchestrator.machine.self_test.case import Case
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.running.recovery.failures import classify
from orchestrator.running.workers import trial_device
from orchestrator.running.workers.trial_device import TrialDevice
from orchestrator.running.workers.worker import TrialTrainable
from search_spaces.errors import ConfigError, SetupError
from search_spaces.sweeps import ResourceSpec
from tasks.trials import isolation

NETWORK = plan_sweep(load_sweep("demo")).trials[0].network


def device_for(share, fast="auto", *, is_custom=False, precision="float32"):
    recipe = NETWORK.recipe.model_copy(update={"precision": precision})
    library = "own" if is_custom else NETWORK.model.library
    model = NETWORK.model.model_copy(update={"library": library})
    network = NETWORK.model_copy(update={"recipe": recipe, "model": model})
    return trial_device.device_for(Resources(1, share, fast=fast), network)


def simulate_nvidia_smi(folder, monkeypatch, rows=(), listed="", fails=""):
    """Put a simulated nvidia-smi with the given answers first on the path."""
    if fails:
        script = ["#!/bin/sh", f'echo "{fails}" >&2; exit 9']
    else:
        script = [
            "#!/bin/sh",
            'if [ "$1" = -L ]; then',
            f"cat <<'END'\n{listed}\nEND",
            "exit; fi",
            *[f"echo '{row}'" for row in rows],
        ]
    tool = folder / "nvidia-smi"
    tool.write_text("\n".join(script) + "\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def without_cuda(monkeypatch):
    """Simulate a node on which PyTorch can use no GPU."""
    monkeypatch.delenv(LOGICAL_GPUS, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(nvidia_smi, "driver_version", lambda: "570.82.01")


@pytest.mark.usefixtures("without_cuda")
def test_trials_on_a_node_without_working_cuda_fail_with_node_driver_and_torch():
    with pytest.raises(SetupError, match=r"NVIDIA driver is 570\.82") as caught:
        device_for(0.25)
    facts = (
        socket.gethostname(),
        "the NVIDIA driver is 570.82.01",
        f"torch {torch.__version__}",
        "built for CUDA 13.0",
    )
    hint = (
        "Install a driver of branch 580 or later for CUDA 13.0 (the present driver is 570.82.01), or "
        "install torch 2.14 or earlier from"
    )
    for text in (*facts, hint):
        assert text in str(caught.value)
    assert classify(caught.value).kind == "setup"


@pytest.mark.parametrize(
    ("driver", "cuda", "hint"),
    [
        ("", "13.0", "Install NVIDIA's driver"),
        (
            "580.1",
            None,
            r"Install a torch with CUDA \(`pip uninstall --yes torch torchvision && pip install "
            r"torch torchvision`\)$",
        ),
        (
            "470.82",
            "12.6",
            r"a driver of branch 525 or later for CUDA 12\.6 \(the present driver is 470\.82\)$",
        ),
        (
            "550.1",
            "13.0",
            r"branch 580 .* or install torch 2\.14 or earlier from PyTorch's cu126 wheels, which work "
            r"with the present driver, but do not support GPUs of the series RTX 50 and B200 \(`pip uninstall --yes torch "
            r"torchvision && pip install torch torchvision --index-url https:\S+/whl/cu126`\)$",
        ),
        ("580.65", "13.0", "The driver is new enough"),
    ],
)
def test_the_hint_makes_driver_and_torch_compatible(driver, cuda, hint):
    assert re.search(hint, driver_hints.driver_hint(driver, cuda))


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        ("", "install the driver in Windows, and do not install one in Linux"),
        ("551.23", "install the driver in Windows, and do not install one in Linux"),
        ("581.29", "if a package of NVIDIA's driver is installed in Linux, remove this package"),
    ],
)
def test_the_hint_in_wsl_installs_no_driver_in_linux(driver, words):
    """A driver in Linux would hide that of Windows, and torch would find no GPU."""
    assert words in driver_hints.driver_hint(driver, "13.0", is_wsl=True)
    assert "WSL" not in driver_hints.driver_hint(driver, "13.0")


def test_the_hint_in_wsl_loads_no_kernel_module():
    """WSL uses the driver of Windows, so Linux has no module `nvidia_uvm` to load again."""
    reason = "CUDA unknown error - this may be due to an incorrectly set up environment"
    assert "modprobe" in driver_hints.driver_hint("581.29", "13.0", reason)
    hint = driver_hints.driver_hint("581.29", "13.0", reason, is_wsl=True)
    assert "remove this package" in hint
    assert "modprobe" not in hint


@pytest.mark.parametrize(
    ("capability", "is_offered"),
    [(0.0, True), (3.7, False), (5.0, True), (9.0, True), (10.0, False)],
)
def test_an_older_torch_is_offered_only_if_it_has_kernels_for_the_gpu(capability, is_offered):
    hint = driver_hints.driver_hint("550.1", "13.0", capability=capability)
    assert ("cu126 wheels" in hint) is is_offered


@pytest.mark.usefixtures("without_cuda")
def test_cpu_trials_and_logical_gpus_need_no_cuda(monkeypatch):
    assert device_for(0) == TrialDevice("cpu")
    monkeypatch.setenv(LOGICAL_GPUS, "1")
    assert device_for(0.5) == TrialDevice("cpu", num_threads=1, gpu_fraction=None, graphs=False)


@pytest.mark.parametrize(
    ("fast", "is_custom", "is_faster", "graphs"),
    [
        ("auto", False, True, True),
        ("auto", False, False, False),
        ("auto", True, True, False),
        ("on", False, False, True),
        ("on", True, False, True),
        ("off", False, True, False),
    ],
)
def test_steps_are_captured_if_that_is_faster_or_requested(
    without_cuda, monkeypatch, fast, is_custom, is_faster, graphs
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    checks = []
    monkeypatch.setattr(
        trial_device,
        "check_numbers",
        lambda *_: checks.append("test") or ("" if is_faster else "they are slower"),
    )
    monkeypatch.setattr(trial_device, "check_computes", lambda: checks.append("begins"))
    device = device_for(0.5, fast, is_custom=is_custom)
    assert (device.device, device.gpu_fraction, device.graphs) == ("cuda", 0.5, graphs)
    # The test runs before this process uses the GPU: an exclusive GPU accepts only one process.
    assert checks == ["test", "begins"]


tested_cases: list[Case] = []
"""Cases of which a test with the fixture :func:`verdict` requested the self-test's verdict."""


@pytest.fixture
def verdict(without_cuda, monkeypatch):
    """Return the fields of the stored verdict on a GPU that PyTorch can use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_gpus, "gpu_in_use", lambda: GpuInUse("RTX 4090", "GPU-3f"))
    monkeypatch.setattr(trial_device, "check_computes", lambda: None)
    fields = {
        "gpu_problem": "",
        "reason_for_plain_steps": "",
        "is_final": True,
        "tested_at": 0.0,
    }
    tested_cases.clear()

    def stored_verdict(uuid, case):
        tested_cases.append(case)
        return stored_verdicts.StoredVerdict(**fields, file=Path("/cache/verdict.json"))

    monkeypatch.setattr(stored_verdicts, "read_or_run_self_test", stored_verdict)
    return fields


@pytest.mark.parametrize("fast", ["auto", "on", "off"])
@pytest.mark.parametrize("is_custom", [True, False])
def test_a_gpu_that_computes_wrongly_is_never_used(verdict, fast, is_custom):
    verdict["gpu_problem"] = "resnet18: the first loss is 3.1000, on the CPU 0.6900"
    with pytest.raises(SetupError, match=r"GPU-3f of node .*: RTX 4090 computes wrongly") as caught:
        device_for(1.0, fast, is_custom=is_custom)
    text = str(caught.value)
    assert verdict["gpu_problem"] in text
    assert text.endswith("To test the GPU again, delete /cache/verdict.json.")
    failure = classify(caught.value)
    # So the GPU is quarantined and the trial goes elsewhere, as with a GPU that does not answer.
    assert failure.unfit_node
    assert not failure.device_lost  # so the other GPUs continue to use MPS
    assert failure.gpu == f"GPU-3f of node {socket.gethostname()}"


def test_a_gpu_that_computed_wrongly_once_is_not_used_and_the_message_names_the_doubt(verdict):
    verdict["gpu_problem"] = "resnet18: the first loss is 3.1000, on the CPU 0.6900"
    verdict["reason_for_doubt"] = "the second comparison with the CPU found no difference"
    with pytest.raises(trial_device.UnusableGpuError) as caught:
        device_for(1.0, "auto")
    text = str(caught.value)
    assert (
        f"RTX 4090 computed wrongly once: {verdict['gpu_problem']}. However, {verdict['reason_for_doubt']}"
        in text
    )
    assert "check the GPU's temperature, remove overclocking, and restart the machine" in text
    assert text.endswith("To test the GPU again, delete /cache/verdict.json.")


@pytest.mark.usefixtures("verdict")
@pytest.mark.parametrize(("num_cpus", "num_threads"), [(0.5, 1), (1, 1), (4, 4)])
def test_a_self_test_uses_as_many_threads_as_its_trial(num_cpus, num_threads):
    """The trials of other processes need the other cores."""
    for model in (NETWORK.model, NETWORK.model.model_copy(update={"library": "own"})):
        network = NETWORK.model_copy(update={"model": model})
        trial_device.device_for(Resources(num_cpus, 1.0), network)
    assert [case.num_threads for case in tested_cases] == [num_threads] * 2


def test_the_context_that_a_run_plans_for_reaches_the_trial(verdict):
    network = plan_sweep(load_sweep("demo")).trials[0].network
    resources = Resources(1, 0.5, context_bytes=2**30)
    assert trial_device.device_for(resources, network).context_bytes == 2**30


@pytest.mark.parametrize("fast", ["auto", "on", "off"])
def test_a_gpu_that_was_not_compared_with_the_cpu_is_not_used(verdict, fast):
    verdict["comparison_error"] = "no answer in 300 s"
    words = (
        r"it is unknown whether RTX 4090 computes correctly: no answer in 300 s\. The next trial"
    )
    with pytest.raises(trial_device.UnusableGpuError, match=words) as caught:
        device_for(1.0, fast)
    failure = classify(caught.value)
    assert failure.unfit_node
    assert failure.device_lost  # the self-test's process may have died while the GPU computed
    assert failure.gpu == f"GPU-3f of node {socket.gethostname()}"


def test_plain_steps_are_explained_in_one_line(verdict, caplog):
    verdict["reason_for_plain_steps"] = "vgg13: a weight differs by 1.0e-03"
    assert device_for(1.0).graphs is False
    gpu = f"GPU-3f (RTX 4090) of node {socket.gethostname()}"
    reason = "vgg13: a weight differs by 1.0e-03"
    assert f"Trials on {gpu} use plain steps instead of captured graphs: {reason}" in caplog.text


def test_a_dead_gpu_is_distinguished_from_a_gpu_without_free_memory(monkeypatch):
    """A dead GPU must be repaired, and a sweep without another GPU ends."""
    monkeypatch.setattr(torch_gpus, "gpu_in_use", lambda: GpuInUse("A100", "GPU-1"))
    ecc_error = "CUDA error: uncorrectable ECC error encountered"
    for text, error, words in (
        (
            ecc_error,
            trial_device.UnusableGpuError,
            f"GPU-1 of node .*: {ecc_error}",
        ),
        ("CUDA error: out of memory", torch.AcceleratorError, "^CUDA error: out of memory"),
        ("HIP error: out of memory", torch.AcceleratorError, "^HIP error: out of memory"),
        # Only the words in the table of library errors decide.
        (
            "NVLink: out of memory slots",
            trial_device.UnusableGpuError,
            "Reset the GPU, or hide the",
        ),
    ):

        def raise_error(*_, text=text, **__):
            raise torch.AcceleratorError(f"{text}\nCUDA kernel errors might be reported later")

        monkeypatch.setattr(torch, "ones", raise_error)
        with pytest.raises(error, match=words):
            trial_device.check_computes()


def test_a_new_process_waits_in_quarantine_before_it_reports_an_unusable_gpu(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    errors = (
        trial_device.UnusableGpuError.of("GPU-1", "", ""),
        SetupError("Something else"),
        ValueError(),
    )
    for error, has_run in product(errors, (0, 1)):
        worker = SimpleNamespace(
            _has_finished_a_trial=has_run, assignment=SimpleNamespace(resources=Resources(1, 1.0))
        )
        failure = TrialTrainable._failure(worker, error)
        TrialTrainable._delay_broken_node(worker, failure)
    assert pauses == [trial_device.FIRST_QUARANTINE_S]


@pytest.fixture
def unkillable(tmp_path, monkeypatch, a_device):
    """Simulate an nvidia-smi that no signal ends, like one that waits in the driver.

    Returns the processes that could not be killed.
    """
    simulate_nvidia_smi(tmp_path, monkeypatch)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 999\n")
    stuck_processes: list[Popen[str]] = []
    stuck_programs: set[str] = set()
    kill = Popen.kill
    run_program = processes.run_program

    def run_with_short_timeout(*command, **options):
        return run_program(*command, **options | {"timeout_s": 0.1})

    monkeypatch.setattr(Popen, "kill", lambda process: stuck_processes.append(process))
    monkeypatch.setattr(processes, "KILLED_WITHIN_S", 0.1)
    monkeypatch.setattr(processes, "STUCK_PROGRAMS", stuck_programs)
    monkeypatch.setattr(nvidia_smi, "STUCK_PROGRAMS", stuck_programs)
    monkeypatch.setattr(nvidia_smi, "run_program", run_with_short_timeout)
    monkeypatch.setattr(
        torch_gpus, "describe", lambda visible: NodeGpus("a")
    )  # torch hangs as well
    yield stuck_processes
    for process in stuck_processes:
        kill(process)
        process.wait()


def test_an_nvidia_smi_that_hangs_in_the_driver_is_left_running_and_called_once(unkillable):
    assert nvidia_smi.query("name") == []
    assert (this_machine.gpus_here(), nvidia_smi.driver_version()) == ([], "580.95.05")
    with pytest.raises(
        SetupError, match=r"This machine has a GPU, but .* nvidia-smi: the program does not answer"
    ):
        trial_resources(ResourceSpec(), cpu_cluster_here(), "auto")
    assert trial_resources(ResourceSpec(), cpu_cluster_here(), "cpu").num_gpus == 0
    (process,) = unkillable
    assert process.poll() is None


@pytest.mark.usefixtures("a_device")
def test_a_slow_nvidia_smi_is_called_once_with_a_message_also_by_child_processes(
    tmp_path, monkeypatch, capfd
):
    simulate_nvidia_smi(tmp_path, monkeypatch)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho >> {tmp_path}/asked\nexec sleep 999\n")
    stuck_programs: set[str] = set()
    monkeypatch.setattr(processes, "STUCK_PROGRAMS", stuck_programs)
    monkeypatch.setattr(nvidia_smi, "STUCK_PROGRAMS", stuck_programs)
    monkeypatch.setattr(nvidia_smi, "WARN_AFTER_S", 0.1)
    run_program = processes.run_program
    communicate = Popen.communicate

    def communicate_after_start(process, _input, **limit):
        while not (tmp_path / "asked").exists():
            time.sleep(0.01)
        return communicate(process, **limit)

    def run_with_short_timeout(*command, **options):
        return run_program(*command, **{"timeout_s": 0.5} | options)

    monkeypatch.setattr(Popen, "communicate", communicate_after_start)
    monkeypatch.setattr(nvidia_smi, "run_program", run_with_short_timeout)
    with pytest.raises(SetupError, match=r"driver 580\.95.* nvidia-smi: the program does not ans"):
        this_machine.check_driver()  # also starts PyTorch in another process
    assert (tmp_path / "asked").read_text() == "\n"
    assert capfd.readouterr().err == "Waiting for nvidia-smi\n"


@pytest.mark.usefixtures("a_device")
@pytest.mark.parametrize("visible", ["all", "cuda:0", "7", "GPU-typo", "0,0"])
def test_a_mistyped_choice_of_gpus_never_means_cpus_silently(tmp_path, monkeypatch, visible):
    listed = "GPU 0: NVIDIA L4 (UUID: GPU-1)"
    simulate_nvidia_smi(
        tmp_path, monkeypatch, rows=["NVIDIA L4, GPU-1, 23034, Disabled"], listed=listed
    )
    monkeypatch.setattr(torch_gpus, "describe", lambda visible: NodeGpus("a"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    message = f"CUDA_VISIBLE_DEVICES={visible} contains a GPU .* GPU 0: NVIDIA L4"
    with pytest.raises(ConfigError, match=message):
        this_machine.check_driver()
    for hides in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hides)
        this_machine.check_driver()


def listening_mps(folder):
    """Return a socket that listens at the path at which CUDA looks for the MPS daemon."""
    daemon = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    daemon.bind(str(folder / "control"))
    daemon.listen()
    return daemon


def test_mps_runs_while_its_daemon_listens_and_not_if_only_the_socket_file_is_left(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not mps_daemon.mps_runs()
    with listening_mps(tmp_path):
        assert mps_daemon.mps_runs()
    assert (tmp_path / "control").is_socket()
    assert not mps_daemon.mps_runs()
    (tmp_path / "control").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as seqpacket_daemon:
        seqpacket_daemon.bind(str(tmp_path / "control"))
        seqpacket_daemon.listen()
        assert mps_daemon.mps_runs()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / ("far" * 50)))
    assert not mps_daemon.mps_runs()


def test_gpus_in_wsl_are_detected_without_path_and_device_files(tmp_path, monkeypatch):
    """WSL has no /dev/nvidia*, and only a login shell has the tools on PATH."""
    monkeypatch.setattr(nvidia_smi, "DEVICES", tmp_path)
    monkeypatch.setattr(nvidia_smi, "WSL", tmp_path)
    simulate_nvidia_smi(tmp_path, monkeypatch, ["NVIDIA GeForce RTX 4090, GPU-1, 24564, [N/A]"])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert this_machine.weakest_gpu_model(())[0].name == "rtx4090"
    (tmp_path / "nvidia-smi").unlink()
    this_machine.check_driver()  # no GPU, no driver
    (tmp_path / "libcuda.so.1").touch()
    usable_gpus = NodeGpus("a", (Gpu("NVIDIA GeForce RTX 4090", "GPU-1", 2**34),))
    monkeypatch.setattr(torch_gpus, "describe", lambda visible: usable_gpus)
    assert this_machine.gpus_here() == list(usable_gpus.gpus)
    monkeypatch.setattr(torch_gpus, "describe", lambda visible: NodeGpus("a"))
    with pytest.raises(SetupError, match="nvidia-smi: the program is not installed"):
        this_machine.check_driver()


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (
            "Error 34: CUDA driver is a stub library",
            "Remove the folder of CUDA's stubs from LD_LIBRARY_PATH",
        ),
        ("Error 802: system not yet initialized", "Start nvidia-fabricmanager"),
        (
            "CUDA unknown error",
            "Type `sudo modprobe -r nvidia_uvm && sudo modprobe nvidia_uvm`, or restart the machine",
        ),
        ("Error 304: OS call failed", "Run `nvidia-smi`"),
    ],
)
def test_the_error_of_torch_explains_why_it_can_use_no_gpu(without_cuda, monkeypatch, error, hint):
    def init():
        raise RuntimeError(f"Unexpected error from cudaGetDeviceCount(). {error}\nmore")

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(nvidia_smi, "driver_version", lambda: "580.65.06")
    with pytest.raises(SetupError, match=rf"{error}.* {hint}"):
        trial_device.check_gpu("float32")
    node = NodeGpus(
        "a",
        (),
        "580.65.06",
        "2.13.0",
        "13.0",
        num_ray_gpus=8.0,
        torch_message=torch_gpus.why_no_gpu(),
    )
    (problem,) = gpu_problems.gpu_problems(node)
    assert problem.text.endswith(
        "can use 0 with the NVIDIA driver 580.65.06: Unexpected error from cudaGetDeviceCount(). "
        f"{error}"
    )
    assert problem.hint.startswith(hint)


@pytest.fixture
def simulate_torch_gpu(monkeypatch):
    """Return a function after which PyTorch can use one of the two GPUs that NVML lists."""

    def simulate(name, **changes):
        fields = {"name": name, "uuid": "1", "minor": 0, "multi_processor_count": 132}
        properties = SimpleNamespace(**{**fields, **changes})
        inits = []

        def get_device_properties(index):
            if index >= 1:
                pytest.fail("PyTorch cannot use this GPU")
            return properties

        functions = {
            "init": lambda: inits.append(1),
            "is_available": lambda: True,
            "device_count": lambda: 1 if inits else 2,
            "get_device_properties": get_device_properties,
            "get_arch_list": lambda: ["sm_80", "sm_90"],
        }
        for function_name, function in functions.items():
            monkeypatch.setattr(torch.cuda, function_name, function)

    return simulate


def test_a_gpu_that_nvml_lists_and_cuda_cannot_use_costs_no_other_gpu(simulate_torch_gpu, capsys):
    """torch.cuda.device_count asks NVML before CUDA is initialized, and CUDA after."""
    simulate_torch_gpu("NVIDIA H100 80GB HBM3", total_memory=2**36, major=9)
    torch_gpus.print_gpus()
    report = json.loads(capsys.readouterr().out)
    assert [entry["uuid"] for entry in report["gpus"]] == ["GPU-1"]
    assert report["torch_message"] == ""
    gpu = Gpu(**report["gpus"][0])
    assert (gpu.capability, gpu.processors, gpu.has_kernels) == (9.0, 132, True)
    node = NodeGpus("a", (gpu,), "580.65.06", "2.13.0", "13.0", num_ray_gpus=2.0)
    (problem,) = gpu_problems.gpu_problems(node)
    assert "Ray offers 2 GPUs, but torch 2.13.0, built for CUDA 13.0, can use 1" in problem.text
    assert problem.hint == "Start isweep, or Ray on that node, with CUDA_VISIBLE_DEVICES=GPU-1"


def test_a_gpu_that_fails_while_torch_starts_is_reported_with_the_error(monkeypatch, capsys):
    def init():
        raise torch.cuda.DeferredCudaCallError("CUDA call failed lazily at initialization\nmore")

    monkeypatch.setattr(torch.cuda, "init", init)
    torch_gpus.print_gpus()
    report = json.loads(capsys.readouterr().out)
    assert report["gpus"] == []
    assert report["torch_message"] == "CUDA call failed lazily at initialization"


@pytest.mark.parametrize(
    ("capability", "built_for", "expected"),
    [
        (8.6, ["sm_75", "sm_80", "sm_90"], True),
        (7.0, ["sm_75", "sm_80", "sm_90"], False),
        (9.0, ["sm_75", "sm_80"], False),
        (12.1, ["sm_75", "compute_120"], True),
        (9.0, ["sm_75", "sm_90a"], True),
    ],
)
def test_torch_has_kernels_for_gpus_of_its_architectures(capability, built_for, expected):
    assert torch_gpus._has_kernels(capability, built_for) is expected


def test_nvidia_smi_describes_gpus_without_torch(tmp_path, monkeypatch):
    simulate_nvidia_smi(
        tmp_path, monkeypatch, ["NVIDIA L4, GPU-1, 23034, [N/A]", "NVIDIA L4, GPU-2, 23034, [N/A]"]
    )
    gpu, number = this_machine.weakest_gpu_model(())
    assert (gpu.name, gpu.memory_gib, number) == ("l4", pytest.approx(22.5, abs=0.1), 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert len(this_machine.gpus_here()) == 1
    # CUDA uses the GPUs before the first number that does not exist.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,7,0")
    assert len(this_machine.gpus_here()) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2,GPU-9,GPU-1")
    assert [gpu.uuid for gpu in this_machine.gpus_here()] == ["GPU-2"]
    for hidden in ("", "-1", "NoDevFiles", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert this_machine.weakest_gpu_model(()) == (None, 0)


def test_a_plan_uses_the_visible_one_of_two_gpu_models(tmp_path, monkeypatch):
    """CUDA numbers GPUs by speed, nvidia-smi by PCI bus, so PyTorch resolves a number."""
    rows = ["Tesla T4, GPU-1, 15360, [N/A]", "NVIDIA H100 PCIe, GPU-2, 81559, [N/A]"]
    simulate_nvidia_smi(tmp_path, monkeypatch, rows)
    described = NodeGpus("a", (Gpu("NVIDIA H100 PCIe", "GPU-2", 80 * 2**30),))
    monkeypatch.setattr(torch_gpus, "describe", lambda visible: {"0": described}[visible])
    for visible, model, number in ((None, "t4", 2), ("0", "h100-pcie", 1), ("GPU-1", "t4", 1)):
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        gpu_model, num_gpus = this_machine.weakest_gpu_model(())
        assert (gpu_model.name, num_gpus) == (model, number)


MIG_LIST = """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-1)
  MIG 3g.40gb     Device  0: (UUID: MIG-1)
  MIG 1g.10gb     Device  1: (UUID: MIG-2)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-2)"""


@pytest.mark.parametrize(
    ("visible", "described"),
    [
        ("MIG-1,MIG-2,", {"MIG-1", "MIG-2"}),
        ("MIG-1, MIG-2,typo,MIG-3", {"MIG-1", "MIG-2"}),
        ("MIG-1,MIG-1", {"MIG-1,MIG-1"}),
        ("GPU-1,GPU-2", {"GPU-1,GPU-2"}),
        ("", {""}),
        (None, {None}),
    ],
)
def test_slices_are_described_one_by_one_and_other_gpus_together(monkeypatch, visible, described):
    """CUDA reads the list up to the first invalid entry, and uses no GPU of a list with a repeat."""
    shown = []

    def show(*_, visible, **__):
        shown.append(visible)
        return ProgramOutput("")

    monkeypatch.setattr(torch_gpus, "run_program", show)
    assert torch_gpus.describe(visible).visible == (visible or "")
    assert len(shown) == len(described)
    assert set(shown) == described


PRINT_VALUE_OF_PARENT = (
    "from orchestrator.machine.gpus.visible import visible_at_start_of_parent\n"
    "print(repr(visible_at_start_of_parent()))"
)


@pytest.mark.parametrize("visible", [None, "", "0,1"])
def test_a_parent_that_hides_all_gpus_differs_from_one_that_shows_all(visible):
    parent = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {PRINT_VALUE_OF_PARENT!r}])"
    )
    answer = processes.run_program(sys.executable, "-c", parent, visible=visible)
    assert answer == ProgramOutput(repr(visible))


def test_every_mig_slice_is_described_with_the_memory_that_others_use(
    tmp_path, monkeypatch, capsys, simulate_torch_gpu
):
    """The list is that of NVIDIA's MIG guide. CUDA shows a process only the first slice."""
    rows = [
        "NVIDIA A100-SXM4-80GB, GPU-1, 81920, Enabled",
        "NVIDIA A100-SXM4-80GB, GPU-2, 81920, Disabled",
    ]
    simulate_nvidia_smi(tmp_path, monkeypatch, rows, listed=MIG_LIST)
    used_bytes = {"MIG-1": 0, "MIG-2": 3 * 2**30}
    slices = {"MIG-1": ("3g.40gb", 39, 42), "MIG-2": ("1g.10gb", 9.5, 14)}
    monkeypatch.setattr(
        isolation, "NvmlGpu", lambda uuid: SimpleNamespace(held_bytes=lambda: used_bytes[uuid])
    )

    def describe_slice(*_, visible, **__):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        profile, memory_gib, num_processors = slices[visible]
        simulate_torch_gpu(
            f"NVIDIA A100-SXM4-80GB MIG {profile}",
            total_memory=int(memory_gib * 2**30),
            major=8,
            multi_processor_count=num_processors,
        )
        torch_gpus.print_gpus()
        return ProgramOutput(capsys.readouterr().out)

    monkeypatch.setattr(
        torch_gpus, "ThreadPoolExecutor", lambda: nullcontext(SimpleNamespace(map=map))
    )
    with monkeypatch.context() as patch:
        patch.setattr(nvidia_smi, "query", lambda fields: [])
        patch.setattr(nvidia_smi, "driver_version", lambda: "580.65")
        patch.setattr(torch_gpus, "run_program", describe_slice)
        node = replace(torch_gpus.describe("MIG-1,MIG-2"), node="a", num_ray_gpus=2.0)
    described = [
        (gpu.uuid, gpu.memory_gib, gpu.held_bytes / 2**30, gpu.processors) for gpu in node.gpus
    ]
    assert described == [("MIG-1", 39, 0, 42), ("MIG-2", 9.5, 3, 14)]
    assert node.slices == ("MIG-1", "MIG-2")
    (problem,) = gpu_problems.gpu_problems(node, needed_bytes=8 * 2**30)
    assert problem.text == (
        "node a: NVIDIA A100-SXM4-80GB MIG 1g.10gb MIG-2: other processes use 3.0 of "
        "9.5 GiB, but the largest trial needs up to 8.0 GiB"
    )
    assert nvidia_smi.slice_uuids() == ["MIG-1", "MIG-2"]
    monkeypatch.setattr(torch_gpus, "describe", lambda visible: node)
    model, num_gpus = this_machine.weakest_gpu_model(())
    assert model.name == "NVIDIA A100-SXM4-80GB MIG 1g.10gb"
    assert (model.memory_gib, model.timed) == (9.5, False)
    assert num_gpus == 2


def test_a_gpu_that_shares_the_memory_of_the_machine_is_described_by_torch(tmp_path, monkeypatch):
    """nvidia-smi prints no memory for a GB10."""
    simulate_nvidia_smi(tmp_path, monkeypatch, ["NVIDIA GB10, GPU-1, [N/A], [N/A]"])
    node = NodeGpus("a", (Gpu("NVIDIA GB10", "GPU-1", 119 * 2**30),))
    monkeypatch.setattr(torch_gpus, "describe", lambda visible: node)
    assert this_machine.weakest_gpu_model(())[0].memory_gib == 119


def test_a_warning_of_nvidia_smi_is_not_a_gpu(tmp_path, monkeypatch):
    rows = ["NVIDIA L4, GPU-1, 23034, [N/A]", "WARNING: infoROM is corrupted at gpu 0000:0B:00.0"]
    simulate_nvidia_smi(tmp_path, monkeypatch, rows)
    assert len(this_machine.gpus_here()) == 1
    monkeypatch.setattr(nvidia_smi, "DRIVER", tmp_path / "absent")
    assert nvidia_smi.driver_version() == ""


@pytest.fixture
def a_device(tmp_path, monkeypatch):
    """Simulate a kernel that has a GPU and a driver, whatever nvidia-smi prints."""
    (tmp_path / "nvidia0").touch()
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  "
        "(dvs-builder)\n"
        "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n"
    )
    monkeypatch.setattr(nvidia_smi, "DEVICES", tmp_path)
    monkeypatch.setattr(nvidia_smi, "DRIVER", tmp_path / "version")


def test_a_driver_that_does_not_answer_never_means_cpus_silently(tmp_path, monkeypatch, a_device):
    error = "Failed to initialize NVML: Driver/library version mismatch"
    simulate_nvidia_smi(tmp_path, monkeypatch, fails=error)
    # PyTorch can use no GPU either.
    monkeypatch.setattr(torch_gpus, "describe", lambda visible: NodeGpus("a"))
    unanswered = r"NVIDIA's driver 580\.95\.05 does not answer"
    with pytest.raises(
        SetupError, match=rf"{unanswered}\. The error of nvidia-smi: {error}\. Restart the mach"
    ):
        this_machine.check_driver()
    with pytest.raises(SetupError, match=unanswered):
        trial_resources(ResourceSpec(), cpu_cluster_here(), "auto")
    assert trial_resources(ResourceSpec(), cpu_cluster_here(), "cpu").num_gpus == 0
    without_gpu = ResourceSpec(num_gpus=0)
    assert trial_resources(without_gpu, cpu_cluster_here(), "auto").num_gpus == 0
    problem = doctor._run_check("gpus", doctor._check_gpus, None)
    assert not problem["ok"]
    assert error in problem["detail"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    this_machine.check_driver()


def test_gpus_that_torch_can_use_need_no_nvidia_smi(tmp_path, monkeypatch, a_device):
    simulate_nvidia_smi(tmp_path, monkeypatch, fails="not found")
    node = NodeGpus("a", (Gpu("NVIDIA L4", "GPU-1", 2**34),))
    monkeypatch.setattr(torch_gpus, "describe", lambda visible: node)
    this_machine.check_driver()
    assert this_machine.weakest_gpu_model(())[1] == 1


def test_a_node_whose_torch_does_not_start_has_a_problem(monkeypatch):
    monkeypatch.setattr(torch_gpus.sys, "executable", "/bin/false")
    node = torch_gpus.describe(None)
    problem, *further_problems = gpu_problems.gpu_problems(replace(node, num_ray_gpus=8.0))
    assert problem.text.partition(": ")[2] == "torch did not list the GPUs: exit code 1"
    assert further_problems == []
    assert "import torch" in problem.hint


@pytest.mark.parametrize(
    ("output", "torch_version", "error"),
    [
        ('a warning\n{"gpus": [], "torch": "2.9"}\nGoodbye.', "2.9", ""),
        ("[]\nGoodbye.", "", "the process printed no description of GPUs"),
    ],
)
def test_other_lines_around_the_description_of_gpus_are_ignored(
    monkeypatch, output, torch_version, error
):
    monkeypatch.setattr(torch_gpus, "run_program", lambda *_, **__: ProgramOutput(output))
    node = torch_gpus.describe(None)
    assert (node.torch, node.error) == (torch_version, error)


def test_a_gpu_without_bfloat16_on_a_later_node_is_unusable_for_such_a_trial(
    without_cuda, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch_gpus, "gpu_in_use", lambda: GpuInUse("Tesla T4", "GPU-7"))
    monkeypatch.setattr(trial_device, "check_computes", lambda: None)
    monkeypatch.setattr(trial_device, "check_numbers", lambda *_: "")
    assert device_for(1.0, "off").device == "cuda"
    with pytest.raises(
        SetupError,
        match=r"bfloat16, but Tesla T4 with compute capability 7.5.*precision: float32",
    ) as caught:
        device_for(1.0, precision="bfloat16")
    failure = classify(caught.value)
    assert failure.unfit_node
    assert failure.gpu == f"GPU-7 of node {socket.gethostname()}"


def test_a_module_of_the_working_folder_does_not_hide_the_gpus(tmp_path, monkeypatch):
    (tmp_path / "tasks.py").write_text("raise ImportError('of another program')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert torch_gpus.describe("").error == ""


@pytest.mark.long
def test_a_node_is_described_by_another_process():
    node = torch_gpus.describe(None)
    assert (node.gpus, node.torch) == ((), torch.__version__)
