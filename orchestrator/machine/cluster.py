"""The connection to Ray, either to a private cluster on this machine or to a running cluster."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.machine import processes, ray_folders, signals
from orchestrator.machine.gpus.nvidia_smi import has_devices
from orchestrator.machine.gpus.this_machine import check_driver, gpus_here
from orchestrator.machine.gpus.visible import gpus_are_simulated, visible_gpus
from orchestrator.machine.hidden_modules import check_libraries, hint_on_python_modules
from orchestrator.machine.mps import PrivateMps
from orchestrator.machine.ray_requirements import check_ray_requirements
from orchestrator.machine.ray_settings import (
    apply_settings,
    log_messages_of_ray,
    private_environment,
    read_settings_again,
)
from orchestrator.machine.server_watch import watch_servers
from search_spaces.errors import ConfigError, SetupError
from search_spaces.sweeps import ResourceSpec
from tasks.trials.records import CONTEXT_BYTES

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "gpu"]
MIN_RAY = (2, 56)
"""Oldest version of Ray that isweep accepts. An older version runs code from anyone who can
connect to its ports."""
LARGEST_PORT = 65_535
"""Largest number of a TCP port."""
ANSWER_TIMEOUT_S = 5.0
"""Seconds that the head of a running cluster may take to accept a connection."""
SLOW_START_TEXT = "timed out during startup"
"""Words in Ray's error message if its node needs more than 30 s to start, for example on a
busy machine. No setting of Ray changes this limit."""
START_ATTEMPTS = 3
"""Largest number of attempts to start a private cluster on a busy machine."""


@dataclass(frozen=True)
class RunOptions:
    """Options that decide where and how a run works. They change results at most by rounding
    errors.

    This class checks only the address. :mod:`isweep` checks the limits in the annotations.

    Attributes:
        root: folder for all files of isweep. None means ``$ISWEEP_ROOT``, or ``./isweep-root``
            if the variable is not set.
        storage: folder or URL of the result store. None means that the store is below the
        root.
        address: address of a running Ray cluster. None means that a private cluster is
        started.
        num_cpus: number of CPUs of the private cluster.
        device: device of the trials. With ``auto``, trials use GPUs if the cluster has some.
            With ``gpu`` or ``cpu``, they use only this device (:func:`trial_resources`).
        dashboard: True if the private cluster serves its dashboard.
        mlflow_uri: address of MLflow. None means ``$MLFLOW_TRACKING_URI``, or a SQLite file
            below the root if the variable is not set.
        tracking: True if the run sends its state to MLflow.
        raw: folder of the raw download of each dataset that is not prepared yet, by dataset.
        max_skipped_share: largest share of a dataset's files that may be unusable, from 0 to
            1.
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
        """Raise a ConfigError if the address is invalid, before anything starts."""
        if self.address is not None:
            _HeadAddress.parse(self.address)


@dataclass(frozen=True)
class _HeadAddress:
    """Host and port of a Ray head."""

    host: str
    port: int

    @classmethod
    def parse(cls, address: str) -> _HeadAddress | None:
        """Return the host and the port of an address, or None for the address ``auto``."""
        if address == "auto":
            return None
        host, _, port = address.rpartition(":")
        is_port = port.isdecimal() and int(port) <= LARGEST_PORT
        if "://" in address or not host or not is_port:
            raise ConfigError(
                f"`--address {address}` is not the host:port of the head node of a Ray cluster",
                hint="Use `--address auto` on the head node itself, or submit the command "
                "with `ray job submit` from another machine",
            )
        # An IPv6 address may be in brackets, which a socket does not accept.
        return cls(host.removeprefix("[").removesuffix("]"), int(port))


