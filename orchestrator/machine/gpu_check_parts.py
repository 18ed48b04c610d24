"""The parts of ``isweep gpu-check``. Each part measures one thing, and yields names with
values.

All yielded values are stored, even if the part fails later. The names of parts and values are
stored too, so they must not change. Some names need an explanation:

``fails`` Texts about problems. If there is at least one text, the part has failed. ``wrong``,
    ``unchecked``, ``doubt``, ``plain_because`` Results of a self-test. ``wrong`` describes a
    wrong computation. ``unchecked`` says why nothing was compared. ``doubt`` says why the
    wrong computation may be an exception. ``plain_because`` says why trials use plain steps.
    ``dies_with`` The largest share of the GPU in which a training failed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from orchestrator.machine.cluster import connect, cpu_cluster_here
from orchestrator.machine.gpu_bench import Bench
from orchestrator.machine.gpu_hours import FULL_SIZE
from orchestrator.machine.gpus import nvidia_smi
from orchestrator.machine.gpus.records import Gpu
from orchestrator.machine.gpus.torch_gpus import describe
from orchestrator.machine.gpus.visible import visible_gpus
from orchestrator.machine.mps_daemon import mps_runs
from orchestrator.machine.self_test import program, stored_verdicts
from orchestrator.planning.costs.memory import array_bytes, peak_bytes
from orchestrator.results.provenance import provenance
from tasks.measures.products import MAX_FEATURES, blas_product, choose_product, torch_product
from tasks.prepared.subsets import TrialData
from tasks.trials import isolation
from tasks.trials.attacks import attack_batch_size, run_clean_pass
from tasks.trials.cuda_graphs import capture_graph
from tasks.trials.evaluation import evaluate
from tasks.trials.records import CONTEXT_BYTES, ComputeOptions
from tasks.trials.representations import extract_features
from tasks.trials.training import train
from tasks.trials.trial import run_trial

Measurements = Iterator[tuple[str, Any]]
"""Pairs of a name and a value, in the order of the measurements. If a name appears again, its
new value replaces the earlier value."""

STEP_SECONDS = 2.5
"""Duration in seconds of one measurement of training steps. Steps with and without CUDA graphs
are measured in turn, each twice. If the GPU gets hot and slow, both kinds are affected."""
CPU_STEP_SECONDS = 0.05
"""Duration in seconds of one measurement of training steps on a CPU."""
TRIAL_TIMEOUT_S = 600.0
"""Seconds that a trial may take."""
RAGGED_SIZES = (
    (1, 1, 1),
    (3, 5, 17),
    (16, 17, 33),
    (33, 70, 1025),
    (130, 257, 63),
    (2, 3, MAX_FEATURES),
)
"""Sizes of the tested products of byte matrices: rows of the first matrix, rows of the second
matrix, and features. On CUDA, torch needs at least 17 rows and sizes that are multiples of 8.
The tested sizes are close to both limits."""
STATIC_FIELDS = (
    "driver_version",
    "vbios_version",
    "compute_mode",
    "mig.mode.current",
    "persistence_mode",
    "power.limit",
    "clocks.max.sm",
    "pcie.link.gen.current",
    "pcie.link.width.current",
    "ecc.errors.uncorrected.volatile.total",
    "retired_pages.double_bit.count",
)
"""Fields of ``nvidia-smi`` that do not depend on the load of the GPU."""
LOAD_FIELDS = (
    "clocks.current.sm",
    "clocks.current.memory",
    "power.draw",
    "temperature.gpu",
    "clocks_throttle_reasons.active",
    "clocks_event_reasons.active",
)
"""Fields of ``nvidia-smi`` that show whether the GPU reduced its clock, for example due to
heat."""
ENVIRONMENT = re.compile(r"(PYTORCH|TORCH|CUDA|NVIDIA|CUBLAS|CUDNN)_")
"""Pattern for the names of environment variables that change the behavior of torch and
CUDA."""
FLOAT32_ERROR = 2e-5
"""Largest allowed relative error of a matrix product or a convolution in float32. On a CPU, we
measured an error of 4e-7 for the direct sum, and of 5e-6 for Winograd's algorithm. cuDNN may
choose Winograd's algorithm for a convolution. The limit is about four times the error of
Winograd's algorithm, because cuDNN may round in another order. TensorFloat-32 has an error of
3e-4."""
TRIAL_SIZES = (500, 500, FULL_SIZE)
"""Numbers of training images of the real trials. Two trials are equal, to show which results
are repeated exactly."""


def describe_host(bench: Bench) -> Measurements:
    """Yield a description of the machine."""
    about = provenance()
    cpu_file = Path("/proc/cpuinfo")
    cpu_text = cpu_file.read_text(encoding="utf-8") if cpu_file.exists() else ""
    cpu_names = re.findall(r"model name\s*: (.*)", cpu_text)
    yield "system", f"{platform.system()} {platform.release()}"
    yield "cpu", cpu_names[0] if cpu_names else ""
    yield "cores", len(os.sched_getaffinity(0))
    yield "core_gflops", round(_core_gflops(), 1)
    yield "memory_gib", round(cpu_cluster_here().memory_bytes / 2**30, 1)
    yield "locked_memory_bytes", resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    yield "container", Path("/.dockerenv").exists() or "KUBERNETES_SERVICE_HOST" in os.environ
    yield "home_writable", os.access(Path.home(), os.W_OK)
    yield "python", platform.python_version()
    yield "isweep", about.code_version
    yield "packages", about.packages
    yield "cuda", torch.version.cuda
    yield "cudnn", torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    settings = {name: value for name, value in os.environ.items() if ENVIRONMENT.match(name)}
    yield "environment", settings


def _core_gflops() -> float:
    """Return the speed of one CPU core in GFLOP/s. Trials build networks and measure images on
    CPU cores.
    """
    matrix = torch.ones(1024, 1024)
    timer = Timer("matrix @ matrix", globals={"matrix": matrix}, num_threads=1)
    return 2 * 1024**3 / timer.timeit(5).mean / 1e9


def visible_gpu_list() -> tuple[Gpu, ...]:
    """Return the GPUs and MIG slices that torch can use. A separate process describes each of
    them.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        uuids = nvidia_smi.slices_and_whole_gpus()
        return describe(",".join(uuids) if uuids else None).gpus
    return describe(value).gpus if visible_gpus() else ()


