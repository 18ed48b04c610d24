"""Connect to Ray: to a private cluster on this machine by default, or to one that is running.

Settings that Ray reads from the environment are all set here.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import re
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

from orchestrator.machine import processes, ray_folders, signals
from orchestrator.machine.gpus import check_driver, gpus_here, has_devices, is_logical, visible_gpus
from orchestrator.planning.replay import LOOK_AHEAD
from search_spaces.errors import ConfigError, SetupError
from search_spaces.sweeps import ResourceSpec

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "gpu"]
MIN_RAY = (2, 56)
"""Older ones run the code of anyone who reaches them."""
LARGEST_PORT = 65_535
ANSWER_TIMEOUT_S = 5.0
"""Seconds that the head of a running cluster may take to accept a connection."""
LOOK_EVERY_S = 2.0
HEAD_ANSWER_TIMEOUT_S = 2.0
PRIVATE_PATIENCE_S = 4.0
"""Seconds of silence after which a private cluster is lost. Its processes never come back, and one
that is merely busy accepts connections."""
SHARED_PATIENCE_S = 120.0
"""The same for a shared cluster: a network heals, an operator starts it again."""
WARN_AFTER_S = 30.0
DISCONNECT_S = 10.0
"""Seconds that Ray may take to disconnect from a lost cluster."""
TOO_SLOW = "timed out during startup"
"""Ray's words if its own node took more than 30 s, as on a busy machine. No setting changes that
limit."""
START_ATTEMPTS = 3

_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_open_telemetry": "0",  # "1" leaks: see orchestrator.running.queue
    # Ray ends a driver whose head is silent for so long; ours is ended before.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    # A head that does not answer is asked once; 20 times would take minutes.
    "RAY_NUM_REDIS_GET_RETRIES": "1",
    # A process per CPU that mostly nobody needs.
    "RAY_prestart_worker_first_driver": "0",
    # Errors of trials that end with the sweep are for nobody's terminal.
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
    # Trials are suggested one by one; this many may wait for their worker.
    "TUNE_MAX_PENDING_TRIALS_PG": str(LOOK_AHEAD),
}
_LOCAL_ONLY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's documented switch: every port on loopback
    "RAY_AUTH_MODE": "token",
}


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that cannot change a result: its place and its means.

    Attributes:
        root: folder of everything; None takes ``$ISWEEP_ROOT`` or ``./isweep-root``.
        storage: folder or URL of the result store; None keeps it below the root.
        address: running Ray cluster; None starts a private one.
        num_cpus: CPUs of the private cluster.
        device: see :func:`trial_resources`.
        dashboard: whether the private cluster serves its dashboard.
        mlflow_uri: MLflow store; None takes ``$MLFLOW_TRACKING_URI``, then SQLite below the root.
        tracking: False keeps MLflow out of it.
        raw: folders of raw downloads by dataset, for datasets that are not prepared yet.
        max_skipped_share: largest share of a dataset's files that may be unusable.
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
            _HeadAddress.parse(self.address)


@dataclass(frozen=True)
class _HeadAddress:
    """Host and port of a Ray head; both are empty for ``auto``."""

    host: str
    port: int

    @classmethod
    def parse(cls, address: str) -> _HeadAddress | None:
        """Return the address; None for ``auto``."""
        if address == "auto":
            return None
        host, _, port = address.rpartition(":")
        is_port = port.isdecimal() and int(port) <= LARGEST_PORT
        if "://" in address or not host or not is_port:
            raise ConfigError(
                f"`--address {address}` is not host:port of a Ray head",
                hint="Use `--address auto` on the head itself, or submit the command with "
                "`ray job submit` from another machine",
            )
        return cls(host, int(port))


def reached(address: str) -> str:
    """Return an address that answers, with its host's name looked up for gRPC.

    Raises:
        SetupError: it does not answer. Ray itself would wait.
    """
    head = _HeadAddress.parse(address)
    if head is None:
        return address
    try:
        with socket.create_connection(
            (head.host, head.port), timeout=ANSWER_TIMEOUT_S
        ) as connection:
            peer = connection.getpeername()[0]
    except (OSError, OverflowError) as error:
        raise SetupError(
            f"No Ray cluster answers at {address}: {error}",
            hint="Start the cluster (`ray up cluster.yaml`), or leave --address out to run on this "
            "machine",
        ) from None
    return address if ":" in peer else f"{peer}:{head.port}"


def answers(host: str, port: int) -> bool:
    """Return whether somebody listens there."""
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=HEAD_ANSWER_TIMEOUT_S):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class Cluster:
    """The cluster that a command is connected to.

    Amounts are logical ones, over all nodes; the object store is the smallest of any node. It is
    ``local`` if the command started it.
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
    """The resources of one trial.

    A GPU share of 0 means no GPU; 0 bytes ask Ray for no memory. ``fast`` and ``micro_batches`` are
    those of :class:`~search_spaces.sweeps.ResourceSpec`. Batches pass the network whole, or
    ``micro_batch`` images at once.
    """

    num_cpus: float
    num_gpus: float
    memory_bytes: int = 0
    fast: str = "auto"
    micro_batches: str = "auto"
    micro_batch: int | None = None

    def as_ray(self) -> dict[str, float]:
        """Return the request in Ray Tune's words."""
        amounts = {"cpu": self.num_cpus, "gpu": self.num_gpus, "memory": self.memory_bytes}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def num_threads(self) -> int:
        """Torch threads of the trial's process: its whole CPUs, at least one."""
        return max(1, int(self.num_cpus))


