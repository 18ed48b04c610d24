"""Why nothing runs: what Ray's autoscaler says, in both of its forms, and what follows; and what
hangs."""

import re
import time
from types import SimpleNamespace

import pytest
from ray.autoscaler._private.autoscaler import AutoscalerSummary
from ray.autoscaler._private.load_metrics import LoadMetricsSummary
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeAvailabilityRecord,
    NodeAvailabilitySummary,
    UnavailableNodeInformation,
)
from ray.autoscaler._private.util import format_info_string
from ray.autoscaler.v2.schema import ClusterStatus, LaunchRequest, NodeInfo
from ray.autoscaler.v2.utils import ClusterStatusFormatter

from orchestrator.machine.cluster import Resources
from orchestrator.running import capacity
from orchestrator.running.capacity import slots_for
from orchestrator.running.queue import TRIAL_ID
from orchestrator.running.recovery import shortage
from orchestrator.running.recovery.shortage import (
    autoscaler_report,
    shortage_for,
    status_summary,
)
from orchestrator.running.recovery.watchdog import Watchdog
from search_spaces.errors import SetupError
from tests.steady_clock import SteadyClock

NO_CAPACITY = "InsufficientInstanceCapacity: we have no g6.4xlarge in us-east-1a"


def first_version() -> str:
    cause = UnavailableNodeInformation("InsufficientInstanceCapacity", "no g6 here")
    older = UnavailableNodeInformation("Quota", "0 vCPUs")
    kinds = {
        "gpu": NodeAvailabilityRecord("gpu", False, 10.0, older),
        "spot": NodeAvailabilityRecord("spot", False, 20.0, cause),
    }
    summary = AutoscalerSummary(
        active_nodes={"head": 1},
        idle_nodes=None,
        pending_nodes=[("10.0.0.2", "gpu", "setting-up")],
        pending_launches={"spot": 3},
        failed_nodes=[("10.0.0.4", "gpu")],
        node_availability_summary=NodeAvailabilitySummary(kinds),
    )
    empty = {key: [] for key in ("resource_demand", "pg_demand", "request_demand", "node_types")}
    return format_info_string(LoadMetricsSummary(usage={}, **empty), summary, verbose=True)


def second_version() -> str:
    def failed(name: str, at: float, why: str) -> LaunchRequest:
        return LaunchRequest(
            "g6", name, 1, LaunchRequest.Status.FAILED, at, failed_ts_s=at, details=why
        )

    status = ClusterStatus(
        pending_launches=[LaunchRequest("g6", "gpu", 2, LaunchRequest.Status.PENDING, 1)],
        failed_launches=[failed("old", 5, "VcpuLimitExceeded"), failed("new", 9, NO_CAPACITY)],
        pending_nodes=[NodeInfo("g6", "gpu", "i-1", "10.0.0.2", details="INSTALLING")],
    )
    return ClusterStatusFormatter.format(status, verbose=True)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            first_version,
            r"Nodes being launched: spot, 3 launching; 10\.0\.0\.2: gpu, setting-up\. A launch failed: spot: "
            r"Insuff.*"
            r"no g6 here\. A launch failed: gpu: Quota.*"
            r"A launch failed: gpu: NodeTerminated \(ip: 10\.0\.0\.4\)\. Choose another "
            r"zone",
        ),
        (
            second_version,
            r"Nodes being launched: gpu, 1 launching; i-1: gpu, installing\. A launch failed: new: "
            r"LaunchFailed.*"
            rf"{NO_CAPACITY}\. A launch failed: old: ",
        ),
    ],
)
def test_both_versions_tell_what_comes_and_what_failed(said, words):
    assert re.match(words, status_summary(said()))


def status(*failures: str, pending: str = "(no pending nodes)", node: str = "head") -> str:
    failed = "\n ".join(failures) or "(no failures)"
    return (
        f"Active:\n 1 {node}\nPending:\n {pending}\nRecent failures:\n {failed}\n\nResources\n---"
    )


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (f"gpu: {NO_CAPACITY}", "Choose another zone"),
        ("gpu: ZONE_RESOURCE_POOL_EXHAUSTED", "Choose another zone"),
        ("gpu: VcpuLimitExceeded: you have requested more vCPU capacity", "higher quota"),
        ("gpu: MaxSpotInstanceCountExceeded", "higher quota"),
        ("gpu: Quota 'GPUS_ALL_REGIONS' exceeded", "higher quota"),
        ("gpu: AuthFailure.ServiceLinkedRoleCreationNotPermitted", "create-service-linked-role"),
        ("gpu: UnauthorizedOperation: iam:PassRole", "clusters/iam/head.json"),
        ("gpu: InvalidAMIID.NotFound", "Correct the image"),
        ("gpu: 1 nodes did not get through their setup", "monitor"),
        ("gpu: something new", "monitor"),
    ],
)
def test_the_hint_follows_the_providers_words(message, what):
    assert what in status_summary(status(message)).rpartition("A launch failed: ")[2]


