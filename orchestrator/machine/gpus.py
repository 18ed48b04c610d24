"""The GPUs of this machine, as ``nvidia-smi``, NVML and torch describe them.

``nvidia-smi`` answers quickly and reports the memory that other processes use. Torch reports which
GPUs a trial can use. Torch runs in a separate process, so that this process uses no GPU memory.
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
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.machine.processes import STUCK_PROGRAMS, ProgramOutput, run_program
from orchestrator.planning.costs.gpu_checks import read_checks
from orchestrator.planning.costs.gpu_models import GpuModel, gpu_model_from_driver, listed_gpu_model
from search_spaces.errors import ConfigError, SetupError

LOGICAL_GPUS = "ISWEEP_LOGICAL_GPUS"
"""Environment variable for tests of GPU sharing. If it is 1 on every node, GPUs are only numbers
for Ray's scheduling, and trials run on CPUs."""
OLDEST_DRIVER_BRANCH = {13: 580, 12: 525, 11: 450}
"""Oldest branch of NVIDIA's driver for each major version of CUDA, valid for all its minor versions
(NVIDIA, "CUDA Compatibility", table 1)."""
LAST_CU126_TORCH = "2.14"
"""Last torch with wheels for CUDA 12.6 (pytorch#190385)."""
FIRST_CAPABILITY_BEYOND_CU126 = 10.0
"""Lowest compute capability that is too new for CUDA 12.6 (PyTorch's RELEASE.md): Blackwell."""
HIDING_VALUES = ("", "-1", "none", "void", "nodevfiles")
"""Values of ``CUDA_VISIBLE_DEVICES`` with which people hide all GPUs."""
DEVICES = Path("/dev")
"""Folder of the kernel's device files."""
DRIVER = Path("/proc/driver/nvidia/version")
"""File with the version of NVIDIA's driver, which the kernel writes."""
WSL = Path("/usr/lib/wsl/lib")
"""Folder of NVIDIA's library and nvidia-smi in Linux on Windows (WSL). The folder is often not on
PATH, and WSL has no device files of GPUs."""
HINTS_BY_WORDS = {
    "stub library": "Remove the folder of CUDA's stubs from LD_LIBRARY_PATH",
    "MPS client": (
        "Start MPS again (`nvidia-cuda-mps-control -d`), or unset CUDA_MPS_PIPE_DIRECTORY"
    ),
    "system not yet initialized": "Start nvidia-fabricmanager, which GPUs behind an NVSwitch need",
}
"""Hints if torch cannot use a GPU, by a part of CUDA's message. The messages are those of
cudaErrorStubLibrary, of a dead MPS server, and of cudaErrorSystemNotReady."""
IMPORT_TIMEOUT_S = 300.0
"""Seconds that a process may take to import torch, which is slow on a network file system."""
MPS_TIMEOUT_S = 5.0
"""Seconds that NVIDIA's multi-process service (MPS) may take to accept a connection."""
WARN_AFTER_S = 10.0
"""Seconds without an answer from nvidia-smi before a message is printed."""
MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """A GPU as its node describes it.

    Attributes:
        name: the driver's name of the GPU.
        uuid: GPU-..., or MIG-... for a slice, in the form for ``CUDA_VISIBLE_DEVICES``.
        memory_bytes: total memory of the GPU.
        held_bytes: bytes of memory that processes used when the GPU was described.
        capability: CUDA compute capability.
        processors: number of streaming multiprocessors; 0 if unknown.
        compute_mode: ``Default``, or a mode that restricts which processes may use the GPU.
        mig: True if the GPU is divided into slices (MIG), or is a slice.
        has_kernels: True if the installed torch has kernels for the GPU.
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
        """Total memory of the GPU in GiB."""
        return self.memory_bytes / 2**30

    def model(self, checks: Mapping[str, Mapping[str, Any]] | None = None) -> GpuModel:
        """Return the kind of GPU for plans.

        Args:
            checks: measurements by the driver's name of the GPU, see :func:`read_checks`.
        """
        return gpu_model_from_driver(
            self.name, self.memory_gib, self.capability, self.processors, checks
        )


@dataclass(frozen=True)
class NodeGpus:
    """The GPUs of a node, as the node describes them.

    Attributes:
        node: host name.
        gpus: the GPUs that torch can use.
        driver: version of NVIDIA's driver; empty if there is no driver.
        torch: version of torch.
        cuda: the CUDA version that torch was built for; empty for a build without CUDA.
        mps: True if NVIDIA's multi-process service (MPS) runs. With MPS, trials that share a GPU
            compute at the same time.
        visible: Ray's ``CUDA_VISIBLE_DEVICES`` on the node.
        num_ray_gpus: number of GPUs that Ray assigns on the node.
        logical: True if the node's GPUs are for scheduling only.
        torch_message: torch's message if torch can use no GPU; otherwise empty.
        error: why the process with torch failed; empty if the process succeeded.
    """

    node: str
    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    torch: str = ""
    cuda: str = ""
    mps: bool = False
    visible: str = ""
    num_ray_gpus: float = 0.0
    logical: bool = False
    torch_message: str = ""
    error: str = ""


class GpuInUse(NamedTuple):
    """The GPU that this process computes on.

    Attributes:
        name: the driver's name of the GPU.
        uuid: UUID of the GPU or slice.
    """

    name: str
    uuid: str


def is_logical() -> bool:
    """Return whether GPUs are for scheduling only; see :data:`LOGICAL_GPUS`."""
    return os.environ.get(LOGICAL_GPUS) == "1"


def mps_runs() -> bool:
    """Return whether NVIDIA's multi-process service (MPS) answers on its socket.

    The file of the socket does not suffice, because it stays after the service has died.
    """
    folder = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(MPS_TIMEOUT_S)
        try:
            client.connect(str(folder / "control"))
        except OSError as error:
            # EPROTOTYPE: the service listens on another type of socket.
            return error.errno == errno.EPROTOTYPE
    return True


def ask_nvidia_smi(*options: str) -> ProgramOutput:
    """Run ``nvidia-smi`` and return its output. If it hangs once, it is not run again."""
    tool = shutil.which("nvidia-smi") or str(WSL / "nvidia-smi")
    warning = threading.Timer(WARN_AFTER_S, _print_that_we_wait)
    warning.daemon = True
    warning.start()
    answer = run_program(tool, *options)
    warning.cancel()
    if answer.timed_out:
        STUCK_PROGRAMS.add(tool)
    return answer


def _print_that_we_wait() -> None:
    """Print that isweep waits for ``nvidia-smi``."""
    print("Waiting for nvidia-smi", file=sys.stderr, flush=True)  # noqa: T201


def nvidia_smi(fields: str, *options: str) -> list[list[str]]:
    """Return one row of values for each GPU; empty if there is no GPU.

    Args:
        fields: names from ``nvidia-smi --help-query-gpu``, separated by commas.
        options: further options of ``nvidia-smi``.
    """
    query = ask_nvidia_smi(*options, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    num_fields = fields.count(",") + 1
    rows = [[word.strip() for word in line.split(",")] for line in query.output.splitlines()]
    # Lines with another number of values are warnings.
    return [row for row in rows if len(row) == num_fields]


def has_devices() -> bool:
    """Return whether this machine has NVIDIA GPUs, according to the kernel, or Windows for WSL."""
    return any(DEVICES.glob("nvidia[0-9]*")) or (WSL / "libcuda.so.1").exists()


def driver_version() -> str:
    """Return the version of this machine's NVIDIA driver; empty if there is no driver."""
    texts = [row[0] for row in nvidia_smi("driver_version")]
    # The kernel's file exists even if nvidia-smi fails.
    with suppress(OSError):
        texts.append(DRIVER.read_text(encoding="utf-8"))
    version = re.search(r"(?<!\S)\d+(\.\d+)+(?!\S)", "\n".join(texts))
    return version[0] if version else ""


