"""Of what a trial died, what hangs or does not start, and how many attempts each kind of failure is
worth.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import cloudpickle
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.machine.cluster import answers
from orchestrator.machine.gpu_errors import gpu_error
from orchestrator.results.records import CellReport, FailureKind, TrialFailure
from orchestrator.running.trial_device import NO_GPU, REST_S
from search_spaces.errors import ConfigError, SetupError, SweepError
from tasks.clock import SYSTEM, Clock
from tasks.trials.records import CAPTURE_FAILED

log = logging.getLogger(__name__)

RETRIES: dict[FailureKind, int | None] = {
    FailureKind.LOST_NODE: None,  # says nothing about the trial: MOST_IN_VAIN alone ends it
    FailureKind.WORKER_CRASH: 2,  # the third crash in a row is the trial's own doing
    # each with more or after a wait, until :class:`Requests` has no way left
    FailureKind.OUT_OF_MEMORY: 19,
    FailureKind.CLUSTER_ERROR: 5,  # follows lost nodes, but may also be a cluster that never works
    FailureKind.DEVICE_ERROR: 3,  # in another process, as a rule on another device
    FailureKind.HUNG: 1,
    FailureKind.SETUP: 3,  # another node may be set up well
    FailureKind.OTHER_CODE: 3,  # another node may run the driver's
    FailureKind.DISK_FULL: 0,
    FailureKind.BAD_CONFIG: 0,
    FailureKind.BAD_DATA: 0,
    FailureKind.CODE_ERROR: 0,
}
"""Further attempts within one ``isweep run`` of a cell that fails alone, see :class:`Retries`; None
is no limit. A new run tries every failed cell again."""

MAX_TRACEBACK = 8000
ASK_FOR_S = 2.0
"""How long the cluster is asked which trial the memory killer hit: it is known a moment after its
error."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
MOST_DEATHS = 20
"""Of one cell's process, whatever happens to others; those with a lost node do not count."""
MOST_IN_VAIN = 200
"""Failures in a row, of cells that failed before, without a result in between: then nothing works
here."""
LONGEST_REST_S = REST_S * 2.0**3
"""Of a GPU that fails again and again: one that was too hot, or was reset by hand, is back by
then."""
MOST_ON_UNFIT = 4
"""Trials of a node in a row that could not run there, with no result in between: then it counts as
unfit."""
DEVICE_ERRORS = 10
"""That tell as much of a node as one trial that finds no GPU there: the trial may be to blame."""
OF_GPU = frozenset((FailureKind.DEVICE_ERROR, FailureKind.SETUP, FailureKind.HUNG))
PROCESS_DEATHS = frozenset((FailureKind.WORKER_CRASH, FailureKind.OUT_OF_MEMORY))

PATIENCE_S = 60.0
"""How long no trial may start before it is said what is missing, and then until it is looked at
again."""
ENDS_AFTER_S = 180.0
"""How long no trial may start on a private cluster: it never grows, and nobody else holds anything
of it."""
HELD_UP_S = 30.0
"""A gap between two looks from which on it was the driver that stood still, and no trial is to
blame."""
ANSWERS_WITHIN_S = 60.0
"""How long a worker may take to say that it has the cell that it was given."""
GPU_NAMED = re.compile(r"(GPU|MIG)[- ]\S+ of node [\w.-]+")


class OtherCodeError(SetupError):
    """A worker whose code is not the driver's: what it would find must not be sealed as the
    driver's.
    """


class CellFailed(Exception):
    """How a worker says that its cell failed, so that Ray shows the task as failed, with this
    message.

    ``report`` is the whole of what it has to say, a :class:`CellReport` as JSON text.
    """

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message, report)
        self.report = report

    def __str__(self) -> str:
        """The message alone."""
        return str(self.args[0])


class DeviceError(Exception):
    """What a process dies of that must not be used again: ``kind: message``."""


def gpu_named(message: str) -> str:
    """Return the GPU that a failure names, and is of, by its UUID and node; empty where it is of
    none.
    """
    found = None if CAPTURE_FAILED in message else GPU_NAMED.search(message)
    return found[0] if found else ""


def ends_process(error: BaseException) -> bool:
    """Tell whether a process that met ``error`` must not be used again."""
    found = gpu_error(error)
    return isinstance(error, DeviceError) or (found is not None and found.ends_process)


