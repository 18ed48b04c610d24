"""One Ray cluster of two CPUs for all test files of a folder that use Ray, started on first use.

A start takes 7 s of processor time and an idle cluster 0.06 s a second, so files that ask for
``ray_local`` go to one worker of pytest-xdist, one after the other, and the cluster ends with the
last of them."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

from orchestrator.machine.cluster import Cluster, connect

ROOT = Path(__file__).parents[1]


@cache
def group(file: str) -> str:
    """Return the group of a test file: its folder if the file uses the cluster, else the file."""
    path = ROOT / file
    uses_cluster = path.is_file() and "ray_local" in path.read_text(encoding="utf-8")
    if not uses_cluster:
        return file
    folder = "/".join(Path(file).parts[:2])
    return f"Ray of {folder}"


def group_of(nodeid: str) -> str:
    """Return the group of a test."""
    return group(nodeid.partition("::")[0])


class ByFileOrCluster(LoadFileScheduling):
    """A scheduler that sends every file, and every group of files, to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


class SharedRay:
    """The cluster of this process, if there is one."""

    def __init__(self) -> None:
        self._ending = ExitStack()
        self._cluster: Cluster | None = None

    def cluster(self) -> Cluster:
        """Return the cluster. Start it if this process has none."""
        if self._cluster is None:
            with pytest.MonkeyPatch.context() as patch:
                # Two services of Ray get slower with every process, and no test needs them: the
                # log monitor, which copies what workers print, and the reporter of process usage.
                patch.setattr("ray._private.node.Node.start_log_monitor", lambda _: None)
                patch.setenv("REPORTER_UPDATE_INTERVAL_MS", "60000")
                self._cluster = self._ending.enter_context(connect(num_cpus=2, dashboard=False))
        return self._cluster

    def end(self) -> None:
        """Stop the cluster, if there is one."""
        self._cluster = None
        self._ending.close()


SHARED = SharedRay()
