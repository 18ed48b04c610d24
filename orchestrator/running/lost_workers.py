"""Of what a worker died: the error where Tune wrote it, and whether the worker's node is there at all."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import cloudpickle

from orchestrator.results.records import TrialFailure
from orchestrator.running.devices import NO_CARD
from orchestrator.running.failures import classify_lost_worker

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 2.0


def read_failure(trial: Any) -> TrialFailure:
    """Return the failure of a Tune trial whose process went away.

    Tune writes the error into the trial's local folder and copies it to its storage later, where
    ``Trial.get_error`` looks in vain when a callback asks. Of errors that are not an actor's or a task's,
    such as the memory killer's, it writes the text alone.
    """
    error, text = _pickled(trial.pickled_error_file), _text(trial.error_file)
    return classify_lost_worker(error, text, _dead_nodes(error))


class Place(NamedTuple):
    """Where an attempt runs: Ray's id of its actor, and the address of its node."""

    trial_id: str
    actor: str
    node: str

    @classmethod
    def here(cls, trial_id: str) -> Place:
        """Return the place of the process that asks."""
        return cls(trial_id, ray.get_runtime_context().get_actor_id(), ray.util.get_node_ip_address())


def fit_nodes(failure: TrialFailure) -> set[str]:
    """Return the addresses of the live nodes to which a trial that failed for its node could be given."""
    needed = "GPU" if failure.message.startswith(NO_CARD) else "CPU"
    alive = (node for node in ray.nodes() if node["Alive"])
    return {node["NodeManagerAddress"] for node in alive if node["Resources"].get(needed, 0) > 0}


def killed_for_memory(places: Mapping[str, Place]) -> set[str]:
    """Return those of the trials whose process Ray killed for memory; empty where the cluster does not say.

    The memory killer's error ends Tune's loop and names no process. What each actor died of is known at the
    head, a moment later than the error.

    Args:
        places: Where the trials ran, by their ids.
    """
    patience = time.monotonic() + ANSWER_TIMEOUT_S
    while places:
        try:
            found = {trial_id for trial_id, place in places.items() if _died_of_memory(place.actor)}
        except Exception as problem:
            log.warning("the cluster cannot be asked what a trial died of: %s", problem)
            return set()
        if found or time.monotonic() > patience:
            return found
        time.sleep(0.1)
    return set()


def _died_of_memory(actor: str) -> bool:
    about = ray._private.state.actors(actor)
    return bool(about) and about["State"] == "DEAD" and about["DeathCause"].HasField("oom_context")


def _pickled(path: str | None) -> BaseException | None:
    """Return the exception that our own driver wrote a moment ago, below its own scratch folder."""
    if path is None or not Path(path).exists():
        return None
    try:
        error = cloudpickle.loads(Path(path).read_bytes())
    except Exception as problem:
        log.warning("Tune's error file %s cannot be read: %s", path, problem)
        return None
    return error if isinstance(error, BaseException) else None


def _text(path: str | None) -> str:
    """Return the last error in Tune's text file: attempts of one cell share a folder."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace") if path else ""
    except OSError:
        return ""
    last = text.rpartition("Failure # ")[2]
    return last.partition("\n")[2] if "\n" in last else last


def _dead_nodes(error: BaseException | None) -> list[str]:
    """Return ids of nodes that are gone, and the actor's id when the node that it ran on is among them.

    A raylet that was killed shows first as an actor that is "unavailable", and Ray lists the node as alive
    until its health check has failed for a while; so the node itself is asked.
    """
    try:
        nodes = ray.nodes()
        dead = [node["NodeID"] for node in nodes if not _answers(node)]
        actor = getattr(error, "actor_id", None)
        if actor is not None and dead:
            address = ray._private.state.actors(actor).get("Address", {})
            if address.get("NodeID") in dead:
                dead.append(actor)
    except Exception as problem:
        log.warning("the cluster cannot be asked which nodes are gone: %s", problem)
        return []
    return dead


def _answers(node: dict[str, Any]) -> bool:
    if not node["Alive"]:
        return False
    try:
        address = (node["NodeManagerAddress"], node["NodeManagerPort"])
        with socket.create_connection(address, timeout=ANSWER_TIMEOUT_S):
            return True
    except OSError:
        return False
