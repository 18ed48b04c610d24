"""What a trial needs of a GPU or a core: how long it takes, how much memory, which share of a GPU.

A kernel takes as long as its arithmetic or its traffic, whichever is longer, at the share of the
data sheet's rate that training reaches, and never less than the time between two kernels. These
shares are fitted to published training throughput at 224 pixels, assumed where a row says so, or
measured by ``isweep gpu-check``; what finished trials were measured to take corrects all.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property, lru_cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.planning.paths import user_cache
from search_spaces.attacks import ATTACKS
from search_spaces.errors import ConfigError, SweepError, unknown_name
from search_spaces.fingerprint import fingerprint
from search_spaces.specs import ModelSpec, NetworkSpec, RecipeSpec, Spec, TrialSpec
from tasks.atomic import write_atomic
from tasks.trials.records import CONTEXT_BYTES, epochs_to_look_at

BFLOAT16_FROM = 8.0
"""Compute capability."""
STREAM_EFFICIENCY = 0.85
"""Share of the bandwidth that long reads and writes in order reach: optimiser, casts of weights."""
EAGER_INTERVAL_S, GRAPH_INTERVAL_S = 10e-6, 3e-6
"""Time between two kernels that Python starts, and within a captured graph: assumed, not measured
yet."""
IDLE_DRAW = 0.1
"""Share of its power that a GPU draws without work: assumed (about 70 W of an H100)."""
TENSOR_FACTOR, WORKSPACE_FACTOR = 1.1, 2.0
"""Memory of a process: context, tensors with the allocator's rounding, scratch of the convolutions.
Fitted to published A100 measurements of ResNet-50 and VGG-16 at batches 32 to 128 (0.89 to 1.10 of
the measured)."""
PACKING_PAYS = 1.1
"""Images per second of two trials on one GPU over those of one, from which on trials share GPUs."""
TRIAL_SECONDS, CORE_TRIAL_SECONDS = 3.0, 0.5
"""Building, copying, d_repr and storing, per trial beside a GPU's work or on a core: assumed."""
CORE_FLOPS = 100e9
"""Sustained rate of one core where nothing was measured (benchmarks/training_throughput.py)."""
CORE_INTERVAL_S = 30e-6
"""What one operation takes on a core beside its arithmetic: a step of 32 images of 32 pixels by
small_cnn, 52 operations and 0.12 GFLOP, takes 2.9 ms
(benchmarks/results/training_throughput_epyc.json)."""
MEMORY_MARGIN = 1.15
"""Shares are this much larger than predicted memory: a trial that asks too little ends out of
memory."""
BUSY_ENOUGH = 0.95
"""A GPU this busy gains nothing from another trial; that gaps are filled is known of processes
under MPS."""
SHARE_STEP = 100
"""Shares are multiples of a hundredth of a GPU."""


@dataclass(frozen=True)
class GpuModel:
    """One model of GPU, by its name on the command line.

    ``capability`` is CUDA's, ``processors`` are the streaming ones. In 1e12 operations per second
    are ``half_tflops`` (dense bfloat16, else float16) and ``single_tflops`` (float32 without
    TensorFloat-32), in GB/s the memory's ``bandwidth``; efficiencies are the shares of these that
    training reaches. ``price`` is an assumed hour's in US dollars, November 2026. Where it is not
    ``timed``, its hours are unknown.
    """

    name: str
    capability: float
    processors: int
    half_tflops: float
    single_tflops: float
    bandwidth: float
    memory_gib: float
    compute_efficiency: float
    bandwidth_efficiency: float
    watts: float
    price: float
    origin: str = "data sheet; shares fitted to published training"
    timed: bool = True

    @property
    def bfloat16(self) -> bool:
        """Whether it computes in bfloat16: PyTorch tells older GPUs to as well, and emulates it."""
        return self.capability >= BFLOAT16_FROM