def smi_values(fields: Iterable[str], uuid: str) -> dict[str, str]:
    """Return the values that ``nvidia-smi`` reports for a GPU, by field.

    Each field is requested separately. If several fields were requested together and the
    driver lacked one of them, it would print nothing.
    """
    values = {}
    for field in fields:
        rows = nvidia_smi.query(field, f"--id={uuid}")
        if rows:
            values[field] = rows[0][0]
    return values


def describe_gpu(bench: Bench) -> Measurements:
    """Yield a description of the idle GPU, and the model with which plans predict its speed."""
    (described,) = visible_gpu_list()
    yield from asdict(described).items()
    yield "nvidia_smi", smi_values(STATIC_FIELDS + LOAD_FIELDS, described.uuid)
    apps = nvidia_smi.run("--query-compute-apps=pid", "--format=csv,noheader")
    yield "other_processes", len(apps.output.splitlines())
    yield "mps", mps_runs()
    yield "planned_as", asdict(described.model())


def measure_context(bench: Bench) -> Measurements:
    """Measure the GPU memory that a process uses besides its tensors, after a training step of
    each network.

    Plans and runs use the largest value if it is above :data:`CONTEXT_BYTES`.
    """
    # held_bytes is the memory of other processes, if this process does not use the GPU yet.
    (described,) = visible_gpu_list()

    def context_bytes() -> int:
        free, total = torch.cuda.mem_get_info(bench.device)
        return total - free - described.held_bytes - bench.reserved_bytes()

    torch.zeros(1, device=bench.device)
    largest = context_bytes()
    yield "start", largest
    for model in bench.models:
        with bench.trial_settings():
            images, labels = bench.images(4)
            bench.train_network(model, images, labels, 1)
            network = bench.build(model)
            evaluate(network, images, labels)
            run_clean_pass(network, images, labels, batch_size=4)
            num_bytes = context_bytes()
        largest = max(largest, num_bytes)
        yield model, num_bytes
    if largest > CONTEXT_BYTES:
        yield (
            "note",
            f"a process uses {largest / 2**30:.2f} GiB besides its tensors. Plans and runs "
            f"assume {largest / 2**30:.2f} GiB instead of {CONTEXT_BYTES / 2**30:.2f} GiB",
        )


