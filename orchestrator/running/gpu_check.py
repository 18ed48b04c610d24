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
from orchestrator.running.gpus import Gpu, describe, is_logical, mps_runs, nvidia_smi
from search_spaces.errors import SetupError
from tasks.atomic import write_atomic

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from search_spaces.specs import TrialSpec

PART_TIMEOUT_S = 300.0
SMI_FIELDS = (
    "driver_version,compute_mode,mig.mode.current,persistence_mode,power.limit,clocks.current.sm,"
    "clocks_throttle_reasons.active,pcie.link.gen.current,pcie.link.width.current,ecc.errors.uncorrected.volatile.total"
)


@dataclass(frozen=True)
class Bench:
    """Where parts run (``cuda:<index>`` or ``cpu``), and in which size."""

    device: str
    models: tuple[str, ...]
    image_size: int

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

    def images(self, number: int) -> tuple[Tensor, Tensor]:
        """Return seeded noise of the bench's size, one channel, and labels."""
        from orchestrator.running.self_test import noise

        return noise(number, self.image_size)

    def built(self, model: str) -> Any:
        """Return a network of the bench's size, on its device."""
        from orchestrator.running.self_test import built

        return built(model, self.image_size).to(self.device)

    @contextlib.contextmanager
    def as_trials(self) -> Iterator[None]:
        """Compute as a trial does: its memory given back, its determinism, nothing left changed."""
        from tasks.trials.isolation import contained, deterministic, trial_memory

        with trial_memory(self.torch), contained(0, self.torch), deterministic(self.torch):
            yield

    def epochs(
        self, model: str, images: Any, labels: Any, number: int, *, graphs: bool = False
    ) -> list[float]:
        """Train for some epochs; return the seconds of each."""
        from tasks.trials.training import train

        recipe = self.trial(model).network.recipe.model_copy(update={"epochs": number})
        network = self.built(model)
        history = train(network, images, labels, recipe, seed=0, device=self.device, graphs=graphs)
        return [record.seconds for record in history]


@cache
def _trials(on_gpu: bool) -> tuple[TrialSpec, ...]:
    from orchestrator.planning.plan import plan_sweep
    from orchestrator.planning.sweep_file import load_sweep

    return tuple(plan_sweep(load_sweep("paper" if on_gpu else "demo")).trials)


def bench_of(device: str) -> Bench:
    """Return what is measured on a device."""
    from search_spaces.models import PAPER_MODELS

    if device == "cpu":
        return Bench(device, ("small_cnn",), 16)
    return Bench(device, tuple(PAPER_MODELS), 224)


def host(bench: Bench) -> dict[str, Any]:
    """What the machine is."""
    import torch

    about = provenance()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "isweep": about.code_version,
        "packages": about.packages,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _seen() -> tuple[Gpu, ...]:
    return describe(os.environ.get("CUDA_VISIBLE_DEVICES", "")).gpus


def gpu(bench: Bench) -> dict[str, Any]:
    """What the GPU says of itself, and what the planner makes of it."""
    its = _seen()[int(bench.device.partition(":")[2] or 0)]
    said = next(iter(nvidia_smi(SMI_FIELDS, f"--id={its.uuid}")), [])
    return {
        **asdict(its),
        "nvidia_smi": dict(zip(SMI_FIELDS.split(","), said, strict=False)),
        "mps": mps_runs(),
        "planned_as": asdict(card_there(its.name, its.memory_gib)),
    }


def correctness(bench: Bench) -> dict[str, Any]:
    """The self-test, float32 that is float32, FGSM and features as the CPU's."""
    import torch

    from orchestrator.running import self_test
    from tasks.trials.attacks import pass_clean
    from tasks.trials.representations import extract_features

    batches = {model: 6 if model.startswith("vgg") else 40 for model in bench.models}
    cases = [self_test.Case(model, size) for model, size in batches.items()]
    verdict = self_test.run(bench.torch, cases if bench.on_gpu else self_test.SMALL_CASES)
    with bench.as_trials():
        draw = torch.Generator().manual_seed(0)
        left, right = (torch.randn(512, 512, generator=draw) for _ in range(2))
        exact, product = left.double() @ right.double(), left.to(bench.device) @ right.to(bench.device)
        float32_error = float((product.cpu().double() - exact).abs().max() / exact.abs().max())
        small = replace(bench, image_size=32)
        model, (images, labels) = small.built(bench.models[0]), small.images(16)
        (clean, features), (clean_cpu, features_cpu) = (
            (
                pass_clean(model.to(where), images.to(where), labels.to(where), pass_size=8),
                extract_features(model, images.to(where)),
            )
            for where in (bench.device, "cpu")
        )
    signs = float((clean.gradient_sign.cpu() == clean_cpu.gradient_sign).double().mean())
    features_error = float(abs(features - features_cpu).max() / max(abs(features_cpu).max(), 1e-30))
    faults = {
        "TensorFloat-32 is on": float32_error >= 1e-5,
        "signs of FGSM differ from the CPU's": signs < 0.99,
        "features differ from the CPU's": features_error > 1e-3,
        "the first loss differs from the CPU's": "first loss" in verdict.reason,
    }
    return {
        "self_test": asdict(verdict),
        "float32_error": float32_error,
        "fgsm_signs_equal": signs,
        "features_error": features_error,
        "fails": [name for name, bad in faults.items() if bad],
    }