def driver_hint(driver: str, cuda: str | None, reason: str = "", capability: float = 0.0) -> str:
    """Return a hint for a driver and a torch that do not work together.

    Args:
        driver: version of the driver; empty if there is no driver.
        cuda: CUDA version that torch was built for; None or empty for a torch without CUDA.
        reason: torch's message about why it can use no GPU.
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
        return "Run `nvidia-smi`, and correct the error that it prints. The driver is new enough"
    hint = (
        f"Install a driver of branch {needed_branch} or later for CUDA {cuda} (the present one is "
        f"{driver})"
    )
    if branch >= OLDEST_DRIVER_BRANCH[12] and capability < FIRST_CAPABILITY_BEYOND_CU126:
        hint += (
            f", or install torch {LAST_CU126_TORCH} or earlier from PyTorch's cu126 wheels, which "
            "work with the present driver"
        )
        if not capability:
            hint += ". These wheels do not support RTX 50 and B200"
    return hint


def visible_gpus() -> list[str] | None:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` lists; None if the variable is not set.

    CUDA reads the list up to the first invalid entry. If an entry appears twice, CUDA uses no GPU.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    is_gpu_name = re.compile(r"\d+|(GPU|MIG)-\S+").fullmatch
    words = [word.strip() for word in value.split(",")]
    names = list(takewhile(is_gpu_name, words))
    return names if len(set(names)) == len(names) else []


def gpus_here() -> list[Gpu]:
    """Return this machine's visible GPUs and slices (MIG).

    Torch takes seconds to start, so ``nvidia-smi`` is used if possible. Torch is needed in four
    cases:

    - ``nvidia-smi`` prints nothing although the kernel has GPUs.
    - The table of GPU models lacks a GPU.
    - A GPU has slices.
    - ``CUDA_VISIBLE_DEVICES`` has numbers, and the machine has two kinds of GPU. ``nvidia-smi``
      numbers such GPUs in another order than CUDA.

    If ``CUDA_VISIBLE_DEVICES`` has numbers, the number of GPUs and their model are right, but their
    UUIDs may belong to hidden GPUs.
    """
    names = visible_gpus()
    if is_logical() or names == []:
        return []
    rows = nvidia_smi("name,uuid,memory.total,mig.mode.current")
    gpus = []
    for name, uuid, memory_mib, _ in rows:
        # A GPU that shares the machine's memory (GB10) reports no memory.
        if memory_mib.isdigit():
            gpus.append(Gpu(name, uuid, int(memory_mib) * MIB))
    has_slices = any(row[3] == "Enabled" for row in rows)
    is_known = all(listed_gpu_model(gpu.name) for gpu in gpus)
    if rows and len(gpus) == len(rows) and is_known and not has_slices:
        chosen = _gpus_with_names(gpus, names)
        if chosen is not None:
            return chosen
    if not (rows or has_devices()):
        return []
    # If torch can use no GPU, return the GPUs of nvidia-smi. A run then reports the reason.
    return list(describe(",".join(names or ())).gpus) or gpus


def _gpus_with_names(gpus: list[Gpu], names: list[str] | None) -> list[Gpu] | None:
    """Return as many GPUs as CUDA uses for these numbers or UUIDs, each of the right model.

    For UUIDs, these are the same GPUs. For numbers, the UUIDs may belong to other GPUs of the same
    model, because CUDA may number the GPUs in another order than ``nvidia-smi``.

    Returns:
        The GPUs. None for numbers on a machine with several models of GPU.
    """
    if names is None:
        return gpus
    # CUDA ignores everything from the first number or UUID without a GPU.
    names = list(takewhile(partial(_has_gpu, gpus), names))
    if not all(name.isdigit() for name in names):
        return [gpu for name in names for gpu in gpus if gpu.uuid.startswith(name)]
    if len({gpu.name for gpu in gpus}) == 1:
        return gpus[: len(names)]
    return None


def _has_gpu(gpus: list[Gpu], name: str) -> bool:
    """Return whether a number, or the beginning of a UUID, belongs to one of the GPUs."""
    if name.isdigit():
        return int(name) < len(gpus)
    return any(gpu.uuid.startswith(name) for gpu in gpus)


def slice_uuids() -> list[str]:
    """Return the UUIDs of all slices (MIG)."""
    line = r"MIG \S+\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)"
    return re.findall(line, ask_nvidia_smi("-L").output)


def check_driver() -> None:
    """Check that NVIDIA's driver answers if the kernel has GPUs.

    Without this check, trials would run on CPUs without a message.

    Raises:
        ConfigError: ``CUDA_VISIBLE_DEVICES`` lists no GPU of this machine.
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
            f"CUDA_VISIBLE_DEVICES={value} contains a GPU that this machine does not have, or "
            "contains the same GPU twice",
            hint=f"Set the variable to numbers or UUIDs from this list: {gpus}. To use all GPUs, "
            "unset the variable. To run on CPUs, set the variable to an empty value",
        )
    version = driver_version()
    driver = f"driver {version}" if version else "driver"
    raise SetupError(
        f"This machine has a GPU, but NVIDIA's {driver} does not answer: nvidia-smi: "
        f"{listing.error or 'no GPU is listed'}",
        hint="Restart the machine if the driver was updated since the last start. In a container, "
        "request the driver capabilities compute,utility. To run on CPUs, set "
        "CUDA_VISIBLE_DEVICES=",
    )