def trial_resources(spec: ResourceSpec, cluster: Cluster, device: Device = "auto") -> Resources:
    """Return what each trial asks for on a cluster.

    Args:
        spec: the sweep's request.
        cluster: where trials run.
        device: ``auto`` uses GPUs if the cluster has some now; ``gpu`` asks for them even so, for
            clusters that grow on demand; ``cpu`` never does.

    Raises:
        ConfigError: a private cluster has less than a trial asks for.
        SetupError: NVIDIA's driver does not answer.
    """
    share = 1.0 if spec.num_gpus is None else spec.num_gpus
    use_gpus = device == "gpu" or (device == "auto" and cluster.num_gpus > 0)
    request = Resources(
        spec.num_cpus, share if use_gpus else 0.0, spec.memory_bytes, spec.fast, spec.micro_batches
    )
    if not cluster.local:
        return request
    if device != "cpu" and not cluster.num_gpus:
        check_driver()
    # A private cluster never grows: such a trial would wait for ever, silently.
    for name in ("num_cpus", "num_gpus", "memory_bytes"):
        requested = getattr(request, name)
        available = getattr(cluster, name)
        if requested > available:
            cpu_hint = "use --device cpu, " if name == "num_gpus" else ""
            raise ConfigError(
                f"A trial asks for resources.{name}: {requested:,.15g}, but this machine has "
                f"{available:,.15g}",
                hint=f"Lower resources.{name}, {cpu_hint}or run on a larger cluster",
            )
    return request


