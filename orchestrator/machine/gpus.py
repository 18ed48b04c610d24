"""The GPUs that a cluster's nodes have, what stands in the way of trials there, and the one of a
trial.

No trial falls back to CPUs in silence, and what no trial could do there is refused before anything
starts.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import socket
import sys
import threading
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from orchestrator.machine.processes import NO_ANSWER, STUCK, answer_of
from orchestrator.planning import predict
from search_spaces.errors import ConfigError, SetupError

log = logging.getLogger(__name__)

LOGICAL_GPUS = "ISWEEP_LOGICAL_GPUS"
"""Set to 1 on every node, GPU shares are for scheduling only and trials run on CPUs: for tests of
packing."""

NEEDS_DRIVER = {13: 580, 12: 525, 11: 450}
"""The oldest branch of NVIDIA's driver by major version of CUDA, within which minor versions are
compatible (NVIDIA, "CUDA Compatibility", table 1)."""
HIDES = ("", "-1", "none", "void", "nodevfiles")
"""What ``CUDA_VISIBLE_DEVICES`` says where somebody means that no GPU be seen."""
DEVICES, DRIVER = Path("/dev"), Path("/proc/driver/nvidia/version")
WSL = Path("/usr/lib/wsl/lib")
"""Where Windows puts NVIDIA's library and nvidia-smi: often not on PATH, and without files of
devices."""
WAYS_OUT = {
    "stub library": "take the folder of CUDA's stubs out of LD_LIBRARY_PATH",
    "MPS client": "start MPS again (nvidia-cuda-mps-control -d), or unset CUDA_MPS_PIPE_DIRECTORY",
    "system not yet initialized": "start nvidia-fabricmanager, which GPUs behind an NVSwitch need",
}
"""By words of why torch reaches no GPU: cudaErrorStubLibrary, cudaErrorSystemNotReady."""
IMPORT_TIMEOUT_S = 300.0
"""Of a process that imports torch, which a network's file system may take minutes to give."""
MPS_TIMEOUT_S, LATE_S = 5.0, 10.0


@dataclass(frozen=True)
class Gpu:
    """A GPU as its node describes it.

    Attributes:
        uuid: GPU-..., or MIG-... for a slice, as ``CUDA_VISIBLE_DEVICES`` takes it.
        held_bytes: what processes held of its memory when it was asked.
        capability: CUDA's.
        processors: streaming ones; 0 where torch was not asked.
        compute_mode: ``Default``, or in whose way it stands.
        mig: whether it is cut into slices, or is one.
        has_kernels: whether the installed torch has kernels for it.
    """

    name: str
    uuid: str
    memory_bytes: int
    held_bytes: int = 0
    capability: float = 8.0
    processors: int = 0
    compute_mode: str = "Default"
    mig: bool = False
    has_kernels: bool = True

    @property
    def memory_gib(self) -> float:
        """All of its memory."""
        return self.memory_bytes / 2**30

    def model(self, checks: Mapping[str, Mapping[str, Any]] | None = None) -> predict.GpuModel:
        """Return what is planned with for it; ``checks`` as :func:`predict.read_checks` gives
        them.
        """
        return predict.gpu_model_there(
            self.name, self.memory_gib, self.capability, self.processors, checks
        )


@dataclass(frozen=True)
class NodeGpus:
    """What a node says of its GPUs.

    Attributes:
        gpus: that torch reaches there.
        driver: version of NVIDIA's driver; empty without.
        cuda: that torch was built for; empty for a build without.
        mps: whether NVIDIA's multi-process service runs, so that trials on one GPU compute at the
            same time.
        visible: what ``CUDA_VISIBLE_DEVICES`` says to Ray there.
        offered: GPUs that Ray hands out there; ``logical`` ones are for scheduling only.
        complaint: why torch reaches none, in its words; empty where it reaches one.
        error: why torch could not be asked there; empty where it answered.
    """

    node: str
    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    torch: str = ""
    cuda: str = ""
    mps: bool = False
    visible: str = ""
    offered: float = 0.0
    logical: bool = False
    complaint: str = ""
    error: str = ""


def is_logical() -> bool:
    """Tell whether GPUs are logical ones."""
    return os.environ.get(LOGICAL_GPUS) == "1"


def mps_runs() -> bool:
    """Tell whether NVIDIA's multi-process service answers on this node: one that died leaves its
    socket.
    """
    path = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(MPS_TIMEOUT_S)
        try:
            client.connect(str(path))
        except OSError as error:
            return error.errno == errno.EPROTOTYPE  # it listens, by another type of socket
    return True


def ask_smi(*options: str) -> tuple[str, str]:
    """Return what ``nvidia-smi`` says, and its complaint where it fails; one that hangs is asked
    once.
    """
    tool, told = shutil.which("nvidia-smi") or str(WSL / "nvidia-smi"), "nvidia-smi is waited for"
    late = threading.Timer(LATE_S, lambda: print(told, file=sys.stderr, flush=True))  # noqa: T201
    late.daemon = True
    late.start()
    said, complaint = answer_of(tool, *options)
    late.cancel()
    if complaint.startswith(NO_ANSWER):
        STUCK.add(tool)
    return said, complaint


