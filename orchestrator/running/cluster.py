"""Connecting to Ray: a private local cluster by default, or one that is already running.

Settings that Ray reads from the environment are all set here; where Ray was imported earlier (a notebook, a
test), it is made to read them again.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from orchestrator.planning.estimate import LOOK_AHEAD
from orchestrator.running.gpus import check_card
from orchestrator.running.orphans import private_folder, remove_leftovers, temporary_files_in
from orchestrator.running.signals import at_forced_end, end_main_thread, own_signals, stop_held
from search_spaces.errors import ConfigError, SetupError
from search_spaces.sweeps import ResourceSpec

# The address of a Ray head, looked at before Ray is asked: it would wait where nobody listens.

ANSWER_TIMEOUT_S = 5.0
LARGEST_PORT = 65_535


def check_form(address: str) -> None:
    """Refuse what cannot be an address, before anything starts.

    Raises:
        ConfigError: when it is neither ``host:port`` nor ``auto``.
    """
    host, _, port = address.rpartition(":")
    if address != "auto" and (
        "://" in address or not host or not port.isdecimal() or int(port) > LARGEST_PORT
    ):
        raise ConfigError(
            "--address must be host:port of a Ray head, or auto",
            address,
            "on the head itself use auto; from elsewhere submit the command with `ray job submit`",
        )


def check_answers(address: str) -> str:
    """Return the address with the host's name looked up: gRPC may not know a name that this machine knows.

    Raises:
        ConfigError: when it is neither ``host:port`` nor ``auto``.
        SetupError: when nothing answers there.
    """
    check_form(address)
    if address == "auto":
        return address
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_TIMEOUT_S) as connection:
            peer = connection.getpeername()[0]
    except (OSError, OverflowError) as error:
        raise SetupError(
            "The Ray address must answer",
            f"{address}: {error}",
            "start the cluster (`ray up cluster.yaml`) or leave --address out to run on this machine",
        ) from None
    return address if ":" in peer else f"{peer}:{port}"


# The head of a Ray cluster, watched: without it Ray ends the driver, with nothing but a line of its own.

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
HEAD_ANSWER_TIMEOUT_S = 2.0
PRIVATE_PATIENCE_S = 4.0
"""A process of a private cluster never comes back; one that is merely busy has its connections accepted."""
SHARED_PATIENCE_S = 120.0
"""That of a shared one may: a network heals, an operator starts it again."""
SAID_AFTER_S = 30.0


class HeadWatch:
    """Looks from a thread whether the head and this node answer, and ends its block when one is lost.

    Args:
        addresses: ``host:port`` of the head and of this node's raylet, by what they are called.
        patience_s: How long it may be silent.
        say: Is told when it has been silent for a while, and when it is back.
    """

    def __init__(
        self, addresses: Mapping[str, str], patience_s: float, say: Callable[[str], None] = log.warning
    ) -> None:
        self.lost: SetupError | None = None
        self._addresses, self._patience_s, self._say = addresses, patience_s, say
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head-watch", daemon=True)

    def __enter__(self) -> HeadWatch:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End looking.

        Raises:
            SetupError: in place of whatever ended the block, when the head was lost.
        """
        self._ended.set()
        if self.lost is not None and error is not None:
            raise self.lost from error

    def _watch(self) -> None:
        silent_s, said = 0.0, False
        # Looks are counted, not hours: a driver that was itself stopped has not looked meanwhile.
        while not self._ended.wait(LOOK_EVERY_S):
            silent = [name for name, address in self._addresses.items() if not answers(address)]
            if not silent:
                if said:
                    self._say("The Ray cluster answers again; going on")
                silent_s, said = 0.0, False
                continue
            silent_s += LOOK_EVERY_S
            if silent_s >= self._patience_s:
                self._give_up(silent[0], silent_s)
                return
            if silent_s >= SAID_AFTER_S and not said:
                said = True
                self._say(f"{silent[0]} at {self._addresses[silent[0]]} does not answer; waiting for it")

    def _give_up(self, name: str, silent_s: float) -> None:
        self.lost = SetupError(
            f"{name} must be there",
            f"{self._addresses[name]}: no answer for {silent_s:.0f} s",
            "run the same command again, on a shared cluster when it is back: what is done is kept",
        )
        log.error("%s", self.lost)
        end_main_thread(self.lost, self._ended)


