"""The shortage of a cluster: what it lacks for a trial to start, and what its autoscaler does.

Ray itself waits silently.
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
"""Kinds of nodes that a message names."""
MAX_FAILURES = 3
"""Failed launches that a message names."""
MAX_FAILURE_CHARACTERS = 200
"""Characters of each that it repeats."""
MONITOR_LOG = "See monitor.* in /tmp/ray/session_latest/logs on the head node"
NODE_BY_ID = re.compile(r"node_[0-9a-f]{40,}")
"""Type of a node that was added by hand, as Ray names it; it launches none of these."""
STATUS_SECTION = re.compile(r"^([A-Z][a-z ]+):\n((?: .*\n?)+)", re.MULTILINE)
"""A section of ``ray status``: its title, and its indented lines."""


class Advice(NamedTuple):
    """A hint for a failed launch whose message, without blanks and _, has one of ``words``."""

    words: tuple[str, ...]
    hint: str


ADVICE = (
    Advice(
        ("limitexceeded", "spotinstancecount", "quota"),
        "Ask the provider for a higher quota of this type",
    ),
    Advice(
        ("capacity", "exhausted", "stockout"),
        "Name another zone or type. An on-demand type is taken when max_workers of this type is "
        "lowered",
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
"""Hints for failed launches; the first that fits counts."""
NO_TYPE_FITS = (
    "Ask for less, or raise max_workers or the size of a node type in the launch file. "
    "`ray status` shows what is asked for."
)
"""Hint if nothing failed and nothing comes: no node of any type would do, or no more may come."""


def shortage_for(resources: Resources) -> str:
    """Return what a trial asks for, what the cluster lacks for it, and what comes."""
    request = {
        name if name == "memory" else name.upper(): amount
        for name, amount in resources.as_ray().items()
    }
    total = ray.cluster_resources()
    free = ray.available_resources()
    nodes = live_nodes()
    # Ray puts a trial together from no two nodes.
    fits_a_node = any(_fits(request, node) for node in nodes)
    is_held = fits_a_node and any(free.get(name, 0) < total.get(name, 0) for name in request)
    sentences = [_request_text(request, total, free)]
    if is_held:
        sentences.append("Other work, or processes that are starting, hold the rest.")
    elif not fits_a_node and _fits(request, total):
        kinds = _kinds_text(request, nodes)
        sentences.append(f"No single node has all of this: the nodes have {kinds}.")
    report = autoscaler_report()
    if report is not None:
        sentences.append(report)
    elif is_held:
        sentences.append("The sweep goes on as soon as the resources are free.")
    else:
        less = "or ask for less"
        if resources.num_gpus:
            less = "ask for less, or run with --device cpu"
        sentences.append(f"This cluster does not grow by itself: add nodes, {less}.")
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
    return f"each trial asks for {', '.join(amounts)}."


def _kinds_text(request: Collection[str], nodes: Collection[Mapping[str, float]]) -> str:
    kinds = Counter(
        " and ".join(f"{node.get(name, 0):g} {name}" for name in request) for node in nodes
    )
    return ", ".join(f"{kind} ({count} nodes)" for kind, count in kinds.most_common(MAX_NODE_KINDS))


def live_nodes() -> list[dict[str, float]]:
    """Return what each live node of the connected cluster hands out, by resource."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def node_memory_bytes() -> float:
    """Return the memory that Ray may hand out on the connected cluster's largest node."""
    return max(float(node.get("memory", 0)) for node in live_nodes())


class Slots(NamedTuple):
    """Trials that run at once; ``note`` says if CPUs are too few to fill the GPUs."""

    num_trials: int
    note: str


def slots_for(resources: Resources) -> Slots:
    """Return how many trials of these requests the connected cluster runs at once."""
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
        f"With resources.num_cpus {num_cpus:g}, CPUs limit the sweep to {count} trials at once, "
        f"and the GPUs could run {by_all_gpus}. To use all GPUs, their nodes need "
        f"{by_all_gpus * num_cpus:g} CPUs"
    )
    return Slots(max(1, count), note)


def autoscaler_report() -> str | None:
    """Return what the connected cluster's autoscaler does for waiting trials; None without one."""
    address = ray.get_runtime_context().gcs_address
    script = (sys.executable, "-m", "ray.scripts.scripts")
    answer = run_program(*script, "status", "--verbose", "--address", address)
    return status_summary(answer.output)


def status_summary(status: str) -> str | None:
    """Return what ``ray status --verbose`` says of launches: what comes, what failed, what to do.

    Returns:
        A few sentences; None if the status shows that the cluster has no autoscaler.
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
    sentences = ["No node is on its way."]
    if pending:
        sentences = [f"Nodes on their way: {'; '.join(pending)}."]
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