LIKE = "data sheet; shares as those of "
GPU_MODELS = {
    gpu.name: gpu
    for gpu in (
        GpuModel("rtx3090", 8.6, 82, 71, 35.6, 936, 24, 0.90, 0.65, 350, 0.4),
        GpuModel("a100-40", 8.0, 108, 312, 19.5, 1555, 40, 0.34, 0.65, 400, 1.5),
        GpuModel("a100", 8.0, 108, 312, 19.5, 2039, 80, 0.34, 0.65, 400, 1.8),
        GpuModel("h100-pcie", 9.0, 114, 756, 51, 2000, 80, 0.50, 0.38, 350, 2.5),
        GpuModel("h100", 9.0, 132, 989, 67, 3350, 80, 0.50, 0.38, 700, 3.0),
        GpuModel("h200", 9.0, 132, 989, 67, 4800, 141, 0.50, 0.38, 700, 3.8),
        GpuModel(
            "rtx4090",
            8.9,
            128,
            165,
            82.6,
            1008,
            24,
            0.65,
            0.65,
            450,
            0.6,
            LIKE + "a 3090 and an H100",
        ),
        GpuModel(
            "l4", 8.9, 58, 121, 30.3, 300, 24, 0.50, 0.65, 72, 0.8, LIKE + "an A100 and an H100"
        ),
        GpuModel("l40s", 8.9, 142, 362, 91.6, 864, 48, 0.34, 0.65, 350, 1.5, LIKE + "an A100"),
        GpuModel(
            "a10g", 8.6, 80, 70, 31.5, 600, 24, 0.65, 0.65, 300, 1.0, LIKE + "a 3090 and an A100"
        ),
        GpuModel(
            "a6000", 8.6, 84, 155, 38.7, 768, 48, 0.41, 0.65, 300, 0.8, LIKE + "a 3090, its chip"
        ),
        GpuModel("t4", 7.5, 40, 65, 8.1, 320, 16, 0.34, 0.65, 70, 0.4, LIKE + "an A100"),
        GpuModel("v100", 7.0, 80, 125, 15.7, 900, 16, 0.34, 0.65, 300, 1.0, LIKE + "an A100"),
        GpuModel("v100-32", 7.0, 80, 125, 15.7, 900, 32, 0.34, 0.65, 300, 1.2, LIKE + "an A100"),
        GpuModel("rtx5090", 12.0, 170, 209, 105, 1792, 32, 0.65, 0.65, 575, 0.9, LIKE + "a 4090"),
        GpuModel("b200", 10.0, 148, 2250, 75, 8000, 180, 0.50, 0.38, 1000, 5.0, LIKE + "an H100"),
    )
}


def gpu_model(name: str) -> GpuModel:
    """Return the GPU of the table; a name that is not in it is a :class:`ConfigError`."""
    if name.lower() not in GPU_MODELS:
        raise unknown_name("GPU", name, GPU_MODELS)
    return GPU_MODELS[name.lower()]


def gpu_model_like(name: str) -> GpuModel | None:
    """Return the GPU of the table that a driver or Ray names, of several that with least memory, or
    None.

    A slice of one (MIG) is none, nor are smaller ones of its name: Laptop, Max-Q, D.
    """
    words = re.split("[-_ ]+", name.lower())
    words += [first + second for first, second in pairwise(words)]  # RTX 3090
    if {"mig", "laptop", "max", "d"} & set(words):
        return None
    fit = [gpu for key, gpu in GPU_MODELS.items() if key.partition("-")[0] in words]
    size = re.search(r"\b(\d+)\s?g", name.lower())  # NVIDIA A100-SXM4-80GB; Ray calls both A100
    fit = [gpu for gpu in fit if size and gpu.memory_gib == int(size[1])] or fit
    fit = [gpu for gpu in fit if ("pcie" in gpu.name) == ("pcie" in words)] or fit
    return min(fit, key=lambda gpu: gpu.memory_gib, default=None)


def gpu_model_there(
    name: str,
    memory_gib: float,
    capability: float,
    processors: int,
    checks: Mapping[str, Mapping[str, Any]] | None = None,
) -> GpuModel:
    """Return the GPU that a node's driver describes so; ``checks`` of :func:`read_checks`.

    One that the table lacks, as a slice (MIG), has the rates per processor of the slowest GPU of
    the table of its capability, or of the last before it.
    """
    gpu = gpu_model_like(name)
    if gpu is None:
        older = [gpu for gpu in GPU_MODELS.values() if gpu.capability <= capability] or [
            GPU_MODELS["v100"]
        ]
        like = max(older, key=lambda gpu: (gpu.capability, -gpu.half_tflops / gpu.processors))
        part = processors / like.processors if processors else 1.0
        rates = {
            rate: part * getattr(like, rate)
            for rate in ("half_tflops", "single_tflops", "bandwidth")
        }
        gpu = replace(
            like, **rates, name=name, capability=capability, processors=processors, timed=False
        )
        gpu = replace(gpu, origin=f"unknown: no hours; per processor as {like.name}")
    found = (checks or {}).get(name, {}).get("row", {})
    measured = {field.name: found[field.name] for field in fields(GpuModel) if field.name in found}
    return replace(gpu, **{**measured, "name": gpu.name, "memory_gib": memory_gib})