def answers(address: str) -> bool:
    """Tell whether somebody listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_ANSWER_TIMEOUT_S):
            return True
    except OSError:
        return False


Device = Literal["auto", "cpu", "gpu"]
MIN_RAY = (2, 56)
DISCONNECT_S = 10.0
TOO_SLOW = "timed out during startup"
"""What Ray says when its own node took more than 30 s, which no setting changes and a busy machine needs."""

_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_open_telemetry": "0",  # "1" leaks: see orchestrator.running.trials
    # Ray ends a driver whose head is silent for so long; orchestrator.running.cluster does before, in words.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    # A head that does not answer is asked once; 20 times would take minutes.
    "RAY_NUM_REDIS_GET_RETRIES": "1",
    # Without a bound, a task killed for memory is retried for ever.
    "RAY_task_oom_retries": "2",
    "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Old-style output prints nothing at verbose=0; the new one prints a box all the same.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial's traceback is stored and logged; Tune would print it over the progress.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Ctrl-C is ours: Tune's handler would wait for running trials to finish.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
    # Nothing is ever restored from Tune's own state, so it need not be written often.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Cells are asked for one by one; this many may wait for their worker.
    "TUNE_MAX_PENDING_TRIALS_PG": str(LOOK_AHEAD),
}
_LOCAL_ONLY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's documented switch: every port on loopback
    "RAY_AUTH_MODE": "token",
}


@dataclass(frozen=True)
class Cluster:
    """The cluster that a command is connected to.

    Attributes:
        num_cpus: Logical CPUs over all nodes.
        num_gpus: Logical GPUs over all nodes.
        num_nodes: Nodes alive.
        object_store_bytes: Smallest object store of any node: what one wave of shared arrays must fit in.
        dashboard: Address of the Ray dashboard, or empty.
        local: Whether we started it.
        memory_bytes: Memory that Ray may hand out, over all nodes.
        session: Ray's folder on this node; empty where there is none.
    """

    num_cpus: float
    num_gpus: float
    num_nodes: int
    object_store_bytes: int
    dashboard: str
    local: bool
    memory_bytes: float = math.inf
    session: str = ""


@dataclass(frozen=True)
class Resources:
    """What one trial asks of Ray, and the torch threads that match.

    Attributes:
        num_cpus: CPUs of one trial.
        num_gpus: GPU share of one trial; 0 on a cluster without GPUs.
        memory_bytes: Memory of one trial; 0 asks for none.
        fast: Whether a GPU's steps may be captured graphs, see :class:`~search_spaces.sweeps.ResourceSpec`.
        micro_batches: Whose batches may pass in parts, likewise.
    """

    num_cpus: float
    num_gpus: float
    memory_bytes: int = 0
    fast: str = "auto"
    micro_batches: str = "auto"

    @property
    def num_threads(self) -> int:
        """Torch threads of one trial: its CPU share, at least one."""
        return max(1, int(self.num_cpus))

    def as_ray(self) -> dict[str, float]:
        """Return the request in Ray Tune's words."""
        request: dict[str, float] = {"cpu": self.num_cpus}
        if self.num_gpus:
            request["gpu"] = self.num_gpus
        if self.memory_bytes:
            request["memory"] = self.memory_bytes
        return request


