"""The watch over Ray's servers. It ends a run if its cluster does not answer any more.

Ray itself would wait for a lost server. The driver therefore checks repeatedly that the head
and the raylet of its node accept connections.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.machine import processes, signals
from orchestrator.machine.watch import Watch
from search_spaces.errors import SetupError

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 2.0
"""Seconds from the end of one check of Ray's servers to the start of the next check."""
CONNECT_TIMEOUT_S = 2.0
"""Seconds that a server may take to accept a connection during a check."""
MAX_SECONDS_PER_CHECK = 10.0
"""Longest time in seconds from the start of a check to the start of the next check. Normally
this time is at most 6 s: the interval and two attempts to connect. Four more seconds are for a
busy machine. If the time is longer, this process was suspended."""
PRIVATE_LOST_AFTER_S = 4.0
"""Seconds without an answer after which a private cluster counts as lost. The time can be
short, because nothing restarts dead processes, and busy processes still accept connections."""
SHARED_LOST_AFTER_S = 120.0
"""Seconds without an answer after which a shared cluster counts as lost. In this time the
connection may return, or an operator may restart the cluster."""
WARN_AFTER_S = 30.0
"""Seconds without an answer after which a warning is logged."""
DISCONNECT_S = 10.0
"""Seconds that Ray may take to disconnect from a lost cluster."""


def accepts_connections(host: str, port: int) -> bool:
    """Return whether a server accepts connections at a host and port."""
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class _Server:
    """A Ray process that must accept connections.

    Attributes:
        description: name of the process for messages, for example "The head of the Ray
            cluster".
        host: host that accepts the connections.
        port: port that accepts the connections.
    """

    description: str
    host: str
    port: int


class _ServerCheck:
    """A repeated check that Ray's servers answer.

    Args:
        servers_by_process_name: the servers that must answer, by the name of their process.
        lost_after_s: seconds without an answer after which the cluster counts as lost.
        is_private: True if this process started the cluster.
        monotonic: function that returns the monotonic time in seconds.
    """

    def __init__(
        self,
        servers_by_process_name: Mapping[str, _Server],
        lost_after_s: float,
        *,
        is_private: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers = servers_by_process_name
        self._is_private = is_private
        self._lost_after_s = lost_after_s
        self._monotonic = monotonic
        self._checked_at_s = monotonic()
        self._silent_s = 0.0
        self._has_warned = False

    def check(self) -> SetupError | None:
        """Check the servers once. Return an error if the cluster is lost, otherwise None."""
        since_last_check_s = self._since_last_check_s()
        # A process that SIGSTOP suspended still accepts connections, so its state is read.
        stopped_names = {child.name for child in processes.stopped_children()}
        silent = [
            server
            for name, server in self._servers.items()
            if name in stopped_names or not accepts_connections(server.host, server.port)
        ]
        if not silent:
            if self._has_warned:
                log.warning("The Ray cluster answers again")
            self._silent_s = 0.0
            self._has_warned = False
            return None
        self._silent_s += since_last_check_s
        server = silent[0]
        if self._silent_s >= self._lost_after_s:
            self._kill_suspended_servers()
            hint = f"Finished trials are kept. {signals.run_again_hint()}"
            if not self._is_private:
                hint = f"Repair or restart the cluster. {hint}"
            return SetupError(
                f"{server.description} at {server.host}:{server.port} has not answered for "
                f"{self._silent_s:.0f} s",
                hint=hint,
            )
        if self._silent_s >= WARN_AFTER_S and not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s at %s:%d does not answer. isweep waits for it",
                server.description,
                server.host,
                server.port,
            )
        return None

    def _since_last_check_s(self) -> float:
        """Return the seconds since the start of the last check.

        If this process was suspended meanwhile, return only :data:`CHECK_INTERVAL_S`.
        """
        now_s = self._monotonic()
        seconds = now_s - self._checked_at_s
        self._checked_at_s = now_s
        # While this process was suspended, the servers had no chance to answer.
        return seconds if seconds <= MAX_SECONDS_PER_CHECK else CHECK_INTERVAL_S

    def _kill_suspended_servers(self) -> None:
        """Kill suspended Ray processes, because Ray's shutdown would wait for them."""
        for child in processes.stopped_children():
            if child.name in self._servers:
                with contextlib.suppress(ProcessLookupError):  # the process has just ended
                    os.kill(child.pid, signal.SIGKILL)


@contextlib.contextmanager
def watch_servers(ray: Any, *, is_private: bool) -> Iterator[None]:
    """Check the head and this node's raylet repeatedly during a ``with`` block. Disconnect
    from Ray afterwards.

    Args:
        ray: the module ``ray``, connected to a cluster.
        is_private: True if this process started the cluster. Nobody can then repair the
            cluster.
    """
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    this_node = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    # The keys are the names of the processes.
    servers = {
        "gcs_server": _Server("The head of the Ray cluster", host, int(port)),
        "raylet": _Server(
            "The raylet of this node",
            this_node["NodeManagerAddress"],
            this_node["NodeManagerPort"],
        ),
    }
    lost_after_s = PRIVATE_LOST_AFTER_S if is_private else SHARED_LOST_AFTER_S
    server_check = _ServerCheck(servers, lost_after_s, is_private=is_private)
    watch = Watch("server-watch", CHECK_INTERVAL_S, server_check.check)
    try:
        with watch:
            yield
    finally:
        if watch.failure is None:
            ray.shutdown()
        else:
            end = threading.Thread(target=ray.shutdown, daemon=True)
            end.start()
            end.join(DISCONNECT_S)
