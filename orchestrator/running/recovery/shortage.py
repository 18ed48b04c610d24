"""The shortage of a cluster: which resources a trial waits for, and what the autoscaler does.

Ray itself waits without a message.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

import ray

from orchestrator.machine.cluster import Resources
from orchestrator.machine.processes import run_program

MAX_NODE_KINDS = 4
"""Largest number of kinds of nodes in a message."""
MAX_FAILURES = 3
"""Largest number of failed launches in a message."""
MAX_FAILURE_CHARACTERS = 200
"""Largest number of characters of a failed launch's text in a message."""
MONITOR_LOG = "See monitor.* in /tmp/ray/session_latest/logs on the head node"
NODE_BY_ID = re.compile(r"node_[0-9a-f]{40,}")
"""Ray's name for the type of a node that was added by hand. Ray launches no such nodes."""
STATUS_SECTION = re.compile(r"^([A-Z][a-z ]+):\n((?: .*\n?)+)", re.MULTILINE)
"""A section of ``ray status``: its title and its indented lines."""


class Advice(NamedTuple):
    """A hint for a failed launch.

    Attributes:
        words: the hint is for messages with one of these words, in lower case without blanks and _.
        hint: what the user can do.
    """

    words: tuple[str, ...]
    hint: str


ADVICE = (
    Advice(
        ("limitexceeded", "spotinstancecount", "quota"),
        "Ask the provider for a higher quota of this type",
    ),
    Advice(
        ("capacity", "exhausted", "stockout"),
        "Choose another zone or node type in the launch file. To use another type that the file "
        "already has, lower max_workers of this one",
    ),
    Advice(
        ("servicelinkedrole",),
        "Create the role once with `aws iam create-service-linked-role`, see docs/cluster.md",
    ),
    Advice(
        ("unauthorized", "accessdenied", "forbidden", "permission", "passrole"),
        "Give the role of the head node the rights of clusters/iam/head.json",
    ),
    Advice(
        ("invalidami", "imagenotfound", "errimagepull", "imagepullbackoff"),
        "Correct the image in the launch file",
    ),
    Advice(("securitygroup", "subnet"), "Correct the security group or subnet in the launch file"),
)
"""Hints for failed launches; the first matching row counts."""
NO_TYPE_FITS = (
    "Lower resources in the sweep file, or raise max_workers or the size of a node type in the "
    "launch file. `ray status` shows all requests."
)
"""Hint if no launch failed and no node is being launched: each node type is too small, or
max_workers is reached."""


def shortage_for(resources: Resources) -> str:
    """Return text about a trial's request, the resources that are missing, and coming nodes."""
    request = {
        name if name == "memory" else name.upper(): amount
        for name, amount in resources.as_ray().items()
    }
    total = ray.cluster_resources()
    free = ray.available_resources()
    nodes = live_nodes()
    # A trial runs on one node: Ray does not combine the resources of two.
    fits_a_node = any(_fits(request, node) for node in nodes)
    is_held = fits_a_node and any(free.get(name, 0) < total.get(name, 0) for name in request)
    sentences = [_request_text(request, total, free)]
    if is_held:
        sentences.append("Other work, or processes that are starting, use the rest.")
    elif not fits_a_node and _fits(request, total):
        kinds = _kinds_text(request, nodes)
        sentences.append(f"No single node has all of these: the nodes have {kinds}.")
    report = autoscaler_report()
    if report is not None:
        sentences.append(report)
    elif is_held:
        sentences.append("The sweep continues when these resources are free.")
    else:
        fixes = "add nodes, or lower resources in the sweep file"
        if resources.num_gpus:
            fixes = "add nodes, lower resources in the sweep file, or run with --device cpu"
        sentences.append(f"This cluster adds no nodes by itself: {fixes}.")
    return " ".join(sentences)


def _fits(request: Mapping[str, float], available: Mapping[str, float]) -> bool:
    return all(amount <= available.get(name, 0) for name, amount in request.items())


