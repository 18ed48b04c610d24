"""What each trial asks of Ray, and what is missing where it waits: Ray itself waits without a
word.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import ray

from orchestrator.machine.cluster import Resources
from orchestrator.machine.gpu_problems import MOST_HELD
from orchestrator.machine.gpus import NodeGpus
from orchestrator.machine.processes import run_program
from orchestrator.planning.costs.gpu_checks import packing_pays, read_checks
from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.memory import peak_bytes
from orchestrator.planning.costs.needs import need_of
from orchestrator.planning.costs.networks import has_batch_norm
from orchestrator.planning.runtimes import MeasuredTrial, RuntimeModel, corrections_for
from orchestrator.results.records import FailureKind, TrialFailure
from search_spaces.errors import SweepError
from search_spaces.specs import TrialSpec
from search_spaces.sweeps import ResourceSpec
from tasks.trials.records import CAPTURE_FAILED

log = logging.getLogger(__name__)

TIMES_OUT_OF_MEMORY = 4
"""That a trial, or the trials of a network, may be as they are where others may have used the
memory up."""
HELD = re.compile(r"others hold ([\d.]+) of ([\d.]+) GiB")
"""As :func:`orchestrator.running.trial_device.held_by_others` says it."""
MOST_KINDS = 4
"""Of nodes that are named."""
MOST_TOLD = 3
MOST_CHARACTERS = 200
MONITOR_LOG = "see monitor.* in /tmp/ray/session_latest/logs on the head"
ADVICE = (
    (
        ("limitexceeded", "spotinstancecount", "quota"),
        "ask the provider for a higher quota of this type",
    ),
    (
        ("capacity", "exhausted", "stockout"),
        (
            "name another zone or type; an on-demand type is taken when max_workers of this one is "
            "lowered"
        ),
    ),
    (
        ("servicelinkedrole",),
        "make the role once: aws iam create-service-linked-role, see docs/cluster.md",
    ),
    (
        ("unauthorized", "accessdenied", "forbidden", "permission", "passrole"),
        "give the head's role the rights of clusters/iam/head.json",
    ),
    (
        ("invalidami", "imagenotfound", "errimagepull", "imagepullbackoff"),
        "correct the image in the launch file",
    ),
    (("securitygroup", "subnet"), "correct the security group or subnet in the launch file"),
)
"""What a provider's words ask for; the first row with a word in the message holds."""
NO_TYPE = (
    "What to do: ask for less, or raise max_workers or the machines of a node type in the launch "
    "file; "
    "`ray status` says what is asked for."
)
"""Where nothing failed and nothing comes: no node of any type would do, or as many are there as may
be."""


