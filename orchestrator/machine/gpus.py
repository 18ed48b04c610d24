"""The GPUs that a cluster's nodes have, what stands in the way of trials there, and the one of a
trial.

No trial falls back to CPUs in silence, and what no trial could do there is refused before anything
starts.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from orchestrator.machine.ending import NO_ANSWER, STUCK, answer_of
from orchestrator.planning.costs.gpu_checks import read_checks
from orchestrator.planning.costs.gpu_models import (
    BFLOAT16_FROM,
    GpuModel,
    gpu_model_like,
    gpu_model_there,
)
from orchestrator.planning.paths import user_cache
from search_spaces.errors import ConfigError, SetupError
from search_spaces.fingerprint import fingerprint
from search_spaces.specs import TrialSpec
from tasks.atomic import write_atomic
from tasks.trials.records import CONTEXT_BYTES

log = logging.getLogger(__name__)

LOGICAL_GPUS = "ISWEEP_LOGICAL_GPUS"
"""Set to 1 on every node, GPU shares are for scheduling only and trials run on CPUs: for tests of
packing."""

NO_GPU = "A trial that is given a GPU must be able to compute on it"
"""How the failure of a trial begins that cannot."""

REST_S = 120.0
"""Before a failure is told in a process that has finished no trial: a GPU that fails at once would
be free first, be given, and fail, every cell of a sweep while the sound ones compute."""
NEEDS_DRIVER = {13: 580, 12: 525, 11: 450}
"""The oldest branch of NVIDIA's driver by major version of CUDA, within which minor versions are
compatible (NVIDIA, "CUDA Compatibility", table 1)."""
HIDES = ("", "-1", "none", "void", "nodevfiles")
"""What ``CUDA_VISIBLE_DEVICES`` says where somebody means that no GPU be seen."""
DEVICES, DRIVER = Path("/dev"), Path("/proc/driver/nvidia/version")
WSL = Path("/usr/lib/wsl/lib")
"""Where Windows puts NVIDIA's library and nvidia-smi: often not on PATH, and without files of
devices."""
DRIVER_HINTS = {
    "stub library": "take the folder of CUDA's stubs out of LD_LIBRARY_PATH",
    "MPS client": "start MPS again (nvidia-cuda-mps-control -d), or unset CUDA_MPS_PIPE_DIRECTORY",
    "system not yet initialized": "start nvidia-fabricmanager, which GPUs behind an NVSwitch need",
}
"""By words of why torch reaches no GPU: cudaErrorStubLibrary, cudaErrorSystemNotReady."""
IMPORT_TIMEOUT_S = 300.0
"""Of a process that imports torch, which a network's file system may take minutes to give."""
MPS_TIMEOUT_S, LATE_S = 5.0, 10.0
MOST_HELD = 0.1
"""Of a GPU's memory, by others, before a sweep starts."""
SELF_TEST_TIMEOUT_S, UNFINISHED_S = 300.0, 86_400.0
"""Less than a trial may take without a word; how long a test that came to no end is not tried
again."""


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

    def model(self, checks: Mapping[str, Mapping[str, Any]] | None = None) -> GpuModel:
        """Return what is planned with for it; ``checks`` as :func:`read_checks` gives
        them.
        """
        return gpu_model_there(self.name, self.memory_gib, self.capability, self.processors, checks)


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


def driver_hint(driver: str, cuda: str | None, complaint: str = "") -> str:
    """Return how a driver and a torch that was built for ``cuda`` and says so are brought
    together.
    """
    if known := next((hint for words, hint in DRIVER_HINTS.items() if words in complaint), ""):
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
    if rows and whole and all(gpu_model_like(gpu.name) for gpu in gpus):
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


def gpu_models_here(folders: Iterable[Path]) -> tuple[GpuModel | None, int]:
    """Return this machine's GPU, of several the smallest with the least capability, and how
    many.
    """
    checks = read_checks(folders)
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


def survey(num_gpus: float, *, local: bool) -> list[NodeGpus]:
    """Ask every node that offers GPUs what they are; empty where they are logical ones, or none is
    offered.

    Of a private cluster this machine is asked alone, which hands out ``num_gpus``.
    """
    if is_logical():
        return []
    if local:
        here = describe(os.environ.get("CUDA_VISIBLE_DEVICES", "")) if num_gpus else None
        return [replace(here, offered=num_gpus)] if here else []
    import ray

    found = []
    for reference, node in asked_of_nodes(
        describe, lambda node: node["Resources"].get("GPU", 0) > 0
    ).items():
        with suppress(ray.exceptions.RayError):  # one that does not answer is for isweep doctor
            found.append(replace(ray.get(reference, timeout=120), offered=node["Resources"]["GPU"]))
    return [said for said in found if not said.logical]


