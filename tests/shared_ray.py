"""One Ray cluster for all test files of a wing that use one: two CPUs, started when first asked
for.

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
    """Return what a test file is run together with: others of its folder on the cluster, or itself
    alone."""
    path = ROOT / file
    shares = path.is_file() and "ray_local" in path.read_text(encoding="utf-8")
    # Those of the run wing take as long as all others: on two clusters they end together.
    own = "running" in path.parts
    of = Path(file).parts[: 4 if own else 2]
    return f"Ray of {'/'.join(of)}" if shares else file


def group_of(nodeid: str) -> str:
    """Return the group of a test."""
    return group(nodeid.partition("::")[0])


class ByFileOrCluster(LoadFileScheduling):
    """Files stay whole, and groups too."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


class SharedRay:
    """The cluster of this process, if there is one."""

    def __init__(self) -> None:
        self._ending = ExitStack()
        self._cluster: Cluster | None = None

    def cluster(self) -> Cluster:
        """Return it, started if need be."""
        if self._cluster is None:
            with pytest.MonkeyPatch.context() as patch:
                # Their work grows with the processes that there were, and no test asks them for it:
                # one follows what workers print, which no driver here shows, one measures each
                # process.
                patch.setattr("ray._private.node.Node.start_log_monitor", lambda _: None)
                patch.setenv("REPORTER_UPDATE_INTERVAL_MS", "60000")
                self._cluster = self._ending.enter_context(connect(num_cpus=2, dashboard=False))
        return self._cluster

    def end(self) -> None:
        """End it, if there is one."""
        self._cluster = None
        self._ending.close()


SHARED = SharedRay()
