"""Series for Prometheus, told by the driver: a handful per sweep whatever its size, never one per trial.

Ray's nodes serve them beside Ray's own, as ``ray_isweep_…``; ``grafana.json`` draws them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from orchestrator.running.progress import Monitor

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
BOARD = Path(__file__).with_name("grafana.json")
GAUGES = {
    "isweep_images_per_second": "Images trained on per second, over all running trials.",
    "isweep_epochs_per_second": "Epochs per second, over all running trials.",
    "isweep_seconds_left": "Seconds until the last trial ends; no value before the first has.",
    "isweep_gpus_asked": "Graphics cards that running trials share.",
    "isweep_gpu_share_used": "The same as a share of the cluster's cards.",
    "isweep_memory_asked_bytes": "Memory that running trials asked for.",
}


class Series:
    """The series of one sweep.

    Args:
        sweep: Its name, a label of every series.
        num_gpus: Cards of the cluster.
    """

    def __init__(self, sweep: str, num_gpus: float) -> None:
        self._sweep, self._num_gpus, self._told = {"sweep": sweep}, num_gpus, 0.0
        self._trials = Gauge("isweep_trials", "Trials by state.", tag_keys=("sweep", "state"))
        self._failed = Counter(
            "isweep_failed_attempts", "Failed attempts by kind.", tag_keys=("sweep", "kind")
        )
        self._gauges = {name: Gauge(name, text, tag_keys=("sweep",)) for name, text in GAUGES.items()}

    def failed(self, kind: str) -> None:
        """Count an attempt that failed."""
        self._failed.inc(1, {**self._sweep, "kind": kind})

    def tell(self, monitor: Monitor, requests: Iterable[Mapping[str, float]]) -> None:
        """Say where the sweep stands, every two seconds however often it is called.

        Args:
            monitor: Knows the counts and the pace.
            requests: What each running trial asked of Ray.
        """
        if time.monotonic() - self._told < INTERVAL_S:
            return
        self._told = time.monotonic()
        for state, count in monitor.states().items():
            self._trials.set(count, {**self._sweep, "state": state})
        asked = list(requests)
        num_gpus = sum(request.get("gpu", 0.0) for request in asked)
        found = monitor.pace() | {
            "isweep_gpus_asked": num_gpus,
            "isweep_gpu_share_used": num_gpus / self._num_gpus if self._num_gpus else 0.0,
            "isweep_memory_asked_bytes": sum(request.get("memory", 0.0) for request in asked),
        }
        for name, value in found.items():
            self._gauges[name].set(value, self._sweep)


def offer_board() -> None:
    """Lay our board beside Ray's own, where a Grafana that Ray provisions finds it."""
    # Private: with a Ray that has it no more, people import the file as docs/monitoring.md says.
    node: Any = getattr(ray._private.worker, "_global_node", None)
    folder = Path(node.get_session_dir_path()) / "metrics" / "grafana" / "dashboards" if node else None
    if folder is None or not folder.is_dir():
        return
    try:
        (folder / "isweep.json").write_bytes(BOARD.read_bytes())
    except OSError as error:
        log.info("the Grafana board stays in %s: %s", BOARD, error)