def nvidia_smi(fields: str, *options: str) -> list[list[str]]:
    """Return what ``nvidia-smi`` says of each GPU, field by field; nothing where there is none."""
    text, _ = ask_smi(*options, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    rows = [[word.strip() for word in line.split(",")] for line in text.splitlines()]
    return [row for row in rows if len(row) == fields.count(",") + 1]  # others are warnings


def has_devices() -> bool:
    """Tell whether this machine has NVIDIA's GPUs, by its kernel or by Windows below it."""
    return any(DEVICES.glob("nvidia[0-9]*")) or (WSL / "libcuda.so.1").exists()


def driver_version() -> str:
    """Return the version of this machine's NVIDIA driver, where ``nvidia-smi`` fails too; empty
    without.
    """
    said = [row[0] for row in nvidia_smi("driver_version")]
    with suppress(OSError):
        said.append(DRIVER.read_text(encoding="utf-8"))
    found = re.search(r"(?<!\S)\d+(\.\d+)+(?!\S)", "\n".join(said))
    return found[0] if found else ""


def driver_way_out(driver: str, cuda: str | None, complaint: str = "") -> str:
    """Return how a driver and a torch that was built for ``cuda`` and says so are brought
    together.
    """
    if known := next((way_out for words, way_out in WAYS_OUT.items() if words in complaint), ""):
        return known
    if not driver:
        return "install NVIDIA's driver"
    if not cuda:
        return "install a torch with CUDA (pip install torch)"
    branch, needed = int(driver.partition(".")[0]), NEEDS_DRIVER.get(int(cuda.partition(".")[0]), 0)
    if branch >= needed:
        return "see what nvidia-smi says: the driver is new enough"
    older = (
        ", or a torch of PyTorch's cu126 wheels (up to 2.14), which takes it"
        if branch >= 525
        else ""
    )
    return (
        f"CUDA {cuda} needs a driver of branch {needed} or later, this is {driver}: install "
        f"one{older}"
    )


def visible_gpus() -> list[str] | None:
    """Return what ``CUDA_VISIBLE_DEVICES`` names, as CUDA reads it: to a word that is none; or
    None.
    """
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    words = (word.strip() for word in (said or "").split(","))
    named = list(takewhile(re.compile(r"\d+|(GPU|MIG)-\S+").fullmatch, words))
    return None if said is None else named if len(set(named)) == len(named) else []


def gpus_here() -> list[Gpu]:
    """Return this machine's visible GPUs, slices (MIG) one by one, without torch where that can be.

    Torch is asked where ``nvidia-smi`` says nothing although the kernel has GPUs, of GPUs that the
    table of models lacks, of slices, and which ones a number means where there are two kinds:
    ``nvidia-smi`` numbers them in another order than CUDA.
    """
    words = visible_gpus()
    if is_logical() or words == []:
        return []
    rows = nvidia_smi("name,uuid,memory.total,mig.mode.current")
    # Nothing is known of the memory of GPUs that share the machine's (GB10).
    gpus = [Gpu(name, uuid, int(size) * 2**20) for name, uuid, size, _ in rows if size.isdigit()]
    whole = len(gpus) == len(rows) and not any(row[3] == "Enabled" for row in rows)
    if rows and whole and all(predict.gpu_model_like(gpu.name) for gpu in gpus):
        if words is None:
            return gpus
        words = list(takewhile(lambda word: not word.isdigit() or int(word) < len(rows), words))
        if not all(map(str.isdigit, words)):
            return [gpu for word in words for gpu in gpus if gpu.uuid.startswith(word)]
        if len({gpu.name for gpu in gpus}) == 1:
            return gpus[: len(words)]
    # Those of nvidia-smi where torch reaches none: a run then says why.
    return list(describe(",".join(words or ())).gpus) or gpus if rows or has_devices() else []


def slices() -> list[str]:
    """Return the UUIDs of all slices (MIG)."""
    return re.findall(r"MIG \S+\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)", ask_smi("-L")[0])


def check_driver() -> None:
    """See that NVIDIA's driver answers where the kernel has GPUs: trials would run on CPUs without
    a word.
    """
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = said is not None and said.partition(",")[0].strip().lower() in HIDES
    if is_logical() or hidden or not has_devices() or gpus_here():
        return
    listed, complaint = ask_smi("-L")
    if listed and said:
        raise ConfigError(
            "CUDA_VISIBLE_DEVICES must name GPUs of this machine, by number or UUID, each once",
            said,
            f"of {', '.join(listed.splitlines())}; or unset it; CUDA_VISIBLE_DEVICES= runs on CPUs",
        )
    raise SetupError(
        "NVIDIA's driver must answer where there is a GPU",
        f"nvidia-smi: {complaint or 'it lists none'}; driver {driver_version() or 'absent'}",
        "restart the machine where the driver was updated since it started; in a container ask for "
        "the "
        "capabilities compute,utility; or hide the GPUs with CUDA_VISIBLE_DEVICES= to run on CPUs",
    )


def gpu_models_here(folders: Iterable[Path]) -> tuple[predict.GpuModel | None, int]:
    """Return this machine's GPU, of several the smallest with the least capability, and how
    many.
    """
    checks = predict.read_checks(folders)
    found = [gpu.model(checks) for gpu in gpus_here()]
    least = min(found, key=lambda its: (its.memory_gib, its.half_tflops), default=None)
    return least and replace(least, capability=min(its.capability for its in found)), len(found)


def gpu_check_folders(root: Path) -> tuple[Path, ...]:
    """Return where records of ``isweep gpu-check`` lie: others', then a root's own, which count."""
    return Path(__file__).parents[2] / "benchmarks" / "results" / "gpu", root / "gpu"


def describe(visible: str | None = None) -> NodeGpus:
    """Return this node's GPUs, as a process of its own sees them.

    Args:
        visible: what ``CUDA_VISIBLE_DEVICES`` says; None asks the raylet whose task this is, since
            Ray hides GPUs from tasks without a share.
    """
    if visible is None:
        visible, name = "", b"CUDA_VISIBLE_DEVICES="
        with suppress(OSError):  # what the raylet, our parent, was started with
            words = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
            visible = next(
                (word.removeprefix(name).decode() for word in words if word.startswith(name)), ""
            )
    seen = [word.strip() for word in visible.split(",")]
    if len(seen) > 1 and "MIG-" in visible:  # CUDA shows a process the first slice alone
        with ThreadPoolExecutor() as pool:
            each = [*pool.map(describe, seen)]
        told = next((one for one in each if one.error or one.complaint), each[0])
        return replace(told, gpus=tuple(gpu for one in each for gpu in one.gpus), visible=visible)
    command = (
        sys.executable,
        "-c",
        "from orchestrator.machine.gpus import print_gpus; print_gpus()",
    )
    said, complaint = answer_of(*command, visible=visible, timeout=IMPORT_TIMEOUT_S)
    found: dict[str, Any] = (
        json.loads(said.splitlines()[-1]) if said else {"error": complaint or "no answer"}
    )
    gpus = tuple(Gpu(**gpu) for gpu in found.pop("gpus", ()))
    found |= {"visible": visible, "mps": mps_runs(), "logical": is_logical()}
    return NodeGpus(socket.gethostname(), gpus, **found)


def print_gpus() -> None:
    """Print, as JSON, what torch, NVML and ``nvidia-smi`` say of this node's GPUs."""
    said = {row[0]: row[1:] for row in nvidia_smi("uuid,compute_mode,mig.mode.current,memory.used")}
    first, held = (visible_gpus() or [""])[0], 0
    import torch

    from tasks.trials.isolation import NvmlGpu

    if first.startswith("MIG-"):  # before this process holds anything there
        with suppress(OSError, AttributeError):  # no NVML, or an older one
            held = NvmlGpu(first).held_bytes()
    # Once it has begun torch counts what CUDA reaches; before, what NVML lists.
    complaint, gpus = no_gpu(), list[Gpu]()
    for index in range(0 if complaint else torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        uuid = _uuid(about)
        mode, cut, used = said.get(uuid, ("Default", "", ""))
        mig = "MIG" in about.name or cut == "Enabled"
        gpus.append(
            Gpu(
                name=about.name,
                uuid=uuid,
                memory_bytes=about.total_memory,
                held_bytes=int(used) * 2**20 if used.isdigit() and not mig else held,
                capability=(10 * about.major + about.minor) / 10,
                processors=about.multi_processor_count,
                compute_mode=mode,
                mig=mig,
                has_kernels=_has_kernels(
                    (10 * about.major + about.minor) / 10, torch.cuda.get_arch_list()
                ),
            )
        )
    found = {
        "gpus": [asdict(gpu) for gpu in gpus],
        "driver": driver_version(),
        "complaint": complaint,
    }
    print(json.dumps(found | {"torch": torch.__version__, "cuda": torch.version.cuda or ""}))  # noqa: T201


def no_gpu() -> str:
    """Return why torch reaches no GPU, in its words."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        return (str(error).strip().splitlines() or [""])[0][:300]
    return ""


def _has_kernels(capability: float, built_for: Collection[str]) -> bool:
    """Tell whether torch has kernels for a GPU: of its major version and no newer, or to be
    compiled.
    """
    for name in built_for:
        kind, _, number = name.partition("_")
        its = int("".join(filter(str.isdigit, number)) or 0) / 10
        if its <= capability and (kind == "compute" or int(its) == int(capability)):
            return True
    return not built_for


def capability() -> float:
    """Return the compute capability of this process's GPU."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return (10 * major + minor) / 10


def gpu_in_use() -> tuple[str, str]:
    """Return the driver's name of the GPU that this process computes on, and its UUID."""
    import torch

    about = torch.cuda.get_device_properties()
    return str(about.name), _uuid(about)


def _uuid(about: Any) -> str:
    # Of a slice torch knows no name that CUDA takes.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    return first if first.startswith("MIG-") else f"GPU-{str(about.uuid).removeprefix('GPU-')}"
