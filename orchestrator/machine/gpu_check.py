"""``isweep gpu-check``: measure a GPU in several parts, and write the results to one file.

Each part runs in a separate process with one GPU or one MIG slice. If a part fails, the next
part still runs. Most parts are in :mod:`orchestrator.machine.gpu_check_parts`. With ``--device
cpu``, only the parts that need no GPU run. They use small networks and run in this process.
The file does not contain the name of the machine or of its user, so users can send it to the
developers.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.machine import gpu_check_parts, gpu_check_summary
from orchestrator.machine.gpu_bench import SLOW_PART_MODELS, Bench, make_bench
from orchestrator.machine.gpu_check_parts import (
    Measurements,
    print_measurements,
    visible_gpu_list,
    wait_for_file,
)
from orchestrator.machine.gpus import torch_gpus
from orchestrator.machine.gpus.records import Gpu
from orchestrator.machine.gpus.visible import gpus_are_simulated
from orchestrator.machine.mps import PrivateMps
from orchestrator.machine.mps_choice import why_no_mps
from orchestrator.machine.mps_daemon import end_gpu_work, mps_runs
from orchestrator.machine.processes import environment, kill_process
from orchestrator.machine.self_test import stored_verdicts
from orchestrator.planning.costs.gpu_models import BFLOAT16_FROM
from search_spaces.errors import ConfigError, SetupError
from search_spaces.models import PAPER_MODELS
from search_spaces.sweeps import ResourceSpec
from tasks.atomic import write_atomic

PART_TIMEOUT_S = 600.0
"""Seconds that a part may take, without the time for its networks or trials."""
NETWORK_TIMEOUT_S = 120.0
"""Additional seconds that a part may take for each network. For a slow GPU (T4), which
computes in float32, we predict about 600 s for the step times of all networks. Each time that
a VGG is built takes 4 to 5 s of this time."""
PAIR_TIMEOUT_S = 300.0
"""Seconds from start to end that a group of processes may take if they are measured together.
For a slow GPU (T4), which computes in float32, we predict about 150 s for four VGGs."""
PART_END_TIMEOUT_S = 60.0
"""Seconds that a part may take to end after SIGINT. NVIDIA's MPS may need 30 s to end the GPU
work of its clients, and 20 more seconds to end itself."""
NUMBERS_OF_PROCESSES = (1, 2, 4)
"""Numbers of processes that are measured together on a GPU."""
PAIR_WINDOW_S = 8.0
"""Length in seconds of the period in which all processes on a GPU count their images."""
CPU_WINDOW_S = 0.5
"""Length in seconds of the period in which all processes on a CPU count their images."""
NO_MPS = {"CUDA_MPS_PIPE_DIRECTORY": "/nowhere"}
"""Environment variables of a process that must not use MPS. CUDA uses MPS only if this folder
contains the socket of MPS."""

Outcome = tuple[dict[str, Any], str]
"""Values that a process or a part measured, and the reason why it failed. If it succeeded, the
reason is an empty text."""


def measure_pairs(bench: Bench) -> Measurements:
    """Measure the images per second of 1, 2 and 4 trainings on one GPU, with and without MPS.

    The numbers show whether trials should share this GPU.

    If MPS does not run, it is started for this measurement. The measurement with MPS comes
    first, because processes without MPS fail on a GPU in exclusive mode.
    """
    already_runs = mps_runs()
    yield "mps", already_runs
    with contextlib.ExitStack() as stack:
        problem = ""
        if not already_runs:
            problem = _start_mps(bench, stack)
            yield "mps_note", problem or "MPS was started for this measurement"
        modes = {"with_mps": {}, "without_mps": NO_MPS}
        if problem:
            del modes["with_mps"]
        yield from _measure_modes(bench, modes)


def _start_mps(bench: Bench, stack: contextlib.ExitStack) -> str:
    """Start MPS for this process's GPU. When the stack is closed, MPS ends.

    Returns:
        The reason why MPS cannot be used, or an empty text if it runs.
    """
    if not bench.on_gpu:
        return "MPS needs a GPU, but this check runs on a CPU"
    node = torch_gpus.describe(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    # With a share below 1, MPS is allowed without a measured gain. The gain is measured here.
    reason = why_no_mps([node], ResourceSpec(num_gpus=0.5), bench.trials, {})
    if reason:
        return reason
    notes: list[str] = []
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="isweep-"))
    mps = PrivateMps(tuple(gpu.uuid for gpu in node.gpus), notes.append)
    stack.enter_context(mps.running(Path(folder, "mps")))
    return "" if mps.folder else notes[-1]


def _measure_modes(bench: Bench, modes: Mapping[str, dict[str, str]]) -> Measurements:
    """Measure several processes together, for each mode and network. Yield each mode with its
    results by network.

    The part fails only if no network could be measured in any mode.

    Args:
        bench: the device and its networks.
        modes: environment variables of the processes, by name of the mode.
    """
    errors = []
    for mode, variables in modes.items():
        rows: dict[str, Any] = {}
        for model in bench.slow_part_models:
            with environment(**variables):
                rows[model] = measure_gain(bench, model)
            yield mode, rows
            if "1" not in rows[model]:  # not even a single process
                errors.append(f"{mode}, {model}: {rows[model]['error']}")
    if len(errors) == len(modes) * len(bench.slow_part_models):
        yield "fails", errors


def measure_gain(bench: Bench, model: str) -> dict[str, Any]:
    """Return the images per second, by number of processes. ``gain`` is the rate of two
    processes divided by the rate of one.

    If a number of processes fails, larger numbers are not measured, and the result contains
    the ``error``.
    """
    row: dict[str, Any] = {}
    numbers = NUMBERS_OF_PROCESSES if bench.on_gpu else (1, 2)
    for num_processes in numbers:
        rates, error = _measure_together(bench, model, num_processes)
        if error:
            row["error"] = f"{num_processes} processes: {error}"
            return row
        row[str(num_processes)] = sum(rates)
        if num_processes == 2:
            row["gain"] = row["2"] / row["1"]
    return row


def _measure_together(bench: Bench, model: str, num_processes: int) -> tuple[list[float], str]:
    """Measure several processes in the same period. Return the images per second of each
    process, and an error text if a process failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [
            _start_part("rate", bench.device.type, bench.graphs, model, str(folder / str(index)))
            for index in range(num_processes)
        ]
        start_s = time.monotonic()
        try:
            _start_counting(processes, folder, start_s + PAIR_TIMEOUT_S)
            results = [_wait_for_values(process, start_s, PAIR_TIMEOUT_S) for process in processes]
        finally:
            _end_processes(processes)
    rates = []
    for values, error in results:
        if error:
            return [], error
        rates.append(values["images_per_second"])
    return rates, ""


