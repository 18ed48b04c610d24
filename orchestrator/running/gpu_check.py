"""``isweep gpu-check``: what a GPU really does, part by part, in one file to send back.

Each part runs in a process of its own, which sees one GPU or slice (MIG), so that none stops the
next. It yields names and values, and what it has yielded is kept, however it ends. On a CPU
(``--device cpu``) the parts that need no GPU run in small, which tries the check itself. Nothing
names the machine or its user.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from orchestrator.machine import gpus, self_test
from orchestrator.machine.cluster import connect, this_machine
from orchestrator.machine.ending import end, environment
from orchestrator.machine.gpus import (
    Gpu,
    capability,
    describe,
    is_logical,
    mps_runs,
    nvidia_smi,
    slices,
)
from orchestrator.planning.costs.gpu_checks import PACKING_PAYS
from orchestrator.planning.costs.gpu_models import BFLOAT16_FROM, GpuModel
from orchestrator.planning.costs.memory import array_bytes, peak_bytes
from orchestrator.planning.costs.networks import cost_of
from orchestrator.planning.costs.pass_times import EAGER_INTERVAL_S, GRAPH_INTERVAL_S, pass_time
from orchestrator.planning.estimate import on_gpus
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.results.provenance import provenance
from orchestrator.running.failures import classify
from search_spaces.errors import ConfigError, SetupError
from search_spaces.models import PAPER_MODELS
from search_spaces.specs import TrialSpec
from tasks.atomic import write_atomic
from tasks.measures.products import MAX_FEATURES, blas_product, choose_product, torch_product
from tasks.prepared.subsets import TrialData
from tasks.trials import isolation
from tasks.trials.attacks import attack_batch_size, run_clean_pass
from tasks.trials.isolation import contained, deterministic, trial_memory
from tasks.trials.records import CONTEXT_BYTES
from tasks.trials.representations import extract_features
from tasks.trials.training import evaluate, record_graph, train
from tasks.trials.trial import run_trial

PART_TIMEOUT_S = 600.0
RAGGED = ((1, 1, 1), (3, 5, 17), (16, 17, 33), (33, 70, 1025), (130, 257, 63), (2, 3, MAX_FEATURES))
"""Rows of both sides and features: around what torch asks of CUDA, 17 rows and multiples of 8."""
SMI_FIELDS = (
    *("driver_version", "compute_mode", "mig.mode.current", "persistence_mode", "power.limit"),
    *("clocks.current.sm", "clocks_throttle_reasons.active", "clocks_event_reasons.active"),
    *("pcie.link.gen.current", "pcie.link.width.current", "ecc.errors.uncorrected.volatile.total"),
)


@dataclass(frozen=True)
class Bench:
    """Where parts run, in which size, and whether in bfloat16 and by graphs, as the device's
    trials.
    """

    device: torch.device
    models: tuple[str, ...]
    image_size: int
    half: bool = True
    graphs: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    @property
    def two(self) -> tuple[str, ...]:
        """A network with batch norm and one without, for what takes long."""
        return ("resnet18", "vgg16") if self.on_gpu else self.models

    def trial(self, model: str) -> TrialSpec:
        """Return the largest trial of a network in the grid."""
        of_model = (
            trial for trial in grid(self.on_gpu, self.half) if trial.network.model.name == model
        )
        return max(of_model, key=lambda trial: trial.network.train_size)

    def images(self, number: int) -> tuple[Tensor, Tensor]:
        """Return seeded noise of the bench's size, one channel, and labels, on its device."""
        images, labels = self_test.noise(number, self.image_size)
        return images.to(self.device), labels.to(self.device)

    def built(self, model: str) -> Any:
        """Return a network of the bench's size, on its device, in the layout that it is trained
        in.
        """
        network: Any = self_test.built(model, self.image_size)
        return network.to(self.device, memory_format=torch.channels_last)

    @contextlib.contextmanager
    def as_trials(self, share: float | None = None) -> Iterator[None]:
        """Compute as a trial with a share of the GPU does: memory, determinism, nothing left
        changed.
        """
        with (
            trial_memory(self.device, share),
            contained(0, self.device),
            deterministic(self.device),
        ):
            yield

    def share_of(self, tensor_bytes: float) -> float:
        """Return the share of the GPU that leaves so much for tensors, at most the whole."""
        total = torch.cuda.get_device_properties(self.device).total_memory
        return min(1.0, (CONTEXT_BYTES + tensor_bytes) / total)

    def left_bytes(self) -> int:
        """Return what this process holds of the GPU for tensors."""
        return torch.cuda.memory_reserved(self.device) if self.on_gpu else 0

    def failure(self, work: Callable[[], object], share: float | None = None) -> str:
        """Return the kind of failure that work dies of within a share of the GPU; empty where it
        runs.
        """
        try:
            with self.as_trials(share):
                work()
        except Exception as error:
            return str(classify(error).kind)
        return ""

    def epochs(
        self, model: str, images: Tensor, labels: Tensor, number: int, *, graphs: bool = False
    ) -> list[float]:
        """Train for some epochs; return the seconds of each."""
        recipe = self.trial(model).network.recipe.model_copy(update={"epochs": number})
        options: dict[str, Any] = {"seed": 0, "device": self.device, "graphs": graphs}
        return [
            record.seconds for record in train(self.built(model), images, labels, recipe, **options)
        ]


