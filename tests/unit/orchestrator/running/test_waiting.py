"""Test why no trial runs: the report of Ray's autoscaler in both of its versions, and hangs."""

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
from orchestrator.running.recovery.start_wait import StartWait
from orchestrator.running.recovery.watchdog import Watchdog
from search_spaces.errors import SetupError
from tests.steady_clock import SteadyClock

NO_CAPACITY = "InsufficientInstanceCapacity: we have no g6.4xlarge in us-east-1a"


def status_of_version_1() -> str:
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


def status_of_version_2() -> str:
    def failed(name: str, at: float, reason: str) -> LaunchRequest:
        return LaunchRequest(
            "g6", name, 1, LaunchRequest.Status.FAILED, at, failed_ts_s=at, details=reason
        )

    status = ClusterStatus(
        pending_launches=[LaunchRequest("g6", "gpu", 2, LaunchRequest.Status.PENDING, 1)],
        failed_launches=[failed("old", 5, "VcpuLimitExceeded"), failed("new", 9, NO_CAPACITY)],
        pending_nodes=[NodeInfo("g6", "gpu", "i-1", "10.0.0.2", details="INSTALLING")],
    )
    return ClusterStatusFormatter.format(status, verbose=True)


@pytest.mark.parametrize(
    ("make_status", "words"),
    [
        (
            status_of_version_1,
            r"Nodes being launched: spot, 3 launching; 10\.0\.0\.2: gpu, setting-up\. A launch failed: spot: "
            r"Insuff.*"
            r"no g6 here\. A launch failed: gpu: Quota.*"
            r"A launch failed: gpu: NodeTerminated \(ip: 10\.0\.0\.4\)\. Choose another "
            r"zone",
        ),
        (
            status_of_version_2,
            r"Nodes being launched: gpu, 1 launching; i-1: gpu, installing\. A launch failed: new: "
            r"LaunchFailed.*"
            rf"{NO_CAPACITY}\. A launch failed: old: ",
        ),
    ],
)
def test_the_summary_of_both_versions_has_launching_nodes_and_failed_launches(make_status, words):
    assert re.match(words, status_summary(make_status()))


def status(*failures: str, pending: str = "(no pending nodes)", node: str = "head") -> str:
    failed = "\n ".join(failures) or "(no failures)"
    return (
        f"Active:\n 1 {node}\nPending:\n {pending}\nRecent failures:\n {failed}\n\nResources\n---"
    )


@pytest.mark.parametrize(
    ("message", "hint"),
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
def test_the_hint_depends_on_the_words_of_the_cloud_provider(message, hint):
    summary = status_summary(status(message))
    assert hint in summary.rpartition("A launch failed: ")[2]


def test_a_summary_has_the_newest_failures_or_a_possible_reason():
    text = status_summary(status(NO_CAPACITY, "b.", "c", "d", pending="gpu, 1 launching"))
    assert f"gpu, 1 launching. A launch failed: {NO_CAPACITY}. A launch failed: b. " in text
    assert "A launch failed: d" not in text
    assert text.endswith("lower `max_workers` of the node type whose launch failed.")
    nothing = (
        "No node is being launched. Lower `resources` in the sweep file, or raise `max_workers`"
    )
    assert status_summary(status()).startswith(nothing)
    assert "raise max_workers" not in status_summary(status(pending="gpu, 1 launching"))
    assert status_summary(status(node=f"node_{'3f' * 28}")) is None
    assert status_summary("") is None


@pytest.mark.ray
def test_a_cluster_without_an_autoscaler_has_no_report(ray_local, monkeypatch):
    statuses = [""]
    monkeypatch.setattr(
        shortage, "status_summary", lambda status: statuses.append(status) or status_summary(status)
    )
    while "node_" not in statuses[-1]:
        time.sleep(0.1)  # until the monitor of Ray has reported its nodes
        assert autoscaler_report() is None
    text = shortage_for(Resources(1, 0.5))
    assert "0.5 GPU (the cluster has 0, 0 free)" in text
    assert "adds no nodes by itself" in text


def simulate_cluster(monkeypatch, nodes: list[dict[str, float]], free: dict[str, float]) -> None:
    """Replace Ray by a cluster with the given nodes and free resources, and one dead node."""
    names = {name for node in nodes for name in node}
    total = {name: sum(node.get(name, 0) for node in nodes) for name in names}
    monkeypatch.setattr(shortage, "autoscaler_report", lambda: None)
    alive_nodes = [{"Alive": True, "Resources": node} for node in nodes]
    dead_node = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    ray = SimpleNamespace(
        cluster_resources=lambda: total,
        available_resources=lambda: free,
        nodes=lambda: [*alive_nodes, dead_node],
    )
    for module in (shortage, capacity):
        monkeypatch.setattr(module, "ray", ray)


def test_nodes_that_are_each_too_small_are_named(monkeypatch):
    simulate_cluster(
        monkeypatch,
        [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}],
        {"CPU": 4.0, "GPU": 1.0},
    )
    without_gpu = shortage_for(Resources(3, 0))
    with_gpu = shortage_for(Resources(3, 1))
    kinds = "No single node has all requested resources: the nodes have 1 CPU (2 nodes), 2 CPU (1 node). "
    assert without_gpu.startswith(
        f"each trial requests 3 CPU (the cluster has 4, 4 free). {kinds}This cluster adds"
    )
    assert without_gpu.endswith("Add nodes, or lower `resources` in the sweep file.")
    # The cluster has 3 CPUs and 1 GPU, but no node has both.
    assert "0 GPU (2 nodes)" in with_gpu
    assert with_gpu.endswith("lower `resources` in the sweep file, or run with `--device cpu`.")