def check_correctness(bench: Bench) -> Measurements:
    """Compare results of the GPU and the CPU: gradients, float32 operations, FGSM, features
    and byte products.

    The self-test also compares captured graphs with plain steps. As in a run, each network is
    tested in a separate process with a separate time limit.
    """
    fails = []
    tests: dict[str, dict[str, Any]] = {}
    for case in bench.self_test_cases():
        if bench.on_gpu:
            test = stored_verdicts.run_in_separate_process(case)
        else:
            test = program.run_self_test(case, bench.device).as_fields()
        tests[case.model.name] = test
        yield "self_test", dict(tests)
        problem = _self_test_problem(test)
        if problem:
            fails.append(problem)
    yield "graphs", [name for name, test in tests.items() if not test["plain_because"]]
    with bench.trial_settings():
        errors = float32_errors(bench)
        yield "float32_errors", errors
        for name, error in errors.items():
            if not error < FLOAT32_ERROR:  # NaN fails too
                fails.append(
                    f"a {name} in float32 has a relative error of {error:.0e}, but the largest "
                    f"allowed error is {FLOAT32_ERROR:.0e}. In TensorFloat-32, the error is 3e-04"
                )
        equal_signs, features_error = _attack_and_features(bench)
        yield "fgsm_signs_equal", equal_signs
        yield "features_error", features_error
    if equal_signs < 0.99:
        fails.append("the signs of FGSM's gradients differ between GPU and CPU")
    if not features_error < 1e-3:
        fails.append("the features of images differ between GPU and CPU")
    products = list(wrong_products(bench))  # raises an error if the GPU has no byte products
    yield "products_that_differ", products
    if products:
        fails.append("products of bytes differ between GPU and CPU")
    yield "fails", fails


def _self_test_problem(test: Mapping[str, Any]) -> str:
    """Return the problem that a self-test detected, or an empty text if there is none.

    If graphs are only slow, this is not a problem, because trials then train with plain steps.
    """
    wrong = test["wrong"]
    if test["doubt"]:
        return f"the GPU computed wrongly once: {wrong}. However, {test['doubt']}"
    if wrong:
        return f"the GPU computes wrongly: {wrong}"
    if test["unchecked"]:
        return f"it is unknown whether the GPU computes correctly: {test['unchecked']}"
    if test["plain_because"] and not test.get("is_only_slow"):
        return f"trials cannot use captured graphs: {test['plain_because']}"
    return ""


