"""The GPUs of this machine, as ``nvidia-smi``, NVML and torch describe them.

``nvidia-smi`` answers quickly and knows what others hold; torch knows what a trial can reach. Torch
is asked in a process of its own, so that this one holds no memory of a GPU.
"""

from __future__ import annotations

import errno
import json
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
from typing import Any, NamedTuple

from orchestrator.machine.processes import STUCK_PROGRAMS, ProgramOutput, run_program
from orchestrator.planning.costs.gpu_checks import read_checks
from orchestrator.planning.costs.gpu_models import GpuModel, gpu_model_like, gpu_model_there
from search_spaces.errors import ConfigError, SetupError

LOGICAL_GPUS = "ISWEEP_LOGICAL_GPUS"
"""Variable that, set to 1 on every node, makes GPU shares mere numbers for scheduling: trials run
on CPUs. For tests of packing."""
OLDEST_DRIVER_BRANCH = {13: 580, 12: 525, 11: 450}
"""Oldest branch of NVIDIA's driver by major version of CUDA, whose minor versions are compatible
(NVIDIA, "CUDA Compatibility", table 1)."""
LAST_CU126_TORCH = "2.14"
"""Last torch with wheels for CUDA 12.6 (pytorch#190385)."""
MAXWELL = 5.0
"""Oldest compute capability for which PyTorch's cu126 wheels have kernels (its RELEASE.md)."""
TURING = 7.5
"""Oldest compute capability for which CUDA 13, and so the newest torch, has kernels."""
BLACKWELL = 10.0
"""Compute capability from which on CUDA 12.6 has no kernels (PyTorch's RELEASE.md)."""
HIDING_VALUES = ("", "-1", "none", "void", "nodevfiles")
"""Values of ``CUDA_VISIBLE_DEVICES`` by which people mean that no GPU be seen."""
DEVICES = Path("/dev")
DRIVER = Path("/proc/driver/nvidia/version")
WSL = Path("/usr/lib/wsl/lib")
"""Folder in which Windows puts NVIDIA's library and nvidia-smi: often not on PATH, and without
device files."""
HINTS_BY_WORDS = {
    "stub library": "Remove the folder of CUDA's stubs from LD_LIBRARY_PATH",
    "MPS client": (
        "Start MPS again (`nvidia-cuda-mps-control -d`), or unset CUDA_MPS_PIPE_DIRECTORY"
    ),
    "system not yet initialized": "Start nvidia-fabricmanager, which GPUs behind an NVSwitch need",
}
"""Hints by CUDA's words for why torch reaches no GPU: cudaErrorStubLibrary, an MPS server
that is gone, cudaErrorSystemNotReady."""
IMPORT_TIMEOUT_S = 300.0
"""Seconds that a process may take to import torch, which a network's file system delays."""
MPS_TIMEOUT_S = 5.0
WARN_AFTER_S = 10.0
"""Seconds without an answer from nvidia-smi before the terminal says what is waited for."""
MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """A GPU as its node describes it.

    Attributes:
        name: the driver's.
        uuid: GPU-..., or MIG-... for a slice, as ``CUDA_VISIBLE_DEVICES`` takes it.
        memory_bytes: all of its memory.
        held_bytes: memory that processes held when it was asked.
        capability: CUDA's compute capability.
        processors: streaming multiprocessors; 0 if torch was not asked.
        compute_mode: ``Default``, or one that restricts who may use it.
        mig: whether it is cut into slices (MIG), or is one.
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
        """All of its memory in GiB."""
        return self.memory_bytes / 2**30

    def model(self, checks: Mapping[str, Mapping[str, Any]] | None = None) -> GpuModel:
        """Return the model of GPU to plan with.

        ``checks`` are measurements, as :func:`read_checks` returns them.
        """
        return gpu_model_there(self.name, self.memory_gib, self.capability, self.processors, checks)


@dataclass(frozen=True)
class NodeGpus:
    """The GPUs of a node, as the node describes them.

    Attributes:
        node: host name.
        gpus: the GPUs that torch reaches.
        driver: version of NVIDIA's driver; empty without one.
        torch: torch's version.
        cuda: the CUDA version that torch was built for; empty for a build without CUDA.
        mps: whether NVIDIA's multi-process service runs, with which trials on one GPU compute at
            the same time.
        visible: Ray's ``CUDA_VISIBLE_DEVICES`` there.
        offered: number of GPUs that Ray hands out there.
        logical: whether its GPUs are for scheduling only.
        complaint: why torch reaches none, in torch's words; empty if it reaches one.
        error: why torch could not be asked there; empty if it answered.
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