def _request_text(
    request: Mapping[str, float], total: Mapping[str, float], free: Mapping[str, float]
) -> str:
    amounts = [
        f"{amount:g} {name} (the cluster has {total.get(name, 0):g}, {free.get(name, 0):g} free)"
        for name, amount in request.items()
    ]
    return f"each trial requests {', '.join(amounts)}."


def _kinds_text(request: Collection[str], nodes: Collection[Mapping[str, float]]) -> str:
    kinds = Counter(
        " and ".join(f"{node.get(name, 0):g} {name}" for name in request) for node in nodes
    )
    return ", ".join(f"{kind} ({count} nodes)" for kind, count in kinds.most_common(MAX_NODE_KINDS))


def live_nodes() -> list[dict[str, float]]:
    """Return the resources of each live node of the connected cluster, by name."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def node_memory_bytes() -> float:
    """Return the bytes of memory that Ray may assign on the connected cluster's largest node."""
    return max(float(node.get("memory", 0)) for node in live_nodes())


class Slots(NamedTuple):
    """The number of trials that run at once.

    Attributes:
        num_trials: the number.
        note: a note to the user if the nodes have too few CPUs to use all GPUs; else empty.
    """

    num_trials: int
    note: str


def slots_for(resources: Resources) -> Slots:
    """Return how many trials with this request the connected cluster runs at once."""
    num_cpus, num_gpus = resources.num_cpus, resources.num_gpus
    nodes = live_nodes()
    by_cpu = [int(node.get("CPU", 0) / num_cpus) for node in nodes]
    by_gpu = by_cpu
    if num_gpus:
        by_gpu = [int(node.get("GPU", 0) / num_gpus) for node in nodes]
    count = sum(map(min, zip(by_cpu, by_gpu, strict=True)))
    by_all_gpus = sum(by_gpu)
    if count >= by_all_gpus:
        return Slots(max(1, count), "")
    note = (
        f"The cluster's GPUs could run {by_all_gpus} trials at once, but with "
        f"`resources.num_cpus: {num_cpus:g}` its CPUs are enough for only {count}. To use all "
        f"GPUs, lower resources.num_cpus, or use nodes with {by_all_gpus * num_cpus:g} CPUs in "
        "total"
    )
    return Slots(max(1, count), note)


def autoscaler_report() -> str | None:
    """Return text about the launches of the cluster's autoscaler; None if there is none."""
    address = ray.get_runtime_context().gcs_address
    script = (sys.executable, "-m", "ray.scripts.scripts")
    answer = run_program(*script, "status", "--verbose", "--address", address)
    return status_summary(answer.output)


def status_summary(status: str) -> str | None:
    """Return a summary of the launches that ``ray status --verbose`` lists.

    Returns:
        Sentences about coming nodes, failed launches and what to do. None if the status shows that
        the cluster has no autoscaler.
    """
    sections: dict[str, list[str]] = {}
    for title, text in STATUS_SECTION.findall(status):
        lines = text.splitlines()
        sections[title] = [line.strip() for line in lines if not line.startswith(" (no ")]
    pending = sections.get("Pending", [])
    failures = sections.get("Recent failures", [])
    nodes = sections.get("Active", []) + sections.get("Idle", [])
    node_types = [line.split()[1] for line in nodes]
    if not pending and not failures and all(map(NODE_BY_ID.fullmatch, node_types)):
        return None
    sentences = ["No node is being launched."]
    if pending:
        sentences = [f"Nodes being launched: {'; '.join(pending)}."]
    for failure in failures[:MAX_FAILURES]:
        shortened = failure[:MAX_FAILURE_CHARACTERS].rstrip(".")
        sentences.append(f"A launch failed: {shortened}.")
    if failures:
        sentences.append(f"{_hint_for(failures[0])}.")
    elif not pending:
        sentences.append(NO_TYPE_FITS)
    return " ".join(sentences)


def _hint_for(failure: str) -> str:
    plain = failure.lower().replace(" ", "").replace("_", "")
    for advice in ADVICE:
        if any(word in plain for word in advice.words):
            return advice.hint
    return MONITOR_LOG