def read_checks(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return the summaries of what ``isweep gpu-check`` left in folders, by GPU; the last of all
    counts.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("gpu-check-*.json"))):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            summary = dict(record["parts"]["summary"]["values"])
            row = summary.get("row") or {}
            numbers = [
                row[one.name] for one in fields(GpuModel) if one.type == "float" and one.name in row
            ]
            numbers += [
                summary[gain] for gain in ("pair_gain", "pair_gain_mps") if summary.get(gain)
            ]
            if all(0 < float(number) < math.inf for number in numbers):
                found[str(record["gpu"])] = summary | {"row": row}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def packing_pays(name: str, checks: Mapping[str, Mapping[str, Any]], *, mps: bool) -> bool:
    """Tell whether trials share a GPU: as a pair was measured, with MPS or without; else under
    MPS.
    """
    gain = (checks.get(name) or {}).get("pair_gain_mps" if mps else "pair_gain")
    return mps if gain is None else float(gain) >= PACKING_PAYS


# What a network costs: kernels, operations, bytes and memory of its passes.


@dataclass(frozen=True)
class Kernel:
    """One operation of a pass, by PyTorch's name of it.

    ``flops`` are of a convolution or matrix product, 0 for all others; ``num_bytes`` are read and
    written.
    """

    name: str
    flops: float
    num_bytes: float

    @property
    def num_launches(self) -> int:
        """How many kernels a GPU starts for it: a convolution's gradients of input and weight are
        two.
        """
        return 2 if self.name == "convolution_backward" else 1

    @property
    def streams(self) -> bool:
        """Whether it reads and writes long arrays in order, as an optimiser does with weights."""
        return self.name.startswith(("_fused_adam", "_to_copy", "mm", "addmm"))


@dataclass(frozen=True, eq=False)  # known by its identity: hundreds of trials share one
class PassCost:
    """What one pass costs: its operations in order, and the most memory alive at once, in tensors.

    ``workspace_bytes`` are input and output of the largest convolution: libraries' scratch grows
    with it.
    """

    kernels: tuple[Kernel, ...]
    peak_bytes: int
    workspace_bytes: int

    @cached_property
    def flops(self) -> float:
        """Operations of all convolutions and matrix products."""
        return sum(kernel.flops for kernel in self.kernels)

    @cached_property
    def num_launches(self) -> int:
        """Kernels that a GPU starts."""
        return sum(kernel.num_launches for kernel in self.kernels)


PASSES = ("step", "evaluation", "attack")


@dataclass(frozen=True)
class NetworkCost:
    """What one network costs in one recipe: weights and buffers kept, operations of one image
    forward.

    A multiply-add is two operations. Passes are a training step on a whole batch;
    ``evaluation_batch`` images forward, and ``attack_batch`` forward and back to the pixels, both
    in float32. ``uncounted`` says why they could not be walked: then they are those of one dense
    layer of as many weights.
    """

    num_parameters: int
    state_bytes: int
    forward_flops: float
    step: PassCost
    evaluation: PassCost
    attack: PassCost
    evaluation_batch: int
    attack_batch: int
    uncounted: str = ""


WALKED = Path(__file__).with_name("walked.json")
"""Costs of the presets' networks by :func:`cost_key`, so that a plan of them needs no torch and no
walk."""


@cache
def _walked() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(WALKED.read_text(encoding="utf-8"))
    return found


def cost_key(model: ModelSpec, recipe: RecipeSpec, *sizes: int) -> str:
    """Return by what a network's costs are kept; sizes are channels, side in pixels and logits."""
    return fingerprint([model, recipe, sizes])[:16]


@lru_cache(maxsize=256)
def network_cost(
    model: ModelSpec, recipe: RecipeSpec, *, channels: int, image_size: int, num_outputs: int = 2
) -> NetworkCost:
    """Return the costs of a network's passes on square images of ``image_size`` pixels.

    ``num_outputs`` logits hold where the recipe names none. ConfigError where it cannot be built
    so.
    """
    key, keeps = cost_key(model, recipe, channels, image_size, num_outputs), model.library != "own"
    if key in _walked():
        return _cost_of_plain(_walked()[key])
    file = user_cache("costs") / f"{key}-{_walked_with()}.json"
    if keeps:  # files of one's own network may change
        with suppress(OSError, ValueError, TypeError, KeyError):
            return _cost_of_plain(json.loads(file.read_text(encoding="utf-8")))
    from orchestrator.planning.walk import walk_network

    found = walk_network(model, recipe, channels, image_size, num_outputs)
    if keeps:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(plain_cost(found)).encode(), durable=False)
    return found