def _end_processes(processes: Iterable[subprocess.Popen[str]]) -> None:
    """End the processes that still run. If they use NVIDIA's MPS, first end their work on the
    GPU.

    If a process is killed while MPS computes for it, MPS may hang. The next measurement would
    then hang too.
    """
    running = [process for process in processes if process.poll() is None]
    if running and mps_runs():
        end_gpu_work({process.pid for process in running})
    for process in running:
        kill_process(process)


def _start_counting(
    processes: Collection[subprocess.Popen[str]], folder: Path, deadline: float
) -> None:
    """Wait until all processes are ready. Then create the file that makes them start to count
    their images.

    The wait also ends at the deadline, or when a process has ended.
    """
    while time.monotonic() < deadline:
        all_ready = len(list(folder.glob("*.ready"))) == len(processes)
        if all_ready or any(process.poll() is not None for process in processes):
            break
        time.sleep(0.01)
    (folder / "go").touch()


def measure_rate(bench: Bench, model: str, ready_path: str) -> Measurements:
    """Measure the images per second of a training, from the time at which all processes are
    ready.

    Args:
        bench: the device.
        model: name of the network.
        ready_path: path of the file that this process creates when it is ready, without the
            suffix ``.ready``.
    """
    ready_file = Path(ready_path).with_suffix(".ready")

    def wait_for_others() -> None:
        ready_file.touch()
        wait_for_file(ready_file.with_name("go"), PAIR_TIMEOUT_S)

    window_s = PAIR_WINDOW_S if bench.on_gpu else CPU_WINDOW_S
    with bench.trial_settings():
        images_per_second = bench.images_per_second(
            model, window_s, wait_for_others, graphs=model in bench.graphs
        )
    yield "images_per_second", images_per_second


PARTS: dict[str, Callable[..., Measurements]] = {
    "host": gpu_check_parts.describe_host,
    "gpu": gpu_check_parts.describe_gpu,
    "context": gpu_check_parts.measure_context,
    "correctness": gpu_check_parts.check_correctness,
    "step_times": gpu_check_parts.measure_step_times,
    "passes": gpu_check_parts.measure_passes,
    "memory": gpu_check_parts.measure_memory,
    "pairs": measure_pairs,
    "trial": gpu_check_parts.run_trials,
    "faults": gpu_check_parts.exhaust_memory,
    "summary": gpu_check_summary.summarize,
}
"""The parts by their names in the file, in the order in which they run."""
GPU_ONLY = ("gpu", "context")
"""Parts that do not run on a CPU."""