@dataclass
class Requests:
    """The requests of a sweep, larger for trials that ran out of memory.

    Attributes:
        resources: What the sweep asks for every trial.
        expectation: Of the cluster's kind of GPU; without one all trials get the same share.
        node_memory_bytes: What the largest node has: a trial that asks for more would never start.
        out_of_memory: How often each trial was, and how much the trials of each network get from
            the start.
        given: How often each had when its last attempt began.
        waited: How often each found a whole GPU's memory held by others, and those of each network
            in a row.
        pressed: With how much less those of a network try then.
        not_captured: Networks whose steps could not be captured.
    """

    resources: Resources
    expectation: RuntimeModel = field(default_factory=RuntimeModel)
    node_memory_bytes: Callable[[], float] = lambda: math.inf
    out_of_memory: Counter[Hashable] = field(default_factory=Counter)
    given: dict[str, int] = field(default_factory=dict)
    waited: Counter[Hashable] = field(default_factory=Counter)
    pressed: Counter[Hashable] = field(default_factory=Counter)
    not_captured: set[Hashable] = field(default_factory=set)

    def of(self, cell: TrialSpec) -> Resources:
        """Return what the next attempt at ``cell`` gets.

        Every time that it, or another trial of its network, is out of memory doubles its share, up
        to a whole GPU; then it takes plain steps, and after that its batches pass in ever smaller
        parts, where they may. Where others hold a whole GPU's memory it first waits.
        """
        network = _network(cell)
        pressed = self.pressed[network] if self.waited[network] > TIMES_OUT_OF_MEMORY else 0
        times = max(self.out_of_memory[cell.trial_id], self.out_of_memory[network], pressed)
        self.given[cell.trial_id] = times
        return self._after(cell, times)

    def finished(self, cell: TrialSpec) -> None:
        """Learn from a result: what was enough for it is so for its network, of which the next
        tries less.
        """
        network, times = _network(cell), self.given.pop(cell.trial_id, 0)
        self.out_of_memory[network] = min(times, self.out_of_memory[network])
        if 0 < self.pressed[network] <= times:
            self.waited[network] = TIMES_OUT_OF_MEMORY
        else:
            self.waited[network] = self.pressed[network] = 0

    def _after(self, cell: TrialSpec, times: int) -> Resources:
        resources = self.resources
        if resources.num_gpus and self.expectation.gpu is not None:
            resources = replace(resources, num_gpus=self._share(cell, self.expectation.gpu))
        if _network(cell) in self.not_captured:
            resources = replace(resources, fast="off")
        if not times:
            return resources
        share, memory = resources.num_gpus, resources.memory_bytes
        # Up to a whole GPU; a machine's memory grows once.
        doublings = max(0, math.ceil(math.log2(1 / share) - 1e-9)) if share else 1
        resources = replace(
            resources,
            num_gpus=min(1.0, share * 2**times) if 0 < share <= 1 else share,
            memory_bytes=max(memory, int(min(2 * memory, self.node_memory_bytes())))
            if memory
            else 0,
        )
        left, is_plain = (
            times - doublings,
            cell.network.model.library == "own" and resources.fast == "auto",
        )
        if (
            left > 0 and share and resources.fast != "off" and not is_plain
        ):  # graphs keep memory of their own
            resources, left = replace(resources, fast="off"), left - 1
        if left <= 0 or not self._may_be_cut(cell):
            return resources
        # Two at least: batch norm has no variance over one image.
        parts = max(2, cell.network.recipe.batch_size >> left)
        return replace(resources, micro_batch=parts)

    def failed(self, cell: TrialSpec, failure: TrialFailure) -> str:
        """Count a failure; returns what the user may choose, where no attempt can get more."""
        if failure.kind != FailureKind.OUT_OF_MEMORY:
            self.not_captured.update({_network(cell)} if CAPTURE_FAILED in failure.message else ())
            return ""
        times = self.given.pop(cell.trial_id, self.out_of_memory[cell.trial_id])
        before, after = self._after(cell, times), self._after(cell, times + 1)
        on_gpu, network, held = before.num_gpus > 0, _network(cell), HELD.search(failure.message)
        others = held is not None and float(held[1]) > MOST_HELD * float(held[2])
        others |= self._fits(cell, before.num_gpus)
        if others and before.num_gpus >= 1:  # nothing of the trial's own is too large
            self.waited.update((cell.trial_id, network))
            if self.waited[network] > TIMES_OUT_OF_MEMORY and after != before:
                self.pressed[network] = max(self.pressed[network], times + 1)
            if self.waited[cell.trial_id] <= TIMES_OUT_OF_MEMORY:
                return ""
        self.out_of_memory[cell.trial_id] = times + 1
        # Of a whole GPU others may hold what nobody told.
        if on_gpu and not others and (held or before.num_gpus < 1):
            self.out_of_memory[network] = max(self.out_of_memory[network], times + 1)
        if after != before or (not on_gpu and times < TIMES_OUT_OF_MEMORY):
            return ""
        name, batch = cell.network.model.name, cell.network.recipe.batch_size
        there = (
            "a whole GPU has: choose a larger GPU"
            if on_gpu
            else "its machine gave: choose a larger one"
        )
        if on_gpu and others:
            there = "others leave of its GPU: end what runs there, or choose another GPU"
        cut = "; resources.micro_batches: on cuts batches, which changes what batch norm sees"
        return (
            f"{name} at batch {batch} needs more memory than {there} or a smaller recipe.batch_size"
            f"{'' if self._may_be_cut(cell) else cut}"
        )

    def usual(self, cells: Collection[TrialSpec]) -> Resources:
        """Return what a trial of ``cells``, at least one, asks for on average."""
        shares = [self.of(cell).num_gpus for cell in cells]
        return replace(self.resources, num_gpus=sum(shares) / len(shares))

    def _may_be_cut(self, cell: TrialSpec) -> bool:
        """Tell whether batches of a trial may pass in parts: with batch norm that changes its
        numbers.
        """
        if self.resources.micro_batches != "auto":
            return self.resources.micro_batches == "on"
        with suppress(SweepError):
            return not has_batch_norm(cell.network)
        return False

    def _fits(self, cell: TrialSpec, share: float) -> bool:
        """Tell whether a trial needs less than half of the GPU that it has: others hold the
        rest.
        """
        gpu = self.expectation.gpu
        with suppress(SweepError):
            return (
                gpu is not None
                and share == 1
                and 2 * peak_bytes(cell.network) < gpu.memory_gib * 2**30
            )
        return False

    def _share(self, cell: TrialSpec, gpu: GpuModel) -> float:
        if self.expectation.share is not None:
            return self.expectation.share
        try:
            return need_of(cell, gpu, self.expectation.corrections).share
        except (
            SweepError
        ) as error:  # a network that cannot be walked may still be trained, or fail by itself
            log.warning("%s: share as resources.num_gpus says, %s", cell.trial_id, error)
            return self.resources.num_gpus


def _network(cell: TrialSpec) -> Hashable:
    """Return what trials have in common that need the same memory, and that graphs capture or
    not.
    """
    prepared = cell.network.subset.prepared
    return cell.network.model, cell.network.recipe, prepared.image_size, prepared.channels


def node_memory_bytes() -> float:
    """Return the memory that Ray may hand out on the node of the connected cluster that has
    most.
    """
    return max(float(node.get("memory", 0)) for node in _nodes())