@cache
def _walked_with() -> str:
    """Return a hash of what a walk depends on beside its network: PyTorch's packages and our
    source.
    """
    found = hashlib.sha256(
        " ".join(map(metadata.version, ("torch", "torchvision", "timm"))).encode()
    )
    trials = Path(__file__).parents[2] / "tasks" / "trials"
    for path in (Path(__file__).with_name("walk.py"), *sorted(trials.glob("*.py"))):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def plain_cost(cost: NetworkCost) -> dict[str, Any]:
    """Return costs as they are kept: kernels that are alike once, with their number."""
    plain = asdict(cost)
    for name in PASSES:
        kernels = Counter((k.name, k.flops, k.num_bytes) for k in getattr(cost, name).kernels)
        plain[name]["kernels"] = [[*kernel, number] for kernel, number in kernels.items()]
    return plain


def _cost_of_plain(known: dict[str, Any]) -> NetworkCost:
    passes = {}
    for name in PASSES:
        counted = known[name]["kernels"]
        kernels = tuple(Kernel(*kernel) for *kernel, number in counted for _ in range(number))
        passes[name] = PassCost(**{**known[name], "kernels": kernels})
    return NetworkCost(**{**known, **passes})


_KNOWN_COSTS: dict[tuple[int, ...], tuple[tuple[Spec, ...], NetworkCost]] = {}
"""By the identity of the parts of a spec, which are held so that no others can have it: the trials
of a plan share them, and hashing their content for each takes longer than all the rest of a
plan."""


def cost_of(network: NetworkSpec) -> NetworkCost:
    """Return the costs of a network in its recipe; ConfigError where it cannot be built or fails on
    all.
    """
    prepared = network.subset.prepared
    parts = (network.model, network.recipe, prepared)
    key = tuple(map(id, parts))
    if key in _KNOWN_COSTS:
        return _KNOWN_COSTS[key][1]
    recipe, channels = recipe_of_costs(network), prepared.channels
    try:
        cost = network_cost(
            network.model, recipe, channels=channels, image_size=prepared.image_size
        )
    except SweepError:
        raise
    except (Exception, SystemExit) as error:  # whatever a network does
        raise ConfigError(
            "A network must take a training step, an evaluation and an attack on some image",
            f"{network.model.library} {network.model.architecture}: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}",
        ) from error
    if len(_KNOWN_COSTS) >= 4096:
        _KNOWN_COSTS.clear()
    _KNOWN_COSTS[key] = parts, cost
    return cost


def recipe_of_costs(network: NetworkSpec) -> RecipeSpec:
    """Return the recipe of a network without what changes no cost."""
    # Adam's kernel decays weights by the way; SGD adds them to copies of all gradients.
    decay = 1e-4 if network.recipe.optimizer == "sgd" and network.recipe.weight_decay else 0.0
    return network.recipe.model_copy(
        update={
            "name": "cost",
            "learning_rate": 1e-3,
            "weight_decay": decay,
            "epochs": 1,
            "input_scale": 1.0,
        }
    )


def was_built(network: NetworkSpec, num_outputs: int) -> bool:
    """Tell whether a network is of a preset, whose costs are kept: it was built to count them."""
    sizes = network.subset.prepared.channels, network.subset.prepared.image_size, num_outputs
    return cost_key(network.model, recipe_of_costs(network), *sizes) in _walked()


def has_cost(network: NetworkSpec) -> bool:
    """Tell whether :func:`cost_of` counts a network, rather than guesses from its weights."""
    try:
        return not cost_of(network).uncounted
    except SweepError:
        return False


def has_batch_norm(network: NetworkSpec) -> bool:
    """Tell whether a network may normalise over the batch; what cannot be counted may have any
    kernel.
    """
    cost = cost_of(network)
    return bool(cost.uncounted) or any("batch_norm" in kernel.name for kernel in cost.step.kernels)


def training_flops(trial: TrialSpec) -> float:
    """Return the operations of a trial's training."""
    network = trial.network
    per_image = cost_of(network).step.flops / network.recipe.batch_size
    return network.recipe.epochs * network.train_size * per_image


