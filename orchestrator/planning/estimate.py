"""What the trials that are left will cost, by prediction and measurement, and in which order they
go.
"""

from __future__ import annotations

import logging
import math
import statistics
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from heapq import heappop, heappush
from typing import Any

from orchestrator.planning import predict
from orchestrator.planning.plan import SweepPlan
from search_spaces.errors import ConfigError, SweepError, plural
from search_spaces.specs import TrialSpec
from search_spaces.tuning import SearchTrialSpec
from tasks.trials.records import CONTEXT_BYTES

log = logging.getLogger(__name__)

# What done trials say of those to come: rates, and how far predictions of memory and time were off.


@dataclass(frozen=True)
class MeasuredTrial:
    """What a finished trial cost in wall time: its ``share`` is of GPUs, or CPU threads.

    ``gpu`` is as its driver says; ``peak_bytes`` are beside the context, 0 where that is not known.
    """

    spec: TrialSpec
    on_gpu: bool
    share: float
    seconds: float
    gpu: str = ""
    peak_bytes: int = 0


def corrections_for(
    gpu: predict.GpuModel | None, trials: Iterable[MeasuredTrial]
) -> predict.Corrections:
    """Return how far predictions of memory, of time on this kind of GPU and of time on cores were
    off.
    """
    memory: dict[str, float] = {}
    seconds: dict[str, list[float]] = {}
    core: dict[str, list[float]] = {}
    for trial in trials:
        network, ran_on = trial.spec.network, predict.gpu_model_like(trial.gpu)
        name = network.model.name
        if not predict.has_cost(network):
            continue
        if trial.peak_bytes and trial.on_gpu:
            ratio = (CONTEXT_BYTES + trial.peak_bytes) / predict.peak_bytes(network)
            memory[name] = max(ratio, memory.get(name, 0.0))
        if not network.recipe.epochs or trial.seconds <= 0:
            continue
        if not trial.on_gpu:
            core.setdefault(name, []).append(
                trial.seconds * trial.share / predict.core_seconds(trial.spec)
            )
        elif (
            gpu is not None and ran_on is not None and ran_on.name == gpu.name
        ):  # whatever an hour costs
            predicted = predict.need_of(trial.spec, gpu, given=trial.share).seconds
            seconds.setdefault(name, []).append(trial.seconds / predicted)
    medians = [
        {name: statistics.median(found) for name, found in part.items()} for part in (seconds, core)
    ]
    return predict.Corrections(memory, *medians)


@dataclass(frozen=True)
class Expectation:
    """How long trials are expected to take on a GPU, or on CPUs without one, by what was measured
    there.

    ``share`` of a GPU is what every trial gets; None is what each is predicted to need.
    """

    gpu: predict.GpuModel | None = None
    corrections: predict.Corrections = field(default_factory=predict.Corrections)
    share: float | None = None

    def seconds(self, trial: TrialSpec) -> float:
        """Return the seconds of one trial, on its share of the GPU or on one core."""
        if self.gpu is None:
            return predict.core_seconds(trial, self.corrections)
        return predict.need_of(trial, self.gpu, self.corrections, self.share).seconds


def expected_seconds(trials: Iterable[TrialSpec], expectation: Expectation) -> dict[str, float]:
    """Return how long each trial is expected to take, by its id; infinite where nothing is known of
    it.
    """
    seconds: dict[str, float] = {}
    for trial in trials:
        try:
            seconds[trial.trial_id] = expectation.seconds(trial)
        except SweepError as error:  # it will say so itself, and soonest when it goes first
            log.warning("%s: %s", trial.trial_id, error)
            seconds[trial.trial_id] = math.inf
    return seconds


HANG_FACTOR, UNTIMED_FACTOR, MIN_LIMIT_S = 20, 5, 600.0
"""Libraries, arrays and a GPU's start come before the first epoch, and machines are shared."""


