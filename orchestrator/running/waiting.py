"""What a trial asks for beside what the cluster has, in words: Ray itself waits without one."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_get

from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.cluster import Resources
from search_spaces.errors import SetupError

# What a cluster's autoscaler is doing about the trials that wait: nodes on their way, launches that failed.
#
# Ray keeps it in two forms, by the autoscaler's version, in its private interfaces; where they answer in
# another way than known, the report says so and nothing else fails.

log = logging.getLogger(__name__)

_STATUS_KEY = b"__autoscaling_status"
MOST_TOLD = 3
MOST_CHARACTERS = 200

ADVICE = (
    (("limitexceeded", "spotinstancecount", "quota"), "ask the provider for a higher quota of this type"),
    (
        ("capacity", "exhausted", "stockout"),
        "name another zone or type; an on-demand type is taken when max_workers of this one is lowered",
    ),
    (("servicelinkedrole",), "make the role once: aws iam create-service-linked-role, see docs/cluster.md"),
    (
        ("unauthorized", "accessdenied", "forbidden", "permission", "passrole"),
        "give the head's role the rights of clusters/iam/head.json",
    ),
    (
        ("invalidami", "imagenotfound", "errimagepull", "imagepullbackoff"),
        "correct the image in the launch file",
    ),
    (("securitygroup", "subnet"), "correct the security group or subnet in the launch file"),
    (("setting-up", "update-failed", "setup"), "see monitor.* in /tmp/ray/session_latest/logs on the head"),
)
"""What a provider's words ask for; the first row with a word in the message holds."""


NO_TYPE = (
    "What to do: ask for less, or raise max_workers or the machines of a node type in the launch file; "
    "`ray status` says what is asked for."
)
"""Where nothing failed and nothing comes: no node of any type would do, or as many are there as may be."""


@dataclass(frozen=True)
class LaunchReport:
    """The autoscaler's state.

    Attributes:
        coming: Nodes that were asked for or are being set up, in words.
        failures: Launches and set-ups that failed lately, newest first, in the provider's words.
    """

    coming: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    def text(self) -> str:
        """Say it in a sentence or two, with what to do about the newest failure."""
        parts = [f"On their way: {', '.join(self.coming)}." if self.coming else "No node is on its way."]
        for failure in self.failures[:MOST_TOLD]:
            parts.append(f"Launch failed: {failure[:MOST_CHARACTERS].rstrip('.')}.")
        if self.failures:
            parts.append(f"What to do: {advice(self.failures[0])}.")
        elif not self.coming:
            parts.append(NO_TYPE)
        return " ".join(parts)


def advice(message: str) -> str:
    """Return what to do about a failure in a provider's words."""
    plain = message.lower().replace(" ", "").replace("_", "")
    for words, what in ADVICE:
        if any(word in plain for word in words):
            return what
    return "see monitor.* in /tmp/ray/session_latest/logs on the head"


def launch_report() -> LaunchReport | None:
    """Ask the connected cluster's autoscaler; None where there is none, or none that we can read."""
    try:
        from ray.autoscaler.v2.sdk import get_cluster_status
        from ray.autoscaler.v2.utils import is_autoscaler_v2

        if is_autoscaler_v2():
            return read_second_version(get_cluster_status(ray.get_runtime_context().gcs_address))
        status = json.loads(_internal_kv_get(_STATUS_KEY) or "{}")
        report = status.get("autoscaler_report")
        return read_first_version(report) if report and not _launches_nothing(report) else None
    except Exception as error:  # private interfaces, that another Ray may have changed
        log.warning("the autoscaler cannot be asked: %s: %s", type(error).__name__, error)
        return None


def _launches_nothing(report: dict[str, Any]) -> bool:
    """Tell whether nodes were added by hand: Ray's provider for those calls each one's type by its id."""
    types = report.get("node_type_mapping") or {}
    return bool(types) and all(kind == f"node_{node}" for node, kind in types.items())


def read_first_version(report: dict[str, Any]) -> LaunchReport:
    """Read the summary of version 1, as it lies in Ray's table."""
    setting_up = Counter((kind, state) for _, kind, state in report.get("pending_nodes", ()))
    known = report.get("node_availability_summary", {}).get("node_availabilities", {})
    unavailable = [
        (record["last_checked_timestamp"], f"{kind}: {told['category']}: {told['description']}")
        for kind, record in known.items()
        if not record["is_available"] and (told := record.get("unavailable_node_information"))
    ]
    failed = Counter(kind for _, kind in report.get("failed_nodes", ()))
    return LaunchReport(
        coming=(
            *_counted(
                (kind, "asked for", number) for kind, number in report.get("pending_launches", {}).items()
            ),
            *_counted((kind, state, number) for (kind, state), number in setting_up.items()),
        ),
        failures=(
            *(text for _, text in sorted(unavailable, reverse=True)),
            *(f"{kind}: {number} nodes did not get through their setup" for kind, number in failed.items()),
        ),
    )