@cache
def grid(on_gpu: bool, half: bool) -> tuple[TrialSpec, ...]:
    """Return the paper's trials, in float32 without bfloat16 as there they must be; the demo's for
    a CPU.
    """
    changes = {} if half or not on_gpu else {"recipe": {"from": "paper", "precision": "float32"}}
    return tuple(plan_sweep(load_sweep("paper" if on_gpu else "demo", changes=changes)).trials)


def bench_of(device: str, *, half: bool = True, graphs: bool = False) -> Bench:
    """Return what is measured on a device: ``cuda`` or ``cpu``."""
    if device == "cpu":
        return Bench(torch.device(device), ("small_cnn",), 16)
    return Bench(torch.device(device), tuple(PAPER_MODELS), 224, half, graphs)


Found = Iterator[tuple[str, Any]]


def host(bench: Bench) -> Found:
    """What the machine is."""
    about, cpus = provenance(), Path("/proc/cpuinfo")
    yield "system", f"{platform.system()} {platform.release()}"
    yield (
        "cpu",
        "".join(re.findall(r"model name\s*: (.*)", cpus.read_text() if cpus.exists() else "")[:1]),
    )
    yield "cores", len(os.sched_getaffinity(0))
    yield "memory_gib", round(this_machine().memory_bytes / 2**30, 1)
    yield "container", Path("/.dockerenv").exists() or "KUBERNETES_SERVICE_HOST" in os.environ
    yield "home_writable", os.access(Path.home(), os.W_OK)
    yield "python", platform.python_version()
    yield "isweep", about.code_version
    yield "packages", about.packages
    yield "cuda", torch.version.cuda
    yield "cudnn", torch.backends.cudnn.version()  # type: ignore[no-untyped-call]


def _seen() -> tuple[Gpu, ...]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return describe(named).gpus if gpus.visible_gpus() else ()
    whole = [uuid for uuid, mig in nvidia_smi("uuid,mig.mode.current") if mig != "Enabled"]
    return describe(",".join(slices() + whole) if slices() else "").gpus


def gpu(bench: Bench) -> Found:
    """What the GPU says of itself, and what the planner makes of it."""
    (its,) = _seen()
    yield from asdict(its).items()
    # One by one: a driver that has dropped a field answers nothing at all where it is among others.
    said = {field: nvidia_smi(field, f"--id={its.uuid}") for field in SMI_FIELDS}
    yield "nvidia_smi", {field: rows[0][0] for field, rows in said.items() if rows}
    yield "mps", mps_runs()
    yield "planned_as", asdict(its.model())


def context(bench: Bench) -> Found:
    """Bytes that the process holds beside its tensors: after its start, and after a step of each
    network.
    """
    (its,) = _seen()  # what others hold: this process holds nothing yet

    def beside() -> int:
        free, total = torch.cuda.mem_get_info(bench.device)
        return total - free - its.held_bytes - bench.left_bytes()

    torch.zeros(1, device=bench.device)
    yield "start", beside()
    for model in bench.models:
        with bench.as_trials():
            bench.epochs(model, *bench.images(4), 1)
            yield model, beside()