class GpuInUse(NamedTuple):
    """The GPU that this process computes on: the driver's name for it, and its UUID."""

    name: str
    uuid: str


def is_logical() -> bool:
    """Return whether GPUs are for scheduling only; see :data:`LOGICAL_GPUS`."""
    return os.environ.get(LOGICAL_GPUS) == "1"


def mps_runs() -> bool:
    """Return whether NVIDIA's multi-process service answers; a dead one leaves its socket."""
    folder = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(MPS_TIMEOUT_S)
        try:
            client.connect(str(folder / "control"))
        except OSError as error:
            # EPROTOTYPE: it listens, on another type of socket.
            return error.errno == errno.EPROTOTYPE
    return True


def ask_nvidia_smi(*options: str) -> ProgramOutput:
    """Run ``nvidia-smi``; one that hangs once is not run again."""
    tool = shutil.which("nvidia-smi") or str(WSL / "nvidia-smi")
    warning = threading.Timer(WARN_AFTER_S, _say_what_is_waited_for)
    warning.daemon = True
    warning.start()
    answer = run_program(tool, *options)
    warning.cancel()
    if answer.timed_out:
        STUCK_PROGRAMS.add(tool)
    return answer


def _say_what_is_waited_for() -> None:
    print("Waiting for nvidia-smi", file=sys.stderr, flush=True)  # noqa: T201


