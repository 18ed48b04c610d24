"""Functions that read from Tune and Ray why a worker failed or died.

Some of this information is in private attributes of Tune and Ray. Each function that reads
such an attribute describes what happens if a later version lacks the attribute.
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

from orchestrator.machine.server_watch import accepts_connections
from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.messages import TrialFailedError, TrialReport, WorkerLocation
from orchestrator.running.recovery.failures import classify_lost_worker

log = logging.getLogger(__name__)

DEATH_CAUSE_TIMEOUT_S = 2.0
"""Largest number of seconds to wait until Ray's head has recorded why a worker died. The head
records the cause shortly after the driver gets the error."""
REQUEST_INTERVAL_S = 0.1
"""Seconds between two requests to Ray's head."""
FAILURE_HEADING = "Failure # "
"""Beginning of the line above each error in Tune's error file. One file contains the errors of
all attempts at a trial."""


def outcome_of(trial: Any, location: WorkerLocation | None) -> TrialReport | TrialFailure:
    """Return the report of a failed trial. If there is no report, return a failure with the
    cause that Ray gives for the death of the worker.

    Args:
        trial: Tune's trial.
        location: location of the attempt, or None if the worker sent no location.
    """
    error = _pickled_error(trial)
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, TrialFailedError):
        return TrialReport.model_validate_json(cause.report)
    dead_ids = _dead_node_ids(location)
    actor_id = getattr(error, "actor_id", None)
    if actor_id is not None and location is not None and location.node_id in dead_ids:
        # Ray's text about the error may name only the actor, not its dead node.
        dead_ids.add(actor_id)
    pid = 0 if location is None else location.pid
    return classify_lost_worker(error, _last_error_text(trial), dead_ids=dead_ids, pid=pid)


def _pickled_error(trial: Any) -> Any:
    """Return the exception that Tune stored for a trial, or None if Tune stored no exception.

    The attribute ``pickled_error_file`` is private. If a later version of Ray lacks it, every
    failure counts as a crash of the worker.
    """
    with suppress(Exception):
        # The file is safe to unpickle: this driver wrote it a moment ago, in its own folder.
        return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return None


def _last_error_text(trial: Any) -> str:
    """Return Tune's text about a trial's last error, or an empty text if there is none."""
    with suppress(OSError, AttributeError, TypeError):
        text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        last = text.rpartition(FAILURE_HEADING)[2]
        return last.partition("\n")[2] or last
    return ""


def _dead_node_ids(location: WorkerLocation | None) -> set[str]:
    """Return Ray's ids of dead nodes.

    After a node has died, Ray's head still counts it as alive for a moment. This function
    therefore also tries to connect to the trial's node. It does not connect to other nodes,
    because each attempt to connect may take two seconds.
    """
    dead = set()
    try:
        for node in ray.nodes():
            is_dead = not node["Alive"]
            is_of_trial = location is None or node["NodeID"] == location.node_id
            if is_of_trial and not is_dead:
                address = node["NodeManagerAddress"]
                is_dead = not accepts_connections(address, node["NodeManagerPort"])
            if is_dead:
                dead.add(str(node["NodeID"]))
    except Exception as problem:
        log.warning("Ray did not list the dead nodes: %s", problem)
    return dead


def eligible_nodes(failure: TrialFailure) -> set[str]:
    """Return the addresses of the live nodes that could run a trial after this failure of its
    node.

    If the trial failed because of different source code, any node with CPUs could run it.
    Otherwise only a node with GPUs could run it.
    """
    resource = "CPU" if failure.kind == FailureKind.OTHER_CODE else "GPU"
    return {
        str(node["NodeManagerAddress"])
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get(resource, 0) > 0
    }


def killed_for_memory(locations: Mapping[str, WorkerLocation]) -> set[str]:
    """Return the ids of the trials whose worker Ray killed because memory ran out.

    The error that ended Tune's loop does not say which worker was killed, so this function
    reads the state of each worker. It waits at most :data:`DEATH_CAUSE_TIMEOUT_S` seconds. No
    trial runs meanwhile.

    Args:
        locations: location of each trial, by trial id.
    """
    deadline = time.monotonic() + DEATH_CAUSE_TIMEOUT_S
    while locations:
        try:
            killed = {trial_id for trial_id, place in locations.items() if _was_killed(place.actor)}
        except Exception as problem:
            log.warning("Ray did not report why a worker died: %s", problem)
            return set()
        # Ray kills one worker at a time, so the first recorded death explains the failure.
        if killed or time.monotonic() > deadline:
            return killed
        time.sleep(REQUEST_INTERVAL_S)
    return set()


def _was_killed(actor_id: str) -> bool:
    """Return whether Ray killed a worker because memory ran out."""
    actor = ray._private.state.actors(actor_id)
    if not actor or actor["State"] != "DEAD":
        return False
    return bool(actor["DeathCause"].HasField("oom_context"))
