"""``isweep gpu-check``: what a GPU really does, part by part, in one file to send back.

Each part runs in a process of its own, so that none stops the next, and what it found is written before the
next begins. On a CPU (``--device cpu``) the parts that need no GPU run in small, which tries the check
itself. Nothing names the machine or its user.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.planning.predict import (
    EAGER_INTERVAL_S,
    GRAPH_INTERVAL_S,
    PACKING_PAYS,
    Card,
    card_there,
    pass_time,
)
from orchestrator.results.records import provenance
from orchestrator.running.gpus import describe, is_logical, mps_runs, output_of
from search_spaces.errors import SetupError
from tasks.atomic import write_atomic

if TYPE_CHECKING:
    import torch

    from search_spaces.specs import TrialSpec

PART_TIMEOUT_S = 300.0
SMI_FIELDS = (
    "driver_version,compute_mode,mig.mode.current,persistence_mode,power.limit,clocks.current.sm,"
    "clocks_throttle_reasons.active,pcie.link.gen.current,pcie.link.width.current,ecc.errors.uncorrected.volatile.total"
)


@dataclass(frozen=True)
class Bench:
    """Where parts run, and in which size.

    Attributes:
        device: ``cuda:<index>`` or ``cpu``.
        models: networks of the paper's grid, each in its recipe; few and small ones on a CPU.
        image_size: of the images.
        seconds: that a measurement of time takes, about.
    """

    device: str
    models: tuple[str, ...]
    image_size: int
    seconds: float

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device != "cpu"

    @property
    def torch(self) -> torch.device:
        """The device."""
        import torch

        return torch.device(self.device)

    def trial(self, model: str) -> TrialSpec:
        """Return the largest trial of a network in the paper's grid; in small on a CPU."""
        of_model = (trial for trial in _trials(self.on_gpu) if trial.network.model.name == model)
        return max(of_model, key=lambda trial: trial.network.train_size)


@cache
def _trials(on_gpu: bool) -> tuple[TrialSpec, ...]:
    from orchestrator.planning.plan import plan_sweep
    from orchestrator.planning.sweep_file import load_sweep

    return tuple(plan_sweep(load_sweep("paper" if on_gpu else "demo")).trials)


def bench_of(device: str) -> Bench:
    """Return what is measured on a device."""
    from search_spaces.models import PAPER_MODELS

    if device == "cpu":
        return Bench(device, ("small_cnn",), 16, 0.3)
    return Bench(device, tuple(PAPER_MODELS), 224, 4.0)


def images_of(bench: Bench, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return seeded noise of the bench's size, one channel, and labels."""
    import torch

    draw = torch.Generator().manual_seed(0)
    size = (number, 1, bench.image_size, bench.image_size)
    return torch.randint(0, 256, size, generator=draw, dtype=torch.uint8), torch.arange(number) % 2


def built(bench: Bench, model: str) -> Any:
    """Return a network of the bench's size, on its device."""
    from search_spaces.models import model_spec
    from tasks.trials.models import build_model

    return build_model(
        model_spec(model),
        num_outputs=2,
        in_channels=1,
        input_scale=1 / 255,
        dropout=None,
        seed=0,
        image_size=bench.image_size,
    ).to(bench.device)


@contextlib.contextmanager
def as_trials(bench: Bench) -> Iterator[None]:
    """Compute as a trial does: its memory given back, its determinism, nothing left changed."""
    from tasks.trials.isolation import contained, deterministic, trial_memory

    with trial_memory(bench.torch), contained(0, bench.torch), deterministic(bench.torch):
        yield


def host(bench: Bench) -> dict[str, Any]:
    """What the machine is."""
    import torch

    cpu = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s+(\d+)", _read("/proc/meminfo"))
    about = provenance()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "python": platform.python_version(),
        "isweep": about.code_version,
        "packages": about.packages,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "container": Path("/.dockerenv").exists() or "kubepods" in _read("/proc/1/cgroup"),
        "compiler": bool(shutil.which("gcc")),
        "home_writable": os.access(Path.home(), os.W_OK),
    }