def test_a_report_says_the_newest_failures_and_else_what_may_be_in_the_way():
    text = status_summary(status(NO_CAPACITY, "b.", "c", "d", pending="gpu, 1 launching"))
    assert f"gpu, 1 launching. A launch failed: {NO_CAPACITY}. A launch failed: b. " in text
    assert "A launch failed: d" not in text
    assert text.endswith("the file already has, lower max_workers of this one.")
    nothing = "No node is being launched. Lower resources in the sweep file, or raise max_workers"
    assert status_summary(status()).startswith(nothing)
    assert "raise max_workers" not in status_summary(status(pending="gpu, 1 launching"))
    assert status_summary(status(node=f"node_{'3f' * 28}")) is status_summary("") is None


@pytest.mark.ray
def test_a_cluster_without_an_autoscaler_has_no_report(ray_local, monkeypatch):
    said = [""]
    monkeypatch.setattr(
        shortage, "status_summary", lambda status: said.append(status) or status_summary(status)
    )
    while "node_" not in said[-1]:
        time.sleep(0.1)  # until Ray's monitor has written of its nodes
        assert autoscaler_report() is None
    text = shortage_for(Resources(1, 0.5))
    assert "0.5 GPU (the cluster has 0, 0 free)" in text
    assert "adds no nodes by itself" in text


def of_nodes(monkeypatch, nodes: list[dict[str, float]], free: dict[str, float]) -> None:
    """A cluster of these nodes, of which so much is free."""
    names = {name for node in nodes for name in node}
    total = {name: sum(node.get(name, 0) for node in nodes) for name in names}
    monkeypatch.setattr(shortage, "autoscaler_report", lambda: None)
    shown = [{"Alive": True, "Resources": node} for node in nodes]
    shown += [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    there = {"cluster_resources": total, "available_resources": free, "nodes": shown}
    answers = {name: lambda found=found: found for name, found in there.items()}
    for module in (shortage, capacity):
        monkeypatch.setattr(module, "ray", SimpleNamespace(**answers))


def test_nodes_that_are_each_too_small_are_named(monkeypatch):
    of_nodes(
        monkeypatch,
        [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}],
        {"CPU": 4.0, "GPU": 1.0},
    )
    said, with_gpu = shortage_for(Resources(3, 0)), shortage_for(Resources(3, 1))
    kinds = "No single node has all of these: the nodes have 1 CPU (2 nodes), 2 CPU (1 node). "
    assert said.startswith(
        f"each trial requests 3 CPU (the cluster has 4, 4 free). {kinds}This cluster adds"
    )
    assert said.endswith("add nodes, or lower resources in the sweep file.")
    # Each alone would be there, together they are on no node.
    assert "0 GPU (2 nodes)" in with_gpu
    assert with_gpu.endswith("lower resources in the sweep file, or run with --device cpu.")


@pytest.mark.parametrize(
    ("nodes", "free", "asked", "held"),
    [
        ([2.0], 0.5, Resources(1, 0), True),
        ([2.0], 0.0, Resources(1, 0), True),
        ([2.0], 2.0, Resources(1, 0), False),
        # Two of four are free, one on each node: who asks for two waits for the other work, not for
        # nodes.
        ([2.0, 2.0], 2.0, Resources(2, 0), True),
        # More than there is: waiting helps nobody.
        ([2.0], 0.5, Resources(4, 0), False),
        ([2.0], 0.0, Resources(1, 0.5), False),
    ],
)
def test_what_is_there_but_not_free_is_said_to_be_held_and_needs_no_more_nodes(
    monkeypatch, nodes, free, asked, held
):
    of_nodes(monkeypatch, [{"CPU": node} for node in nodes], {"CPU": free})
    said = shortage_for(asked)
    assert ("Other work, or processes that are starting, use the rest." in said) is held
    assert said.endswith("continues when these resources are free.") is held
    assert ("add nodes, " in said) is not held


def test_the_reason_is_said_after_a_minute_and_again_only_when_it_changes():
    clock, said, reasons = SteadyClock(), [], ["no capacity"]
    watch = Watchdog(
        said.append, lambda trial: None, lambda: reasons[0], is_private=False, clock=clock
    )
    about = {"config": {TRIAL_ID: "cell"}}
    pending, running = (
        [SimpleNamespace(status=status, **about)] for status in ("PENDING", "RUNNING")
    )

    def look(at: float, trials: list[SimpleNamespace]) -> None:
        while clock.now < at:
            clock.now = min(clock.now + 10, at)
            watch.check(trials, {"cell"})

    look(59, pending)
    assert said == []
    look(61, pending)
    look(130, pending)
    assert said == ["No trial could start for 61 s: no capacity"]
    reasons[0] = "a quota"
    look(150, pending)
    look(200, pending)
    assert said[1:] == ["No trial could start for 200 s: a quota"]
    clock.now = 4000.0  # the machine slept
    watch.check(pending, {"cell"})
    assert len(said) == 2
    look(4010, running)
    assert said[2:] == ["A trial started after 10 s without a running trial."]
    look(4060, pending)
    assert len(said) == 3