def correctness(bench: Bench) -> Found:
    """The self-test, products of bytes, float32 that is float32, FGSM and features as the CPU's."""
    cases = [self_test.Case(model, 6 if model.startswith("vgg") else 40) for model in bench.models]
    verdict = self_test.run(bench.device, cases if bench.on_gpu else self_test.SMALL_CASES)
    yield "self_test", asdict(verdict)
    with bench.as_trials():
        draw = torch.Generator().manual_seed(0)
        left, right = (torch.randn(512, 512, generator=draw) for _ in range(2))
        exact, product = (
            left.double() @ right.double(),
            left.to(bench.device) @ right.to(bench.device),
        )
        float32_error = float((product.cpu().double() - exact).abs().max() / exact.abs().max())
        yield "float32_error", float32_error
        small = replace(bench, image_size=32)
        model, (images, labels) = small.built(bench.models[0]), small.images(16)
        (clean, features), (clean_cpu, features_cpu) = (
            (
                run_clean_pass(model.to(where), images.to(where), labels.to(where), batch_size=8),
                extract_features(model, images.to(where)),
            )
            for where in (bench.device, "cpu")
        )
    signs = float((clean.gradient_sign.cpu() == clean_cpu.gradient_sign).double().mean())
    yield "fgsm_signs_equal", signs
    features_error = float(abs(features - features_cpu).max() / max(abs(features_cpu).max(), 1e-30))
    yield "features_error", features_error
    yield (
        "products_that_differ",
        (products := list(wrong_products(bench))),
    )  # a GPU may have none at all
    wrong = {
        "TensorFloat-32 is on": float32_error >= 1e-5,
        "products of bytes differ from the CPU's": products,
        "signs of FGSM differ from the CPU's": signs < 0.99,
        "features differ from the CPU's": features_error > 1e-3,
        "the first loss differs from the CPU's": "first loss" in verdict.reason,
        f"the self-test ended in an error: {verdict.reason}": verdict.error,
    }
    yield "fails", [name for name, bad in wrong.items() if bad]


def wrong_products(bench: Bench) -> Iterator[tuple[int, ...]]:
    """Yield the sizes of ragged products of bytes that are not those of float32 by BLAS, which are
    exact.
    """
    draw = np.random.default_rng(0)
    product = (
        partial(torch_product, device=str(bench.device)) if bench.on_gpu else choose_product(1e15)
    )
    for sizes in RAGGED:
        a, b = (draw.integers(-128, 128, (number, sizes[2]), np.int8) for number in sizes[:2])
        a[0] = b[0] = -128
        # Of rows with themselves only what is on and above the diagonal counts.
        itself = np.array_equal(np.triu(product(a, a)), np.triu(blas_product(a, a)))
        if not (itself and np.array_equal(product(a, b), blas_product(a, b))):
            yield sizes


def step_times(bench: Bench) -> Found:
    """Milliseconds of a training step, started by Python and, after all of these, replayed as a
    graph.
    """
    rows: dict[str, dict[str, float]] = {model: {} for model in bench.models}
    for name, graphs in (("eager_ms", False), ("graph_ms", True))[: 1 + bench.on_gpu]:
        for model, row in rows.items():
            row["batch_size"] = size = bench.trial(model).network.recipe.batch_size
            with bench.as_trials():
                epochs = bench.epochs(model, *bench.images(10 * size), 8, graphs=graphs)
            row[name] = 1000 * statistics.median(epochs[4:]) / 10
            yield model, row


def passes(bench: Bench) -> Found:
    """Images per second in float32: evaluated 64 and 16 at once, in the other layout, and FGSM's
    gradient.
    """
    for model in bench.models:
        with bench.as_trials():
            network, (images, labels) = bench.built(model), bench.images(64)
            plain = bench.built(model).to(memory_format=torch.contiguous_format).eval()
            size = attack_batch_size(bench.trial(model).network.recipe)
            works: dict[str, tuple[int, Callable[[], object]]] = {
                "evaluate_64": (64, partial(evaluate, network, images, labels, batch_size=64)),
                "evaluate_16": (64, partial(evaluate, network, images, labels, batch_size=16)),
                "nchw_16": (16, torch.no_grad()(partial(plain, images[:16].float()))),
                "fgsm": (64, partial(run_clean_pass, network, images, labels, batch_size=size)),
            }
            yield (
                model,
                {
                    name: number / Timer("work()", globals={"work": work}).timeit(3).mean
                    for name, (number, work) in works.items()
                },
            )


def memory(bench: Bench) -> Found:
    """Peak of a small trial of each network, against the prediction, and the least share that it
    needs.
    """
    for model in bench.models:
        network = bench.trial(model).network
        with bench.as_trials():
            _small_trial(bench, model, graphs=bench.graphs)
            peak = isolation.peak_bytes(bench.device)
        predicted = peak_bytes(network) - array_bytes(network) - CONTEXT_BYTES
        row = {"peak_bytes": peak, "predicted_bytes": predicted, "ratio": predicted / peak}
        yield model, row
        if bench.on_gpu:
            # Plain steps: after a capture without memory the process would have to end.
            ends = partial(bench.failure, partial(_small_trial, bench, model, graphs=False))
            yield model, row | smallest_share(ends, bench.share_of(1.25 * peak))