def nvidia_smi(fields: str, *options: str) -> list[list[str]]:
    """Return the values of some fields for each GPU, in their order; no rows without a GPU.

    ``fields`` are separated by commas, as ``nvidia-smi --help-query-gpu`` lists them.
    """
    query = ask_nvidia_smi(*options, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    num_fields = fields.count(",") + 1
    rows = [[word.strip() for word in line.split(",")] for line in query.output.splitlines()]
    # Other lines are warnings.
    return [row for row in rows if len(row) == num_fields]


def has_devices() -> bool:
    """Return whether this machine has NVIDIA GPUs, by its kernel or by Windows below it."""
    return any(DEVICES.glob("nvidia[0-9]*")) or (WSL / "libcuda.so.1").exists()


def driver_version() -> str:
    """Return the version of this machine's NVIDIA driver; empty without one."""
    texts = [row[0] for row in nvidia_smi("driver_version")]
    with suppress(OSError):  # the kernel's own record, if nvidia-smi fails
        texts.append(DRIVER.read_text(encoding="utf-8"))
    version = re.search(r"(?<!\S)\d+(\.\d+)+(?!\S)", "\n".join(texts))
    return version[0] if version else ""


def driver_hint(driver: str, cuda: str | None, reason: str = "", capability: float = 0.0) -> str:
    """Return how to bring a driver and a torch together.

    Args:
        driver: version of the driver; empty without one.
        cuda: version that torch was built for; None or empty for a torch without CUDA.
        reason: torch's words for why it reaches no GPU.
        capability: compute capability of the GPU; 0 if unknown.
    """
    for words, hint in HINTS_BY_WORDS.items():
        if words in reason:
            return hint
    if not driver:
        return "Install NVIDIA's driver"
    if not cuda:
        return "Install a torch with CUDA (`pip install torch`)"
    branch = int(driver.partition(".")[0])
    cuda_major = int(cuda.partition(".")[0])
    needed_branch = OLDEST_DRIVER_BRANCH.get(cuda_major, 0)
    if branch >= needed_branch:
        return "Run `nvidia-smi`, and correct what it reports; the driver is new enough"
    hint = (
        f"Install a driver of branch {needed_branch} or later for CUDA {cuda} (the present one is "
        f"{driver})"
    )
    if branch >= OLDEST_DRIVER_BRANCH[12] and capability < BLACKWELL:
        hint += (
            f", or a torch of PyTorch's cu126 wheels (up to {LAST_CU126_TORCH}), which works with "
            "the present driver"
        )
        if not capability:
            hint += ". These wheels have no kernels for RTX 50 and B200"
    return hint


def visible_gpus() -> list[str] | None:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` names, or None if it is not set.

    CUDA reads it up to the first word that names no GPU, and takes none if one stands twice.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    names_gpu = re.compile(r"\d+|(GPU|MIG)-\S+").fullmatch
    words = [word.strip() for word in value.split(",")]
    names = list(takewhile(names_gpu, words))
    return names if len(set(names)) == len(names) else []


def gpus_here() -> list[Gpu]:
    """Return this machine's visible GPUs, slices (MIG) one by one.

    Torch takes seconds to start, so ``nvidia-smi`` decides if it can. It cannot if it says nothing
    although the kernel has GPUs, of GPUs that the table of models lacks, of slices, and of numbers
    if there are two kinds of GPU: it numbers GPUs in another order than CUDA.
    """
    names = visible_gpus()
    if is_logical() or names == []:
        return []
    rows = nvidia_smi("name,uuid,memory.total,mig.mode.current")
    gpus = []
    for name, uuid, memory_mib, _ in rows:
        # A GPU that shares the machine's memory (GB10) reports none.
        if memory_mib.isdigit():
            gpus.append(Gpu(name, uuid, int(memory_mib) * MIB))
    has_slices = any(row[3] == "Enabled" for row in rows)
    is_known = all(gpu_model_like(gpu.name) for gpu in gpus)
    if rows and len(gpus) == len(rows) and is_known and not has_slices:
        chosen = _chosen(gpus, names)
        if chosen is not None:
            return chosen
    if not (rows or has_devices()):
        return []
    # If torch reaches none, those of nvidia-smi: a run then says why.
    return list(describe(",".join(names or ())).gpus) or gpus


def _chosen(gpus: list[Gpu], names: list[str] | None) -> list[Gpu] | None:
    """Return the named GPUs; None if only CUDA knows which ones the numbers mean."""
    if names is None:
        return gpus
    # CUDA reads up to the first number that no GPU has.
    names = list(takewhile(lambda name: not name.isdigit() or int(name) < len(gpus), names))
    if not all(name.isdigit() for name in names):
        return [gpu for name in names for gpu in gpus if gpu.uuid.startswith(name)]
    if len({gpu.name for gpu in gpus}) == 1:
        return gpus[: len(names)]
    return None


def slice_uuids() -> list[str]:
    """Return the UUIDs of all slices (MIG)."""
    line = r"MIG \S+\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)"
    return re.findall(line, ask_nvidia_smi("-L").output)


def check_driver() -> None:
    """Check that NVIDIA's driver answers if the kernel has GPUs.

    Trials would otherwise run on CPUs silently.

    Raises:
        ConfigError: ``CUDA_VISIBLE_DEVICES`` names no GPU of this machine.
        SetupError: the driver does not answer.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    is_hidden = value is not None and value.partition(",")[0].strip().lower() in HIDING_VALUES
    if is_logical() or is_hidden or not has_devices() or gpus_here():
        return
    listing = ask_nvidia_smi("-L")
    if listing.output and value:
        gpus = ", ".join(listing.output.splitlines())
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={value} names a GPU that this machine does not have, or one GPU "
            "twice",
            hint=f"Name GPUs by number or UUID: {gpus}. Unset the variable to use all of them, or "
            "set CUDA_VISIBLE_DEVICES= to run on CPUs",
        )
    version = driver_version()
    driver = f"driver {version}" if version else "driver"
    raise SetupError(
        f"This machine has a GPU, but NVIDIA's {driver} does not answer: nvidia-smi: "
        f"{listing.error or 'no GPU is listed'}",
        hint="Restart the machine if the driver was updated since the last start. In a container, "
        "ask for the capabilities compute,utility. Set CUDA_VISIBLE_DEVICES= to run on CPUs",
    )


def gpu_models_here(folders: Iterable[Path]) -> tuple[GpuModel | None, int]:
    """Return the model of this machine's GPUs to plan with, and their number.

    Of several kinds it is the smallest, with the least capability of all.
    """
    checks = read_checks(folders)
    models = [gpu.model(checks) for gpu in gpus_here()]
    if not models:
        return None, 0
    smallest = min(models, key=lambda model: (model.memory_gib, model.half_tflops))
    capability = min(model.capability for model in models)
    return replace(smallest, capability=capability), len(models)


def gpu_check_folders(root: Path) -> tuple[Path, ...]:
    """Return the folders with records of ``isweep gpu-check``; the last, a root's own, counts."""
    return Path(__file__).parents[2] / "benchmarks" / "results" / "gpu", root / "gpu"


def describe(visible: str | None = None) -> NodeGpus:
    """Return this node's GPUs, as a process of its own sees them.

    Args:
        visible: value of ``CUDA_VISIBLE_DEVICES``; None takes that of the raylet whose task this
            is, because Ray hides GPUs from tasks without a share.
    """
    if visible is None:
        visible = _visible_to_parent()
    names = [name.strip() for name in visible.split(",")]
    if len(names) > 1 and "MIG-" in visible:
        return _describe_slices(names, visible)
    program = run_program(
        sys.executable,
        "-c",
        "from orchestrator.machine.gpus import print_gpus; print_gpus()",
        visible=visible,
        timeout_s=IMPORT_TIMEOUT_S,
    )
    node = NodeGpus(
        socket.gethostname(), mps=mps_runs(), visible=visible, logical=is_logical(), error=""
    )
    if not program.output:
        return replace(node, error=program.error or "the process printed nothing")
    fields: dict[str, Any] = json.loads(program.output.splitlines()[-1])
    gpus = tuple(Gpu(**gpu) for gpu in fields.pop("gpus"))
    return replace(node, gpus=gpus, **fields)


def _describe_slices(names: list[str], visible: str) -> NodeGpus:
    """Describe slices (MIG) one by one: CUDA shows a process the first one alone."""
    with ThreadPoolExecutor() as pool:
        nodes = list(pool.map(describe, names))
    failing = (node for node in nodes if node.error or node.complaint)
    node = next(failing, nodes[0])
    gpus = tuple(gpu for node in nodes for gpu in node.gpus)
    return replace(node, gpus=gpus, visible=visible)


def _visible_to_parent() -> str:
    """Return ``CUDA_VISIBLE_DEVICES`` as this process's parent was started with it."""
    prefix = b"CUDA_VISIBLE_DEVICES="
    with suppress(OSError):
        variables = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        for variable in variables:
            if variable.startswith(prefix):
                return variable.removeprefix(prefix).decode()
    return ""


def print_gpus() -> None:
    """Print, as JSON, what torch, NVML and ``nvidia-smi`` report of this node's GPUs."""
    rows = nvidia_smi("uuid,compute_mode,mig.mode.current,memory.used")
    rows_by_uuid = {row[0]: row for row in rows}
    # Before this process holds anything there itself.
    bytes_held_in_slice = _held_in_slice()
    import torch

    complaint = why_no_gpu()
    # Once it has begun, torch counts the GPUs that CUDA reaches; before, those that NVML lists.
    num_gpus = 0 if complaint else torch.cuda.device_count()
    gpus = []
    for index in range(num_gpus):
        properties = torch.cuda.get_device_properties(index)
        uuid = _uuid(properties)
        _, mode, mig_mode, used_mib = rows_by_uuid.get(uuid, (uuid, "Default", "", ""))
        is_slice = "MIG" in properties.name or mig_mode == "Enabled"
        held_bytes = bytes_held_in_slice
        if used_mib.isdigit() and not is_slice:
            held_bytes = int(used_mib) * MIB
        capability = (10 * properties.major + properties.minor) / 10
        gpus.append(
            Gpu(
                name=properties.name,
                uuid=uuid,
                memory_bytes=properties.total_memory,
                held_bytes=held_bytes,
                capability=capability,
                processors=properties.multi_processor_count,
                compute_mode=mode,
                mig=is_slice,
                has_kernels=_has_kernels(capability, torch.cuda.get_arch_list()),
            )
        )
    fields = {
        "gpus": [asdict(gpu) for gpu in gpus],
        "driver": driver_version(),
        "complaint": complaint,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
    }
    print(json.dumps(fields))  # noqa: T201


def _held_in_slice() -> int:
    """Return the bytes that processes hold of the slice that this process sees; 0 if unknown."""
    from tasks.trials.isolation import NvmlGpu

    first = (visible_gpus() or [""])[0]
    if first.startswith("MIG-"):
        with suppress(OSError, AttributeError):  # no NVML, or an older one
            return NvmlGpu(first).held_bytes()
    return 0


def why_no_gpu() -> str:
    """Return why torch reaches no GPU, in torch's words; empty if it reaches one."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        return (str(error).strip().splitlines() or [""])[0][:300]
    return ""


def _has_kernels(capability: float, built_for: Collection[str]) -> bool:
    """Return whether torch has kernels for a GPU.

    They are of its major version and no newer than it, or in a form that the driver compiles.
    """
    for name in built_for:
        kind, _, number = name.partition("_")
        digits = "".join(filter(str.isdigit, number)) or "0"
        built_capability = int(digits) / 10
        is_same_major = int(built_capability) == int(capability)
        if built_capability <= capability and (kind == "compute" or is_same_major):
            return True
    return not built_for


def compute_capability() -> float:
    """Return the compute capability of this process's GPU."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return (10 * major + minor) / 10


def gpu_in_use() -> GpuInUse:
    """Return the GPU that this process computes on."""
    import torch

    properties = torch.cuda.get_device_properties()
    return GpuInUse(str(properties.name), _uuid(properties))


def _uuid(properties: Any) -> str:
    # Torch has no name for a slice that CUDA takes.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    if first.startswith("MIG-"):
        return first
    return f"GPU-{str(properties.uuid).removeprefix('GPU-')}"
