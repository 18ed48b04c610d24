"""Texts about the resources that a waiting trial lacks, and about the nodes that Ray's
autoscaler launches.

isweep prints these texts, because Ray prints nothing while a trial waits for resources.
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
from orchestrator.running.capacity import live_nodes
from search_spaces.errors import plural

MAX_NODE_KINDS = 4
"""Largest number of kinds of nodes that a message lists."""
MAX_FAILURES = 3
"""Largest number of failed launches that a message lists."""
MAX_FAILURE_CHARACTERS = 200
"""Largest number of characters that a message quotes from the error of a failed launch."""
MONITOR_LOG_HINT = "See monitor.* in /tmp/ray/session_latest/logs on the head node"
NODE_BY_ID = re.compile(r"node_[0-9a-f]{40,}")
"""Pattern of the node type that Ray assigns to a node that was added by hand. The autoscaler
launches no such nodes."""
STATUS_SECTION = re.compile(r"^([A-Z][a-z ]+):\n((?: .*\n?)+)", re.MULTILINE)
"""Pattern of a section in the output of ``ray status``: its title and its indented lines."""


class Advice(NamedTuple):
    """A hint for one kind of failed launch.

    Attributes:
        words: words in lower case, without spaces and underscores. The hint is printed if the
            provider's message contains one of these words.
        hint: advice for the user.
    """

    words: tuple[str, ...]
    hint: str


ADVICE = (
    Advice(
        ("limitexceeded", "spotinstancecount", "quota"),
        "Ask the provider for a higher quota for this node type",
    ),
    Advice(
        ("capacity", "exhausted", "stockout"),
        "Choose another zone or node type in the launch file. If the file already has "
        "another node type, lower `max_workers` of the node type whose launch failed",
    ),
    Advice(
        ("servicelinkedrole",),
        "Create the role once with `aws iam create-service-linked-role` (see docs/cluster.md)",
    ),
    Advice(
        ("unauthorized", "accessdenied", "forbidden", "permission", "passrole"),
        "Give the role of the head node the rights in `clusters/iam/head.json`",
    ),
    Advice(
        ("invalidami", "imagenotfound", "errimagepull", "imagepullbackoff"),
        "Correct the image in the launch file",
    ),
    Advice(("securitygroup", "subnet"), "Correct the security group or subnet in the launch file"),
)
"""Hints for failed launches. If several hints match a message, the first of them is
printed."""
NO_TYPE_FITS = (
    "Lower `resources` in the sweep file, or raise `max_workers` or the size of a node type in the "
    "launch file. `ray status` shows all requests."
)
"""Hint if no launch has failed and no node is being launched. In this case each node type is
too small, or the number of its nodes has reached ``max_workers``."""


def shortage_for(resources: Resources) -> str:
    """Return a text about a trial's request, the missing resources, and the nodes that are
    being launched.
    """
    request = {
        name if name == "memory" else name.upper(): amount
        for name, amount in resources.as_ray().items()
    }
    total = ray.cluster_resources()
    free = ray.available_resources()
    nodes = live_nodes()
    # A trial runs on one node: Ray does not combine the resources of two.
    fits_a_node = any(_fits(request, node) for node in nodes)
    some_are_used = any(free.get(name, 0) < total.get(name, 0) for name in request)
    waits_for_others = fits_a_node and some_are_used
    sentences = [_request_text(request, total, free)]
    if waits_for_others:
        sentences.append("Other work, or processes that are starting, use the other resources.")
    elif not fits_a_node and _fits(request, total):
        kinds = _kinds_text(request, nodes)
        sentences.append(f"No single node has all requested resources: the nodes have {kinds}.")
    report = autoscaler_report()
    if report is not None:
        sentences.append(report)
    elif waits_for_others:
        sentences.append("The sweep continues when the requested resources are free.")
    else:
        fixes = "Add nodes, or lower `resources` in the sweep file"
        if resources.num_gpus:
            fixes = "Add nodes, lower `resources` in the sweep file, or run with `--device cpu`"
        sentences.append(f"This cluster adds no nodes by itself. {fixes}.")
    return " ".join(sentences)


def _fits(request: Mapping[str, float], available: Mapping[str, float]) -> bool:
    """Return whether all requested amounts are available."""
    return all(amount <= available.get(name, 0) for name, amount in request.items())


def _request_text(
    request: Mapping[str, float], total: Mapping[str, float], free: Mapping[str, float]
) -> str:
    """Return a sentence with each requested amount, and with the total and free amount of the
    cluster.
    """
    amounts = [
        f"{_amount_text(name, amount)} (the cluster has {_number_text(name, total.get(name, 0))}, "
        f"{_number_text(name, free.get(name, 0))} free)"
        for name, amount in request.items()
    ]
    return f"each trial requests {', '.join(amounts)}."


def _amount_text(name: str, amount: float) -> str:
    """Return an amount of a resource with its unit, for example ``0.5 GPU`` or ``1.9 GiB of
    memory``.
    """
    if name == "memory":
        return f"{_number_text(name, amount)} GiB of memory"
    return f"{_number_text(name, amount)} {name}"


def _number_text(name: str, amount: float) -> str:
    """Return an amount of a resource without its unit. The unit of memory is GiB."""
    if name == "memory":
        return f"{amount / 2**30:,.1f}"
    return f"{amount:g}"


def _kinds_text(request: Collection[str], nodes: Collection[Mapping[str, float]]) -> str:
    """Return a list of the kinds of nodes as text, the most frequent kind first. Two nodes are
    of the same kind if they have equal amounts of the requested resources.
    """
    kinds = Counter(
        " and ".join(_amount_text(name, node.get(name, 0)) for name in request) for node in nodes
    )
    most_common = kinds.most_common(MAX_NODE_KINDS)
    return ", ".join(f"{kind} ({plural(count, 'node')})" for kind, count in most_common)


def autoscaler_report() -> str | None:
    """Return a text about the nodes that the autoscaler launches, or None if the cluster has
    no autoscaler.
    """
    address = ray.get_runtime_context().gcs_address
    script = (sys.executable, "-m", "ray.scripts.scripts")
    answer = run_program(*script, "status", "--verbose", "--address", address)
    return status_summary(answer.output)


def status_summary(status: str) -> str | None:
    """Return a summary of the node launches in the output of ``ray status --verbose``.

    Returns:
        Sentences about the nodes that are being launched, about failed launches, and about
        what to do. The result is None if the cluster has no autoscaler.
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
    """Return the hint that belongs to the error message of a failed launch."""
    letters = failure.lower().replace(" ", "").replace("_", "")
    for advice in ADVICE:
        if any(word in letters for word in advice.words):
            return advice.hint
    return MONITOR_LOG_HINT