def _small_trial(bench: Bench, model: str, *, graphs: bool) -> None:
    network = bench.trial(model).network
    recipe = network.recipe.model_copy(update={"epochs": 5})
    number = (
        3 * recipe.batch_size + network.train_size % recipe.batch_size
    )  # as ragged as what is predicted
    trained, (images, labels) = bench.built(model), bench.images(number)

    def look(record: object) -> None:
        evaluate(trained, images, labels)

    train(
        trained, images, labels, recipe, seed=0, device=bench.device, on_epoch=look, graphs=graphs
    )
    run_clean_pass(trained, images, labels, batch_size=attack_batch_size(recipe))


def smallest_share(ends: Callable[[float], str], largest: float) -> dict[str, Any]:
    """Return the least share, up to ``largest``, for which ``ends`` names no failure; and a lesser
    one's.
    """
    runs, dies, kind = None, 0.0, ""
    for _ in range(5):
        share = ((largest if runs is None else runs) + dies) / 2
        if said := ends(share):
            dies, kind = share, said
        else:
            runs = share
    return {"smallest_share": runs, "dies_with": dies, "kind": kind}


def pairs(bench: Bench) -> Found:
    """Images per second of several processes on one GPU, over those of one, without MPS and where
    it runs.
    """
    yield "mps", (mps := mps_runs())
    ways = {"without_mps": {"CUDA_MPS_PIPE_DIRECTORY": "/nowhere"}, "with_mps": {}}
    for way in list(ways)[: 1 + mps]:
        rows = {}
        for model in bench.two:
            with environment(**ways[way]):
                rows[model] = _gain(bench, model)
            yield way, rows


