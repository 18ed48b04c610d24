"""Connecting to Ray: a private local cluster by default, or one that is already running.

Settings that Ray reads from the environment are all set here.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.machine import ending
from orchestrator.machine.gpus import check_driver, gpus_here, has_devices, is_logical, visible_gpus
from orchestrator.planning.replay import LOOK_AHEAD
from search_spaces.errors import ConfigError, SetupError
from search_spaces.sweeps import ResourceSpec

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "gpu"]
MIN_RAY = (2, 56)
LARGEST_PORT = 65_535
ANSWER_TIMEOUT_S = 5.0
LOOK_EVERY_S = 2.0
HEAD_ANSWER_TIMEOUT_S = 2.0
PRIVATE_PATIENCE_S = 4.0
"""A process of a private cluster never comes back; one that is merely busy has its connections
accepted."""
SHARED_PATIENCE_S = 120.0
"""That of a shared one may: a network heals, an operator starts it again."""
SAID_AFTER_S = 30.0
DISCONNECT_S = 10.0
TOO_SLOW = "timed out during startup"
"""What Ray says when its own node took more than 30 s, which no setting changes and a busy machine
needs."""

_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_open_telemetry": "0",  # "1" leaks: see orchestrator.running.queue
    # Ray ends a driver whose head is silent for so long; ours is ended before.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    # A head that does not answer is asked once; 20 times would take minutes.
    "RAY_NUM_REDIS_GET_RETRIES": "1",
    # A process per CPU that mostly nobody needs.
    "RAY_prestart_worker_first_driver": "0",
    # What a trial says that ends with the sweep is for nobody's terminal.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # Without a bound, a task killed for memory is retried for ever.
    "RAY_task_oom_retries": "2",
    "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Old-style output prints nothing at verbose=0; the new one prints a box all the same.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Ctrl-C is ours: Tune's handler would wait for running trials to finish.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
    # Nothing is ever restored from Tune's own state.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Cells are asked for one by one; this many may wait for their worker.
    "TUNE_MAX_PENDING_TRIALS_PG": str(LOOK_AHEAD),
}
_LOCAL_ONLY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's documented switch: every port on loopback
    "RAY_AUTH_MODE": "token",
}


@dataclass(frozen=True)
class RunOptions:
    """Where and how to run; nothing here can change a result.

    Attributes:
        root: Folder of everything; None takes ``$ISWEEP_ROOT`` or ``./isweep-root``.
        storage: Folder or URL of the result store; None keeps it below the root.
        address: Running Ray cluster; None starts a private one.
        num_cpus: CPUs of the private cluster.
        device: See :func:`trial_resources`.
        dashboard: Whether the private cluster serves its dashboard.
        mlflow_uri: MLflow store; None takes ``$MLFLOW_TRACKING_URI``, then SQLite below the root.
        tracking: False keeps MLflow out of it.
        raw: Folders of raw downloads by dataset, for datasets that are not prepared yet.
        max_skipped_share: Largest share of a dataset's files that may be unusable.
    """

    root: str | None = None
    storage: str | None = None
    address: str | None = None
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    device: Device = "auto"
    dashboard: bool = True
    mlflow_uri: str | None = None
    tracking: bool = True
    raw: dict[str, Path] = field(default_factory=dict)
    max_skipped_share: Annotated[float, Field(ge=0, le=1)] = 0.001

    def __post_init__(self) -> None:
        """Refuse an address that cannot be one while nothing has started yet."""
        if self.address is not None:
            _parted(self.address)


def _parted(address: str) -> tuple[str, str]:
    """Return host and port of a Ray head; both are empty for ``auto``."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return "", ""
    if "://" in address or not host or not port.isdecimal() or int(port) > LARGEST_PORT:
        hint = (
            "on the head itself use auto; from elsewhere submit the command with `ray job submit`"
        )
        raise ConfigError("--address must be host:port of a Ray head, or auto", address, hint)
    return host, port


def reached(address: str) -> str:
    """Return an address that answers, where Ray would wait, with its host's name looked up for
    gRPC.
    """
    host, port = _parted(address)
    if not host:
        return address
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_TIMEOUT_S) as connection:
            peer = connection.getpeername()[0]
    except (OSError, OverflowError) as error:
        hint = (
            "start the cluster (`ray up cluster.yaml`) or leave --address out to run on this "
            "machine"
        )
        raise SetupError("The Ray address must answer", f"{address}: {error}", hint) from None
    return address if ":" in peer else f"{peer}:{port}"


def answers(host: str, port: int) -> bool:
    """Tell whether somebody listens there."""
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=HEAD_ANSWER_TIMEOUT_S):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class Cluster:
    """The cluster that a command is connected to, which is ``local`` where the command started it.

    Amounts are logical ones, over all nodes; the object store is the smallest of any node.
    """

    num_cpus: float
    num_gpus: float
    num_nodes: int
    object_store_bytes: int
    dashboard: str
    local: bool
    memory_bytes: float = math.inf