def asked_of_nodes(
    look: Callable[[], object], of: Callable[[dict[str, Any]], bool] = lambda node: True
) -> dict[Any, dict[str, Any]]:
    """Start a task on every live node of the connected cluster; returns nodes by their answer's
    reference.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked, task = {}, ray.remote(num_cpus=0, max_retries=0)(look)
    for node in ray.nodes():
        if node["Alive"] and of(node):
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=where).remote()] = node
    return asked


def refuse(
    nodes: Iterable[NodeGpus], trials: Iterable[TrialSpec], *, share: float, alone: bool
) -> None:
    """Refuse what none of ``trials`` could do on these GPUs, of which each gets a ``share`` at
    most.

    Where none of ours run yet, ``alone``, what is held of a GPU is somebody else's.
    """
    problems = [
        problem for node in nodes for problem in gpu_problems(node, share=share, alone=alone)
    ]
    if problems:
        what, hint = ("; ".join(dict.fromkeys(texts)) for texts in zip(*problems, strict=True))
        raise SetupError(
            "Every GPU that is offered must be free to run trials",
            what,
            f"{hint}, or run with --device cpu",
        )
    without = [(node, gpu) for node in nodes for gpu in node.gpus if gpu.capability < BFLOAT16_FROM]
    recipes = {
        trial.network.recipe.name
        for trial in trials
        if trial.network.recipe.precision == "bfloat16"
    }
    if without and recipes:
        node, gpu = without[0]
        name = sorted(recipes)[0]
        raise ConfigError(
            "A recipe in bfloat16 needs a GPU that has it, of compute capability 8.0 or later",
            f"{name} on {gpu.name} of node {node.node}, whose is {gpu.capability}: it would be "
            "emulated, "
            "slower than float32",
            "--set recipe.precision=float32, or another GPU; beside others hide this one with "
            "CUDA_VISIBLE_DEVICES",
        )


def gpu_problems(
    node: NodeGpus, *, share: float = 1.0, alone: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield what stands in the way of trials on a node's GPUs, with the hint; see
    :func:`refuse`.
    """
    where = f"node {node.node}"
    if node.error:
        hint = f"see what {Path(sys.executable).name} -c 'import torch' says there"
        yield f"{where}: torch cannot be asked of its GPUs: {node.error}", hint
        return
    if any(gpu.mig for gpu in node.gpus) and "MIG-" not in node.visible:
        yield (
            (
                f"{where}: its GPU is cut into slices (MIG), which Ray counts as one and cannot "
                "tell "
                "apart"
            ),
            "list the slices with nvidia-smi -L, start Ray there with "
            "CUDA_VISIBLE_DEVICES=MIG-...,MIG-... "
            "and --num-gpus as many, and set resources.num_gpus: 1",
        )
        return
    if len(node.gpus) < node.offered:
        reached = ",".join(gpu.uuid for gpu in node.gpus)
        yield (
            f"{where}: offers {node.offered:g} GPUs, torch {node.torch} built for CUDA "
            f"{node.cuda or 'none'} "
            f"reaches {len(node.gpus)} with NVIDIA driver {node.driver or 'absent'}"
            + (f": {node.complaint}" if node.complaint else ""),
            f"run, or start Ray there, with CUDA_VISIBLE_DEVICES={reached}"
            if reached
            else driver_hint(node.driver, node.cuda, node.complaint),
        )
    for gpu in node.gpus:
        its = f"{where}: {gpu.name} {gpu.uuid}"
        if not gpu.has_kernels:
            yield (
                f"{its}: torch {node.torch} has no kernels for compute capability {gpu.capability}",
                (
                    "install a torch of PyTorch's cu126 wheels (up to 2.14), the last for GPUs "
                    "before "
                    "Turing"
                ),
            )
        shared = share < 1 and not node.mps
        if gpu.compute_mode == "Prohibited" or ("Exclusive" in gpu.compute_mode and shared):
            yield (
                f"{its}: its compute mode is {gpu.compute_mode}, for shares of {share:g}",
                "nvidia-smi --compute-mode=0, or start MPS there, or set resources.num_gpus: 1",
            )
        if alone and gpu.held_bytes > MOST_HELD * gpu.memory_bytes:
            yield (
                f"{its}: others hold {gpu.held_bytes / 2**30:.1f} of {gpu.memory_gib:.1f} GiB",
                (
                    "end what runs there (nvidia-smi lists it), or hide the GPU with "
                    "CUDA_VISIBLE_DEVICES"
                ),
            )