def _gain(bench: Bench, model: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for number in (1, 2, 4) if bench.on_gpu else (1, 2):
        started = [_start("rate", bench.device.type, bench.graphs, model) for _ in range(number)]
        told = [_answer(process) for process in started]
        if error := next((error for _, error in told if error), ""):
            if number == 1:
                raise ChildProcessError(error)
            return row | {"error": f"{number} processes: {error}"}
        row[str(number)] = sum(found["images_per_second"] for found, _ in told)
        if number == 2:
            row["gain"] = row["2"] / row["1"]
    return row


def rate(bench: Bench, model: str) -> Found:
    """Images per second of training for about four seconds, after a first epoch; in short on a
    CPU.
    """
    images, labels = bench.images(10 * bench.trial(model).network.recipe.batch_size)
    with bench.as_trials():
        first = bench.epochs(model, images, labels, 2, graphs=bench.graphs)
        number = max(3, int((12 if bench.on_gpu else 1) / max(first[-1], 1e-4)))
        epochs = bench.epochs(model, images, labels, min(number, 2000), graphs=bench.graphs)
    yield "images_per_second", len(images) * (len(epochs) - 1) / sum(epochs[1:])


def trial(bench: Bench) -> Found:
    """Real trials through Ray on a private cluster, each twice in one process."""
    with connect(None, num_cpus=1, dashboard=False):
        work = ray.remote(num_cpus=1, num_gpus=int(bench.on_gpu), max_retries=0)(_two_trials)
        for model in bench.two:
            yield model, ray.get(work.remote(bench, model), timeout=PART_TIMEOUT_S)


def _two_trials(bench: Bench, model: str) -> list[dict[str, Any]]:
    spec, size, found = bench.trial(model), 500 if bench.on_gpu else 40, []
    images, labels = (tensor.cpu().numpy() for tensor in bench.images(size + 20))
    recipe = spec.network.recipe.model_copy(update={"epochs": 5})
    network = spec.network.model_copy(update={"train_size": size, "recipe": recipe})
    data = TrialData(images[:size], labels[:size], images[size:], labels[size:], 2, "gpu-check")
    for _ in range(2):
        its = spec.model_copy(update={"network": network})
        result = run_trial(its, data, device=bench.device, graphs=bench.graphs)
        kept = {"timings", "peak_memory_bytes", "energy_j", "energy_note", "scores"}
        found.append(
            result.model_dump(mode="json", include=kept) | {"left_bytes": bench.left_bytes()}
        )
    return found


def faults(bench: Bench) -> Found:
    """Memory that runs out on purpose: the kind that it is taken for, and whether the next training
    runs.
    """
    model = bench.models[0]
    images, labels = bench.images(bench.trial(model).network.recipe.batch_size)
    size = 2**44 if bench.on_gpu else 2**60
    allocation: Callable[[], Any] = partial(
        torch.empty, size, dtype=torch.uint8, device=bench.device
    )
    works: dict[str, Callable[[], object]] = {
        "step": partial(bench.epochs, model, images, labels, 1),
        "evaluation": lambda: evaluate(bench.built(model), images, labels),
    }
    kinds = {"allocation": bench.failure(allocation)}
    yield "kinds", kinds
    for name, work in works.items() if bench.on_gpu else ():  # a CPU limits no share
        with bench.as_trials():
            work()
            half = isolation.peak_bytes(bench.device) / 2
        kinds[name] = bench.failure(work, bench.share_of(half))
    with bench.as_trials():
        yield "next_training_s", bench.epochs(model, images, labels, 1)[0]
    yield "left_bytes", bench.left_bytes()
    if bench.on_gpu:  # the last that this process can do
        kinds["capture"] = bench.failure(partial(record_graph, allocation))
    wrong = {name: kind or "nothing" for name, kind in kinds.items() if kind != "out_of_memory"}
    yield (
        "fails",
        [f"memory that runs out in {name} is taken for {kind}" for name, kind in wrong.items()],
    )


def summary(bench: Bench, parts: Mapping[str, Any]) -> Found:
    """What follows for the planner: a row for its table, whether trials share a GPU, the paper's
    hours.
    """
    values = {name: part["values"] for name, part in parts.items()}
    failed, of_pairs = (
        [name for name, part in parts.items() if not part["ok"]],
        values.get("pairs", {}),
    )
    alone, under_mps = (
        min((row["gain"] for row in of_pairs.get(way, {}).values() if "gain" in row), default=None)
        for way in ("without_mps", "with_mps")
    )
    gain = under_mps if of_pairs.get("mps") else alone
    graphs = bool(values.get("correctness", {}).get("self_test", {}).get("graphs"))
    yield "verdict", f"FAIL: {', '.join(failed)}" if failed else "PASS"
    yield "pair_gain", alone
    yield "pair_gain_mps", under_mps
    yield "fast", "auto: captured graphs" if graphs else "auto: plain steps"
    yield "num_gpus", "left out: trials share a GPU" if (gain or 0) >= PACKING_PAYS else 1
    interval = GRAPH_INTERVAL_S if graphs else EAGER_INTERVAL_S
    measured = "graph_ms" if graphs else "eager_ms"
    times = {
        model: row[measured]
        for model, row in values.get("step_times", {}).items()
        if measured in row
    }
    if "planned_as" not in values.get("gpu", {}) or not times:
        return
    its = GpuModel(**values["gpu"]["planned_as"])
    bench = replace(bench, half=its.bfloat16)
    costs = {model: cost_of(bench.trial(model).network).step for model in times}
    speed = statistics.median(
        1000 * pass_time(cost, its, interval=interval, half=bench.half).seconds / times[model]
        for model, cost in costs.items()
    )
    there = replace(
        its,
        compute_efficiency=its.compute_efficiency * speed,
        bandwidth_efficiency=min(1.0, its.bandwidth_efficiency * speed),
        origin=f"gpu-check: {speed:.2f} times as fast as predicted",
        timed=True,
    )
    yield "row", asdict(there)
    for name, planned in (("predicted_hours", its), ("hours", there)):
        yield name, on_gpus(grid(True, bench.half), planned, 1, share=1.0)["hours"]


PARTS: dict[str, Callable[..., Found]] = {
    part.__name__: part
    for part in (
        host,
        gpu,
        context,
        correctness,
        step_times,
        passes,
        memory,
        pairs,
        trial,
        faults,
        summary,
    )
}


def check(its: Gpu | None, folder: Path, say: Callable[[str], None]) -> tuple[Path, bool]:
    """Check a GPU, or the CPU, written down after every part; return the file, and whether no part
    failed.

    Until it is whole it is called ``.unfinished``: one that was cut short takes no earlier one's
    place.
    """
    name, uuid, device = (
        (its.name, its.uuid.partition("-")[2][:8], "cuda") if its else ("CPU", "cpu", "cpu")
    )
    spelled = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = folder / f"gpu-check-{spelled}-{uuid}.json"
    unfinished = path.with_suffix(".unfinished")
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"gpu": name, "device": device, "parts": {}}
    parts = [part for part in PARTS if its or part not in ("gpu", "context")]
    for part in parts:
        try:
            with environment(**({"CUDA_VISIBLE_DEVICES": its.uuid} if its else {})):
                record["parts"][part] = found = run_part(part, device, record["parts"])
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"What was found is in {unfinished}; the command begins anew."
            ) from None
        write_atomic(
            path if part == parts[-1] else unfinished, json.dumps(record, indent=1).encode()
        )
        error = f": {found['error']}" if found["error"] else ""
        say(f"{'PASS' if found['ok'] else 'FAIL'} {part} in {found['seconds']:.1f} s{error}")
    unfinished.unlink(missing_ok=True)
    return path, all(found["ok"] for found in record["parts"].values())