def trial_resources(spec: ResourceSpec, cluster: Cluster, device: Device = "auto") -> Resources:
    """Return what each trial asks for on this cluster.

    Args:
        spec: The sweep's wish.
        cluster: Where it runs.
        device: ``auto`` uses GPUs when the cluster has some now; ``gpu`` asks for them even so, for clusters
            that grow on demand; ``cpu`` never does.

    Raises:
        ConfigError: when a trial asks for more than a private cluster has.
        SetupError: when a trial there is to have a card that torch cannot reach.
    """
    share = 1.0 if spec.num_gpus is None else spec.num_gpus
    use_gpus = device == "gpu" or (device == "auto" and cluster.num_gpus > 0)
    wanted = Resources(
        spec.num_cpus, share if use_gpus else 0.0, spec.memory_bytes, spec.fast, spec.micro_batches
    )
    if cluster.local:
        # A private cluster never grows: such a trial would wait for ever, without a word.
        for name in ("num_cpus", "num_gpus", "memory_bytes"):
            asked, there = getattr(wanted, name), getattr(cluster, name)
            if asked > there:
                way_out = "ask for less, run with --device cpu, or run on a larger cluster"
                raise ConfigError(
                    f"resources.{name} must fit the machine", f"{asked:,g}, it has {there:,g}", way_out
                )
        if wanted.num_gpus:
            check_card()  # or each trial would fail for it, one after the other
    return wanted


