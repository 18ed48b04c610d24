"""A trial that was given a GPU computes on it or fails, naming node, driver and CUDA."""

import json
import re
import socket
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace

import pytest
import torch

from orchestrator.machine import doctor, gpu_problems, gpus, processes, self_test_verdict
from orchestrator.machine.cluster import Resources, cpu_cluster_here, trial_resources
from orchestrator.machine.gpus import GpuInUse
from orchestrator.machine.processes import ProgramOutput
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.running import trial_device
from orchestrator.running.recovery.failures import classify
from orchestrator.running.trial_device import TrialDevice
from orchestrator.running.worker import TrialTrainable
from search_spaces.errors import ConfigError, SetupError
from search_spaces.sweeps import ResourceSpec
from tasks.trials import isolation

NETWORK = plan_sweep(load_sweep("demo")).trials[0].network


def device_for(share, fast="auto", *, own=False, precision="float32"):
    recipe = NETWORK.recipe.model_copy(update={"precision": precision})
    library = "own" if own else NETWORK.model.library
    model = NETWORK.model.model_copy(update={"library": library})
    network = NETWORK.model_copy(update={"recipe": recipe, "model": model})
    return trial_device.device_for(Resources(1, share, fast=fast), network)


def nvidia_smi(folder, monkeypatch, rows=(), listed="", fails=""):
    """Put a tool that answers so first on the path."""
    lines = [f"echo '{row}'" for row in rows]
    script = [
        "#!/bin/sh",
        'if [ "$1" = -L ]; then',
        f"cat <<'END'\n{listed}\nEND",
        "exit; fi",
        *lines,
    ]
    tool = folder / "nvidia-smi"
    tool.write_text(
        f'#!/bin/sh\necho "{fails}" >&2; exit 9\n' if fails else "\n".join(script) + "\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def without_cuda(monkeypatch):
    """A node whose torch reaches no GPU."""
    monkeypatch.delenv(gpus.LOGICAL_GPUS, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpus, "driver_version", lambda: "570.82.01")


@pytest.mark.usefixtures("without_cuda")
def test_a_node_without_working_cuda_fails_its_trials_by_name():
    with pytest.raises(SetupError, match=r"NVIDIA driver is 570\.82") as caught:
        device_for(0.25)
    named = (
        socket.gethostname(),
        "the NVIDIA driver is 570.82.01",
        f"torch {torch.__version__}",
        "built for CUDA 13.0",
    )
    hint = (
        "Install a driver of branch 580 or later for CUDA 13.0 (the present one is 570.82.01), or "
        "install torch 2.14 or earlier from"
    )
    for words in (*named, hint):
        assert words in str(caught.value)
    assert classify(caught.value).kind == "setup"


@pytest.mark.parametrize(
    ("driver", "cuda", "hint"),
    [
        ("", "13.0", "Install NVIDIA's driver"),
        ("580.1", None, "Install a torch with CUDA"),
        (
            "470.82",
            "12.6",
            r"a driver of branch 525 or later for CUDA 12\.6 \(the present one is 470\.82\)$",
        ),
        ("550.1", "13.0", "branch 580 .* or install torch 2.14 or earlier from PyTorch's cu126"),
        ("580.65", "13.0", "The driver is new enough"),
    ],
)
def test_what_brings_driver_and_torch_together(driver, cuda, hint):
    assert re.search(hint, gpus.driver_hint(driver, cuda))


@pytest.mark.usefixtures("without_cuda")
def test_cpu_trials_and_logical_gpus_need_no_cuda(monkeypatch):
    assert device_for(0) == TrialDevice("cpu")
    monkeypatch.setenv(gpus.LOGICAL_GPUS, "1")
    assert device_for(0.5) == TrialDevice("cpu", num_threads=1, gpu_fraction=None, graphs=False)


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
def test_steps_are_captured_where_it_pays_or_is_asked_for(
    without_cuda, monkeypatch, fast, own, pays, graphs
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []
    monkeypatch.setattr(
        trial_device,
        "check_numbers",
        lambda network: asked.append("test") or ("" if pays else "they are slower"),
    )
    monkeypatch.setattr(trial_device, "check_computes", lambda: asked.append("begins"))
    device = device_for(0.5, fast, own=own)
    assert (device.device, device.gpu_fraction, device.graphs) == ("cuda", 0.5, graphs)
    # An exclusive GPU has no room for a test beside this process, whatever network it trains first.
    assert asked == ["test", "begins"]


@pytest.fixture
def verdict(without_cuda, monkeypatch):
    """The verdict on the GPU of a process that torch reaches."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpus, "gpu_in_use", lambda: GpuInUse("RTX 4090", "GPU-3f"))
    monkeypatch.setattr(trial_device, "check_computes", lambda: None)
    fields = {"wrong": "", "plain_because": "", "is_final": True, "tested_at": 0.0}

    def kept(uuid, case):
        return self_test_verdict.KeptVerdict(**fields, file=Path("/cache/verdict.json"))

    monkeypatch.setattr(self_test_verdict, "verdict_of", kept)
    return fields


@pytest.mark.parametrize("fast", ["auto", "on", "off"])
@pytest.mark.parametrize("own", [True, False])
def test_a_gpu_that_computes_wrongly_is_never_used_whatever_steps_are_asked_for(verdict, fast, own):
    verdict["wrong"] = "resnet18: the first loss is 3.1000, on the CPU 0.6900"
    with pytest.raises(SetupError, match=r"GPU-3f of node .*: RTX 4090 computes wrongly") as caught:
        device_for(1.0, fast, own=own)
    text = str(caught.value)
    assert verdict["wrong"] in text
    assert text.endswith("To test the GPU again, delete /cache/verdict.json.")
    failure = classify(caught.value)
    # So it is quarantined and the trial goes elsewhere, as from a GPU that does not answer.
    assert failure.unfit_node
    assert failure.gpu == f"GPU-3f of node {socket.gethostname()}"


def test_the_context_that_a_run_plans_for_reaches_the_trial(verdict):
    network = plan_sweep(load_sweep("demo")).trials[0].network
    resources = Resources(1, 0.5, context_bytes=2**30)
    assert trial_device.device_for(resources, network).context_bytes == 2**30


@pytest.mark.parametrize("fast", ["auto", "on", "off"])
def test_a_gpu_that_was_not_compared_with_the_cpu_is_not_used(verdict, fast):
    verdict["unchecked"] = "no answer in 300 s"
    words = (
        r"it is unknown whether RTX 4090 computes correctly: no answer in 300 s\. The next trial"
    )
    with pytest.raises(trial_device.UnusableGpuError, match=words) as caught:
        device_for(1.0, fast)
    failure = classify(caught.value)
    assert failure.unfit_node
    assert failure.gpu == f"GPU-3f of node {socket.gethostname()}"


def test_plain_steps_are_explained_in_one_line(verdict, caplog):
    verdict["plain_because"] = "vgg13: a weight differs by 1.0e-03"
    assert device_for(1.0).graphs is False
    assert (
        f"Trials on GPU-3f (RTX 4090) of node {socket.gethostname()} use plain steps instead of "
        "captured graphs: "
        "vgg13: a weight differs by 1.0e-03"
    ) in caplog.text


def test_a_dead_gpu_is_told_from_a_trial_that_breaks_it(monkeypatch):
    """Of the one it is the GPU that must be mended, and where there is no other the sweep ends."""
    monkeypatch.setattr(gpus, "gpu_in_use", lambda: GpuInUse("A100", "GPU-1"))
    said = "CUDA error: uncorrectable ECC error encountered"
    for text, error, words in (
        (
            said,
            trial_device.UnusableGpuError,
            f"GPU-1 of node .*: {said}",
        ),
        ("CUDA error: out of memory", torch.AcceleratorError, "^CUDA error: out of memory"),
        ("HIP error: out of memory", torch.AcceleratorError, "^HIP error: out of memory"),
        # Only words of the table of libraries' errors decide.
        ("NVLink: out of memory slots", trial_device.UnusableGpuError, "Reset the GPU, or hide it"),
    ):

        def breaks(*_, text=text, **__):
            raise torch.AcceleratorError(f"{text}\nCUDA kernel errors might be reported later")

        monkeypatch.setattr(torch, "ones", breaks)
        with pytest.raises(error, match=words):
            trial_device.check_computes()


def test_a_gpu_rests_before_its_failure_is_told_until_its_process_has_finished_a_trial(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for error, has_run in product(
        (
            trial_device.UnusableGpuError.of("GPU-1", "", ""),
            SetupError("Something else"),
            ValueError(),
        ),
        (0, 1),
    ):
        worker = SimpleNamespace(
            _has_finished_a_trial=has_run, assignment=SimpleNamespace(resources=Resources(1, 1.0))
        )
        TrialTrainable._failure(worker, error)
    assert pauses == [trial_device.FIRST_QUARANTINE_S]


@pytest.fixture
def unkillable(tmp_path, monkeypatch, a_device):
    """An nvidia-smi that no signal ends, as one that waits in the driver; the processes that it
    became."""
    nvidia_smi(tmp_path, monkeypatch)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 999\n")
    started, kill, start = list[Popen[str]](), Popen.kill, processes.run_program
    monkeypatch.setattr(Popen, "kill", lambda process: started.append(process))
    monkeypatch.setattr(processes, "KILLED_WITHIN_S", 0.1)
    monkeypatch.setattr(processes, "STUCK_PROGRAMS", stuck := set())
    monkeypatch.setattr(gpus, "STUCK_PROGRAMS", stuck)
    monkeypatch.setattr(
        gpus, "run_program", lambda *command, **more: start(*command, **more | {"timeout_s": 0.1})
    )
    monkeypatch.setattr(gpus, "describe", lambda visible: gpus.NodeGpus("a"))  # torch hangs as well
    yield started
    for process in started:
        kill(process)
        process.wait()


def test_an_nvidia_smi_that_hangs_in_the_driver_is_left_behind_and_asked_once(unkillable):
    assert gpus.nvidia_smi("name") == []
    assert (gpus.gpus_here(), gpus.driver_version()) == ([], "580.95.05")
    with pytest.raises(
        SetupError, match=r"This machine has a GPU, but .* nvidia-smi: the program does not answer"
    ):
        trial_resources(ResourceSpec(), cpu_cluster_here(), "auto")
    assert trial_resources(ResourceSpec(), cpu_cluster_here(), "cpu").num_gpus == 0
    (process,) = unkillable
    assert process.poll() is None


@pytest.mark.usefixtures("a_device")
def test_an_nvidia_smi_that_is_slow_is_waited_for_once_with_a_word_and_children_are_told(
    tmp_path, monkeypatch, capfd
):
    nvidia_smi(tmp_path, monkeypatch)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho >> {tmp_path}/asked\nexec sleep 999\n")
    monkeypatch.setattr(processes, "STUCK_PROGRAMS", stuck := set())
    monkeypatch.setattr(gpus, "STUCK_PROGRAMS", stuck)
    monkeypatch.setattr(gpus, "WARN_AFTER_S", 0.1)
    start, communicate = processes.run_program, Popen.communicate

    def once_started(process, _input, **limit):
        while not (tmp_path / "asked").exists():
            time.sleep(0.01)
        return communicate(process, **limit)

    monkeypatch.setattr(Popen, "communicate", once_started)
    monkeypatch.setattr(
        gpus, "run_program", lambda *command, **more: start(*command, **{"timeout_s": 0.5} | more)
    )
    with pytest.raises(SetupError, match=r"driver 580\.95.* nvidia-smi: the program does not ans"):
        gpus.check_driver()  # asks torch too, in a process of its own
    assert (tmp_path / "asked").read_text() == "\n"
    assert capfd.readouterr().err == "Waiting for nvidia-smi\n"


@pytest.mark.usefixtures("a_device")
@pytest.mark.parametrize("said", ["all", "cuda:0", "7", "GPU-typo", "0,0"])
def test_a_mistyped_choice_of_gpus_never_means_cpus_in_silence(tmp_path, monkeypatch, said):
    listed = "GPU 0: NVIDIA L4 (UUID: GPU-1)"
    nvidia_smi(tmp_path, monkeypatch, rows=["NVIDIA L4, GPU-1, 23034, Disabled"], listed=listed)
    monkeypatch.setattr(gpus, "describe", lambda visible: gpus.NodeGpus("a"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    with pytest.raises(
        ConfigError, match=f"CUDA_VISIBLE_DEVICES={said} contains a GPU .* GPU 0: NVIDIA L4"
    ):
        gpus.check_driver()
    for hides in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hides)
        gpus.check_driver()


def mps_daemon(folder):
    """Return a socket that listens where CUDA looks for MPS: "Starting control daemon using
    socket"."""
    daemon = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    daemon.bind(str(folder / "control"))
    daemon.listen()
    return daemon


def test_mps_runs_while_it_listens_and_what_a_dead_one_leaves_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not gpus.mps_runs()
    with mps_daemon(tmp_path):
        assert gpus.mps_runs()
    assert (tmp_path / "control").is_socket()
    assert not gpus.mps_runs()
    (tmp_path / "control").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(tmp_path / "control"))
        other.listen()
        assert gpus.mps_runs()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / ("far" * 50)))
    assert not gpus.mps_runs()