def float32_errors(bench: Bench) -> dict[str, float]:
    """Return the relative error of a matrix product and of a convolution in float32.

    Both are tested, because torch by default allows TensorFloat-32 in convolutions but not in
    matrix products.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    images = torch.randn(8, 64, 56, 56, generator=generator)
    filters = torch.randn(64, 64, 3, 3, generator=generator)
    convolve = partial(torch.nn.functional.conv2d, padding=1)
    operations: dict[str, tuple[Callable[..., Tensor], Tensor, Tensor]] = {
        "product": (torch.matmul, left, right),
        "convolution": (convolve, images, filters),
    }
    errors = {}
    for name, (operation, first, second) in operations.items():
        exact = operation(first.double(), second.double())
        result = operation(first.to(bench.device), second.to(bench.device)).cpu().double()
        errors[name] = float((result - exact).abs().max() / exact.abs().max())
    return errors


def _attack_and_features(bench: Bench) -> tuple[float, float]:
    """Return the share of FGSM signs that are equal on device and CPU, and the relative error
    of features.
    """
    small = replace(bench, image_size=32)
    model = small.build(bench.models[0])
    images, labels = small.images(16)
    results = []
    for device in (bench.device, torch.device("cpu")):
        network = model.to(device)
        clean = run_clean_pass(network, images.to(device), labels.to(device), batch_size=8)
        features = extract_features(network, images.to(device))
        results.append((clean.gradient_sign.cpu(), features))
    (signs, features), (cpu_signs, cpu_features) = results
    scale = max(float(np.abs(cpu_features).max()), 1e-30)
    equal_signs = float((signs == cpu_signs).double().mean())
    return equal_signs, float(np.abs(features - cpu_features).max()) / scale


def wrong_products(bench: Bench) -> Iterator[tuple[int, ...]]:
    """Yield the sizes of the byte products that differ from the exact product, which BLAS
    computes in float32.
    """
    generator = np.random.default_rng(0)
    product = choose_product(1e15)
    if bench.on_gpu:
        product = partial(torch_product, device=str(bench.device))
    for sizes in RAGGED_SIZES:
        num_left, num_right, num_features = sizes
        left = generator.integers(-128, 128, (num_left, num_features), np.int8)
        right = generator.integers(-128, 128, (num_right, num_features), np.int8)
        left[0] = -128
        right[0] = -128
        # If rows are multiplied with themselves, only the diagonal and the upper triangle are
        # used.
        with_itself = np.triu(product(left, left))
        is_exact = np.array_equal(with_itself, np.triu(blas_product(left, left)))
        if not (is_exact and np.array_equal(product(left, right), blas_product(left, right))):
            yield sizes


def measure_step_times(bench: Bench) -> Measurements:
    """Measure the time of a training step in ms: a plain step, a step with graphs, and a
    non-deterministic step.
    """
    duration = STEP_SECONDS if bench.on_gpu else CPU_STEP_SECONDS
    uuid = visible_gpu_list()[0].uuid if bench.on_gpu else ""
    fails = []
    for model in bench.models:
        row: dict[str, Any] = {"batch_size": bench.batch_size(model)}
        try:
            for name, value in _time_steps(bench, model, duration, uuid):
                row[name] = value
                # A later row of this network replaces this one.
                yield model, dict(row)
        except Exception as error:
            # Continue with the next network. The values of this network so far are stored.
            row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            fails.append(f"{model}: {row['error']}")
        yield model, row
    yield "fails", fails


def _time_steps(bench: Bench, model: str, duration: float, uuid: str) -> Measurements:
    """Yield the step times of a network, and the load of the GPU. ``uuid`` is empty on a CPU."""
    uses_graphs = {"eager_ms": False}
    if bench.on_gpu:
        uses_graphs["graph_ms"] = True
    seconds: dict[str, list[float]] = {name: [] for name in uses_graphs}
    for _ in range(2):
        for name, graphs in uses_graphs.items():
            load: dict[str, str] = {}
            sample_load = partial(_add_load, load, uuid)
            with bench.trial_settings():
                seconds[name] += bench.step_seconds(
                    model, duration, graphs=graphs, sample_load=sample_load
                )
            if load:
                # The load of the second round counts, because the GPU is hotter then.
                yield f"{name}_load", load
            yield name, 1000 * statistics.median(seconds[name])
    if bench.on_gpu:
        with bench.trial_settings():
            torch.backends.cudnn.deterministic = False  # the end of the block restores it
            not_deterministic = bench.step_seconds(model, duration, graphs=False)
        yield "not_deterministic_ms", 1000 * statistics.median(not_deterministic)


def _add_load(load: dict[str, str], uuid: str) -> None:
    """Add the load that ``nvidia-smi`` reports for a GPU to ``load``. For a CPU, add nothing."""
    if uuid:
        load.update(smi_values(LOAD_FIELDS, uuid))


def measure_passes(bench: Bench) -> Measurements:
    """Measure images per second in float32, for FGSM and for evaluation with 64 or 16 images
    at once.

    ``nchw_16`` is measured in PyTorch's default memory layout, the others in the layout of
    trials.
    """
    for model in bench.models:
        with bench.trial_settings():
            network = bench.build(model)
            images, labels = bench.images(64)
            nchw_network = bench.build(model).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
            attack_size = attack_batch_size(bench.network(model).recipe)
            passes_over_images: dict[str, tuple[int, Callable[[], object]]] = {
                "evaluate_64": (64, partial(evaluate, network, images, labels, batch_size=64)),
                "evaluate_16": (64, partial(evaluate, network, images, labels, batch_size=16)),
                "nchw_16": (16, torch.no_grad()(partial(nchw_network, images[:16].float()))),
                "fgsm": (
                    64,
                    partial(run_clean_pass, network, images, labels, batch_size=attack_size),
                ),
            }
            row = {}
            for name, (num_images, work) in passes_over_images.items():
                row[name] = num_images / Timer("work()", globals={"work": work}).timeit(3).mean
        yield model, row


def measure_memory(bench: Bench) -> Measurements:
    """Measure each network's peak memory and the smallest share of the GPU that it needs.
    Yield them with the predicted peak memory.
    """
    for model in bench.models:
        network = bench.network(model)
        predicted = peak_bytes(network) - array_bytes(network) - CONTEXT_BYTES
        with bench.trial_settings():
            _small_trial(bench, model, graphs=model in bench.graphs)
            peak = isolation.peak_bytes(bench.device)
        row: dict[str, Any] = {
            "peak_bytes": peak,
            "predicted_bytes": predicted,
            "ratio": predicted / peak,
        }
        yield model, dict(row)
        if not bench.on_gpu:
            continue
        with bench.trial_settings():
            _small_trial(bench, model, graphs=False)
            row["plain_peak_bytes"] = isolation.peak_bytes(bench.device)
        # The trial uses plain steps: a capture that runs out of memory would end the process.
        plain_trial = partial(_small_trial, bench, model, graphs=False)
        row |= smallest_share(partial(bench.run_in_share, plain_trial), bench.share_of(1.25 * peak))
        yield model, row


def _small_trial(bench: Bench, model: str, *, graphs: bool) -> None:
    """Train, evaluate and attack a network as a trial does, but with fewer images and epochs.

    The last batch has the same size as in the trial, because the peak memory may depend on
    this size.
    """
    network = bench.network(model)
    recipe = network.recipe.model_copy(update={"epochs": 5})
    num_images = 3 * recipe.batch_size + network.train_size % recipe.batch_size
    trained = bench.build(model)
    images, labels = bench.images(num_images)

    def evaluate_epoch(record: object) -> None:
        evaluate(trained, images, labels)

    train(
        trained,
        images,
        labels,
        recipe,
        seed=0,
        device=bench.device,
        on_epoch=evaluate_epoch,
        graphs=graphs,
    )
    run_clean_pass(trained, images, labels, batch_size=attack_batch_size(recipe))


def smallest_share(run_in_share: Callable[..., str], largest: float) -> dict[str, Any]:
    """Search by bisection for the smallest share, at most ``largest``, in which some work
    succeeds.

    Args:
        run_in_share: function that runs the work within a share. It returns the failure kind,
            or an empty text if the work succeeds.
        largest: largest share of the search.

    Returns:
        The smallest share in which the work succeeded (None if it never succeeded), the
        largest share in which it failed, and the kind of this failure.
    """
    smallest: float | None = None
    upper = largest
    failed_share = 0.0
    kind = ""
    for _ in range(5):
        share = (upper + failed_share) / 2
        failure = run_in_share(share=share)
        if failure:
            failed_share = share
            kind = failure
        else:
            smallest = share
            upper = share
    return {"smallest_share": smallest, "dies_with": failed_share, "kind": kind}


def run_trials(bench: Bench) -> Measurements:
    """Run real trials with Ray on a private cluster. All trials of a network run in one process."""
    with connect(None, num_cpus=1, dashboard=False):
        work = ray.remote(num_cpus=1, num_gpus=int(bench.on_gpu), max_retries=0)(real_trials)
        for model in bench.slow_part_models:
            yield model, ray.get(work.remote(bench, model), timeout=TRIAL_TIMEOUT_S)


def real_trials(bench: Bench, model: str) -> list[dict[str, Any]]:
    """Run trials of a network, two of which are equal. Return their times, memory and scores."""
    sizes = TRIAL_SIZES if bench.on_gpu else (40, 40, 60)
    spec = bench.trial(model)
    rows = []
    for size in sizes:
        images, labels = (tensor.cpu().numpy() for tensor in bench.images(size + 20))  # 20 to test
        recipe = spec.network.recipe.model_copy(update={"epochs": 5})
        network = spec.network.model_copy(update={"train_size": size, "recipe": recipe})
        data = TrialData(images[:size], labels[:size], images[size:], labels[size:], 2, "gpu-check")
        result = run_trial(
            spec.model_copy(update={"network": network}),
            data,
            ComputeOptions(str(bench.device), graphs=model in bench.graphs),
        )
        fields = {"timings", "peak_memory_bytes", "energy_j", "energy_note", "scores"}
        row = result.model_dump(mode="json", include=fields)
        rows.append(row | {"train_size": size, "left_bytes": bench.reserved_bytes()})
    return rows


def exhaust_memory(bench: Bench) -> Measurements:
    """Let memory run out in several ways. Check the failure kinds, and that a training still
    works afterwards.
    """
    model = bench.models[0]
    images, labels = bench.images(bench.batch_size(model))
    too_many_bytes = 2**44 if bench.on_gpu else 2**60

    def allocate() -> None:
        torch.empty(too_many_bytes, dtype=torch.uint8, device=bench.device)

    kinds = {"allocation": bench.run_in_share(allocate)}
    yield "kinds", kinds
    work_by_name: dict[str, Callable[[], object]] = {
        "step": partial(bench.train_network, model, images, labels, 1),
        "evaluation": lambda: evaluate(bench.build(model), images, labels),
    }
    if bench.on_gpu:  # a CPU limits no share
        for name, work in work_by_name.items():
            with bench.trial_settings():
                work()
                half_of_peak = isolation.peak_bytes(bench.device) / 2
            kinds[name] = bench.run_in_share(work, bench.share_of(half_of_peak))
    with bench.trial_settings():
        yield "next_training_s", bench.train_network(model, images, labels, 1)[0]
    yield "left_bytes", bench.reserved_bytes()
    if bench.on_gpu:  # last, because this process cannot use the GPU afterwards
        kinds["capture"] = bench.run_in_share(lambda: capture_graph(allocate))
    fails = []
    for name, kind in kinds.items():
        if name in work_by_name and not kind:
            # cuDNN uses a smaller workspace if there is less memory.
            yield f"{name}_note", "half of the peak memory was enough, so no error occurred"
        elif kind != "out_of_memory":
            recorded_as = kind or "no failure"
            fails.append(f"isweep records an out-of-memory error in {name} as {recorded_as}")
    yield "fails", fails


def print_measurements(measurements: Measurements) -> None:
    """After each new value, print all values so far as one line of JSON."""
    values: dict[str, Any] = {}
    for name, value in measurements:
        values[name] = value
        print(json.dumps(values, default=str), flush=True)  # noqa: T201


def wait_for_file(path: Path, timeout_s: float) -> None:
    """Wait until a file exists.

    Raises:
        TimeoutError: the file does not exist after ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the file {path.name} did not exist after {timeout_s:g} s")
        time.sleep(0.01)