def time_limit(
    trial: TrialSpec, measured: Collection[MeasuredTrial], expectation: Expectation
) -> float:
    """Return the seconds without an epoch or a result after which a trial counts as hung.

    Many times the whole trial by the slowest done one of its model, or else by what is expected of
    its GPU, more where that has no hours, or by one core; infinite where its network's operations
    cannot be counted.
    """
    if not predict.has_cost(trial.network):
        return math.inf
    ratios = [
        done.seconds / predict.core_seconds(done.spec)
        for done in measured
        if done.spec.network.model == trial.network.model and done.spec.network.recipe.epochs
    ]
    known, usual = expectation.gpu is not None, expectation.seconds(trial)
    usual *= 1 if expectation.gpu is None or expectation.gpu.timed else UNTIMED_FACTOR
    slowest = max(ratios, default=0.0) * predict.core_seconds(trial)
    return max(MIN_LIMIT_S, HANG_FACTOR * (max(slowest, usual) if known else slowest or usual))


# In which order trials are offered: the longest first, as far as the arrays they share fit into
# memory.


def array_key(plan: SweepPlan, trial: TrialSpec) -> str:
    """Name the arrays that a trial needs; all sizes share them unless a fault forbids it, splits do
    not.
    """
    subset = trial.network.subset
    key = f"{subset.subset_id}@{plan.load_size(subset, trial.network.train_size)}"
    return f"{key}/{trial.validation.split}" if isinstance(trial, SearchTrialSpec) else key


def order_trials(
    plan: SweepPlan, trials: Sequence[TrialSpec], budget: float, seconds: Mapping[str, float]
) -> list[TrialSpec]:
    """Return trials, the longest first; where their arrays do not fit together, one shelf after
    another.

    A shelf is as many arrays as fit into half the ``budget`` of bytes, so that the next one can be
    filled while the last trials of the one before still run: nothing waits for a shelf. Ties keep
    their order.
    """
    by_length = sorted(trials, key=lambda trial: -seconds[trial.trial_id])
    keys = {trial.trial_id: array_key(plan, trial) for trial in by_length}
    sizes = {
        keys[trial.trial_id]: predict.array_bytes(
            trial.network, plan.load_size(trial.network.subset, trial.network.train_size)
        )
        for trial in by_length
    }
    if sum(sizes.values()) <= budget:
        return by_length
    shelf_of, shelf, used = dict[str, int](), 0, 0
    for key, size in sizes.items():
        if used and used + size > budget / 2:
            shelf, used = shelf + 1, 0
        shelf_of[key], used = shelf, used + size
    return sorted(by_length, key=lambda trial: shelf_of[keys[trial.trial_id]])


# Replaying a plan on GPUs that need not be there: how long it takes, how far from the best.