def test_windows_gpus_are_found_without_a_path_and_without_files_of_devices(tmp_path, monkeypatch):
    """In WSL there is no /dev/nvidia*, and PATH ends with the login shell."""
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.setattr(gpus, "WSL", tmp_path)
    nvidia_smi(tmp_path, monkeypatch, ["NVIDIA GeForce RTX 4090, GPU-1, 24564, [N/A]"])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert gpus.gpu_models_here(())[0].name == "rtx4090"
    (tmp_path / "nvidia-smi").unlink()
    gpus.check_driver()  # no GPU, no driver
    (tmp_path / "libcuda.so.1").touch()
    reached = gpus.NodeGpus("a", (gpus.Gpu("NVIDIA GeForce RTX 4090", "GPU-1", 2**34),))
    monkeypatch.setattr(gpus, "describe", lambda visible: reached)
    assert gpus.gpus_here() == list(reached.gpus)
    monkeypatch.setattr(gpus, "describe", lambda visible: gpus.NodeGpus("a"))
    with pytest.raises(SetupError, match="nvidia-smi: the program is not installed"):
        gpus.check_driver()


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (
            "Error 34: CUDA driver is a stub library",
            "Remove the folder of CUDA's stubs from LD_LIBRARY_PATH",
        ),
        ("Error 802: system not yet initialized", "Start nvidia-fabricmanager"),
        ("CUDA unknown error", "Run `nvidia-smi`"),
    ],
)
def test_why_torch_reaches_no_gpu_is_said_in_its_words(without_cuda, monkeypatch, said, hint):
    def init():
        raise RuntimeError(f"Unexpected error from cudaGetDeviceCount(). {said}\nmore")

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(gpus, "driver_version", lambda: "580.65.06")
    with pytest.raises(SetupError, match=rf"{said}.* {hint}"):
        trial_device.check_gpu("float32")
    node = gpus.NodeGpus(
        "a", (), "580.65.06", "2.13.0", "13.0", num_ray_gpus=8.0, torch_message=gpus.why_no_gpu()
    )
    (problem,) = gpu_problems.gpu_problems(node)
    what, how = problem.text, problem.hint
    assert what.endswith(
        "can use 0 with the NVIDIA driver 580.65.06: Unexpected error from cudaGetDeviceCount(). "
        f"{said}"
    )
    assert how.startswith(hint)