@dataclass(frozen=True)
class ImagePasses:
    """How many images pass the network forward and back, and how many forward alone."""

    gradients: int
    forwards: int


def attack_flops(trial: TrialSpec) -> dict[str, float]:
    """Return the floating-point operations of a trial's attacks by kind.

    A gradient by the pixels costs three forward passes.
    """
    forward = cost_of(trial.network).forward_flops
    return {
        kind: forward * (3 * passes.gradients + passes.forwards)
        for kind, passes in attack_passes(trial).items()
    }


def attack_passes(trial: TrialSpec) -> dict[str, ImagePasses]:
    """Return the passes of every attack by name, and of ``robustness``: 0 if not requested."""
    test_size = trial.network.subset.test_size
    num_epsilons = len(trial.attacks.epsilons)
    passes = {kind: ImagePasses(0, 0) for kind in (*ATTACKS, "robustness")}
    for method in trial.attacks.methods:
        per_image = ATTACKS[method].passes(trial.attacks.values(method))
        gradients = per_image.shared_gradients + num_epsilons * per_image.gradients
        passes[method] = ImagePasses(
            gradients=test_size * gradients, forwards=test_size * num_epsilons * per_image.forwards
        )
    robustness = trial.robustness
    if robustness is not None:
        num_images = min(robustness.num_images, test_size)
        passes["robustness"] = ImagePasses(
            gradients=num_images * robustness.num_steps,
            forwards=2 * num_images * robustness.num_bisections,
        )
    return passes


def array_bytes(network: NetworkSpec, train_size: int | None = None) -> int:
    """Return the bytes of a trial's images, one each; of ``train_size`` training images where it is
    given.
    """
    prepared = network.subset.prepared
    num_images = (train_size or network.train_size) + network.subset.test_size
    return num_images * prepared.channels * prepared.image_size**2


def memory_bytes(cost: PassCost) -> float:
    """Predict what a process holds on a GPU while it makes this pass, its CUDA context included."""
    return CONTEXT_BYTES + TENSOR_FACTOR * cost.peak_bytes + WORKSPACE_FACTOR * cost.workspace_bytes


def peak_bytes(network: NetworkSpec) -> float:
    """Predict the most memory that a trial holds on a GPU, over training, evaluation and
    attacks.
    """
    cost = cost_of(network)
    parts = [cost.step, cost.evaluation, cost.attack]
    if epochs_to_look_at(network.recipe.epochs):
        held = cost.evaluation.peak_bytes + _training_bytes(network, cost)
        parts.append(replace(cost.evaluation, peak_bytes=held))
    return array_bytes(network) + max(memory_bytes(part) for part in parts)


def _training_bytes(network: NetworkSpec, cost: NetworkCost) -> int:
    """Return what a training holds between two epochs, beside weights: moments, gradients and
    graphs.
    """
    recipe = network.recipe
    gradients = 4 * cost.num_parameters
    moments = gradients if recipe.optimizer == "sgd" else 2 * gradients
    if (
        network.model.library == "own"
    ):  # whose steps are not captured as graphs: they need not replay
        return moments + gradients
    # A graph keeps the memory of its step, and a last batch of another size has a graph of its own.
    activations = max(0, cost.step.peak_bytes - cost.state_bytes - moments - gradients)
    last = network.train_size % recipe.batch_size
    if network.train_size < recipe.batch_size or not last:
        return moments + gradients + activations
    size = last if last > 1 else 1 + recipe.batch_size  # a single image joins the batch before it
    return moments + 2 * gradients + activations + activations * size // recipe.batch_size


class PassTime(NamedTuple):
    """How many seconds a pass takes alone on a GPU, and for how many of them it is busy."""

    seconds: float
    busy: float


@lru_cache(maxsize=1024)
def pass_time(cost: PassCost, gpu: GpuModel, *, interval: float, half: bool = True) -> PassTime:
    """Predict one pass, with at least ``interval`` seconds between two kernels.

    Products run in 16 bits where ``half`` says so, else in float32 without TensorFloat-32.
    """
    rate = 1e12 * (gpu.half_tflops if half else gpu.single_tflops)
    # Data sheets of float32 units are reached more easily than those of tensor cores.
    arithmetic = rate * (gpu.compute_efficiency if half else max(0.7, gpu.compute_efficiency))
    traffic = 1e9 * gpu.bandwidth
    seconds = busy = 0.0
    for kernel in cost.kernels:
        reached = STREAM_EFFICIENCY if kernel.streams else gpu.bandwidth_efficiency
        work = max(kernel.flops / arithmetic, kernel.num_bytes / (traffic * reached))
        busy += work
        seconds += max(work, kernel.num_launches * interval)
    return PassTime(seconds, busy)