def resolve_head(address: str) -> str:
    """Check that a Ray head answers. Return its address as ``IP:port``, the form that gRPC
    needs.

    Raises:
        SetupError: the head does not answer. Without this check Ray would wait.
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
            hint="Start the cluster (`ray up cluster.yaml`), or remove --address to run on "
            "this machine",
        ) from None
    is_ipv6 = ":" in peer
    return address if is_ipv6 else f"{peer}:{head.port}"


@dataclass(frozen=True)
class Cluster:
    """The cluster to which a command is connected.

    Attributes:
        num_cpus: total number of CPUs of all nodes, as Ray counts them.
        num_gpus: total number of GPUs of all nodes, as Ray counts them.
        num_nodes: number of live nodes.
        object_store_bytes: size of the smallest object store of any node, in bytes.
        dashboard: URL of the dashboard of a private cluster. It is empty if there is no
            dashboard, or if the cluster is shared.
        is_private: True if the command itself started the cluster on this machine.
        memory_bytes: memory that Ray may assign on all nodes together, in bytes.
        mps: NVIDIA's MPS of a private cluster, or None if MPS was not requested. The attribute
            ``folder`` of MPS shows whether MPS runs.
    """

    num_cpus: float
    num_gpus: float
    num_nodes: int
    object_store_bytes: int
    dashboard: str
    is_private: bool
    memory_bytes: float = math.inf
    mps: PrivateMps | None = None


@dataclass(frozen=True)
class Resources:
    """The resources of one trial.

    Attributes:
        num_cpus: number of CPUs.
        num_gpus: number of GPUs, for example 0.5 for half a GPU. 0 means that the trial uses
            no GPU.
        memory_bytes: memory to request from Ray, in bytes. 0 means that no memory is
            requested.
        fast: rule for the use of CUDA graphs, ``fast`` of
            :class:`~search_spaces.sweeps.ResourceSpec`.
        micro_batch_policy: rule for splitting batches, ``micro_batches`` of
            :class:`~search_spaces.sweeps.ResourceSpec`.
        micro_batch: largest number of images in a forward pass. None means that batches are
            not split.
        context_bytes: size of the CUDA context in bytes. The trial's share of a GPU must
            contain it besides the tensors.
    """

    num_cpus: float
    num_gpus: float
    memory_bytes: int = 0
    fast: str = "auto"
    micro_batch_policy: str = "auto"
    micro_batch: int | None = None
    context_bytes: int = CONTEXT_BYTES

    def as_ray(self) -> dict[str, float]:
        """Return the requested amounts in the form that Ray Tune needs, by name of the
        resource.
        """
        amounts = {"cpu": self.num_cpus, "gpu": self.num_gpus, "memory": self.memory_bytes}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def num_threads(self) -> int:
        """Number of torch threads of the trial's process. It is the number of whole CPUs, but
        at least 1.
        """
        return max(1, int(self.num_cpus))


def trial_resources(spec: ResourceSpec, cluster: Cluster, device: Device = "auto") -> Resources:
    """Return the resources that each trial requests. Check that a private cluster has them.

    Args:
        spec: resources in the sweep file.
        cluster: the cluster that runs the trials.
        device: with ``auto``, trials use GPUs if the cluster has some now. With ``gpu``, they
            always request GPUs, which is for clusters that add nodes on demand. With ``cpu``,
            they never use GPUs.

    Raises:
        ConfigError: a trial requests more than a private cluster has.
        SetupError: NVIDIA's driver does not answer.
    """
    share = 1.0 if spec.num_gpus is None else spec.num_gpus
    use_gpus = device == "gpu" or (device == "auto" and cluster.num_gpus > 0)
    request = Resources(
        num_cpus=spec.num_cpus,
        num_gpus=share if use_gpus else 0.0,
        memory_bytes=spec.memory_bytes,
        fast=spec.fast,
        micro_batch_policy=spec.micro_batches,
    )
    if not cluster.is_private:
        return request
    # With `resources.num_gpus: 0`, trials run on CPUs on purpose, whatever the driver does.
    if device != "cpu" and share > 0 and not cluster.num_gpus:
        check_driver()
    # A private cluster never grows, so a trial that requests more would wait forever.
    for name in ("num_cpus", "num_gpus", "memory_bytes"):
        requested = getattr(request, name)
        available = getattr(cluster, name)
        if requested > available:
            cpu_hint = "use --device cpu, " if name == "num_gpus" else ""
            raise ConfigError(
                f"A trial requests `resources.{name}: {requested:,.15g}`, but this machine has "
                f"only {available:,.15g}",
                hint=f"Lower `resources.{name}`, {cpu_hint}or run on a larger cluster",
            )
    return request


def cpu_cluster_here(num_cpus: int | None = None) -> Cluster:
    """Return the size of the private cluster that :func:`connect` would start. GPUs are not
    counted.

    This function starts nothing.
    """
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Cluster(
        num_cpus=float(num_cpus or len(os.sched_getaffinity(0))),
        num_gpus=0.0,
        num_nodes=1,
        object_store_bytes=0,
        dashboard="",
        is_private=True,
        memory_bytes=float(memory_bytes),
    )


def check_process() -> None:
    """Check that Ray can start or connect from this process.

    Raises:
        ConfigError: Python is set to remove docstrings or to turn all warnings into errors.
            Without docstrings, one of Ray's modules cannot be imported. With warnings as
            errors, Ray's dashboard cannot start.
        SetupError: the current folder does not exist any more. Ray starts its processes in
            this folder. Also if a file of the user hides a library.
    """
    if sys.flags.optimize >= 2:
        raise ConfigError(
            "Python is set to remove docstrings, and Ray does not start without them",
            hint="Unset PYTHONOPTIMIZE, and do not use `python -OO`",
        )
    if "error" in os.environ.get("PYTHONWARNINGS", "").split(","):
        raise ConfigError(
            "Python is set to turn all warnings into errors, so Ray's dashboard does not start",
            hint="Unset PYTHONWARNINGS",
        )
    try:
        os.getcwd()
    except FileNotFoundError:
        raise SetupError(
            "The current folder does not exist any more",
            hint="Change to a folder that exists, for example with `cd ~`",
        ) from None
    check_libraries()


@contextlib.contextmanager
def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    dashboard: bool = True,
    token_file: Path | None = None,
    job: Mapping[str, str] | None = None,
    mps: PrivateMps | None = None,
) -> Iterator[Cluster]:
    """Connect to Ray during a ``with`` block.

    Args:
        address: address of a running cluster. None means a private cluster that accepts
            connections only from this machine. It has its own temporary folder and token, and
            ends with the ``with`` block.
        num_cpus: number of CPUs of the private cluster. None means all CPUs that this process
            may use.
        dashboard: True if the private cluster serves its dashboard.
        token_file: file into which the private cluster's token is written, with mode 600. The
            user needs the token to open the dashboard.
        job: texts about this command that Ray's dashboard shows, by key.
        mps: NVIDIA's MPS to start with a private cluster. None means that MPS is not started.

    Raises:
        SweepError: Ray does not answer, does not start, refuses this machine, or is too old.
    """
    check_process()
    apply_settings()
    is_private = address is None
    with contextlib.ExitStack() as stack:
        if address is None:
            ray, context = stack.enter_context(
                _private_cluster(num_cpus, token_file, job, mps, dashboard=dashboard)
            )
        else:
            ray, context = _connect_to_running(address, job)
        stack.enter_context(watch_servers(ray, is_private=is_private))
        if mps is not None:
            # After Ctrl-C, Ray kills workers while the GPU computes for them.
            stack.callback(mps.end_gpu_work)
        yield replace(_cluster_info(ray, context, is_private=is_private), mps=mps)


@contextlib.contextmanager
def _private_cluster(
    num_cpus: int | None,
    token_file: Path | None,
    job: Mapping[str, str] | None,
    mps: PrivateMps | None,
    *,
    dashboard: bool,
) -> Iterator[tuple[Any, Any]]:
    """Start a private cluster for a ``with`` block. Return the module ``ray`` and Ray's
    context.

    The arguments are those of :func:`connect`.
    """
    check_ray_requirements()
    ray_folders.remove_abandoned_folders()
    with private_environment(token_file):
        ray = _imported_ray()
        settings = _driver_settings(ray, job) | _gpu_settings()
        settings["num_cpus"] = num_cpus or len(os.sched_getaffinity(0))
        settings["include_dashboard"] = dashboard
        with _started_with_retries(ray, mps, **settings) as context:
            yield ray, context


def _driver_settings(ray: Any, job: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the Ray settings for both kinds of clusters. They limit Ray's messages and
    describe the job.
    """
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if job:
        settings["job_config"] = ray.job_config.JobConfig(metadata=dict(job))
    return settings