@pytest.fixture
def torch_reaches(monkeypatch):
    """Make torch reach one GPU, of two that NVML lists."""

    def reach(name, **about):
        begun, its = (
            [],
            {"name": name, "uuid": "1", "minor": 0, "multi_processor_count": 132, **about},
        )
        fakes = {
            "init": lambda: begun.append(1),
            "is_available": lambda: True,
            "device_count": lambda: 1 if begun else 2,
            "get_device_properties": lambda index: (
                SimpleNamespace(**its) if index < 1 else pytest.fail("gone")
            ),
            "get_arch_list": lambda: ["sm_80", "sm_90"],
        }
        for called, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, called, fake)

    return reach


def test_a_gpu_that_nvml_lists_and_cuda_does_not_reach_costs_no_other_gpu(torch_reaches, capsys):
    """torch.cuda.device_count asks NVML before CUDA has begun, and CUDA after."""
    torch_reaches("NVIDIA H100 80GB HBM3", total_memory=2**36, major=9)
    gpus.print_gpus()
    found = json.loads(capsys.readouterr().out)
    assert ([gpu["uuid"] for gpu in found["gpus"]], found["torch_message"]) == (["GPU-1"], "")
    reached = gpus.Gpu(**found["gpus"][0])
    assert (reached.capability, reached.processors, reached.has_kernels) == (9.0, 132, True)
    node = gpus.NodeGpus("a", (reached,), "580.65.06", "2.13.0", "13.0", num_ray_gpus=2.0)
    (problem,) = gpu_problems.gpu_problems(node)
    what, how = problem.text, problem.hint
    assert "Ray offers 2 GPUs, but torch 2.13.0, built for CUDA 13.0, can use 1" in what
    assert how == "Start isweep, or Ray on that node, with CUDA_VISIBLE_DEVICES=GPU-1"