def classify(error: BaseException) -> TrialFailure:
    """Return the failure that an exception inside a trial stands for."""
    kind = _kind(error)
    if isinstance(error, SweepError):
        return TrialFailure(kind=kind, message=str(error)[:1000])
    name = type(error).__name__
    message = (str(error).strip() or name).splitlines()[0][:500]
    if kind in (FailureKind.CODE_ERROR, FailureKind.CLUSTER_ERROR):
        message = f"{name}: {message}"
    trace = "".join(traceback.format_exception(error))
    return TrialFailure(kind=kind, message=message, traceback=trace[-MAX_TRACEBACK:])


def _kind(error: BaseException) -> FailureKind:
    found = gpu_error(error)
    if found is not None:
        return found.kind
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FailureKind.DISK_FULL
    if isinstance(error, RayActorError) and error.preempted:
        return FailureKind.LOST_NODE
    for kind, of_kind in (
        (OtherCodeError, FailureKind.OTHER_CODE),
        (ConfigError, FailureKind.BAD_CONFIG),
        (SetupError, FailureKind.SETUP),
        (SweepError, FailureKind.BAD_DATA),
        (ray.exceptions.OutOfDiskError, FailureKind.DISK_FULL),
        (ray.exceptions.ObjectStoreFullError, FailureKind.OUT_OF_MEMORY),
        (ray.exceptions.NodeDiedError, FailureKind.LOST_NODE),
        (
            ray.exceptions.RayTaskError,
            FailureKind.CODE_ERROR,
        ),  # a task's own exception; all others are Ray's
        (RayError, FailureKind.CLUSTER_ERROR),
    ):
        if isinstance(error, kind):
            return of_kind
    return FailureKind.CODE_ERROR


def classify_lost_worker(
    error: BaseException | None, text: str = "", dead_nodes: Collection[str] = ()
) -> TrialFailure:
    """Return the failure for a trial whose process went away without a word.

    ``error`` is Ray's, where Tune kept it, ``text`` what Tune wrote about it, with ids of
    ``dead_nodes``.
    """
    text = text or str(error or "the worker is gone")
    if "DeviceError" in text:
        said = text.strip().splitlines()[-1].partition("DeviceError:")[2].strip()
        name, _, fault = said.partition(": ")
        known = name in set(FailureKind)
        return TrialFailure(
            kind=FailureKind(name) if known else FailureKind.DEVICE_ERROR,
            message=((fault if known else said) or "the device failed")[:500],
            traceback=text[-MAX_TRACEBACK:],
        )
    kind = FailureKind.WORKER_CRASH if error is None else _kind(error)
    if (
        isinstance(error, ray.exceptions.OutOfMemoryError)
        or "memory pressure" in text
        or "running low on memory" in text
    ):
        kind = FailureKind.OUT_OF_MEMORY
    elif any(node in text for node in dead_nodes):
        kind = FailureKind.LOST_NODE
    elif kind in (FailureKind.CLUSTER_ERROR, FailureKind.CODE_ERROR):
        kind = FailureKind.WORKER_CRASH
    line = next((line.strip() for line in text.splitlines() if line.strip()), "the worker is gone")
    return TrialFailure(kind=kind, message=line[:500], traceback=text[-MAX_TRACEBACK:])