def _imported_ray() -> Any:
    """Import Ray with isweep's settings. Raise a SetupError if Ray's version is too old."""
    with signals.delay_stop():
        import ray

        if tuple(int(part) for part in ray.__version__.split(".")[:2]) < MIN_RAY:
            raise SetupError(
                f"Ray {ray.__version__} is too old: Ray before 2.56 runs code from anyone who can "
                "connect to its ports",
                hint="Update Ray to 2.56 or later: run `pip install -U 'ray[default,tune]'`",
            )
        read_settings_again()
        log_messages_of_ray()
    return ray


def _gpu_settings() -> dict[str, int]:
    """Return the Ray setting for the number of GPUs of a private cluster. If the result is
    empty, Ray counts the GPUs itself.

    Ray counts wrongly in three cases. It counts all MIG slices of a GPU as one GPU. If
    ``CUDA_VISIBLE_DEVICES=-1`` hides all GPUs, it counts one GPU. If NVIDIA's driver hangs,
    Ray hangs too.
    """
    if gpus_are_simulated():
        return {}
    gpus = gpus_here()
    all_are_hidden = visible_gpus() == []
    driver_may_hang = not gpus and not all_are_hidden and has_devices()
    if gpus or all_are_hidden or driver_may_hang:
        return {"num_gpus": len(gpus)}
    return {}


class RayStartError(SetupError):
    """Error for a private cluster that did not start."""


