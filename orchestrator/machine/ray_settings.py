"""The settings that isweep makes for Ray: environment variables, and the handling of Ray's
messages.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.machine import processes
from orchestrator.machine.watch import at_forced_end
from orchestrator.planning.replay import LOOK_AHEAD

log = logging.getLogger(__name__)

_RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # With "1", Ray's exporter of metrics leaks memory: 0.15 MB a second with 400 names of
    # tasks (Ray 2.60, benchmarks/results/named_tasks.json).
    "RAY_enable_open_telemetry": "0",
    # Ray ends a driver if the head does not answer for 300 s. isweep ends the run earlier.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    # Send one request to a head that does not answer: Ray's 20 requests would take minutes.
    "RAY_NUM_REDIS_GET_RETRIES": "1",
    # Do not start a process for each CPU, because most of them are never used.
    "RAY_prestart_worker_first_driver": "0",
    # Do not print errors of trials that are still running when the sweep ends.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # Without this limit, Ray retries forever a task that it killed for lack of memory.
    "RAY_task_oom_retries": "2",
    # End the child processes of a worker together with the worker.
    "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true",
    # Do not change CUDA_VISIBLE_DEVICES for a task or actor without a GPU.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Tune's old output prints nothing at verbose=0. Its new output always prints a box.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Do not change the working directory of a worker.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Write no log files of Tune, and do not print errors that isweep prints.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # isweep handles Ctrl-C: Tune's handler would wait for running trials to finish.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune warns after this time that no trial starts. The warning is not shown, because
    # apply_settings() hides the warnings of Ray's loggers.
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
    # Save Tune's state rarely, because isweep never restores it.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Largest number of trials that wait for a worker in Tune.
    "TUNE_MAX_PENDING_TRIALS_PG": str(LOOK_AHEAD),
}
_PRIVATE_CLUSTER_VARIABLES = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all ports are on loopback (documented by Ray)
    "RAY_AUTH_MODE": "token",
}
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
"""Pattern of color codes in Ray's output."""


def apply_settings() -> None:
    """Set this process's environment variables for Ray. Hide most of Ray's messages."""
    # Without RAY_RAYLET_PID, Ray may end this process if the parent is process 1 and the
    # raylet has ended.
    os.environ.update(_RAY_VARIABLES, RAY_RAYLET_PID=str(os.getpid()))
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Tune also logs errors of trials whose retry succeeded. isweep logs the errors.
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
    # On a full disk, Tune cannot store its state, which isweep never reads.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def private_environment(token_file: Path | None) -> Iterator[None]:
    """Set the environment variables that make a cluster private, and write its token to a
    file. Undo both after the ``with`` block.
    """

    def remove() -> None:
        if token_file is not None:
            token_file.unlink(missing_ok=True)

    token = secrets.token_hex(32)
    remove()
    if token_file is not None:
        descriptor = os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token)
    variables = processes.environment(**_PRIVATE_CLUSTER_VARIABLES, RAY_AUTH_TOKEN=token)
    try:
        with variables, at_forced_end(remove):
            yield
    finally:
        read_settings_again()
        remove()


def log_messages_of_ray() -> None:
    """Write Ray's messages about its processes to the log instead of the terminal.

    Without this, Ray would print the last 40 lines of a lost raylet's log, with color codes.
    """
    # This module is private. If a version of Ray lacks it, these lines appear on the terminal.
    with contextlib.suppress(ImportError, AttributeError):
        worker: Any = importlib.import_module("ray._private.worker")

        def write_to_log(message: Mapping[str, Any], *_: Any, **__: Any) -> None:
            for line in message.get("lines", ()):
                log.info("Ray: %s", ESCAPES.sub("", str(line)))

        if hasattr(worker, "print_to_stdstream"):
            worker.print_to_stdstream = write_to_log


def read_settings_again() -> None:
    """Make Ray read its environment variables again. Ray may have been imported before they
    were set.
    """
    # These modules are private. If a version of Ray lacks them, a notebook must import isweep
    # before Ray.
    with contextlib.suppress(ImportError, AttributeError):
        raylet: Any = importlib.import_module("ray._raylet")
        # The mode is read first, then the cached token, as in Ray's own tests of
        # authentication.
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    with contextlib.suppress(ImportError, AttributeError):
        constants: Any = importlib.import_module("ray._private.ray_constants")
        constants.NUM_REDIS_GET_RETRIES = 1
        constants.ENABLE_RAY_CLUSTER = (
            os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1") == "1"
        )