@dataclass(frozen=True)
class Resources:
    """What one trial gets: a share of 0 is of no GPU, and 0 bytes ask Ray for no memory.

    ``fast`` and ``micro_batches`` are those of :class:`~search_spaces.sweeps.ResourceSpec`. Batches
    pass the network whole, or ``micro_batch`` images at once.
    """

    num_cpus: float
    num_gpus: float
    memory_bytes: int = 0
    fast: str = "auto"
    micro_batches: str = "auto"
    micro_batch: int | None = None

    def as_ray(self) -> dict[str, float]:
        """Return the request in Ray Tune's words."""
        asked = {"cpu": self.num_cpus, "gpu": self.num_gpus, "memory": self.memory_bytes}
        return {name: amount for name, amount in asked.items() if amount}

    def for_worker(self) -> dict[str, Any]:
        """Return what a trial's process is told of it; torch threads are its CPU share, at least
        one.
        """
        told = {name: getattr(self, name) for name in ("num_gpus", "fast", "micro_batch")}
        return told | {"num_threads": max(1, int(self.num_cpus)), "request": self.as_ray()}


def trial_resources(spec: ResourceSpec, cluster: Cluster, device: Device = "auto") -> Resources:
    """Return what each trial asks for on this cluster.

    ``device`` ``auto`` uses GPUs when the cluster has some now; ``gpu`` asks for them even so, for
    clusters that grow on demand; ``cpu`` never does. What a private cluster has not raises a
    ``SweepError``.
    """
    share = 1.0 if spec.num_gpus is None else spec.num_gpus
    use_gpus = device == "gpu" or (device == "auto" and cluster.num_gpus > 0)
    wanted = Resources(
        spec.num_cpus, share if use_gpus else 0.0, spec.memory_bytes, spec.fast, spec.micro_batches
    )
    if cluster.local:
        if device != "cpu" and not cluster.num_gpus:
            check_driver()
        # A private cluster never grows: such a trial would wait for ever, without a word.
        for name in ("num_cpus", "num_gpus", "memory_bytes"):
            asked, there = getattr(wanted, name), getattr(cluster, name)
            if asked > there:
                rule, found = (
                    f"resources.{name} must fit the machine",
                    f"{asked:,g}, it has {there:,g}",
                )
                hint = "ask for less, run with --device cpu, or run on a larger cluster"
                raise ConfigError(rule, found, hint)
    return wanted