def this_machine(num_cpus: int | None = None) -> Cluster:
    """Return the largest private cluster that this machine could give.

    Nothing is started, and no GPUs are looked for.
    """
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Cluster(
        num_cpus=float(num_cpus or len(os.sched_getaffinity(0))),
        num_gpus=0.0,
        num_nodes=1,
        object_store_bytes=0,
        dashboard="",
        local=True,
        memory_bytes=float(memory_bytes),
    )


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
        address: of a running cluster; None starts a private one on loopback, with its own temporary
            folder and token, that ends with the block.
        num_cpus: CPUs of the private cluster; None takes all that this process may use.
        dashboard: whether the private cluster serves its dashboard.
        token_file: where to write the private cluster's token (mode 600), for opening its
            dashboard.
        job: what Ray's dashboard says of this driver's job, by key.

    Raises:
        SweepError: Ray does not answer, start or accept us, or has known holes.
    """
    # Ray takes a child of process 1 for an orphan, which it ends silently if its raylet is gone.
    os.environ.update(_ALWAYS, RAY_RAYLET_PID=str(os.getpid()))
    for name in ("ray", "ray.tune", "ray.train"):  # errors still raise
        logging.getLogger(name).setLevel(logging.ERROR)
    # Tune logs errors of trials that were tried again and are done; ours are logged elsewhere.
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
    head = None if address is None else reached(address)
    with contextlib.ExitStack() as stack:
        if head is None:
            _check_bash()
            ray_folders.remove_leftovers()
            stack.enter_context(_local_environment(token_file))
        with signals.stop_held():
            ray = _imported_ray()
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if job:
            settings["job_config"] = ray.job_config.JobConfig(metadata=dict(job))
        if head is not None:
            with signals.own_signals(ray.shutdown):
                context = _attach(ray, str(address), address=head, **settings)
        else:
            settings["num_cpus"] = num_cpus or len(os.sched_getaffinity(0))
            settings |= _gpu_settings()
            context = stack.enter_context(_started(ray, include_dashboard=dashboard, **settings))
        patience_s = PRIVATE_PATIENCE_S if head is None else SHARED_PATIENCE_S
        stack.enter_context(_watched(ray, patience_s))
        yield _describe(ray, context, local=head is None)


def _check_bash() -> None:
    if shutil.which("bash") is None:
        raise SetupError(
            "No folder on PATH contains bash, with which Ray starts its workers",
            hint="Install bash, or add its folder to PATH",
        )


def _imported_ray() -> Any:
    import ray

    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < MIN_RAY:
        raise SetupError(
            f"Ray {ray.__version__} runs code of anyone who reaches it; 2.56 or later does not",
            hint="Run `pip install -U 'ray[default,tune]'`",
        )
    _read_settings_again()
    _keep_off_the_terminal()
    return ray


def _gpu_settings() -> dict[str, int]:
    """Return the number of GPUs of a private cluster, unless Ray may count them itself.

    Ray counts slices (MIG) as their one GPU, counts one where ``CUDA_VISIBLE_DEVICES=-1`` hides
    all, and hangs with a driver that hangs.
    """
    if is_logical():
        return {}
    gpus = gpus_here()
    if gpus or visible_gpus() == [] or has_devices():
        return {"num_gpus": len(gpus)}
    return {}


@dataclass(frozen=True)
class _Server:
    """A process of Ray that must accept connections."""

    description: str
    host: str
    port: int


class _ServerCheck:
    """Checks, time after time, whether Ray's servers answer.

    Checks are counted, not hours: the driver may itself have been stopped.
    """

    def __init__(self, servers: Mapping[str, _Server], patience_s: float) -> None:
        self._servers = servers
        self._patience_s = patience_s
        self._silent_s = 0.0
        self._has_warned = False

    def __call__(self) -> SetupError | None:
        """Return why the cluster is lost, or None."""
        # Connections to a stopped process are accepted.
        child = processes.stopped_child()
        stopped = "" if child is None else child.name
        silent = [
            server
            for name, server in self._servers.items()
            if name == stopped or not answers(server.host, server.port)
        ]
        if not silent:
            if self._has_warned:
                log.warning("The Ray cluster answers again")
            self._silent_s = 0.0
            self._has_warned = False
            return None
        self._silent_s += LOOK_EVERY_S
        server = silent[0]
        if self._silent_s >= self._patience_s:
            self._kill_stopped_servers()
            return SetupError(
                f"{server.description} at {server.host}:{server.port} has not answered for "
                f"{self._silent_s:.0f} s",
                hint="Run the same command again when the cluster works; finished trials are kept",
            )
        if self._silent_s >= WARN_AFTER_S and not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s at %s:%d does not answer; waiting",
                server.description,
                server.host,
                server.port,
            )
        return None

    def _kill_stopped_servers(self) -> None:
        """Kill stopped processes of Ray, for which a shutdown would wait."""
        child = processes.stopped_child()
        while child is not None and child.name in self._servers:
            os.kill(child.pid, signal.SIGKILL)
            child = processes.stopped_child()


@contextlib.contextmanager
def _watched(ray: Any, patience_s: float) -> Iterator[None]:
    """Watch the head and this node's raylet during a block, then disconnect.

    Ray itself would wait for them.
    """
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    this_node = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    # By the names of their processes.
    servers = {
        "gcs_server": _Server("The head of the Ray cluster", host, int(port)),
        "raylet": _Server(
            "The raylet of this node", this_node["NodeManagerAddress"], this_node["NodeManagerPort"]
        ),
    }
    watch = signals.Watch("head-watch", LOOK_EVERY_S, _ServerCheck(servers, patience_s))
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
    """Start a private cluster in a folder that goes with the block.

    If the machine was too busy, it is started again.
    """
    for attempt in range(1, START_ATTEMPTS + 1):
        with ray_folders.private_folder() as folder:
            tempfile.gettempdir()  # this process keeps its own, which it looks up once
            try:
                # Ray's dashboard and its workers are killed at the end. Their temporary files would
                # stay for ever outside the folder.
                with signals.own_signals(ray.shutdown), processes.environment(TMPDIR=folder):
                    context = ray.init(address="local", _temp_dir=folder, **settings)
            except Exception as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                if attempt < START_ATTEMPTS and TOO_SLOW in reason:
                    log.warning("Ray is started again: %s", reason)
                    continue
                raise SetupError(
                    f"Ray did not start on this machine: {reason}",
                    hint="Run the same command again when the machine is less busy, or look for "
                    "other causes with `isweep doctor`",
                ) from error
            yield context
            return


def _attach(ray: Any, typed_address: str, **settings: Any) -> Any:
    """Connect to a running cluster, with Ray's errors in words."""
    try:
        return ray.init(**settings)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        token_hint = (
            "Set RAY_AUTH_MODE=token, and put the cluster's token into ~/.ray/auth_token "
            '("Tokens" in docs/cluster.md)'
        )
        # Ray says itself if there is no token. A refused one stands only in its error's cause.
        if "InvalidAuthToken" in f"{error!r} {error.__cause__!r}":
            raise SetupError(
                f"The Ray cluster at {typed_address} refused this machine's token, or there is "
                "none",
                hint=token_hint,
            ) from None
        if isinstance(error, ray.exceptions.AuthenticationError):
            raise SetupError(
                f"The Ray cluster at {typed_address} needs a token: {reason.partition('. ')[0]}",
                hint=token_hint,
            ) from None
        raise SetupError(
            f"The Ray cluster at {typed_address} did not accept this machine: {reason}",
            hint="Run isweep on a node of the cluster, with the cluster's version of Ray. The port "
            "of the head is 6379 by default, and 8265 is the dashboard's",
        ) from None


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
    """Set what keeps a private cluster private, and write its token for the block."""

    def remove() -> None:
        if token_file is not None:
            token_file.unlink(missing_ok=True)

    token = secrets.token_hex(32)
    remove()
    if token_file is not None:
        descriptor = os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token)
    variables = processes.environment(**_LOCAL_ONLY, RAY_AUTH_TOKEN=token)
    try:
        with variables, signals.at_forced_end(remove):
            yield
    finally:
        _read_settings_again()
        remove()


ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
"""Codes of colors in what Ray prints."""


def _keep_off_the_terminal() -> None:
    """Write what Ray would print about its processes to the log.

    Of a lost raylet it prints the last 40 lines of that process's log, with codes of colors.
    """
    # Private: with a Ray that lacks it, these lines are on the terminal.
    with contextlib.suppress(ImportError, AttributeError):
        worker: Any = importlib.import_module("ray._private.worker")

        def write_to_log(message: Mapping[str, Any], *_: Any, **__: Any) -> None:
            for line in message.get("lines", ()):
                log.info("Ray: %s", ESCAPES.sub("", str(line)))

        if hasattr(worker, "print_to_stdstream"):
            worker.print_to_stdstream = write_to_log


def _read_settings_again() -> None:
    """Make Ray, which may have been imported earlier, read the environment as it is now."""
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
