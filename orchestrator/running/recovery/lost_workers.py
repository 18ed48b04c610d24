"""Questions to Tune and Ray about trials whose worker failed or is gone.

Tune and Ray keep the answers in private places. Where one is missing, the docstring says what is
then assumed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle

from orchestrator.machine.cluster import answers
from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.messages import TrialFailedError, TrialReport, WorkerLocation
from orchestrator.running.recovery.failures import classify_lost_worker

log = logging.getLogger(__name__)

DEATH_KNOWN_WITHIN_S = 2.0
"""Seconds until Ray's head knows of what a worker died; it learns that a moment after the error."""
ASK_AGAIN_AFTER_S = 0.1
"""Seconds between two such questions."""
FAILURE_HEADING = "Failure # "
"""Line that Tune writes above each error; attempts at one trial share a file."""


def outcome_of(trial: Any, location: WorkerLocation | None) -> TrialReport | TrialFailure:
    """Return a failed trial's report, or the failure that Ray gives for a worker that is gone.

    Args:
        trial: Tune's trial.
        location: where it ran, if its worker told so.
    """
    error = _pickled_error(trial)
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, TrialFailedError):
        return TrialReport.model_validate_json(cause.report)
    dead_ids = _dead_nodes(location)
    actor = getattr(error, "actor_id", None)
    if actor is not None and location is not None and location.node_id in dead_ids:
        dead_ids.add(actor)
    pid = 0 if location is None else location.pid
    return classify_lost_worker(error, _last_error_text(trial), dead_ids=dead_ids, pid=pid)


def _pickled_error(trial: Any) -> Any:
    """Return the exception that Tune kept of a trial; None unless an actor or a task raised it.

    Private: if a later Ray keeps it elsewhere, every failure counts as a crash of its worker.
    """
    with suppress(Exception):
        # Our own driver wrote the file a moment ago, below its own folder.
        return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return None


def _last_error_text(trial: Any) -> str:
    """Return the text of a trial's last error, as Tune wrote it; empty if there is none."""
    with suppress(OSError, AttributeError, TypeError):
        text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        last = text.rpartition(FAILURE_HEADING)[2]
        return last.partition("\n")[2] or last
    return ""


def _dead_nodes(location: WorkerLocation | None) -> set[str]:
    """Return Ray's ids of nodes that are gone.

    A worker dies a moment before its node, which the head still counts as alive. So the trial's own
    node is asked as well; the others are not, for each may take two seconds to not answer.
    """
    dead = set()
    try:
        for node in ray.nodes():
            is_own = location is None or node["NodeID"] == location.node_id
            if not node["Alive"] or (
                is_own and not answers(node["NodeManagerAddress"], node["NodeManagerPort"])
            ):
                dead.add(str(node["NodeID"]))
    except Exception as problem:
        log.warning("the cluster cannot be asked which nodes are gone: %s", problem)
    return dead


def eligible_nodes(failure: TrialFailure) -> set[str]:
    """Return addresses of live nodes to which a trial that failed because of its node could go."""
    resource = "CPU" if failure.kind == FailureKind.OTHER_CODE else "GPU"
    return {
        str(node["NodeManagerAddress"])
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get(resource, 0) > 0
    }


def killed_for_memory(locations: Mapping[str, WorkerLocation]) -> set[str]:
    """Return the ids of those trials whose worker Ray killed for memory.

    Ray's error, which ended Tune's loop, does not say whose worker it was. Waits for two seconds
    at most; no trial runs meanwhile.

    Args:
        locations: where each trial ran, by its id.
    """
    deadline = time.monotonic() + DEATH_KNOWN_WITHIN_S
    while locations:
        try:
            killed = {trial_id for trial_id, place in locations.items() if _was_killed(place.actor)}
        except Exception as problem:
            log.warning("the cluster cannot be asked what a trial died of: %s", problem)
            return set()
        if killed or time.monotonic() > deadline:
            return killed
        time.sleep(ASK_AGAIN_AFTER_S)
    return set()


def _was_killed(actor_id: str) -> bool:
    actor = ray._private.state.actors(actor_id)
    if not actor or actor["State"] != "DEAD":
        return False
    return bool(actor["DeathCause"].HasField("oom_context"))