def step_times(bench: Bench) -> dict[str, Any]:
    """Milliseconds of a training step, started by Python and replayed as a graph."""
    found: dict[str, Any] = {}
    for model in bench.models:
        size = bench.trial(model).network.recipe.batch_size
        images, labels = bench.images(10 * size)
        found[model] = {"batch_size": size}
        for name, graphs in (("eager_ms", False), ("graph_ms", True)):
            if bench.on_gpu or not graphs:
                with bench.as_trials():
                    epochs = bench.epochs(model, images, labels, 8, graphs=graphs)
                found[model][name] = 1000 * statistics.median(epochs[4:]) / 10
    return found


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
        with bench.as_trials():
            images, labels = bench.images(3 * network.recipe.batch_size)
            recipe = network.recipe.model_copy(update={"epochs": 5})
            trained, images, labels = bench.built(model), images.to(bench.device), labels.to(bench.device)

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
    for model in ("resnet18", "vgg16") if bench.on_gpu else bench.models:
        rates = {}
        for number in (1, 2, 4) if bench.on_gpu else (1, 2):
            command = [sys.executable, "-m", "orchestrator.running.gpu_check", "_rate", bench.device, model]
            started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
            said = [process.communicate(timeout=PART_TIMEOUT_S)[0] for process in started]
            rates[str(number)] = sum(float(text.splitlines()[-1]) for text in said)
        found[model] = rates | {"gain": rates["2"] / rates["1"]}
    return found


def rate(bench: Bench, model: str) -> float:
    """Return images per second of training for about four seconds, after a first epoch; in short on a CPU."""
    images, labels = bench.images(10 * bench.trial(model).network.recipe.batch_size)
    with bench.as_trials():
        first = bench.epochs(model, images, labels, 2)
        number = max(3, int((12 if bench.on_gpu else 1) / max(first[-1], 1e-4)))
        epochs = bench.epochs(model, images, labels, min(number, 2000))
    return len(images) * (len(epochs) - 1) / sum(epochs[1:])


def summary(bench: Bench, parts: Mapping[str, Any]) -> dict[str, Any]:
    """What follows for the planner: a row for its table, whether trials share a GPU, the paper's hours."""
    from orchestrator.planning.estimate import on_cards
    from orchestrator.planning.predict import cost_of

    values = {name: part["values"] for name, part in parts.items() if part["ok"] and part["values"]}
    gains = [row["gain"] for row in values.get("pairs", {}).values() if isinstance(row, dict)]
    gain = min(gains, default=None)
    graphs = bool(values.get("correctness", {}).get("self_test", {}).get("graphs"))
    found: dict[str, Any] = {
        "pair_gain": gain,
        "fast": "auto: captured graphs" if graphs else "auto: plain steps",
        "num_gpus": "left out: trials share a GPU" if gain is not None and gain >= PACKING_PAYS else 1,
    }
    if "gpu" not in values or "step_times" not in values:
        return found
    card = Card(**values["gpu"]["planned_as"])
    interval, measured = (GRAPH_INTERVAL_S, "graph_ms") if graphs else (EAGER_INTERVAL_S, "eager_ms")
    speed = statistics.median(
        pass_time(cost_of(bench.trial(model).network).step, card, interval=interval).seconds
        / (row[measured] / 1000)
        for model, row in values["step_times"].items()
    )
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


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    part.__name__: part for part in (host, gpu, correctness, step_times, memory, pairs, summary)
}
OF_GPUS = {"gpu"}
"""Parts that a CPU has not."""


def check(device: str, folder: Path, say: Callable[[str], None]) -> tuple[Path, bool]:
    """Check one device (``cuda:<index>`` or ``cpu``) and write what is found after every part.

    Returns:
        The file, and whether no part failed.
    """
    name, uuid = "CPU", "cpu"
    if device != "cpu":
        its = _seen()[int(device.partition(":")[2])]
        name, uuid = its.name, its.uuid.partition("-")[2][:8]
    spelled = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = folder / f"gpu-check-{spelled}-{uuid}.json"
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"gpu": name, "device": device.partition(":")[0], "parts": {}}
    for part in PARTS:
        if part in OF_GPUS and device == "cpu":
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
    try:
        if device == "cpu":
            values = _run_here(part, device, earlier)
        else:
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                json.dump(earlier, file, default=str)
                file.flush()
                command = [sys.executable, "-m", "orchestrator.running.gpu_check", part, device, file.name]
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=PART_TIMEOUT_S, check=False
                )
            if done.returncode:
                error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            else:
                values = json.loads(done.stdout.splitlines()[-1])
    except Exception as problem:
        error = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"
    error = without_names(error) or "; ".join((values or {}).get("fails", ()))
    return {"ok": not error, "seconds": time.perf_counter() - start, "values": values, "error": error}


def _run_here(part: str, device: str, earlier: Mapping[str, Any]) -> dict[str, Any]:
    bench, work = bench_of(device), PARTS[part]
    return work(bench, earlier) if part == "summary" else work(bench)


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
    found = () if is_logical() else _seen()
    if not found:
        raise SetupError(
            "gpu-check needs a GPU that torch reaches",
            "none",
            "isweep doctor says why; --device cpu tries the check",
        )
    return [f"cuda:{index}" for index in range(len(found))] if wanted is None else [f"cuda:{int(wanted)}"]


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