@pytest.mark.parametrize(
    ("nodes", "free", "requested", "is_used_by_others"),
    [
        ([2.0], 0.5, Resources(1, 0), True),
        ([2.0], 0.0, Resources(1, 0), True),
        ([2.0], 2.0, Resources(1, 0), False),
        # Two of four CPUs are free, one on each node: a trial of two waits for the other work.
        ([2.0, 2.0], 2.0, Resources(2, 0), True),
        # More than the cluster has: waiting does not help.
        ([2.0], 0.5, Resources(4, 0), False),
        ([2.0], 0.0, Resources(1, 0.5), False),
    ],
)
def test_resources_that_are_not_free_are_reported_as_used_by_others(
    monkeypatch, nodes, free, requested, is_used_by_others
):
    simulate_cluster(monkeypatch, [{"CPU": node} for node in nodes], {"CPU": free})
    message = shortage_for(requested)
    assert (
        "Other work, or processes that are starting, use the other resources." in message
    ) is is_used_by_others
    assert message.endswith("continues when the requested resources are free.") is is_used_by_others
    assert ("Add nodes, " in message) is not is_used_by_others


def watchdog(
    clock, note=print, kill=None, shortage=lambda: "", *, is_private=False, cpu_seconds=dict
):
    """Return a watchdog that kills every trial with the function ``kill``."""
    start_wait = StartWait(
        note, shortage, is_private=is_private, cpu_seconds=cpu_seconds, now=clock.monotonic()
    )
    return Watchdog(note, lambda trial: kill, start_wait, clock)


def test_the_reason_is_reported_after_a_minute_and_again_only_if_it_changes():
    clock = SteadyClock()
    messages = []
    reasons = ["no capacity"]
    watch = watchdog(clock, note=messages.append, shortage=lambda: reasons[0])
    pending = [SimpleNamespace(status="PENDING", config={TRIAL_ID: "cell"})]
    running = [SimpleNamespace(status="RUNNING", config={TRIAL_ID: "cell"})]

    def check_until(end: float, trials: list[SimpleNamespace]) -> None:
        while clock.now < end:
            clock.now = min(clock.now + 10, end)
            watch.check(trials, {"cell"})

    check_until(59, pending)
    assert messages == []
    check_until(61, pending)
    check_until(130, pending)
    assert messages == ["No trial could start for 61 s: no capacity"]
    reasons[0] = "a quota"
    check_until(150, pending)
    check_until(200, pending)
    assert messages[1:] == ["No trial could start for 200 s: a quota"]
    clock.now = 4000.0  # the machine slept
    watch.check(pending, {"cell"})
    assert len(messages) == 2
    check_until(4010, running)
    assert messages[2:] == ["A trial started after 10 s without a running trial."]
    check_until(4060, pending)
    assert len(messages) == 3


@pytest.mark.parametrize(
    ("nodes", "resources", "expected_slots", "warning"),
    [
        ([(128, 8)], Resources(4, 0.25), 32, ""),
        (
            [(16, 8)],
            Resources(4, 0.25),
            4,
            "enough for only 4. To use all GPUs, lower `resources.num_cpus`, or use nodes with 128",
        ),
        # CPUs of a node without GPUs do not help another node.
        (
            [(256, 0), (8, 1)],
            Resources(4, 0.25),
            2,
            "with `resources.num_cpus: 4` the cluster's CPUs are enough for only 2. To use all GPUs",
        ),
        ([(8, 1)], Resources(2, 0.25), 4, ""),
        ([(2, 0)], Resources(4, 0), 1, ""),
        ([(4, 4)], Resources(1, 2), 2, ""),
        # The mean of equal requests is rounded.
        ([(20, 1)], Resources(1, 0.10000000000000002), 10, ""),
        ([(1, 0)], Resources(0.10000000000000002, 0), 10, ""),
    ],
)
def test_gpus_that_stay_unused_for_lack_of_cpus_give_a_warning(
    monkeypatch, nodes, resources, expected_slots, warning
):
    simulate_cluster(monkeypatch, [{"CPU": cpus, "GPU": gpus} for cpus, gpus in nodes], {})
    slots, message = slots_for(resources)
    assert slots == expected_slots
    assert warning in message
    assert bool(message) == bool(warning)