def run_part(part: str, device: str, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Run a part in a process of its own, on a CPU in this one; nothing that it meets is raised."""
    start, error, values = time.perf_counter(), "", dict[str, Any]()
    if device == "cpu" or part == "summary":
        try:
            for name, value in PARTS[part](bench_of(device), *[earlier] * (part == "summary")):
                values[name] = value
        except Exception as problem:
            error = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"
    else:
        tested = earlier.get("correctness", {}).get("values", {}).get("self_test", {})
        values, error = _answer(_start(part, device, tested.get("graphs", False)))
    error = error or "; ".join(values.get("fails", ()))
    seconds = time.perf_counter() - start
    return {"ok": not error, "seconds": seconds, **nameless({"values": values, "error": error})}


def _start(part: str, device: str, graphs: bool, *model: str) -> subprocess.Popen[str]:
    code = f"from {__name__} import main; main()"  # not -m: Ray's workers must be able to import it
    pipe, group = subprocess.PIPE, None if part == "rate" else 0  # a rate's is its part's
    command = [sys.executable, "-c", code, part, device, str(int(graphs)), *model]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, process_group=group)


def _answer(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """Return what a process had found when it ended, or its time was up, and what it died of."""
    error = ""
    try:
        said, complaint = process.communicate(timeout=PART_TIMEOUT_S)
    except subprocess.TimeoutExpired as late:
        said, error = (late.stdout or b"").decode(), f"no end within {PART_TIMEOUT_S:g} s"
    finally:
        end_group(process)
    if process.returncode and not error:
        error = (complaint.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    whole = [
        line
        for line in said.splitlines(keepends=True)
        if line.startswith("{") and line.endswith("}\n")
    ]
    return json.loads(whole[-1]) if whole else {}, error


def end_group(process: subprocess.Popen[str]) -> None:
    """End a part's process and what it started: what it leaves would compute beside the next
    part.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    end(process)


def nameless(found: Any) -> Any:
    """Return what was found as JSON has it, without the name of the machine or of its user, without
    paths.
    """
    text = json.dumps(found, default=str).replace("\\n", " ")
    names = {host := socket.gethostname(), host.partition(".")[0]}
    with contextlib.suppress(OSError, KeyError):  # a user without a name, as containers have
        names.add(getpass.getuser())
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "...", text)
    return json.loads(re.sub(r"(/[\w.-]+){2,}", "...", text))


def devices(wanted: str | None) -> list[Gpu | None]:
    """Return what is checked: all GPUs that torch reaches, one by its number, or for ``cpu`` None.

    Raises:
        ConfigError: for a number that no GPU has.
        SetupError: when there is no GPU to check.
    """
    if wanted == "cpu":
        return [None]
    found = {str(index): its for index, its in enumerate(() if is_logical() else _seen())}
    if not found:
        hint = "isweep doctor says why; --device cpu tries the check"
        raise SetupError("gpu-check needs a GPU that torch reaches", "none", hint)
    if wanted is not None and wanted not in found:
        rule = "--device must be the number of a GPU that torch reaches, or cpu"
        raise ConfigError(rule, wanted, f"one of {', '.join(found)}")
    return [its for number, its in found.items() if wanted in (None, number)]


def main() -> None:
    """Run one part, or measure a network's rate; print what was found as JSON, whenever it is
    more.
    """
    part, device, graphs, *model = sys.argv[1:]
    half, values = device == "cpu" or capability() >= BFLOAT16_FROM, dict[str, Any]()
    bench = bench_of(device, half=half, graphs=graphs == "1")
    for name, value in {**PARTS, "rate": rate}[part](bench, *model):
        values[name] = value
        print(json.dumps(values, default=str), flush=True)  # noqa: T201