def test_a_gpu_that_fails_as_torch_begins_is_told_in_its_words(monkeypatch, capsys):
    def init():
        raise torch.cuda.DeferredCudaCallError("CUDA call failed lazily at initialization\nmore")

    monkeypatch.setattr(torch.cuda, "init", init)
    gpus.print_gpus()
    found = json.loads(capsys.readouterr().out)
    assert (found["gpus"], found["torch_message"]) == (
        [],
        "CUDA call failed lazily at initialization",
    )


@pytest.mark.parametrize(
    ("capability", "built_for", "has"),
    [
        (8.6, ["sm_75", "sm_80", "sm_90"], True),
        (7.0, ["sm_75", "sm_80", "sm_90"], False),
        (9.0, ["sm_75", "sm_80"], False),
        (12.1, ["sm_75", "compute_120"], True),
        (9.0, ["sm_75", "sm_90a"], True),
    ],
)
def test_whether_torch_has_kernels_for_a_gpu(capability, built_for, has):
    assert gpus._has_kernels(capability, built_for) is has


def test_nvidia_smi_tells_of_gpus_without_torch(tmp_path, monkeypatch):
    nvidia_smi(
        tmp_path, monkeypatch, ["NVIDIA L4, GPU-1, 23034, [N/A]", "NVIDIA L4, GPU-2, 23034, [N/A]"]
    )
    gpu, number = gpus.gpu_models_here(())
    assert (gpu.name, gpu.memory_gib, number) == ("l4", pytest.approx(22.5, abs=0.1), 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert len(gpus.gpus_here()) == 1
    monkeypatch.setenv(
        "CUDA_VISIBLE_DEVICES", "1,7,0"
    )  # CUDA reads up to the first that is not there
    assert len(gpus.gpus_here()) == 1
    for hidden in ("", "-1", "NoDevFiles", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert gpus.gpu_models_here(()) == (None, 0)


def test_of_two_kinds_the_visible_one_is_planned_for(tmp_path, monkeypatch):
    """CUDA numbers GPUs by speed, nvidia-smi by their place: torch is asked what a number means."""
    rows = ["Tesla T4, GPU-1, 15360, [N/A]", "NVIDIA H100 PCIe, GPU-2, 81559, [N/A]"]
    nvidia_smi(tmp_path, monkeypatch, rows)
    described = gpus.NodeGpus("a", (gpus.Gpu("NVIDIA H100 PCIe", "GPU-2", 80 * 2**30),))
    monkeypatch.setattr(gpus, "describe", lambda visible: {"0": described}[visible])
    for visible, model, number in ((None, "t4", 2), ("0", "h100-pcie", 1), ("GPU-1", "t4", 1)):
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found, there = gpus.gpu_models_here(())
        assert (found.name, there) == (model, number)


MIG_LIST = """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-1)
  MIG 3g.40gb     Device  0: (UUID: MIG-1)
  MIG 1g.10gb     Device  1: (UUID: MIG-2)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-2)"""


def test_every_slice_is_described_with_what_others_hold_of_it(
    tmp_path, monkeypatch, capsys, torch_reaches
):
    """As nvidia-smi -L prints them in NVIDIA's MIG guide: CUDA shows a process the first slice
    alone."""
    rows = [
        "NVIDIA A100-SXM4-80GB, GPU-1, 81920, Enabled",
        "NVIDIA A100-SXM4-80GB, GPU-2, 81920, Disabled",
    ]
    nvidia_smi(tmp_path, monkeypatch, rows, listed=MIG_LIST)
    held, sizes = (
        {"MIG-1": 0, "MIG-2": 3 * 2**30},
        {"MIG-1": ("3g.40gb", 39, 42), "MIG-2": ("1g.10gb", 9.5, 14)},
    )
    monkeypatch.setattr(
        isolation, "NvmlGpu", lambda uuid: SimpleNamespace(held_bytes=lambda: held[uuid])
    )

    def answers(*_, visible, **__):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        profile, gib, number = sizes[visible]
        name = f"NVIDIA A100-SXM4-80GB MIG {profile}"
        torch_reaches(name, total_memory=int(gib * 2**30), major=8, multi_processor_count=number)
        gpus.print_gpus()
        return ProgramOutput(capsys.readouterr().out)

    monkeypatch.setattr(gpus, "ThreadPoolExecutor", lambda: nullcontext(SimpleNamespace(map=map)))
    with monkeypatch.context() as patch:
        patch.setattr(gpus, "nvidia_smi", lambda fields: [])
        patch.setattr(gpus, "driver_version", lambda: "580.65")
        patch.setattr(gpus, "run_program", answers)
        shown = replace(gpus.describe("MIG-1,MIG-2"), node="a", num_ray_gpus=2.0)
    assert [
        (gpu.uuid, gpu.memory_gib, gpu.held_bytes / 2**30, gpu.processors) for gpu in shown.gpus
    ] == [
        ("MIG-1", 39, 0, 42),
        ("MIG-2", 9.5, 3, 14),
    ]
    (problem,) = gpu_problems.gpu_problems(shown, needed=8 * 2**30)
    what = problem.text
    assert what == (
        "node a: NVIDIA A100-SXM4-80GB MIG 1g.10gb MIG-2: other processes use 3.0 of "
        "9.5 GiB, but the "
        "largest trial needs up to 8.0 GiB"
    )
    assert gpus.slice_uuids() == ["MIG-1", "MIG-2"]
    monkeypatch.setattr(gpus, "describe", lambda visible: shown)
    model, number = gpus.gpu_models_here(())
    assert (model.name, model.memory_gib, model.timed) == (
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        9.5,
        False,
    )
    assert number == 2


def test_a_gpu_that_shares_the_machine_s_memory_is_described_by_torch(tmp_path, monkeypatch):
    """nvidia-smi knows no memory of a GB10."""
    nvidia_smi(tmp_path, monkeypatch, ["NVIDIA GB10, GPU-1, [N/A], [N/A]"])
    reached = gpus.NodeGpus("a", (gpus.Gpu("NVIDIA GB10", "GPU-1", 119 * 2**30),))
    monkeypatch.setattr(gpus, "describe", lambda visible: reached)
    assert gpus.gpu_models_here(())[0].memory_gib == 119


def test_what_nvidia_smi_says_beside_its_rows_is_no_gpu(tmp_path, monkeypatch):
    rows = ["NVIDIA L4, GPU-1, 23034, [N/A]", "WARNING: infoROM is corrupted at gpu 0000:0B:00.0"]
    nvidia_smi(tmp_path, monkeypatch, rows)
    assert len(gpus.gpus_here()) == 1
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "absent")
    assert gpus.driver_version() == ""


@pytest.fixture
def a_device(tmp_path, monkeypatch):
    """A kernel that has a GPU and a driver, whatever nvidia-smi says."""
    (tmp_path / "nvidia0").touch()
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  "
        "(dvs-builder)\n"
        "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n"
    )
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "version")