def this_machine(num_cpus: int | None = None) -> Cluster:
    """Return the private cluster that this machine could give at most; starts none and looks for no cards."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    there = float(num_cpus or len(os.sched_getaffinity(0)))
    return Cluster(there, 0.0, 1, 0, dashboard="", local=True, memory_bytes=float(memory))


@contextlib.contextmanager
def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: float | None = None,
    dashboard: bool = True,
    token_file: Path | None = None,
    job: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """Connect to Ray for the duration of a ``with`` block.

    Args:
        address: ``host:port`` or ``auto`` of a running cluster; None starts a private one on loopback, with
            its own temporary folder and token, that ends with the block.
        num_cpus: CPUs of the private cluster; None takes all that this process may use.
        num_gpus: GPUs of the private cluster; None lets Ray find them.
        dashboard: Whether the private cluster serves its dashboard (on loopback).
        token_file: Where to write the private cluster's token (mode 600), for opening its dashboard.
        job: What Ray's dashboard says of this driver's job, by key.

    Raises:
        ConfigError: when the address is not of the form ``host:port`` or ``auto``.
        SetupError: when the address does not answer or refuses us, the private cluster does not start, or the
            installed Ray has known holes.
    """
    os.environ.update(_ALWAYS)
    if address is not None:
        head = check_answers(address)
        ray = _imported()
        with _quiet(), own_signals(ray.shutdown):
            context = _attach(ray, address, head, job)
        with _watched(ray, SHARED_PATIENCE_S):
            yield _describe(ray, context, local=False)
        return
    remove_leftovers()
    with _local_environment(token_file):
        ray = _imported()
        started = _started(
            ray,
            job_config=_job_config(ray, job),
            num_cpus=num_cpus or len(os.sched_getaffinity(0)),
            num_gpus=num_gpus,
            include_dashboard=dashboard,
        )
        with started as context, _watched(ray, PRIVATE_PATIENCE_S):
            yield _describe(ray, context, local=True)


@contextlib.contextmanager
def _watched(ray: Any, patience_s: float) -> Iterator[None]:
    """Watch the head and this node during a ``with`` block, then disconnect; Ray would wait for them."""
    context = ray.get_runtime_context()
    addresses = {"The head of the Ray cluster": context.gcs_address}
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            here = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
            addresses["The raylet of this node"] = here
    watch = HeadWatch(addresses, patience_s)
    try:
        with watch:
            yield
    finally:
        if watch.lost is None:
            ray.shutdown()
        else:
            end = threading.Thread(target=ray.shutdown, daemon=True)
            end.start()
            end.join(DISCONNECT_S)


def _imported() -> Any:
    with stop_held():
        import ray

        _check_version(ray.__version__)
        _read_settings_again()
    return ray


@contextlib.contextmanager
def _started(ray: Any, **settings: Any) -> Iterator[Any]:
    """Start a private cluster in a folder that goes with the block, again where the machine was too busy.

    Yields:
        What ``ray.init`` returns.
    """
    for again in (True, True, False):
        with private_folder() as folder:
            with _quiet(), own_signals(ray.shutdown), temporary_files_in(folder):
                context = _start(ray, again=again, _temp_dir=folder, **settings)
            if context is not TOO_SLOW:
                yield context
                return


def _start(ray: Any, *, again: bool = False, **settings: Any) -> Any:
    """Start Ray and return what it says of itself; ``TOO_SLOW`` when it is to be asked ``again``."""
    try:
        return ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR, **settings)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if again and TOO_SLOW in reason:
            log.warning("Ray is started again: %s", reason)
            return TOO_SLOW
        raise SetupError(
            "Ray must start on this machine",
            reason,
            "run the same command again when the machine has less to do; isweep doctor knows other causes",
        ) from error


def _attach(ray: Any, address: str, head: str, job: Mapping[str, str] | None) -> Any:
    try:
        return ray.init(
            address=head, job_config=_job_config(ray, job), log_to_driver=False, logging_level=logging.ERROR
        )
    except Exception as error:
        # Ray says itself when there is no token; that one was refused stands only in what caused its error.
        told = str(error).partition(". ")[0] if isinstance(error, ray.exceptions.AuthenticationError) else ""
        if "InvalidAuthToken" in f"{error!r} {error.__cause__!r}":
            told = "the token is missing or another one"
        if told:
            raise SetupError(
                "The Ray cluster must accept this driver's token",
                f"{address}: {told}",
                "set RAY_AUTH_MODE=token and put its token into ~/.ray/auth_token: docs/cluster.md, Tokens",
            ) from None
        raise SetupError(
            "The Ray cluster must accept this driver",
            f"{address}: {(str(error) or type(error).__name__).splitlines()[0]}",
            "run isweep on a node of the cluster, with its Ray version; the head's port is 6379 unless "
            "`ray start` was told another, and 8265 is the dashboard",
        ) from None


def _job_config(ray: Any, job: Mapping[str, str] | None) -> Any:
    return ray.job_config.JobConfig(metadata=dict(job)) if job else None


def _check_version(version: str) -> None:
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_RAY:
        raise SetupError(
            f"Ray must be {MIN_RAY[0]}.{MIN_RAY[1]} or newer: older ones run code of anyone who reaches them",
            version,
            "pip install -U 'ray[default,tune]'",
        )


def _describe(ray: Any, context: Any, *, local: bool) -> Cluster:
    total = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    stores = [int(node["Resources"].get("object_store_memory", 0)) for node in nodes]
    url = context.dashboard_url if local else None
    return Cluster(
        num_cpus=float(total.get("CPU", 0)),
        num_gpus=float(total.get("GPU", 0)),
        num_nodes=len(nodes),
        object_store_bytes=min((size for size in stores if size), default=0),
        dashboard=f"http://{url}" if url else "",
        local=local,
        memory_bytes=float(total.get("memory", math.inf)),
        session=str(context.address_info.get("session_dir") or ""),
    )


@contextlib.contextmanager
def _local_environment(token_file: Path | None) -> Iterator[None]:
    token = secrets.token_hex(32)
    settings = {**_LOCAL_ONLY, "RAY_AUTH_TOKEN": token}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    if token_file is not None:
        token_file.unlink(missing_ok=True)
        with os.fdopen(os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token)
    try:
        with at_forced_end(lambda: None if token_file is None else token_file.unlink(missing_ok=True)):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_settings_again()
        if token_file is not None:
            token_file.unlink(missing_ok=True)


def _read_settings_again() -> None:
    """Make Ray take its settings from the environment as it is now; it caches them when first imported."""
    # Private: with a Ray that has them no more, a notebook must import isweep before Ray.
    with contextlib.suppress(ImportError, AttributeError):
        raylet: Any = importlib.import_module("ray._raylet")
        # This order is Ray's own (its authentication tests): mode first, then the cached token.
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    with contextlib.suppress(ImportError, AttributeError):
        constants: Any = importlib.import_module("ray._private.ray_constants")
        constants.NUM_REDIS_GET_RETRIES = 1
        constants.ENABLE_RAY_CLUSTER = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1") == "1"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's start-up chatter out of the terminal; errors still raise."""
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    yield