def num_passes(trial: TrialSpec, cost: NetworkCost) -> tuple[float, float, float]:
    """Return how many training steps, batches of an evaluation and gradients of a batch it
    takes.
    """
    network = trial.network
    recipe = network.recipe
    passes = attack_passes(trial)
    gradients = sum(kind.gradients for kind in passes.values())
    forwards = sum(kind.forwards for kind in passes.values())
    looked_at = len(epochs_to_look_at(recipe.epochs)) * network.subset.test_size
    # The pass that gives FGSM its directions gives the test loss too, so it is made without FGSM as
    # well.
    has_clean_gradients = any(
        ATTACKS[method].passes(trial.attacks.values(method)).shared_gradients
        for method in trial.attacks.methods
    )
    if not has_clean_gradients:
        gradients += network.subset.test_size
    return (
        recipe.epochs * math.ceil(network.train_size / recipe.batch_size),
        (network.train_size + looked_at + forwards) / cost.evaluation_batch,
        gradients / cost.attack_batch,
    )


@dataclass(frozen=True)
class Corrections:
    """How far predictions were off, by model: measured over predicted, 1 where unknown.

    ``memory`` is the worst peak on any GPU; ``seconds``, on one kind of GPU, and ``core_seconds``
    medians.
    """

    memory: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    core_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GpuNeed:
    """What a trial needs of one kind of GPU: peak memory, and seconds on its share (of several on
    one).
    """

    seconds: float
    share: float
    memory_bytes: float

    @property
    def gpu_seconds(self) -> float:
        """For how long it takes a whole GPU; of several that it is given all are taken."""
        return self.seconds * self.share


def need_of(
    trial: TrialSpec,
    gpu: GpuModel,
    corrections: Corrections | None = None,
    given: float | None = None,
) -> GpuNeed:
    """Predict what ``trial`` needs of ``gpu``, corrected by what others like it were measured to
    need.

    Its share is ``given``, or for None (or 0) such that as many trials share a GPU as keep it busy
    together, fewer where memory is short.
    """
    corrections, cost, recipe = (
        corrections or Corrections(),
        cost_of(trial.network),
        trial.network.recipe,
    )
    interval = EAGER_INTERVAL_S if trial.network.model.library == "own" else GRAPH_INTERVAL_S
    times = (
        pass_time(cost.step, gpu, interval=interval, half=recipe.precision != "float32"),
        pass_time(cost.evaluation, gpu, interval=EAGER_INTERVAL_S, half=False),
        pass_time(cost.attack, gpu, interval=EAGER_INTERVAL_S, half=False),
    )
    passes = tuple(zip(num_passes(trial, cost), times, strict=True))
    alone = TRIAL_SECONDS + sum(number * part.seconds for number, part in passes)
    busy = sum(number * part.busy for number, part in passes) / alone
    name = trial.network.model.name
    memory = peak_bytes(trial.network) * corrections.memory.get(name, 1.0)
    together = max(1, math.ceil(BUSY_ENOUGH / busy))
    work = (
        math.floor(SHARE_STEP / together) / SHARE_STEP
    )  # down: a third is 0.33, three of which fit
    work = work if gpu.timed else max(work, 0.25)
    room = math.ceil(SHARE_STEP * MEMORY_MARGIN * memory / (gpu.memory_gib * 2**30)) / SHARE_STEP
    share = given or min(1.0, max(work, room, 1 / SHARE_STEP))
    seconds = alone * max(1.0, busy / min(share, 1.0))
    return GpuNeed(seconds * corrections.seconds.get(name, 1.0), share, memory)


def core_seconds(trial: TrialSpec, corrections: Corrections | None = None) -> float:
    """Predict how long a trial takes one core; a model that was not measured is off as others
    are.
    """
    cost, measured = cost_of(trial.network), corrections.core_seconds if corrections else {}
    parts = zip(num_passes(trial, cost), (cost.step, cost.evaluation, cost.attack), strict=True)
    predicted = CORE_TRIAL_SECONDS + sum(
        number * (part.flops / CORE_FLOPS + part.num_launches * CORE_INTERVAL_S)
        for number, part in parts
    )
    usual = statistics.median(measured.values()) if measured else 1.0
    return predicted * measured.get(trial.network.model.name, usual)