def gpu(bench: Bench) -> dict[str, Any]:
    """What the GPU says of itself, and what the planner makes of it."""
    found = describe(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    its = found.gpus[int(bench.device.partition(":")[2] or 0)]
    said = output_of("nvidia-smi", f"--id={its.uuid}", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader")
    others = output_of(
        "nvidia-smi", f"--id={its.uuid}", "--query-compute-apps=used_memory", "--format=csv,noheader"
    )
    return {
        **asdict(its),
        "nvidia_smi": dict(
            zip(SMI_FIELDS.split(","), (word.strip() for word in said.split(",")), strict=False)
        ),
        "others": len(others.splitlines()),
        "mps": found.mps,
        "planned_as": asdict(card_there(its.name, its.memory_gib)),
    }


def context(bench: Bench) -> dict[str, Any]:
    """What the process holds beside its tensors: after its start, and after each network."""
    import torch

    def beside() -> int:
        free, total = torch.cuda.mem_get_info(bench.torch)
        return total - free - held - torch.cuda.memory_reserved(bench.torch)

    used = describe(os.environ.get("CUDA_VISIBLE_DEVICES", "")).gpus[int(bench.device.partition(":")[2] or 0)]
    held = used.held_bytes
    torch.zeros(1, device=bench.device)
    found = {"start": beside()}
    for model in bench.models:
        with as_trials(bench):
            pixels, labels = images_of(bench, 4)
            _steps(bench, model, pixels, labels, epochs=1, graphs=False)
            found[model] = beside()
    return found


def correctness(bench: Bench) -> dict[str, Any]:
    """The self-test, float32 that is float32, FGSM and features as the CPU's."""
    import torch

    from orchestrator.running import self_test
    from tasks.trials.attacks import pass_clean
    from tasks.trials.representations import extract_features

    batches = {model: 6 if model.startswith("vgg") else 40 for model in bench.models}
    cases = [self_test.Case(model, size) for model, size in batches.items()]
    verdict = self_test.run(bench.torch, cases if bench.on_gpu else self_test.SMALL_CASES)
    with as_trials(bench):
        draw = torch.Generator().manual_seed(0)
        left, right = (torch.randn(512, 512, generator=draw) for _ in range(2))
        exact, product = left.double() @ right.double(), left.to(bench.device) @ right.to(bench.device)
        float32_error = float((product.cpu().double() - exact).abs().max() / exact.abs().max())
        small = replace(bench, image_size=32)
        model, (images, labels) = built(small, bench.models[0]), images_of(small, 16)
        (clean, features), (clean_cpu, features_cpu) = (
            (
                pass_clean(model.to(where), images.to(where), labels.to(where), pass_size=8),
                extract_features(model, images.to(where)),
            )
            for where in (bench.device, "cpu")
        )
    signs = float((clean.gradient_sign.cpu() == clean_cpu.gradient_sign).double().mean())
    features_error = float(abs(features - features_cpu).max() / max(abs(features_cpu).max(), 1e-30))
    return {
        "self_test": asdict(verdict),
        "float32_error": float32_error,
        "float32_is_float32": float32_error < 1e-5,
        "fgsm_signs_equal": signs,
        "features_error": features_error,
        "fails": [
            name
            for name, bad in (
                ("TensorFloat-32 is on", float32_error >= 1e-5),
                ("signs of FGSM differ from the CPU's", signs < 0.99),
                ("features differ from the CPU's", features_error > 1e-3),
                ("the first loss differs from the CPU's", "first loss" in verdict.reason),
            )
            if bad
        ],
    }


def step_times(bench: Bench) -> dict[str, Any]:
    """Milliseconds of a training step, started by Python and replayed as a graph."""
    found: dict[str, Any] = {}
    for model in bench.models:
        recipe = bench.trial(model).network.recipe
        images, labels = images_of(bench, 10 * recipe.batch_size)
        row: dict[str, Any] = {"batch_size": recipe.batch_size}
        for name, graphs in (("eager_ms", False), ("graph_ms", True)):
            if graphs and not bench.on_gpu:
                continue
            with as_trials(bench):
                epochs = _steps(bench, model, images, labels, epochs=8, graphs=graphs)
            row[name] = 1000 * statistics.median(epochs[4:]) / 10
        found[model] = row
    return found


def passes(bench: Bench) -> dict[str, Any]:
    """Images per second in float32: forward at 64 and 16, forward and back to the pixels, and the layouts."""
    import torch

    from tasks.trials.attacks import attack_pass, pass_clean
    from tasks.trials.training import evaluate

    def of(model: str) -> dict[str, float]:
        network, size = built(bench, model), attack_pass(bench.trial(model).network.recipe)
        images, labels = (tensor.to(bench.device) for tensor in images_of(bench, 64))
        works: dict[str, Callable[[], object]] = {
            "evaluate_64": lambda: evaluate(network, images, labels, pass_size=64),
            "evaluate_16": lambda: evaluate(network, images, labels, pass_size=16),
            "fgsm": lambda: pass_clean(network, images, labels, pass_size=size),
        }
        row = {name: 64 / _timed(bench, work) for name, work in works.items()}
        plain = network.to(memory_format=torch.contiguous_format).eval()
        parts = torch.split(images.float().contiguous(), 16)
        with torch.no_grad():
            return row | {"nchw_16": 64 / _timed(bench, lambda: [plain(part) for part in parts])}

    with as_trials(bench):
        return {model: of(model) for model in bench.models}


def memory(bench: Bench) -> dict[str, Any]:
    """Peak memory of a small trial of each network, against what is predicted for its share."""
    from orchestrator.planning.predict import array_bytes, peak_bytes
    from tasks.trials import isolation
    from tasks.trials.attacks import attack_pass, pass_clean
    from tasks.trials.records import CONTEXT_BYTES
    from tasks.trials.training import evaluate, train

    found: dict[str, Any] = {}
    for model in bench.models:
        network = bench.trial(model).network
        with as_trials(bench):
            images, labels = images_of(bench, 3 * network.recipe.batch_size)
            recipe = network.recipe.model_copy(update={"epochs": 5})
            trained, images, labels = built(bench, model), images.to(bench.device), labels.to(bench.device)

            def look(record: object, its: tuple[Any, ...] = (trained, images, labels)) -> None:
                evaluate(*its)

            train(trained, images, labels, recipe, seed=0, device=bench.device, on_epoch=look, graphs=True)
            pass_clean(trained, images, labels, pass_size=attack_pass(recipe))
            peak = isolation.peak_bytes(bench.torch)
        predicted = peak_bytes(network) - array_bytes(network) - CONTEXT_BYTES
        found[model] = {"peak_bytes": peak, "predicted_bytes": predicted, "ratio": predicted / peak}
    return found


def pairs(bench: Bench) -> dict[str, Any]:
    """Images per second of several processes on one GPU, over those of one: what sharing a GPU brings."""
    found: dict[str, Any] = {"mps": mps_runs()}
    models = ("resnet18", "vgg16") if bench.on_gpu else bench.models
    for model in models:
        rates = {}
        for number in (1, 2, 4) if bench.on_gpu else (1, 2):
            command = [sys.executable, "-m", "orchestrator.running.gpu_check", "_rate", bench.device, model]
            started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
            said = [process.communicate(timeout=PART_TIMEOUT_S)[0] for process in started]
            rates[str(number)] = sum(float(text.splitlines()[-1]) for text in said)
        found[model] = rates | {"gain": rates["2"] / rates["1"]}
    return found


def rate(bench: Bench, model: str) -> float:
    """Return images per second of training for about the bench's seconds, after a first epoch."""
    recipe = bench.trial(model).network.recipe
    images, labels = images_of(bench, 10 * recipe.batch_size)
    with as_trials(bench):
        first = _steps(bench, model, images, labels, epochs=2, graphs=False)
        number = max(3, int(3 * bench.seconds / max(first[-1], 1e-4)))
        epochs = _steps(bench, model, images, labels, epochs=min(number, 2000), graphs=False)
    return len(images) * (len(epochs) - 1) / sum(epochs[1:])


def trial(bench: Bench) -> dict[str, Any]:
    """A real trial through Ray on a private cluster, twice in one process."""
    import ray

    from orchestrator.running.cluster import connect

    with connect(None, num_cpus=1, num_gpus=1 if bench.on_gpu else 0, dashboard=False):
        worker = ray.remote(num_cpus=1, num_gpus=1 if bench.on_gpu else 0)(_Worker).remote(bench)
        return {model: [ray.get(worker.run.remote(model)) for _ in range(2)] for model in bench.models[:1]}


class _Worker:
    """The process that trials run in, one after the other."""

    def __init__(self, bench: Bench) -> None:
        self._bench = replace(bench, device="cuda" if bench.on_gpu else "cpu")

    def run(self, model: str) -> dict[str, Any]:
        import torch

        from tasks.prepared.subsets import TrialData
        from tasks.trials.trial import run_trial

        bench, spec = self._bench, self._bench.trial(model)
        size = 500 if bench.on_gpu else 40
        images, labels = (tensor.numpy() for tensor in images_of(bench, size + 20))
        recipe = spec.network.recipe.model_copy(update={"epochs": 5})
        network = spec.network.model_copy(update={"train_size": size, "recipe": recipe})
        data = TrialData(images[:size], labels[:size], images[size:], labels[size:], 2, "gpu-check")
        result = run_trial(spec.model_copy(update={"network": network}), data, device=bench.device)
        return {
            "seconds": {name: value for name, value in result.timings if value is not None},
            "peak_memory_bytes": result.peak_memory_bytes,
            "energy_j": result.energy_j,
            "left_bytes": torch.cuda.memory_reserved() if bench.on_gpu else 0,
            "test_loss": result.scores.test_loss if result.scores else None,
        }


def faults(bench: Bench) -> dict[str, Any]:
    """Memory that runs out on purpose: the kind that it is taken for, and whether the next training runs."""
    import torch

    from orchestrator.running.failures import classify
    from tasks.trials.isolation import trial_memory

    def exhausted() -> None:
        with trial_memory(bench.torch, 0.05 if bench.on_gpu else None):
            torch.empty(2**44 if bench.on_gpu else 2**60, dtype=torch.uint8, device=bench.device)

    kind = "nothing was raised"
    try:
        exhausted()
    except Exception as error:
        kind = str(classify(error).kind)
    with as_trials(bench):
        images, labels = images_of(bench, 8)
        after = _steps(bench, bench.models[0], images, labels, epochs=1, graphs=False)
    left = torch.cuda.memory_reserved(bench.torch) if bench.on_gpu else 0
    fails = [] if kind == "out_of_memory" else [f"memory that runs out is taken for {kind}"]
    return {"kind": kind, "next_training_s": after[0], "left_bytes": left, "fails": fails}


def summary(bench: Bench, parts: Mapping[str, Any]) -> dict[str, Any]:
    """What follows for the planner: a row for its table, whether trials share a GPU, the paper's hours."""
    from orchestrator.planning.estimate import on_cards
    from orchestrator.planning.predict import cost_of

    values = {name: part["values"] for name, part in parts.items() if part["ok"] and part["values"]}
    gains = [row["gain"] for row in values.get("pairs", {}).values() if isinstance(row, dict)]
    found: dict[str, Any] = {"pair_gain": min(gains, default=None)}
    graphs = bool(values.get("correctness", {}).get("self_test", {}).get("graphs"))
    found["fast"] = "auto: captured graphs" if graphs else "auto: plain steps"
    shared = found["pair_gain"] is not None and found["pair_gain"] >= PACKING_PAYS
    found["num_gpus"] = "left out: trials share a GPU" if shared else 1
    if "gpu" not in values or "step_times" not in values:
        return found
    card = Card(**values["gpu"]["planned_as"])
    ratios = []
    for model, row in values["step_times"].items():
        step = cost_of(bench.trial(model).network).step
        interval = GRAPH_INTERVAL_S if graphs else EAGER_INTERVAL_S
        measured = row["graph_ms" if graphs else "eager_ms"] / 1000
        ratios.append(pass_time(step, card, interval=interval).seconds / measured)
    speed = statistics.median(ratios)
    row = {
        "compute_efficiency": card.compute_efficiency * speed,
        "bandwidth_efficiency": min(1.0, card.bandwidth_efficiency * speed),
        "origin": f"gpu-check: {speed:.2f} times as fast as predicted",
        "timed": True,
    }
    hours = {
        name: on_cards(_trials(on_gpu=True), its, 1, share=1.0)["hours"]
        for name, its in (("predicted_hours", card), ("hours", replace(card, **row)))
    }
    return found | {"row": row} | hours


PARTS: dict[str, tuple[bool, Callable[..., dict[str, Any]]]] = {
    "host": (False, host),
    "gpu": (True, gpu),
    "context": (True, context),
    "correctness": (False, correctness),
    "step_times": (False, step_times),
    "passes": (False, passes),
    "memory": (False, memory),
    "pairs": (False, pairs),
    "trial": (False, trial),
    "faults": (False, faults),
    "summary": (False, summary),
}
"""Whether a part needs a GPU, and what it does."""


def check(device: str, folder: Path, say: Callable[[str], None]) -> tuple[Path, bool]:
    """Check one device and write what is found after every part.

    Args:
        device: ``cuda:<index>`` or ``cpu``.
        folder: where the file goes.
        say: prints a line.

    Returns:
        The file, and whether no part failed.
    """
    name, uuid = "CPU", "cpu"
    if device != "cpu":
        its = describe(os.environ.get("CUDA_VISIBLE_DEVICES", "")).gpus[int(device.partition(":")[2])]
        name, uuid = its.name, its.uuid.partition("-")[2][:8]
    spelled = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = folder / f"gpu-check-{spelled}-{uuid}.json"
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"gpu": name, "device": device.partition(":")[0], "parts": {}}
    for part, (needs_gpu, _) in PARTS.items():
        if needs_gpu and device == "cpu":
            continue
        record["parts"][part] = found = run_part(part, device, record["parts"])
        write_atomic(path, json.dumps(record, indent=1, default=str).encode())
        error = f": {found['error']}" if found["error"] else ""
        say(f"{'PASS' if found['ok'] else 'FAIL'} {part} in {found['seconds']:.1f} s{error}")
    return path, all(found["ok"] for found in record["parts"].values())


def run_part(part: str, device: str, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Run a part in a process of its own, on a CPU in this one; nothing that it meets is raised."""
    start = time.perf_counter()
    values: dict[str, Any] | None = None
    error = ""
    if device == "cpu":
        try:
            values = _run_here(part, device, earlier)
        except Exception as problem:
            error = without_names(f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}")
    else:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(earlier, file, default=str)
            file.flush()
            command = [sys.executable, "-m", "orchestrator.running.gpu_check", part, device, file.name]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=PART_TIMEOUT_S, check=False
                )
                last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                error = "" if done.returncode == 0 else without_names(last)
                values = json.loads(done.stdout.splitlines()[-1]) if not error else None
            except (subprocess.TimeoutExpired, ValueError, IndexError) as problem:
                error = f"{type(problem).__name__} after {time.perf_counter() - start:.0f} s"
    error = error or "; ".join((values or {}).get("fails", ()))
    return {"ok": not error, "seconds": time.perf_counter() - start, "values": values, "error": error}


def without_names(text: str) -> str:
    """Return a message without the name of the machine or of its user, and without paths."""
    import getpass
    import socket

    for name in filter(None, (socket.gethostname(), getpass.getuser())):
        text = re.sub(rf"\b{re.escape(name)}\b", "...", text)
    return re.sub(r"(/[\w.-]+){2,}", "...", text)


def devices(wanted: str | None) -> list[str]:
    """Return what is checked: ``cpu``, one GPU by its number, or all that torch reaches.

    Raises:
        SetupError: when there is no GPU to check.
    """
    if wanted == "cpu":
        return ["cpu"]
    found = [] if is_logical() else describe(os.environ.get("CUDA_VISIBLE_DEVICES", "")).gpus
    if not found:
        raise SetupError(
            "gpu-check needs a GPU that torch reaches",
            "none",
            "isweep doctor says why; --device cpu tries the check",
        )
    return [f"cuda:{index}" for index in range(len(found))] if wanted is None else [f"cuda:{int(wanted)}"]


def _run_here(part: str, device: str, earlier: Mapping[str, Any]) -> dict[str, Any]:
    bench, (_, work) = bench_of(device), PARTS[part]
    return work(bench, earlier) if part == "summary" else work(bench)


def _steps(bench: Bench, model: str, images: Any, labels: Any, *, epochs: int, graphs: bool) -> list[float]:
    """Train for some epochs; return the seconds of each."""
    from tasks.trials.training import train

    recipe = bench.trial(model).network.recipe.model_copy(update={"epochs": epochs})
    history = train(built(bench, model), images, labels, recipe, seed=0, device=bench.device, graphs=graphs)
    return [record.seconds for record in history]


def _timed(bench: Bench, work: Callable[[], object]) -> float:
    """Return the seconds of one call, the median of some."""
    import torch

    seconds: list[float] = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        if bench.on_gpu:
            torch.cuda.synchronize(bench.torch)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def main() -> None:
    """Run one part, or measure one process's rate, and print what was found as JSON."""
    part, device, more = sys.argv[1:4]
    if part == "_rate":
        print(rate(bench_of(device), more))  # noqa: T201
        return
    earlier = json.loads(Path(more).read_text(encoding="utf-8"))
    print(json.dumps(_run_here(part, device, earlier), default=str))  # noqa: T201


if __name__ == "__main__":
    main()