def test_a_driver_that_does_not_answer_never_means_cpus_in_silence(tmp_path, monkeypatch, a_device):
    said = "Failed to initialize NVML: Driver/library version mismatch"
    nvidia_smi(tmp_path, monkeypatch, fails=said)
    monkeypatch.setattr(gpus, "describe", lambda visible: gpus.NodeGpus("a"))  # nor does torch
    unanswered = r"NVIDIA's driver 580\.95\.05 does not answer"
    with pytest.raises(SetupError, match=rf"{unanswered}: nvidia-smi: {said}\. Restart the mach"):
        gpus.check_driver()
    with pytest.raises(SetupError, match=unanswered):
        trial_resources(ResourceSpec(), cpu_cluster_here(), "auto")
    assert trial_resources(ResourceSpec(), cpu_cluster_here(), "cpu").num_gpus == 0
    problem = doctor._checked("gpus", lambda: doctor._gpus(None))
    assert not problem["ok"]
    assert said in problem["detail"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    gpus.check_driver()


def test_gpus_that_torch_reaches_need_no_nvidia_smi(tmp_path, monkeypatch, a_device):
    nvidia_smi(tmp_path, monkeypatch, fails="not found")
    reached = gpus.NodeGpus("a", (gpus.Gpu("NVIDIA L4", "GPU-1", 2**34),))
    monkeypatch.setattr(gpus, "describe", lambda visible: reached)
    gpus.check_driver()
    assert gpus.gpu_models_here(())[1] == 1


def test_a_node_whose_torch_does_not_start_says_so(monkeypatch):
    monkeypatch.setattr(gpus.sys, "executable", "/bin/false")
    found = gpus.describe("")
    problem, *more = gpu_problems.gpu_problems(replace(found, num_ray_gpus=8.0))
    what, hint = problem.text, problem.hint
    assert (what.partition(": ")[2], more) == ("torch did not list the GPUs: exit code 1", [])
    assert "import torch" in hint


def test_a_node_that_came_later_and_has_no_bfloat16_rests_and_says_so(without_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(gpus, "gpu_in_use", lambda: GpuInUse("Tesla T4", "GPU-7"))
    monkeypatch.setattr(trial_device, "check_computes", lambda: None)
    monkeypatch.setattr(trial_device, "check_numbers", lambda network: "")
    assert device_for(1.0, "off").device == "cuda"
    with pytest.raises(
        SetupError,
        match=r"bfloat16, which Tesla T4 with compute capability 7.5.*precision: float32",
    ) as caught:
        device_for(1.0, precision="bfloat16")
    failure = classify(caught.value)
    assert failure.unfit_node
    assert failure.gpu == f"GPU-7 of node {socket.gethostname()}"


def test_a_node_describes_itself_in_a_process_of_its_own():
    found = gpus.describe("")
    assert (found.gpus, found.torch) == ((), torch.__version__)