LOOK_AHEAD = 16
"""Trials that wait for a place at the same time, at most; those behind them are not offered yet."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Job:
    """A trial's seconds on its share of a GPU, and that share: up to 1, or a whole number of
    GPUs.
    """

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Replay:
    """What a replay found: seconds until the last job has ended, and when each begins, by name.

    No order can be faster than ``lower_bound``: the longest job, or all work spread evenly.
    """

    makespan: float
    lower_bound: float
    utilisation: float
    starts: Mapping[str, float]


def replay(jobs: Sequence[Job], num_gpus: int) -> Replay:
    """Run ``jobs`` in their order on ``num_gpus`` GPUs, at least 1.

    A job starts on the fullest GPU with room for its share, as Ray places fractions: no share spans
    two GPUs. One that fits nowhere waits, and those of the next ``LOOK_AHEAD`` that fit go before
    it.
    """
    free = [1.0] * max(1, min(num_gpus, len(jobs)))
    fullest_first = [(1.0, gpu) for gpu in range(len(free))]

    def change(gpu: int, by: float) -> None:
        del fullest_first[bisect_left(fullest_first, (free[gpu], gpu))]
        free[gpu] += by
        insort(fullest_first, (free[gpu], gpu))

    queue, running = deque(jobs), list[tuple[float, int, float]]()
    starts: dict[str, float] = {}
    now = 0.0
    while queue or running:
        waiting: list[Job] = []
        while queue and len(waiting) < LOOK_AHEAD:
            job = queue.popleft()
            share = min(job.share, 1.0)
            if share > fullest_first[-1][0] + _ROUNDING:
                waiting.append(job)
                continue
            _, gpu = fullest_first[bisect_left(fullest_first, (share - _ROUNDING, 0))]
            change(gpu, -share)
            starts[job.name] = now
            heappush(running, (now + job.seconds, gpu, share))
        queue.extendleft(reversed(waiting))
        now = running[0][0]
        while running and running[0][0] <= now + _ROUNDING:
            _, gpu, share = heappop(running)
            change(gpu, share)
    work = sum(job.seconds * min(job.share, 1.0) for job in jobs)
    bound = max(work / num_gpus, max((job.seconds for job in jobs), default=0.0))
    return Replay(now, bound, work / (now * num_gpus) if now else 0.0, starts)


DEFAULT_GPU = "h100"


def amount(value: float) -> str:
    """Spell an amount to two figures, without exponents: ``17,000``, ``0.45``, ``under 0.001``."""
    rounded = float(f"{value:.2g}")
    small = "0" if value == 0 else "under 0.001"
    return (
        small if abs(value) < 1e-3 else f"{rounded:,.0f}" if abs(rounded) >= 10 else f"{rounded:g}"
    )


def roughly(value: float) -> str:
    """Spell an estimate in a sentence: ``about 17,000``, ``under 0.001``, ``0``."""
    found = amount(value)
    return found if found.startswith("under") or found == "0" else f"about {found}"


def estimate(
    left: Collection[TrialSpec],
    measured_trials: Collection[MeasuredTrial],
    *,
    gpu: predict.GpuModel | None = predict.GPU_MODELS[DEFAULT_GPU],
    num_gpus: int | None = None,
    share: float | None = None,
    num_cpus: int = 1,
) -> dict[str, Any]:
    """Estimate what is left of a sweep, by prediction and by what done trials cost.

    Of ``num_gpus`` GPUs, None for as many as one trial takes, each trial gets the ``share`` that
    the sweep asks for; None (or 0) for what it is predicted to need. Without a GPU trials share
    ``num_cpus`` cores.

    Returns:
        ``gpu_hours`` or ``cpu_core_hours``; ``cpu_hours`` until the last trial has ended on
        ``num_cpus``; ``memory_bytes`` of the largest trial; ``refused``, recipes that the GPU
        cannot compute; and more.
    """
    corrections = corrections_for(gpu, measured_trials)
    memory = (
        predict.peak_bytes(t.network) * corrections.memory.get(t.network.model.name, 1.0)
        for t in left
    )
    rate, interval = (
        f"{predict.CORE_FLOPS / 1e9:g} GFLOP/s",
        f"{predict.CORE_INTERVAL_S * 1e6:g} µs",
    )
    where = "where this sweep has no finished trial of the model yet"
    assumptions = f"{rate} per core and {interval} an operation, {where}"
    seconds = [predict.core_seconds(trial, corrections) for trial in left]
    result: dict[str, Any] = {
        "trials_left": len(left),
        "gpu_hours": None,
        "cpu_core_hours": sum(seconds) / 3600,
        "cpu_hours": max(sum(seconds) / num_cpus, max(seconds, default=0.0)) / 3600,
        "num_cpus": num_cpus,
        "memory_bytes": max(memory, default=0),
        "cluster": None,
        "hours_one_at_a_time": None,
        "refused": [],
        "corrections": asdict(corrections),
        "assumptions": assumptions,
    }
    if gpu is not None:
        there = num_gpus or max(1, int(share or 1))
        recipes = {t.network.recipe.name for t in left if t.network.recipe.precision == "bfloat16"}
        cluster = on_gpus(left, gpu, there, corrections, share)
        # A GPU for each trial, as where nothing shows that sharing one pays.
        alone = on_gpus(left, gpu, there, corrections, max(1.0, share or 1.0))
        result |= {
            "gpu_hours": cluster["gpu_hours"],
            "cluster": cluster,
            "hours_one_at_a_time": alone["hours"],
            "refused": [] if gpu.bfloat16 else sorted(recipes),
            "assumptions": f"predicted for {gpu.name} ({gpu.origin}), {assumptions}",
        }
    return result | {"text": _text(result)}


def on_gpus(
    trials: Collection[TrialSpec],
    gpu: predict.GpuModel,
    num_gpus: int,
    corrections: predict.Corrections | None = None,
    share: float | None = None,
) -> dict[str, Any]:
    """Replay trials on ``num_gpus`` GPUs, longest first, each on ``share`` or what it is predicted
    to need.

    ``hours``, ``dollars`` and ``kilowatt_hours`` are of all GPUs until the last trial ends. By
    model are the largest of ``shares``, and the bytes of trials that are ``too_large`` for the
    memory of their share.
    """
    whole = max(1, int(share or 1))  # GPUs that a trial lies on
    if whole > num_gpus:
        rule = "There must be as many GPUs as one trial asks for"
        found = f"resources.num_gpus {whole}, {num_gpus} in all"
        raise ConfigError(rule, found, f"plan with --gpus {whole}")
    jobs: list[Job] = []
    shares: dict[str, float] = {}
    too_large: dict[str, float] = {}
    for trial in trials:
        name, need = trial.network.model.name, predict.need_of(trial, gpu, corrections, share)
        jobs.append(Job(trial.trial_id, need.seconds, need.share))
        shares[name] = max(need.share, shares.get(name, 0.0))
        if need.memory_bytes > min(need.share, 1.0) * gpu.memory_gib * 2**30:
            too_large[name] = max(need.memory_bytes, too_large.get(name, 0.0))
    groups = num_gpus // whole
    # The longest first, so that none is begun when all others have ended.
    played = replay(sorted(jobs, key=lambda job: (-job.seconds, job.name)), groups)
    # GPUs that are too few for one more trial are paid for too.
    utilisation = played.utilisation * groups * whole / num_gpus
    paid_hours = num_gpus * played.makespan / 3600
    draw = utilisation + predict.IDLE_DRAW * (1 - utilisation)
    return {
        "gpu": gpu.name,
        "num_gpus": num_gpus,
        "hours": played.makespan / 3600,
        "gpu_hours": sum(job.seconds * job.share for job in jobs) / 3600,
        "utilisation": utilisation,
        "dollars": paid_hours * gpu.price,
        "kilowatt_hours": paid_hours * gpu.watts * draw / 1000,
        "shares": dict(sorted(shares.items())),
        "too_large": dict(sorted(too_large.items())),
        "gpu_data": asdict(gpu),
    }


def _text(result: dict[str, Any]) -> str:
    left = plural(result["trials_left"], "trial")
    largest = f"largest trial {amount(result['memory_bytes'] / 2**30)} GiB"
    hours, cluster, cpus = result["cpu_hours"], result["cluster"], result["num_cpus"]
    until = f"{roughly(hours)} h" if hours >= 2 else f"{roughly(max(1.0, 60 * hours))} min"
    cores = f"{until} on {plural(cpus, 'CPU')}"
    begin, assumed = f"left: {left}, {cores}; {largest}", f" ({result['assumptions']})"
    if not result["trials_left"]:
        return "left: 0 trials"
    if cluster is None:
        return f"{begin}{assumed}. No GPU is here, and none was named: --gpu h100 plans for one"
    gpus = f"{cluster['num_gpus']} {cluster['gpu']}" + ("s" if cluster["num_gpus"] > 1 else "")
    shares = ", ".join(f"{name} {share:g}" for name, share in cluster["shares"].items())
    named = ", ".join(
        f"{name} {amount(size / 2**30)} of "
        f"{amount(min(cluster['shares'][name], 1.0) * cluster['gpu_data']['memory_gib'])} GiB"
        for name, size in cluster["too_large"].items()
    )
    too_large = named and (
        f"\nmore memory than the share has: {named}; such trials end out of memory and start again "
        "with "
        "twice the share, up to a whole GPU; then they fail, or pass batches in parts where no "
        "batch norm "
        "forbids it: choose a larger GPU, or a smaller recipe.batch_size"
    )
    if result["refused"]:
        name = result["refused"][0]
        return (
            f"{begin}. On {gpus} a run is refused: recipe {name} computes in bfloat16, which it "
            "has not: "
            "--set recipe.precision=float32, or another GPU"
        )
    if not cluster["gpu_data"]["timed"]:
        unknown = "the time cannot be known: isweep gpu-check measures it"
        return f"{begin}. On {gpus} {unknown}{assumed}{too_large}"
    return (
        f"left: {left}, {roughly(result['gpu_hours'])} GPU-hours or {cores}; {largest}. On {gpus}: "
        f"{amount(result['hours_one_at_a_time'])} h one trial at a time, "
        f"{amount(cluster['hours'])} h where "
        "trials share GPUs and fill each other's gaps, under MPS, "
        f"{100 * cluster['utilisation']:.0f} % "
        f"used, {roughly(cluster['dollars'])} $ and {amount(cluster['kilowatt_hours'])} kWh; "
        f"share of a GPU: {shares or 'none'}{assumed}{too_large}"
    )


# What a plan costs beside training: attacks and disk.

COLUMN_BYTES = 650
"""Of a Parquet file's column beside its values: measured, 520 to 670 at 20 to 750 images."""


