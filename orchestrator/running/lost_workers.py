"""Of what a worker died: the error where Tune wrote it, and whether the worker's node is there at all."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle

from orchestrator.results.records import TrialFailure
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


def node_of_lost(trial: Any) -> str:
    """Return the address of the node on which a trial's process was; empty where Ray does not say."""
    actor = getattr(_pickled(trial.pickled_error_file), "actor_id", None)
    try:
        return str(ray._private.state.actors(actor)["Address"]["IPAddress"]) if actor is not None else ""
    except Exception as problem:
        log.warning("the cluster cannot be asked where a trial ran: %s", problem)
        return ""


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