@contextlib.contextmanager
def _started_with_retries(
    ray: Any, mps: PrivateMps | None = None, **settings: Any
) -> Iterator[Any]:
    """Start a private cluster in a temporary folder for a ``with`` block. Start NVIDIA's MPS
    too, unless ``mps`` is None.

    If the start fails because the machine is too busy, try again in a new folder.
    """
    for attempt in range(1, START_ATTEMPTS + 1):
        with contextlib.ExitStack() as stack:
            folder = _enter_folder_with_mps(stack, mps)
            try:
                context = _start_ray_once(ray, folder, settings)
            except Exception as error:
                lines = f"{error}".split("\n")
                reason = next(filter(None, map(str.strip, lines)), type(error).__name__)
                is_busy = SLOW_START_TEXT in reason
                if not is_busy or attempt == START_ATTEMPTS:
                    doctor = "Run `isweep doctor` to look for the cause"
                    hint = hint_on_python_modules() or doctor
                    if is_busy:
                        hint = "End other programs, and run the same command again"
                    raise RayStartError(
                        f"Ray did not start on this machine: {reason}", hint=hint
                    ) from error
                log.warning("Ray did not start, so isweep tries again: %s", reason)
            else:
                yield context
                return


def _enter_folder_with_mps(stack: contextlib.ExitStack, mps: PrivateMps | None) -> str:
    """Create the temporary folder of a private cluster, start MPS in it, and return Ray's
    folder.

    When ``stack`` is closed, Ray's processes end first. Then MPS ends, and then the folder is
    removed. If MPS ended first, it would wait for the processes that use it.
    """
    folder = stack.enter_context(ray_folders.private_folder())
    if mps is not None:
        outer_folder = Path(folder).parent
        # MPS starts before Ray, whose processes pass the variables of MPS on to the trials.
        stack.enter_context(mps.running(outer_folder / ray_folders.MPS))
        stack.callback(ray_folders.THIS_MACHINE.end_ray_processes, outer_folder)
    return folder


def _start_ray_once(ray: Any, folder: str, settings: Mapping[str, Any]) -> Any:
    """Start Ray in a temporary folder, and return Ray's context."""
    # Python stores TMPDIR at its first use. This call makes it store the present value.
    tempfile.gettempdir()
    # TMPDIR is inside the folder, because Ray's dashboard and workers are killed at the end
    # and leave their temporary files.
    with signals.restore_signal_handlers(ray.shutdown), processes.environment(TMPDIR=folder):
        return ray.init(address="local", _temp_dir=folder, **settings)


def _connect_to_running(address: str, job: Mapping[str, str] | None) -> tuple[Any, Any]:
    """Connect to a running cluster. Return the module ``ray`` and Ray's context.

    Raises:
        SetupError: the cluster does not answer, or it refuses this machine.
    """
    head = resolve_head(address)
    ray = _imported_ray()
    settings = _driver_settings(ray, job)
    try:
        with signals.restore_signal_handlers(ray.shutdown):
            return ray, ray.init(address=head, **settings)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        token_hint = (
            "Run `export RAY_AUTH_MODE=token`, and write the cluster's token into the file "
            '`~/.ray/auth_token` (see "Tokens" in docs/cluster.md)'
        )
        # Ray's message mentions a missing token. A refused token is only in the error's cause.
        if "InvalidAuthToken" in f"{error!r} {error.__cause__!r}":
            raise SetupError(
                f"The Ray cluster at {address} refused this machine's token, or this "
                "machine has no token",
                hint=token_hint,
            ) from None
        if isinstance(error, ray.exceptions.AuthenticationError):
            raise SetupError(
                f"The Ray cluster at {address} needs a token: {reason.partition('. ')[0]}",
                hint=token_hint,
            ) from None
        raise SetupError(
            f"The Ray cluster at {address} did not accept this machine: {reason}",
            hint="Run isweep on a node of the cluster, with the cluster's version of Ray. In "
            "--address, write the port of the head node (6379 by default), not the port of "
            "the dashboard (8265 by default)",
        ) from None


def _cluster_info(ray: Any, context: Any, *, is_private: bool) -> Cluster:
    """Return the size and the dashboard of the connected cluster."""
    total = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    stores = [int(node["Resources"].get("object_store_memory", 0)) for node in nodes]
    url = context.dashboard_url if is_private else None
    return Cluster(
        num_cpus=float(total.get("CPU", 0)),
        num_gpus=float(total.get("GPU", 0)),
        num_nodes=len(nodes),
        object_store_bytes=min((size for size in stores if size), default=0),
        dashboard=f"http://{url}" if url else "",
        is_private=is_private,
        memory_bytes=float(total.get("memory", math.inf)),
    )