def classify_broken_fit(error: BaseException) -> TrialFailure:
    """Return the failure of the trials that ran when Tune's loop raised ``error``, which may wrap
    Ray's.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RayError):
        cause = cause.__cause__
    failure = classify(cause or error)
    if failure.kind != FailureKind.CODE_ERROR:
        return failure
    return failure.model_copy(update={"kind": FailureKind.CLUSTER_ERROR})


class Place(NamedTuple):
    """Where an attempt runs: Ray's ids of its actor and node, the node's address, its GPUs, their
    share.
    """

    trial_id: str
    actor: str
    node: str
    node_id: str = ""
    gpus: str = ""
    num_gpus: float = 1.0

    @classmethod
    def here(cls, trial_id: str) -> Place:
        """Return the place of the process that asks."""
        context, address = ray.get_runtime_context(), ray.util.get_node_ip_address()
        gpus, its = os.environ.get("CUDA_VISIBLE_DEVICES", ""), context.get_assigned_resources()
        where = context.get_actor_id(), address, context.get_node_id()
        return cls(trial_id, *where, gpus, its.get("GPU", 0.0))


def keep_out(place: Place, seconds: float) -> Any:
    """Rest the part of a GPU on which a trial failed, as soon as it is free; returns what then
    ends.

    Ray would give it again as the first free one, and gives another as long as the failed process
    ends. Where another trial got it before and stays, it does not rest.
    """
    there = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_keep_out).remote(
        place, seconds
    )


def _keep_out(place: Place, seconds: float) -> None:
    until, there = (
        time.time() + LONGEST_REST_S,
        NodeAffinitySchedulingStrategy(place.node_id, soft=False),
    )
    options = {"num_cpus": 0, "num_gpus": place.num_gpus, "max_calls": 0, "max_retries": 0}
    rest = ray.remote(**options, scheduling_strategy=there)(_rests_on)
    while not ray.get(rest.remote(place.gpus, seconds, until)) and time.time() < until:
        time.sleep(0.1)


def _rests_on(gpus: str, seconds: float, until: float) -> bool:
    if rests := os.environ.get("CUDA_VISIBLE_DEVICES") == gpus and time.time() < until:
        time.sleep(seconds)
    return rests


def failure_of(trial: Any, place: Place | None) -> CellReport | TrialFailure:
    """Return what the worker of a Tune trial said of its failure, or of what its process went
    without a word.

    ``place`` is where it ran, if it said so. Tune writes the error into the trial's local folder;
    of errors that are not an actor's or a task's, such as the memory killer's, the text alone. A
    worker dies a moment before its node, which the head counts as alive for a while; so the node
    itself is asked.
    """
    error: Any = None
    # Private: with a Ray that has these no more, each death is a crash of its worker. Our own
    # driver wrote it a moment ago, below its own scratch folder.
    with suppress(Exception):
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, CellFailed):
        return CellReport.model_validate_json(cause.report)
    text, dead = "", list[str]()
    with suppress(OSError, AttributeError, TypeError):
        text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        # Attempts of one cell share a folder: the last error counts, below the line that numbers
        # it.
        last = text.rpartition("Failure # ")[2]
        text = last.partition("\n")[2] or last
    try:
        for node in ray.nodes():
            if not (node["Alive"] and answers(node["NodeManagerAddress"], node["NodeManagerPort"])):
                dead.append(node["NodeID"])
    except Exception as problem:
        log.warning("the cluster cannot be asked which nodes are gone: %s", problem)
    actor = getattr(error, "actor_id", None)
    if actor is not None and place is not None and place.node_id in dead:
        dead.append(actor)
    return classify_lost_worker(error, text, dead)


def fit_nodes(failure: TrialFailure) -> set[str]:
    """Return the addresses of the live nodes to which a trial that failed for its node could be
    given.
    """
    needed = "CPU" if failure.kind == FailureKind.OTHER_CODE else "GPU"
    alive = (node for node in ray.nodes() if node["Alive"])
    return {node["NodeManagerAddress"] for node in alive if node["Resources"].get(needed, 0) > 0}


def killed_for_memory(places: Mapping[str, Place]) -> set[str]:
    """Return those of the trials whose process Ray killed for memory: its error names none."""
    patience = time.monotonic() + ASK_FOR_S
    while places:
        try:
            about = {
                trial_id: ray._private.state.actors(place.actor)
                for trial_id, place in places.items()
            }
            dead = {
                trial_id: one for trial_id, one in about.items() if one and one["State"] == "DEAD"
            }
            found = {
                name for name, one in dead.items() if one["DeathCause"].HasField("oom_context")
            }
        except Exception as problem:
            log.warning("the cluster cannot be asked what a trial died of: %s", problem)
            return set()
        if found or time.monotonic() > patience:
            return found
        time.sleep(0.1)
    return set()


class Decision(NamedTuple):
    """What becomes of a cell that failed: another attempt after ``pause_s`` seconds, or None for
    none.
    """

    pause_s: float | None
    reason: str


@dataclass
class Retries:
    """Whether a cell that failed gets another attempt in this run, when, and why.

    A death counts as the trial's own doing only when it dies again and again while others live.
    Where other cells die too, something kills workers, and each of them gets more attempts. Every
    attempt waits twice as long as the one before, up to a minute.

    Attributes:
        failures: How often each cell failed of each kind.
        deaths: How often each cell's process died, of whatever.
        in_vain: Failures since the last result of any cell.
        of_gpus: The cells that each GPU failed, by its UUID and node.
        in_a_row: Failures of each part of a node that a trial was given, without a result in
            between.
        unfit: Trials in a row that a node was unfit for, by its address and whether of other code
            or no GPU.
    """

    failures: dict[str, Counter[FailureKind]] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)
    in_vain: int = 0
    of_gpus: dict[str, set[str]] = field(default_factory=dict)
    unfit: dict[tuple[str, bool], float] = field(default_factory=lambda: defaultdict(float))
    in_a_row: Counter[tuple[str, str]] = field(default_factory=Counter)

    def finished(self, node: str = "", gpus: str = "") -> None:
        """A cell has its result, on ``gpus`` of ``node``: the sweep makes progress."""
        self.in_vain = self.unfit[node, True] = self.in_a_row[node, gpus] = 0
        self.computes(node)

    def rest_s(self, node: str, gpus: str) -> float:
        """Return how long ``gpus`` of ``node``, which failed again, rest: twice as long every
        time.
        """
        self.in_a_row[node, gpus] += 1
        return REST_S * 2.0 ** min(self.in_a_row[node, gpus] - 1, 3)

    def computes(self, node: str) -> None:
        """A trial on ``node`` told of an epoch: one of its GPUs may be dead, and others are
        sound.
        """
        self.unfit[node, False] = 0

    def check_nodes(self, node: str, failure: TrialFailure, offered: Collection[str]) -> None:
        """Raise :class:`SetupError` when none of the nodes ``offered``, by address, can run its
        trials.
        """
        other_code, of_gpu = (
            failure.kind == FailureKind.OTHER_CODE,
            failure.kind == FailureKind.DEVICE_ERROR,
        )
        of_gpu &= not any(
            words in failure.message for words in (CAPTURE_FAILED, "device-side assert")
        )
        if not (other_code or of_gpu or failure.message.startswith(NO_GPU)):
            return
        self.unfit[node, other_code] += 1 / DEVICE_ERRORS if of_gpu else 1
        if not offered or any(
            self.unfit[address, other_code] < MOST_ON_UNFIT for address in offered
        ):
            return
        last = (failure.message.partition("; found: ")[2] or failure.message).rstrip(".")
        rule, what = "Some node must give trials a GPU that they can compute on", "had none"
        hint = "mend a node, or use --device cpu"
        if other_code:
            rule, what = "Some node must run the code of the driver", "found other code"
            hint = "install the same everywhere, and leave it as it is while a sweep runs"
        raise SetupError(
            rule,
            f"on each of {len(offered)} nodes the last trials {what}; the last: {last}",
            f"{hint}; then run the same command again: what is done is kept. "
            "isweep doctor --address ADDRESS looks at every node",
        )

    def failed(
        self,
        trial_id: str,
        kind: FailureKind,
        *,
        died: bool = False,
        gpu: str = "",
        hopeless: bool = False,
    ) -> Decision:
        """Count a failure and decide.

        The trial's process ``died`` of it, a ``gpu`` failed, or it is ``hopeless``: no attempt can
        get more.
        """
        if gpu:
            self.of_gpus.setdefault(gpu, set()).add(trial_id)
        mine = self.failures.setdefault(trial_id, Counter())
        mine[kind] += 1
        self.deaths[trial_id] += died
        again = mine.total() > 1  # 250 cells may be on nodes that go at once
        self.in_vain += again
        if again and self.in_vain > MOST_IN_VAIN:
            return Decision(None, f"{MOST_IN_VAIN} further attempts in a row failed, of all trials")
        if hopeless:
            return Decision(None, "no attempt can get more")
        if sum(mine[death] for death in PROCESS_DEATHS) >= MOST_DEATHS:
            return Decision(None, f"it died {MOST_DEATHS} times")
        limit, why = self._limit(trial_id, kind)
        if len(self.of_gpus.get(gpu, ())) > 1:
            limit, why = MOST_DEATHS - 1, f"{gpu} failed other trials too"
        if limit is not None and mine[kind] > limit:
            return Decision(None, why)
        pause = min(FIRST_PAUSE_S * 2 ** (mine.total() - 1), LONGEST_PAUSE_S)
        most = "" if limit is None else f" of {limit + 1}"
        return Decision(pause, f"attempt {mine[kind] + 1}{most} in {pause:g} s: {why}")

    def _limit(self, trial_id: str, kind: FailureKind) -> tuple[int | None, str]:
        limit = RETRIES[kind]
        if limit is None:
            return None, "a lost node says nothing about the trial"
        if kind not in PROCESS_DEATHS:
            return (
                limit,
                f"{kind} is tried again {limit} times" if limit else f"{kind} would come again",
            )
        # A trial that runs out of memory without harm to its process tells nothing of others.
        others = self.deaths.total() - self.deaths[trial_id]
        if others < 2:
            return limit, "other trials live"
        return limit + others // 2, f"other trials died {others} times too"


@dataclass
class _Watched:
    """Since when a trial that was given to a worker is silent, and how long it may be."""

    since: float
    limit_s: float
    answered: bool = False


class TrialWatch:
    """Ends trials that hang, and workers that do not answer, by a limit; says why none starts.

    ``say`` is told what a person should know; ``process`` returns how to kill a trial's process,
    None where it has none; ``why`` says what is missing. Waiting ``ends`` on a private cluster.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        process: Callable[[Any], Callable[[], object] | None],
        why: Callable[[], str],
        *,
        ends: bool,
        clock: Clock = SYSTEM,
    ) -> None:
        self._say, self._process, self._why, self._ends, self._clock = (
            say,
            process,
            why,
            ends,
            clock,
        )
        self._watched: dict[str, _Watched] = {}
        self._failures: dict[str, TrialFailure] = {}
        self._moved_at = self._asked_at = self._looked_at = clock.monotonic()
        self._said = ""

    def started(self, trial_id: str, limit_s: float) -> None:
        """A trial begins, for the first time or again; after ``limit_s`` without a word it counts
        as hung.
        """
        self._failures.pop(trial_id, None)
        self._watched[trial_id] = _Watched(self._clock.monotonic(), limit_s)

    def heard(self, trial_id: str) -> None:
        """A trial said where it runs, or told of an epoch: it lives, and its limit begins anew."""
        if trial_id in self._watched:
            watched = self._watched[trial_id]
            watched.since, watched.answered = self._clock.monotonic(), True

    def ended(self, trial_id: str) -> None:
        """A trial has its result, or its process is gone."""
        self._watched.pop(trial_id, None)

    def failure(self, trial_id: str) -> TrialFailure | None:
        """Return the failure of a trial that was ended here; None for any other."""
        return self._failures.get(trial_id)

    def look(self, trials: Collection[Any], running: Collection[str]) -> None:
        """Look at Tune's ``trials``, of which those of the cells ``running`` should run."""
        now, before = self._clock.monotonic(), self._looked_at
        self._looked_at = now
        if now - before > HELD_UP_S:
            self._moved_at = self._asked_at = now
            for watched in self._watched.values():
                watched.since += now - before
        if not running or any(trial.status == "RUNNING" for trial in trials):
            if self._said and running:
                self._say(f"The first trial started after {now - self._moved_at:.0f} s.")
            self._moved_at, self._said = now, ""
        elif now - max(self._moved_at, self._asked_at) > PATIENCE_S:
            self._asked_at = now
            reason, told = self._why(), f"for {now - self._moved_at:.0f} s"
            if reason != self._said:
                self._said = reason
                self._say(f"No trial could start {told}: {reason}")
            if self._ends and now - self._moved_at > ENDS_AFTER_S:
                raise SetupError(
                    "Ray must be able to start a worker on this machine",
                    f"no trial could start {told}: {reason}",
                    "run the same command again when the machine has less to do, with bash on "
                    "PATH; "
                    "what is done is kept, and isweep doctor knows other causes",
                )
        for trial in trials:
            trial_id = str(trial.config["cell"]["trial_id"])
            if trial_id in running and trial_id not in self._failures:
                self._end_if_hung(trial_id, self._process(trial), now)

    def _end_if_hung(self, trial_id: str, kill: Callable[[], object] | None, now: float) -> None:
        if kill is None:
            return
        # A worker that was used before is asked to take the cell; only then does the trial start.
        watched = self._watched.setdefault(trial_id, _Watched(now, ANSWERS_WITHIN_S))
        limit = watched.limit_s if watched.answered else min(watched.limit_s, ANSWERS_WITHIN_S)
        if now - watched.since <= limit:
            return
        kind = FailureKind.HUNG
        told = f"neither a result nor an epoch in {limit:.0f} s, far beyond what was expected"
        if not watched.answered:
            kind = FailureKind.WORKER_CRASH
            told = f"its worker did not answer for {limit:.0f} s and was ended"
            self._say(f"{trial_id}: {told}")
        self._failures[trial_id] = TrialFailure(kind=kind, message=told)
        kill()