@pytest.mark.parametrize(
    ("nodes", "resources", "at_once", "said"),
    [
        ([(128, 8)], Resources(4, 0.25), 32, ""),
        (
            [(16, 8)],
            Resources(4, 0.25),
            4,
            "enough for only 4. To use all GPUs, lower resources.num_cpus, or use nodes with 128 CPUs",
        ),
        # CPUs of a node without gpus fill none of another's.
        (
            [(256, 0), (8, 1)],
            Resources(4, 0.25),
            2,
            "could run 4 trials at once, but with `resources.num_cpus: 4` its CPUs are enough for only 2",
        ),
        ([(8, 1)], Resources(2, 0.25), 4, ""),
        ([(2, 0)], Resources(4, 0), 1, ""),
        ([(4, 4)], Resources(1, 2), 2, ""),
        # The mean of equal requests is rounded.
        ([(20, 1)], Resources(1, 0.10000000000000002), 10, ""),
        ([(1, 0)], Resources(0.10000000000000002, 0), 10, ""),
    ],
)
def test_gpus_that_stay_empty_for_want_of_cpus_are_told_node_by_node(
    monkeypatch, nodes, resources, at_once, said
):
    of_nodes(monkeypatch, [{"CPU": cpus, "GPU": gpus} for cpus, gpus in nodes], {})
    found, told = slots_for(resources)
    assert (found, said in told, bool(told)) == (at_once, True, bool(said))


# What counts as a hang: a trial past its limit, and no driver that stood still.

CELL = [SimpleNamespace(config={TRIAL_ID: "cell"}, status="RUNNING")]
STARTED, HEARD = "started", "heard"


@pytest.mark.parametrize(
    ("events", "told"),
    [
        # Past its limit, once.
        ([STARTED, HEARD, 100, 40], "the trial ended no epoch and sent no result for 100 s"),
        # One that tells of epochs lives however slow it is.
        (
            [STARTED, *[HEARD, 90] * 5, HEARD, 120],
            "the trial ended no epoch and sent no result for 100 s",
        ),
        # A full disk, a closed laptop: the driver stood still.
        (
            [STARTED, HEARD, 50, -3600, 50, 20],
            "the trial ended no epoch and sent no result for 100 s",
        ),
        ([STARTED, 60, 10], "the worker did not answer for 60 s, so its process was killed"),
        # It freezes between two cells: Tune asks it to take the next, which does not start.
        ([60, 20], "the worker did not answer for 60 s, so its process was killed"),
    ],
)
def test_a_trial_is_ended_at_its_limit_and_not_before(events, told):
    """Events in turn, and seconds in which the driver looks every ten; negative, it does not
    look."""
    clock, said, killed = SteadyClock(), [], []
    kill = lambda: killed.append(clock.now)  # noqa: E731
    watch = Watchdog(said.append, lambda trial: kill, lambda: "", is_private=False, clock=clock)
    for number, event in enumerate(events, 1):
        if event == STARTED:
            watch.add("cell", 100.0)
        elif event == HEARD:
            watch.message_from("cell")
        elif event < 0:
            clock.now -= event
        else:
            for _ in range(event // 10):
                clock.now += 10
                watch.check(CELL, {"cell"})
        assert len(killed) == (number == len(events))
    assert watch.failure("cell").message.startswith(told)
    assert said == ([f"cell: {told}"] if "answer" in told else [])


def ends_after(cpu_seconds, *, is_private=True, seconds=4000):
    """Return the second at which a run ends of which no trial starts; None if it goes on.

    ``cpu_seconds`` gives the CPU time of each worker process at a second."""
    clock, notes = SteadyClock(), []
    began = clock.now
    watch = Watchdog(
        notes.append,
        lambda trial: None,
        lambda: "nothing is free",
        is_private=is_private,
        cpu_seconds=lambda: cpu_seconds(clock.now - began),
        clock=clock,
    )
    pending = [SimpleNamespace(config={TRIAL_ID: "cell"}, status="PENDING")]
    while clock.now - began < seconds:
        clock.now += 10
        try:
            watch.check(pending, {"cell"})
        except SetupError:
            return clock.now - began
    return None


def test_a_machine_on_which_no_worker_gets_anywhere_is_given_up_after_three_minutes():
    assert 180 < ends_after(lambda second: {}) <= 250
    assert 180 < ends_after(lambda second: {7: 30.0}) <= 250  # it has computed, and stands still
    assert ends_after(lambda second: {}, is_private=False) is None


def test_a_worker_that_still_imports_is_waited_for():
    """At a load of 80 a first start took 166 s; three runs ended while their workers imported."""
    assert ends_after(lambda second: {7: 0.025 * second}, seconds=1700) is None
    assert 600 < ends_after(lambda second: {7: 0.025 * min(second, 600.0)}) <= 900


def test_workers_that_die_at_once_and_are_started_again_are_not_waited_for():
    assert 180 < ends_after(lambda second: {int(second): 5.0}) <= 250


def test_no_start_takes_half_an_hour():
    assert 1800 < ends_after(lambda second: {7: second}) <= 1900