def trial_options(cell: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return on what a trial computes, as :func:`tasks.trials.trial.run_trial` takes it; why no
    graphs.
    """
    share, fast, note = float(cell["num_gpus"]), cell["fast"], ""
    options = {
        "device": "cpu",
        "num_threads": cell["num_threads"],
        "gpu_fraction": None,
        "graphs": False,
    }
    if share and not is_logical():
        check_gpu(cell["precision"])
        # By every process's first trial: an exclusive GPU takes no self-test beside this process.
        off = graphs_off() if fast == "auto" else ""
        is_asked = (
            fast == "auto" and not cell["own_network"]
        )  # whose code need not replay as a graph
        note, graphs = off if is_asked else "", fast == "on" or (is_asked and not off)
        # A whole GPU needs no limit: nobody else is there.
        options |= {
            "device": "cuda",
            "gpu_fraction": share if share < 1 else None,
            "graphs": graphs,
        }
        check_computes()
    return options, note


def check_computes() -> None:
    """See that the GPU computes at all: of a dead one it is not the trial that is to blame."""
    import torch

    try:
        torch.ones(1, device="cuda").item()
    except torch.AcceleratorError as error:
        if "out of memory" in str(error):
            raise
        found = f"{named(gpu_in_use()[1])}: {str(error).splitlines()[0]}"
        raise SetupError(NO_GPU, found, "reset or hide it: nvidia-smi says more") from error


def check_gpu(precision: str) -> None:
    """See that torch reaches a GPU here, which has bfloat16 where that is asked for: a node may
    come late.
    """
    import torch

    if not torch.cuda.is_available():
        driver, complaint = driver_version(), no_gpu()
        raise SetupError(
            f"{NO_GPU}, and never computes on CPUs instead",
            f"{named()}: NVIDIA driver {driver or 'absent'}, "
            f"torch {torch.__version__} built for CUDA {torch.version.cuda or 'none'}: {complaint}",
            f"{driver_hint(driver, torch.version.cuda, complaint)}, or run with --device cpu",
        )
    if precision == "bfloat16" and (its := capability()) < BFLOAT16_FROM:
        name, uuid = gpu_in_use()
        raise SetupError(
            f"{NO_GPU}, in bfloat16 where its recipe says so",
            f"{named(uuid)}: {name}, of compute capability {its}",
            "take such nodes out of the cluster, or choose a recipe with precision: float32",
        )


def capability() -> float:
    """Return the compute capability of this process's GPU."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return (10 * major + minor) / 10


def held_by_others() -> str:
    """Say what other processes hold of this process's GPU: all where it could not begin; empty if
    unknown.
    """
    import torch

    if is_logical():
        return ""
    held = torch.cuda.memory_reserved()  # 0 before it begins
    with suppress(RuntimeError, AssertionError):
        free, total = torch.cuda.mem_get_info()
        others = max(0, total - free - held - CONTEXT_BYTES) / 2**30
        return f"others hold {others:.1f} of {total / 2**30:.1f} GiB: "
    return "" if held else "others hold 1 of 1 GiB: "


def gpu_in_use() -> tuple[str, str]:
    """Return the driver's name of the GPU that this process computes on, and its UUID."""
    import torch

    about = torch.cuda.get_device_properties()
    return str(about.name), _uuid(about)


def _uuid(about: Any) -> str:
    # Of a slice torch knows no name that CUDA takes.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    return first if first.startswith("MIG-") else f"GPU-{str(about.uuid).removeprefix('GPU-')}"


def named(uuid: str = "") -> str:
    """Return this process's GPU as failures name it: by its UUID, or its number where it has told
    none.
    """
    known = uuid or f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES') or 'of no number'}"
    return f"{known} of node {socket.gethostname()}"


@cache
def graphs_off() -> str:
    """Return why this process's GPU takes plain steps, by its self-test; empty where it captures
    graphs.

    The test runs at first contact, once per GPU, driver, torch and version of the code; processes
    of one node wait for each other, and its verdict is kept on the node.
    """
    name, uuid = gpu_in_use()
    verdict = self_test(uuid)
    off = (
        f"{uuid} ({name}) of node {socket.gethostname()}: captured graphs off, plain steps are "
        "taken"
    )
    said = "" if verdict["graphs"] else f"{off}: {verdict['reason']}"
    if said:
        log.warning("%s", said)
    return said


def self_test(uuid: str) -> dict[str, Any]:
    """Return the verdict of the self-test for a GPU: the kept one, or that of a new test."""
    from orchestrator.results.provenance import provenance

    about = provenance()
    versions = [uuid, driver_version(), about.packages.get("torch", ""), about.code_version]
    folder = user_cache("gpus")
    file = folder / f"self-test-{uuid}-{fingerprint(versions)[:12]}.json"
    with ExitStack() as stack:
        # A home that cannot be written, or a full disk, costs each process the test, and no cell.
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / f"self-test-{uuid}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(OSError, ValueError, KeyError, TypeError):
            known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if known["finished"] or time.time() - known["at"] < UNFINISHED_S:
                return {"graphs": bool(known["graphs"]), "reason": str(known["reason"])}
        verdict = _tested() | {"at": time.time(), "versions": versions}
        with suppress(OSError):
            write_atomic(file, json.dumps(verdict).encode())
        return verdict


def _tested() -> dict[str, Any]:
    command = (sys.executable, "-m", "orchestrator.machine.self_test", "cuda")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    said, complaint = answer_of(*command, visible=visible, timeout=SELF_TEST_TIMEOUT_S)
    with suppress(ValueError, IndexError):
        verdict = dict(json.loads(said.splitlines()[-1]))
        # Another time the GPU may not be full, and others may not slow it down.
        return verdict | {"finished": not (verdict["error"] or verdict["slower"])}
    return {"graphs": False, "finished": False, "reason": f"the self-test died: {complaint}"}