def this_machine(num_cpus: int | None = None) -> Cluster:
    """Return the private cluster that this machine could give at most; starts none and looks for no
    GPUs.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    there = float(num_cpus or len(os.sched_getaffinity(0)))
    return Cluster(there, 0.0, 1, 0, dashboard="", local=True, memory_bytes=float(memory))


@contextlib.contextmanager
def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    dashboard: bool = True,
    token_file: Path | None = None,
    job: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """Connect to Ray for the duration of a ``with`` block.

    Args:
        address: Of a running cluster; None starts a private one on loopback, with its own temporary
            folder and token, that ends with the block.
        num_cpus: CPUs of the private cluster; None takes all that this process may use.
        dashboard: Whether the private cluster serves its dashboard.
        token_file: Where to write the private cluster's token (mode 600), for opening its
            dashboard.
        job: What Ray's dashboard says of this driver's job, by key.

    Raises:
        SweepError: when Ray does not answer, start or accept us, or has known holes.
    """
    # Ray takes a child of process 1 for an orphan, which it ends without a word where its raylet is
    # gone.
    os.environ.update(_ALWAYS, RAY_RAYLET_PID=str(os.getpid()))
    for name in ("ray", "ray.tune", "ray.train"):  # errors still raise
        logging.getLogger(name).setLevel(logging.ERROR)
    # Of cells that were tried again and are done; what one fails of has a line of ours.
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
    head = None if address is None else reached(address)
    with contextlib.ExitStack() as stack:
        if head is None:
            if shutil.which("bash") is None:
                rule, hint = "Ray starts its workers with bash", "put the folder of bash on PATH"
                raise SetupError(rule, "none on PATH", hint)
            ending.remove_leftovers()
            stack.enter_context(_local_environment(token_file))
        with ending.stop_held():
            import ray

            if tuple(int(part) for part in ray.__version__.split(".")[:2]) < MIN_RAY:
                rule = "Ray must be 2.56 or newer: older ones run code of anyone who reaches them"
                raise SetupError(rule, ray.__version__, "pip install -U 'ray[default,tune]'")
            _read_settings_again()
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if job:
            settings["job_config"] = ray.job_config.JobConfig(metadata=dict(job))
        if head is not None:
            with ending.own_signals(ray.shutdown):
                context = _attach(ray, str(address), address=head, **settings)
        else:
            settings["num_cpus"] = num_cpus or len(os.sched_getaffinity(0))
            # Ray counts slices (MIG) as their one GPU, one where CUDA_VISIBLE_DEVICES=-1 hides all,
            # and hangs with a driver that hangs.
            if not is_logical() and (
                (there := gpus_here()) or visible_gpus() == [] or has_devices()
            ):
                settings["num_gpus"] = len(there)
            context = stack.enter_context(_started(ray, include_dashboard=dashboard, **settings))
        stack.enter_context(
            _watched(ray, SHARED_PATIENCE_S if head is not None else PRIVATE_PATIENCE_S)
        )
        yield _describe(ray, context, local=head is None)


@contextlib.contextmanager
def _watched(ray: Any, patience_s: float) -> Iterator[None]:
    """Watch the head and this node during a ``with`` block, then disconnect; Ray would wait for
    them.
    """
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    watched = {
        "gcs_server": ("The head of the Ray cluster", host, int(port)),
        "raylet": ("The raylet of this node", here["NodeManagerAddress"], here["NodeManagerPort"]),
    }
    silent_s, said = 0.0, False

    def look() -> SetupError | None:
        """See whether all answer; looks are counted, not hours: a driver may itself be stopped."""
        nonlocal silent_s, said
        pid, stopped = ending.stopped_child()  # connections to it are accepted
        silent = [one for name, one in watched.items() if name == stopped or not answers(*one[1:])]
        if not silent:
            if said:
                log.warning("The Ray cluster answers again; going on")
            silent_s, said = 0.0, False
            return None
        silent_s += LOOK_EVERY_S
        name, *address = silent[0]
        if silent_s >= patience_s:
            while stopped in watched:  # the way out would wait for it
                os.kill(pid, signal.SIGKILL)
                pid, stopped = ending.stopped_child()
            return SetupError(
                f"{name} must be there",
                "{}:{}: no answer for {:.0f} s".format(*address, silent_s),
                (
                    "run the same command again, on a shared cluster when it is back: what is done "
                    "is "
                    "kept"
                ),
            )
        if silent_s >= SAID_AFTER_S and not said:
            said = True
            log.warning("%s at %s:%d does not answer; waiting for it", name, *address)
        return None

    watch = ending.Watch("head-watch", LOOK_EVERY_S, look)
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


@contextlib.contextmanager
def _started(ray: Any, **settings: Any) -> Iterator[Any]:
    """Start a private cluster in a folder that goes with the block, again where the machine was too
    busy.
    """
    for again in (True, True, False):
        with ending.private_folder() as folder:
            tempfile.gettempdir()  # this process keeps its own, which it looks up once
            try:
                # Ray's dashboard and its workers are killed at the end, and would leave their files
                # for ever.
                with ending.own_signals(ray.shutdown), ending.environment(TMPDIR=folder):
                    context = ray.init(address="local", _temp_dir=folder, **settings)
            except Exception as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                if again and TOO_SLOW in reason:
                    log.warning("Ray is started again: %s", reason)
                    continue
                hint = "run the same command again when the machine has less to do"
                hint += "; isweep doctor knows other causes"
                raise SetupError("Ray must start on this machine", reason, hint) from error
            yield context
            return


def _attach(ray: Any, said: str, **settings: Any) -> Any:
    try:
        return ray.init(**settings)
    except Exception as error:
        rule = "The Ray cluster must accept this driver"
        told = (str(error) or type(error).__name__).splitlines()[0]
        hint = (
            "run isweep on a node of the cluster, with its Ray version; the head's port is "
            "6379 unless "
        )
        hint += "`ray start` was told another, and 8265 is the dashboard"
        # Ray says itself when there is no token; that one was refused stands only in what caused
        # its error.
        refused = "InvalidAuthToken" in f"{error!r} {error.__cause__!r}"
        if refused or isinstance(error, ray.exceptions.AuthenticationError):
            rule = "The Ray cluster must accept this driver's token"
            told = "the token is missing or another one" if refused else told.partition(". ")[0]
            hint = (
                "set RAY_AUTH_MODE=token, its token in ~/.ray/auth_token: docs/cluster.md, Tokens"
            )
        raise SetupError(rule, f"{said}: {told}", hint) from None


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
    )


@contextlib.contextmanager
def _local_environment(token_file: Path | None) -> Iterator[None]:
    def remove() -> None:
        if token_file is not None:
            token_file.unlink(missing_ok=True)

    token = secrets.token_hex(32)
    remove()
    if token_file is not None:
        with os.fdopen(
            os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
        ) as file:
            file.write(token)
    try:
        with ending.environment(**_LOCAL_ONLY, RAY_AUTH_TOKEN=token), ending.at_forced_end(remove):
            yield
    finally:
        _read_settings_again()
        remove()


def _read_settings_again() -> None:
    """Make Ray, which may have been imported earlier, take its settings from the environment as it
    is now.
    """
    # Private: with a Ray that has them no more, a notebook must import isweep before Ray.
    with contextlib.suppress(ImportError, AttributeError):
        raylet: Any = importlib.import_module("ray._raylet")
        # This order is Ray's own (its authentication tests): mode first, then the cached token.
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    with contextlib.suppress(ImportError, AttributeError):
        constants: Any = importlib.import_module("ray._private.ray_constants")
        constants.NUM_REDIS_GET_RETRIES = 1
        constants.ENABLE_RAY_CLUSTER = (
            os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1") == "1"
        )