def read_second_version(status: Any) -> LaunchReport:
    """Read the status of version 2."""
    setting_up = Counter(
        (node.ray_node_type_name, node.details or node.node_status) for node in status.pending_nodes
    )
    launches = sorted(status.failed_launches, key=lambda launch: launch.failed_ts_s or 0, reverse=True)
    return LaunchReport(
        coming=(
            *_counted((one.ray_node_type_name, "asked for", one.count) for one in status.pending_launches),
            *_counted((kind, state, number) for (kind, state), number in setting_up.items()),
        ),
        failures=tuple(f"{one.ray_node_type_name}: {one.details or 'no reason given'}" for one in launches),
    )


def _counted(nodes: Iterable[tuple[str, str, int]]) -> Iterable[str]:
    return (f"{number} {kind} ({state})" for kind, state, number in nodes if number)


PATIENCE_S = 60.0
"""How long no trial may start before it is said what is missing, and then until it is looked at again."""
ENDS_AFTER_S = 180.0
"""How long no trial may start on a private cluster: it never grows, and nobody else holds anything of it."""
MOST_KINDS = 4
"""Of nodes that are named."""


class StartWatch:
    """Says what is missing when cells wait for a place and none starts, and again when the reason changes.

    Args:
        resources: What a trial asks for.
        say: Is told.
        ends: Whether waiting has an end, as on a private cluster.
    """

    def __init__(self, resources: Resources, say: Callable[[str], None], *, ends: bool = False) -> None:
        self._resources, self._say, self._ends = resources, say, ends
        self._moved_at = self._looked_at = self._seen_at = time.monotonic()
        self._said = ""

    def look(self, trials: Iterable[Any], *, waiting: bool) -> None:
        """Look at Tune's trials; ``waiting`` tells whether any should run.

        Raises:
            SetupError: when nothing will ever start.
        """
        now = time.monotonic()
        if now - self._seen_at > PATIENCE_S / 2:  # it was this driver that stood still
            self._moved_at = self._looked_at = now
        self._seen_at = now
        if not waiting or any(trial.status == "RUNNING" for trial in trials):
            if self._said and waiting:
                self._say(f"The first trial started after {now - self._moved_at:.0f} s.")
            self._moved_at, self._said = now, ""
        elif now - max(self._moved_at, self._looked_at) > PATIENCE_S:
            self._looked_at = now
            reason = why_nothing_starts(self._resources)
            if reason != self._said:
                self._said = reason
                self._say(f"No trial could start for {now - self._moved_at:.0f} s: {reason}")
            if self._ends and now - self._moved_at > ENDS_AFTER_S:
                raise SetupError(
                    "Ray must be able to start a worker on this machine",
                    f"no trial could start for {now - self._moved_at:.0f} s: {reason}",
                    "run the same command again when the machine has less to do, with bash on PATH; "
                    "what is done is kept, and isweep doctor knows other causes",
                )


def why_nothing_starts(resources: Resources) -> str:
    """Say what each trial asks for, what the cluster lacks, and what its autoscaler does about it."""
    report = launch_report()
    if report is not None:
        doing = report.text()
    elif _held(resources):
        doing = "The sweep goes on as soon as it is free."
    else:
        less = "ask for less, or run with --device cpu" if resources.num_gpus else "or ask for less"
        doing = f"This cluster does not grow by itself: add nodes, {less}."
    return f"{what_is_missing(resources)} {doing}"


def what_is_missing(resources: Resources) -> str:
    """Say what each trial asks for, and how much of it the cluster has."""
    there, free = ray.cluster_resources(), ray.available_resources()
    asked = ", ".join(
        f"{amount:g} {name} (the cluster has {there.get(_ray_name(name), 0):g}, "
        f"{free.get(_ray_name(name), 0):g} free)"
        for name, amount in resources.as_ray().items()
    )
    there_in_all = all(amount <= there.get(_ray_name(name), 0) for name, amount in resources.as_ray().items())
    if there_in_all and not _fits(resources):
        return f"each asks for {asked}. No node has all that one asks for: they have {_by_node(resources)}."
    who = " What is not free is held by other work, or by processes that still start."
    return f"each asks for {asked}.{who if _held(resources) else ''}"


def bound_by_cpus(resources: Resources) -> str:
    """Say when trials ask for so many CPUs that cards stay empty, node by node; nothing where they do not."""
    if not resources.num_gpus:
        return ""
    rooms = [
        (int(node.get("GPU", 0) / resources.num_gpus), int(node.get("CPU", 0) / resources.num_cpus))
        for node in _nodes()
    ]
    by_gpu, at_once = sum(gpu for gpu, _ in rooms), sum(map(min, rooms))
    if at_once == by_gpu:
        return ""
    return (
        f"CPUs bound the trials: {at_once} at once by resources.num_cpus {resources.num_cpus:g}, "
        f"{by_gpu} by the cards; {by_gpu * resources.num_cpus:g} CPUs beside the cards would fill them"
    )