def gpu_models_here(folders: Iterable[Path]) -> tuple[GpuModel | None, int]:
    """Return the kind of GPU for plans on this machine, and the number of GPUs.

    If the machine has several kinds of GPU, the returned kind combines them: it has the speed and
    the memory of the kind with the least memory, and the lowest compute capability of all kinds.
    """
    checks = read_checks(folders)
    models = [gpu.model(checks) for gpu in gpus_here()]
    if not models:
        return None, 0
    smallest = min(models, key=lambda model: (model.memory_gib, model.half_tflops))
    capability = min(model.capability for model in models)
    return replace(smallest, capability=capability), len(models)


def gpu_check_folders(root: Path) -> tuple[Path, ...]:
    """Return the folders with records of ``isweep gpu-check``.

    The records in the root replace the others, because its folder is last.
    """
    return Path(__file__).parents[2] / "benchmarks" / "results" / "gpu", root / "gpu"


def describe(visible: str | None = None) -> NodeGpus:
    """Return this node's GPUs, as torch describes them in a separate process.

    Args:
        visible: value of ``CUDA_VISIBLE_DEVICES`` for that process. None uses the value of the
            raylet that started this task, because Ray hides GPUs from tasks without a GPU share.
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
    """Return slices (MIG), each described by its own process, because CUDA shows only one slice."""
    with ThreadPoolExecutor() as pool:
        nodes = list(pool.map(describe, names))
    failing = (node for node in nodes if node.error or node.torch_message)
    node = next(failing, nodes[0])
    gpus = tuple(gpu for node in nodes for gpu in node.gpus)
    return replace(node, gpus=gpus, visible=visible)


def _visible_to_parent() -> str:
    """Return the value of ``CUDA_VISIBLE_DEVICES`` with which the parent process was started."""
    prefix = b"CUDA_VISIBLE_DEVICES="
    with suppress(OSError):
        variables = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        for variable in variables:
            if variable.startswith(prefix):
                return variable.removeprefix(prefix).decode()
    return ""


def print_gpus() -> None:
    """Print what torch, NVML and ``nvidia-smi`` report about this node's GPUs, as JSON.

    :func:`describe` runs this function in a separate process.
    """
    rows = nvidia_smi("uuid,compute_mode,mig.mode.current,memory.used")
    rows_by_uuid = {row[0]: row for row in rows}
    # Measured now, before this process itself uses GPU memory.
    bytes_held_in_slice = _held_in_slice()
    import torch

    torch_message = why_no_gpu()
    # why_no_gpu() has started CUDA, so torch counts the GPUs that CUDA can use. Before that, torch
    # counts the GPUs that NVML lists.
    num_gpus = 0 if torch_message else torch.cuda.device_count()
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
        "torch_message": torch_message,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
    }
    print(json.dumps(fields))  # noqa: T201


def _held_in_slice() -> int:
    """Return the bytes of memory that are used in this process's slice (MIG); 0 if unknown."""
    from tasks.trials.isolation import NvmlGpu

    first = (visible_gpus() or [""])[0]
    if first.startswith("MIG-"):
        # These errors mean that NVML is missing or too old.
        with suppress(OSError, AttributeError):
            return NvmlGpu(first).held_bytes()
    return 0


def why_no_gpu() -> str:
    """Return torch's message if torch can use no GPU; otherwise return an empty text."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        return (str(error).strip().splitlines() or [""])[0][:300]
    return ""


def _has_kernels(capability: float, built_for: Collection[str]) -> bool:
    """Return whether torch has kernels for a GPU.

    Args:
        capability: compute capability of the GPU.
        built_for: architectures of torch's kernels, such as ``sm_90`` and ``compute_90``. ``sm``
            kernels run on GPUs of the same major version that are not older. The driver compiles
            ``compute`` kernels for all newer GPUs.
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
    """Return the UUID of a GPU or slice, in the form for ``CUDA_VISIBLE_DEVICES``."""
    # Torch does not report the UUID of a slice in the form that CUDA needs.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    if first.startswith("MIG-"):
        return first
    return f"GPU-{str(properties.uuid).removeprefix('GPU-')}"