# A hang is a trial beyond its limit, unless the driver itself stood still

RUNNING_TRIALS = [SimpleNamespace(config={TRIAL_ID: "cell"}, status="RUNNING")]
STARTED = "started"
MESSAGE = "message"


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        # Beyond its limit.
        ([STARTED, MESSAGE, 100, 40], "the trial finished no epoch and sent no result for 100 s"),
        # A trial that reports epochs is not ended, however slow it is.
        (
            [STARTED, *[MESSAGE, 90] * 5, MESSAGE, 120],
            "the trial finished no epoch and sent no result for 100 s",
        ),
        # The driver stood still, as with a full disk or a closed laptop.
        (
            [STARTED, MESSAGE, 50, -3600, 50, 20],
            "the trial finished no epoch and sent no result for 100 s",
        ),
        ([STARTED, 60, 10], "the worker did not answer for 60 s, so its process was killed"),
        # The worker hangs between two trials: the next one does not start.
        ([60, 20], "the worker did not answer for 60 s, so its process was killed"),
    ],
)
def test_a_trial_is_ended_at_its_limit_and_not_before(events, reason):
    """An event is a message, or seconds with a check every ten; negative, without checks."""
    clock = SteadyClock()
    messages = []
    killed = []

    def kill():
        killed.append(clock.now)

    watch = watchdog(clock, note=messages.append, kill=kill)
    for number, event in enumerate(events, 1):
        if event == STARTED:
            watch.add("cell", 100.0)
        elif event == MESSAGE:
            watch.note_message("cell")
        elif event < 0:
            clock.now -= event
        else:
            for _ in range(event // 10):
                clock.now += 10
                watch.check(RUNNING_TRIALS, {"cell"})
        assert len(killed) == (number == len(events))
    assert watch.failure_of("cell").message.startswith(reason)
    assert messages == ([f"cell: {reason}"] if "answer" in reason else [])


def test_a_retry_after_a_hang_is_watched_before_tune_reports_its_start():
    clock = SteadyClock()
    killed = []
    watch = watchdog(clock, kill=lambda: killed.append(clock.now))

    def wait(seconds):
        for _ in range(seconds // 10):
            clock.now += 10
            watch.check(RUNNING_TRIALS, {"cell"})

    wait(80)  # the worker of the first attempt does not answer
    assert len(killed) == 1
    watch.remove("cell")
    assert watch.failure_of("cell") is None

    wait(80)  # neither does that of the retry

    assert len(killed) == 2


def second_of_end(cpu_seconds, *, is_private=True, seconds=4000):
    """Return the second at which a run without a started trial ends; None if it continues.

    ``cpu_seconds`` returns the CPU time of each worker process at a second.
    """
    clock = SteadyClock()
    start = clock.now
    watch = watchdog(
        clock, is_private=is_private, cpu_seconds=lambda: cpu_seconds(clock.now - start)
    )
    pending = [SimpleNamespace(config={TRIAL_ID: "cell"}, status="PENDING")]
    while clock.now - start < seconds:
        clock.now += 10
        try:
            watch.check(pending, {"cell"})
        except SetupError:
            return clock.now - start
    return None


def test_a_run_ends_after_three_minutes_without_progress_of_a_worker():
    assert 180 < second_of_end(lambda second: {}) <= 250
    # The process has used CPU time and uses no more.
    assert 180 < second_of_end(lambda second: {7: 30.0}) <= 250
    assert second_of_end(lambda second: {}, is_private=False) is None


def test_a_run_waits_for_a_worker_that_still_imports():
    """A first start once took 166 s at a load of 80, and three runs ended during the imports."""
    assert second_of_end(lambda second: {7: 0.025 * second}, seconds=1700) is None
    assert 600 < second_of_end(lambda second: {7: 0.025 * min(second, 600.0)}) <= 900


def test_a_run_does_not_wait_for_workers_that_die_and_start_again():
    assert 180 < second_of_end(lambda second: {int(second): 5.0}) <= 250


def test_a_run_ends_after_half_an_hour_without_a_started_trial():
    assert 1800 < second_of_end(lambda second: {7: second}) <= 1900