def check(gpu: Gpu | None, folder: Path, print_line: Callable[[str], None]) -> tuple[Path, bool]:
    """Check a GPU or the CPU, and write the result of each part to a JSON file.

    Until the check is complete, the name of the file ends with ``.unfinished``. An interrupted
    check therefore does not replace an earlier file.

    Args:
        gpu: the GPU to check. None means that the CPU is checked.
        folder: folder of the file.
        print_line: function that prints a line for the user.

    Returns:
        The path of the file, and True if all parts succeeded.
    """
    name = "CPU"
    device = "cpu"
    file_name = "gpu-check-cpu-cpu"
    variables = {}
    if gpu is not None:
        name = gpu.name
        device = "cuda"
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        file_name = f"gpu-check-{slug}-{gpu.uuid.partition('-')[2][:8]}"
        variables["CUDA_VISIBLE_DEVICES"] = gpu.uuid
    path = folder / f"{file_name}.json"
    unfinished = path.with_suffix(".unfinished")
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"gpu": name, "device": device, "parts": {}}
    for part in PARTS:
        if gpu is None and part in GPU_ONLY:
            continue
        try:
            with environment(**variables):
                result = run_part(part, device, record["parts"])
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"The check was stopped. Its results so far are in {unfinished}. If you run the "
                "same command again, the check starts from the first part."
            ) from None
        record["parts"][part] = result
        write_atomic(unfinished, json.dumps(record, indent=1).encode())
        print_line(_result_line(part, result))
    write_atomic(path, unfinished.read_bytes())
    unfinished.unlink()
    return path, all(result["ok"] for result in record["parts"].values())


def _result_line(part: str, result: Mapping[str, Any]) -> str:
    """Return the line that is printed about a part. It contains PASS or FAIL, the duration,
    and the error or a note.
    """
    verdict = "PASS" if result["ok"] else "FAIL"
    line = f"{verdict} {part} in {result['seconds']:.1f} s"
    text = result["error"] or result["values"].get("note")
    return f"{line}: {text}" if text else line


def run_part(part: str, device: str, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Run a part and return its result. If the part raises an exception, the exception's text
    is the ``error`` of the result.

    On a GPU, all parts except ``summary`` run in a separate process.

    Args:
        part: name of the part.
        device: ``cuda`` or ``cpu``.
        earlier: results of the earlier parts, by name of the part.
    """
    start = time.perf_counter()
    if part == "summary":
        values, error = _run_here(partial(PARTS[part], parts=earlier), device)
    elif device == "cpu":
        values, error = _run_here(PARTS[part], device)
    else:
        graphs = earlier.get("correctness", {}).get("values", {}).get("graphs", [])
        values, error = _run_in_process(part, device, graphs)
    error = error or "; ".join(values.get("fails", ()))
    seconds = time.perf_counter() - start
    result = without_names({"values": values, "error": error})
    return {"ok": not error, "seconds": seconds, **result}


def _run_in_process(part: str, device: str, graphs: Iterable[str]) -> Outcome:
    """Run a part in a separate process. Return its values, and the reason why it failed, which
    may be empty.
    """
    process = _start_part(part, device, graphs)
    try:
        return _wait_for_values(process, time.monotonic(), _timeout_s(part))
    finally:
        end_part(process)


def _run_here(measure: Callable[[Bench], Measurements], device: str) -> Outcome:
    """Run a part in this process. Return its values, and the text of the exception that ended
    it, which may be empty.
    """
    values: dict[str, Any] = {}
    try:
        for name, value in measure(make_bench(device)):
            values[name] = value
    except Exception as error:
        return values, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return values, ""


def _start_part(
    part: str, device: str, graphs: Iterable[str], *arguments: str
) -> subprocess.Popen[str]:
    """Start a process that runs a part. With ``rate``, the process runs :func:`measure_rate`
    for the part ``pairs``.

    Args:
        part: name of the part, or ``rate``.
        device: ``cuda`` or ``cpu``.
        graphs: names of the networks whose trials use CUDA graphs.
        arguments: arguments of :func:`measure_rate` after the first.
    """
    # Without -m, because Ray's workers must be able to import this module by its name. With
    # -P, because the user's working folder may contain a file tasks.py.
    code = f"from {__name__} import main; main()"
    group = None if part == "rate" else 0  # 0 makes a new group, with all processes of a part
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, part, device, ",".join(sorted(graphs)), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=group,
    )


def _timeout_s(part: str) -> float:
    """Return the seconds that a part may take. Some parts get additional seconds for each
    network.
    """
    extra_s_by_part = {
        "correctness": len(PAPER_MODELS) * stored_verdicts.TIMEOUT_S,
        "trial": len(SLOW_PART_MODELS) * gpu_check_parts.TRIAL_TIMEOUT_S,
        # The processes are measured twice: with MPS, and without MPS.
        "pairs": 2 * len(SLOW_PART_MODELS) * len(NUMBERS_OF_PROCESSES) * PAIR_TIMEOUT_S,
    }
    for name in ("step_times", "passes", "memory"):
        extra_s_by_part[name] = len(PAPER_MODELS) * NETWORK_TIMEOUT_S
    return PART_TIMEOUT_S + extra_s_by_part.get(part, 0.0)


def _wait_for_values(process: subprocess.Popen[str], start_s: float, timeout_s: float) -> Outcome:
    """Wait for a process. Return its values, and the reason why it failed, which is empty if
    it succeeded.

    If the process takes too long, it counts as failed, but this function does not end it.

    Args:
        process: the process.
        start_s: monotonic time in seconds at which the time limit begins.
        timeout_s: seconds after ``start_s`` within which the process must end.
    """
    error = ""
    try:
        left_s = start_s + timeout_s - time.monotonic()
        output, error_output = process.communicate(timeout=max(0.0, left_s))
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode(errors="replace")
        error_output = ""
        error = f"the process did not end within {timeout_s:g} s"
    if process.returncode and not error:
        lines = error_output.strip().splitlines()
        error = lines[-1] if lines else f"exit code {process.returncode}"
    return _last_values(output), error


def _last_values(output: str) -> dict[str, Any]:
    """Return the values that the last complete JSON line in a part's output contains."""
    for line in reversed(output.splitlines(keepends=True)):
        if line.startswith("{") and line.endswith("}\n"):
            return dict(json.loads(line))
    return {}


def end_part(process: subprocess.Popen[str]) -> None:
    """End a part's process and its child processes, because they would disturb the next part.

    If the process still runs, it first gets SIGINT. The part can then end its MPS and the GPU
    work of its child processes. After :data:`PART_END_TIMEOUT_S` seconds, all these processes
    are killed.
    """
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PART_END_TIMEOUT_S)
    finally:  # also after a second Ctrl-C
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        kill_process(process)