def extras(plan: SweepPlan, incomplete: Collection[bool]) -> dict[str, Any]:
    """Return what a plan costs beside training: of done trials, on disk, by attacks over training.

    ``incomplete`` says of every done trial that lacks a measurement whether its weights are kept:
    it is only measured then, else trained again. Costs of ``uncounted`` networks are guessed, and
    why.
    """
    attacks: Counter[str] = Counter()
    for trial in plan.trials:
        attacks.update(predict.attack_flops(trial))
    training = sum(predict.training_flops(trial) for trial in plan.trials)
    costs = {trial.network.model.name: predict.cost_of(trial.network) for trial in plan.trials}

    # A column per logit, and image and label.
    predictions = [
        (plan.num_outputs(t.network) + 2) * (COLUMN_BYTES + 4 * t.network.subset.test_size)
        for t in plan.trials
        if t.predictions
    ]
    return {
        "num_retrained": sum(not kept for kept in incomplete),
        "num_measured": sum(incomplete),
        "weights_bytes": sum(
            predict.cost_of(t.network).state_bytes for t in plan.trials if plan.keeps_weights(t)
        ),
        "predictions_bytes": sum(predictions),
        "attack_shares": {kind: spent / training for kind, spent in attacks.items() if training},
        "uncounted": {name: cost.uncounted for name, cost in costs.items() if cost.uncounted},
    }


def extras_text(found: Mapping[str, Any]) -> str:
    """Say what :func:`extras` found."""
    shares = {kind: share for kind, share in found["attack_shares"].items() if share}
    words = (
        f"attacks: {sum(shares.values()):.0%} of training"
        if found["attack_shares"]
        else "nothing is trained"
    )
    if len(shares) > 1:
        words += f" ({', '.join(f'{kind} {one:.0%}' for kind, one in shares.items())})"
    parts = [f"kept weights: {amount(found['weights_bytes'] / 2**30)} GiB in all"]
    if kept := found["predictions_bytes"]:
        parts.append(f"kept predictions: {amount(kept / 2**30)} GiB in all")
    parts.append(words)
    if found["num_measured"]:
        parts.append(
            f"{found['num_measured']} trained networks are only measured, none of them trained "
            "again"
        )
    if found["num_retrained"]:
        parts.append(
            f"{found['num_retrained']} networks are trained again: their weights were not kept"
        )
    parts += [
        f"costs of {name} are guessed from its weights: {w}"
        for name, w in found["uncounted"].items()
    ]
    return "; ".join(parts)