def expected(
    nodes: Collection[NodeGpus],
    asked: ResourceSpec,
    measured: Collection[MeasuredTrial],
    folders: Iterable[Path] = (),
) -> RuntimeModel:
    """Return what trials are expected to need of the connected cluster's GPUs.

    A GPU is shared where the sweep says so, where MPS runs on its node, or where ``isweep
    gpu-check``, whose records lie in ``folders``, found that a pair of trials pays; elsewhere each
    trial has one to itself.
    """
    if asked.num_gpus == 0 or not nodes:
        return RuntimeModel(None, corrections_for(None, measured))
    checks = read_checks(folders)
    gpus = [(gpu, node) for node in nodes for gpu in node.gpus]
    known = [gpu.model(checks) for gpu, _ in gpus]
    shared = all(
        (node.mps or "Exclusive" not in gpu.compute_mode)
        and not gpu.mig
        and packing_pays(gpu.name, checks, mps=node.mps)
        for gpu, node in gpus
    )
    least = min(known, key=lambda its: (its.memory_gib, its.half_tflops))
    return RuntimeModel(
        least, corrections_for(least, measured), asked.num_gpus or (None if shared else 1.0)
    )


def why_nothing_starts(resources: Resources) -> str:
    """Say what each trial asks for, what the cluster lacks, and what its autoscaler does about
    it.
    """
    asked = {
        name if name == "memory" else name.upper(): n for name, n in resources.as_ray().items()
    }
    there, free, nodes = ray.cluster_resources(), ray.available_resources(), _nodes()
    missing = "each asks for {}.".format(
        ", ".join(
            (
                f"{amount:g} {name} (the cluster has {there.get(name, 0):g}, {free.get(name, 0):g} "
                "free)"
            )
            for name, amount in asked.items()
        )
    )
    # Ray puts a trial together from no two nodes.
    fits = any(all(amount <= node.get(name, 0) for name, amount in asked.items()) for node in nodes)
    held = fits and any(free.get(name, 0) < there.get(name, 0) for name in asked)
    if held:
        missing += " What is not free is held by other work, or by processes that still start."
    elif not fits and all(amount <= there.get(name, 0) for name, amount in asked.items()):
        kinds = Counter(
            " and ".join(f"{node.get(name, 0):g} {name}" for name in asked) for node in nodes
        )
        they = ", ".join(
            f"{kind} ({number} nodes)" for kind, number in kinds.most_common(MOST_KINDS)
        )
        missing += f" No node has all that one asks for: they have {they}."
    report = launch_report()
    if report is not None:
        return f"{missing} {report}"
    if held:
        return f"{missing} The sweep goes on as soon as it is free."
    less = "ask for less, or run with --device cpu" if resources.num_gpus else "or ask for less"
    return f"{missing} This cluster does not grow by itself: add nodes, {less}."


def places(resources: Resources) -> tuple[int, str]:
    """Return how many trials run at once, node by node, and says when CPUs are too few to fill the
    GPUs.
    """
    num_cpus, num_gpus = resources.num_cpus, resources.num_gpus
    by_cpu = [int(node.get("CPU", 0) / num_cpus) for node in _nodes()]
    by_gpu = [int(node.get("GPU", 0) / num_gpus) for node in _nodes()] if num_gpus else by_cpu
    at_once, most = sum(map(min, zip(by_cpu, by_gpu, strict=True))), sum(by_gpu)
    bound = (
        f"CPUs bound the trials: {at_once} at once by resources.num_cpus {num_cpus:g}, {most} by "
        "the GPUs; "
        f"{most * num_cpus:g} CPUs beside the GPUs would fill them"
    )
    return max(1, at_once), bound if at_once < most else ""


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def launch_report() -> str | None:
    """Say what the connected cluster's autoscaler does about trials that wait; None where there is
    none.
    """
    address = ray.get_runtime_context().gcs_address
    status = (
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "status",
        "--verbose",
        "--address",
        address,
    )
    return told_of(run_program(*status).output)


def told_of(status: str) -> str | None:
    """Say in a sentence or two what ``ray status --verbose`` tells: what comes, what failed, what
    to do.
    """
    found = {
        title: [line.strip() for line in lines.splitlines() if not line.startswith(" (no ")]
        for title, lines in re.findall(r"^([A-Z][a-z ]+):\n((?: .*\n?)+)", status, re.MULTILINE)
    }
    coming, failures = found.get("Pending", []), found.get("Recent failures", [])
    # Of nodes that were added by hand Ray's provider calls each one's type by its id: it launches
    # none.
    types = [line.split()[1] for line in found.get("Active", []) + found.get("Idle", [])]
    if not (coming or failures) and all(
        re.fullmatch(r"node_[0-9a-f]{40,}", name) for name in types
    ):
        return None
    parts = [f"On their way: {'; '.join(coming)}." if coming else "No node is on its way."]
    parts += [
        f"Launch failed: {one[:MOST_CHARACTERS].rstrip('.')}." for one in failures[:MOST_TOLD]
    ]
    if failures:
        plain = failures[0].lower().replace(" ", "").replace("_", "")
        fitting = (what for words, what in ADVICE if any(word in plain for word in words))
        parts.append(f"What to do: {next(fitting, MONITOR_LOG)}.")
    elif not coming:
        parts.append(NO_TYPE)
    return " ".join(parts)