def without_names(values: Any) -> Any:
    """Return values as JSON types. Paths and the names of the machine and its user are
    replaced by ``...``.
    """
    text = json.dumps(values, default=str).replace("\\n", " ")
    host = socket.gethostname()
    names = {host, host.partition(".")[0]}
    with contextlib.suppress(OSError, KeyError):  # in containers the user may have no name
        names.add(getpass.getuser())
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "...", text)
    return json.loads(re.sub(r"(/[\w.-]+){2,}", "...", text))


def devices(number: str | None) -> list[Gpu | None]:
    """Return the devices to check.

    Args:
        number: number of a GPU that torch can use, or ``cpu``. None means all GPUs.

    Returns:
        The GPUs to check, or a list with None for the CPU.

    Raises:
        ConfigError: no GPU has this number.
        SetupError: there is no GPU to check.
    """
    if number == "cpu":
        return [None]
    gpus = () if gpus_are_simulated() else visible_gpu_list()
    if not gpus:
        raise SetupError(
            "torch cannot use a GPU on this machine",
            hint="Run `isweep doctor` to see the cause. To try the check without a GPU, use "
            "`--device cpu`",
        )
    if number is None:
        return list(gpus)
    numbers = [str(index) for index in range(len(gpus))]
    if number not in numbers:
        raise ConfigError(
            f"`--device {number}` is not the number of a GPU that torch can use",
            hint=f"Use one of these numbers: {', '.join(numbers)}. Or use `--device cpu`",
        )
    return [gpus[int(number)]]


def main() -> None:
    """Run one part of the GPU check in this process, and print its result as JSON.

    The command line has three arguments: the name of the part, the device, and the names of
    the networks with CUDA graphs, separated by commas. If the part is ``rate``, the arguments
    of :func:`measure_rate` follow.
    """
    # A program that was started in the background may ignore SIGINT, and its children too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    part, device, graphs, *arguments = sys.argv[1:]
    bfloat16 = device == "cpu" or torch_gpus.compute_capability() >= BFLOAT16_FROM
    bench = make_bench(device, bfloat16=bfloat16, graphs=frozenset(filter(None, graphs.split(","))))
    measure = measure_rate if part == "rate" else PARTS[part]
    print_measurements(measure(bench, *arguments))