def _held(resources: Resources) -> bool:
    """Tell whether some node has all that is asked for, and not all of it is free everywhere."""
    there, free = ray.cluster_resources(), ray.available_resources()
    names = [_ray_name(name) for name in resources.as_ray()]
    return _fits(resources) and any(free.get(name, 0) < there.get(name, 0) for name in names)


def _fits(resources: Resources) -> bool:
    """Tell whether a node has all that is asked for: Ray puts a trial together from no two."""
    asked = [(_ray_name(name), amount) for name, amount in resources.as_ray().items()]
    return any(all(amount <= node.get(name, 0) for name, amount in asked) for node in _nodes())


def _by_node(resources: Resources) -> str:
    kinds = Counter(
        " and ".join(f"{node.get(_ray_name(name), 0):g} {name}" for name in resources.as_ray())
        for node in _nodes()
    )
    return ", ".join(f"{kind} ({number} nodes)" for kind, number in kinds.most_common(MOST_KINDS))


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _ray_name(name: str) -> str:
    return name if name == "memory" else name.upper()


# Trials that hang, and workers that do not answer: found by a limit, and ended.

HELD_UP_S = 30.0
"""A gap between two looks from which on it was the driver that stood still, and no trial is to blame."""
ANSWERS_WITHIN_S = 60.0
"""How long a worker may take to say that it has the cell that it was given."""


@dataclass
class _Watched:
    """A trial that was given to a worker: since when it is silent, and how long it may be."""

    since: float
    limit_s: float
    answered: bool = False

    def overdue(self, now: float) -> float:
        """Return the limit that it is past, or 0."""
        limit = self.limit_s if self.answered else min(self.limit_s, ANSWERS_WITHIN_S)
        return limit if now - self.since > limit else 0.0


class HangWatch:
    """Watches the trials of one sweep.

    Args:
        say: Is told of a worker that does not answer.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._watched: dict[str, _Watched] = {}
        self._failures: dict[str, TrialFailure] = {}
        self._looked_at = time.monotonic()

    def started(self, trial_id: str, limit_s: float) -> None:
        """A trial begins, for the first time or again.

        Args:
            trial_id: Which.
            limit_s: Seconds without an epoch or a result after which it counts as hung.
        """
        self._failures.pop(trial_id, None)
        self._watched[trial_id] = _Watched(time.monotonic(), limit_s)

    def heard(self, trial_id: str) -> None:
        """A trial said where it runs, or told of an epoch: it lives, and its limit begins anew."""
        if trial_id in self._watched:
            watched = self._watched[trial_id]
            watched.since, watched.answered = time.monotonic(), True

    def ended(self, trial_id: str) -> None:
        """A trial has its result, or its process is gone."""
        self._watched.pop(trial_id, None)

    def end_hung(self, trials: Iterable[Any]) -> None:
        """End the process of each of Tune's ``trials`` that is past its limit."""
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        if now - before > HELD_UP_S:
            for watched in self._watched.values():
                watched.since += now - before
        for trial in trials:
            trial_id, actor = str(trial.config["cell"]["trial_id"]), _actor_of(trial)
            if actor is None or trial_id in self._failures:
                continue
            # A worker that was used before is asked to take the cell; only then does the trial start.
            watched = self._watched.setdefault(trial_id, _Watched(now, ANSWERS_WITHIN_S))
            if limit := watched.overdue(now):
                self._failures[trial_id] = self._failure(trial_id, limit, answered=watched.answered)
                ray.kill(actor)

    def failure(self, trial_id: str) -> TrialFailure | None:
        """Return the failure of a trial that was ended here; None for any other."""
        return self._failures.get(trial_id)

    def _failure(self, trial_id: str, limit: float, *, answered: bool) -> TrialFailure:
        if answered:
            told = f"neither a result nor an epoch in {limit:.0f} s, far beyond what was expected"
            return TrialFailure(kind=FailureKind.HUNG, message=told)
        told = f"its worker did not answer for {limit:.0f} s and was ended"
        self._say(f"{trial_id}: {told}")
        return TrialFailure(kind=FailureKind.WORKER_CRASH, message=told)


def _actor_of(trial: Any) -> Any:
    """Return the actor that has a Tune trial, or None."""
    # Private: with a Ray that has it no more, hung trials are waited for (tests/contracts/test_internals.py).
    return getattr(getattr(trial, "temporary_state", None), "ray_actor", None)
