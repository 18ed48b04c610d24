"""Metrics of a run for Prometheus. Ray serves them with the prefix ``ray_``, for example
``ray_isweep_trials``. The file ``grafana.json`` displays them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from ray.util.metrics import Counter, Gauge

from orchestrator.running.progress import Progress

PUBLISH_INTERVAL_S = 2.0
"""Seconds between two updates of the metrics. Ray collects metrics less often."""
GAUGES = {
    "isweep_images_per_second": "Training images per second, summed over all running trials.",
    "isweep_epochs_per_second": "Epochs per second, summed over all running trials.",
    "isweep_seconds_left": "Estimated seconds until the last trial ends.",
    "isweep_gpus_asked": "Number of GPUs that running trials requested.",
    "isweep_gpu_share_used": "Share of the cluster's GPUs that running trials requested.",
    "isweep_memory_asked_bytes": "Bytes of memory that running trials requested.",
}
"""Descriptions of the gauges that have one value per sweep, by the gauge's name."""


class SweepMetrics:
    """The metrics of one sweep.

    Args:
        sweep: name of the sweep.
        num_gpus: number of the cluster's GPUs.
    """

    def __init__(self, sweep: str, num_gpus: float) -> None:
        self._tags = {"sweep": sweep}
        self._num_gpus = num_gpus
        self._published_at = 0.0
        self._trials = Gauge("isweep_trials", "Trials by state.", tag_keys=("sweep", "state"))
        self._failures = Counter(
            "isweep_failed_attempts", "Failed attempts by kind.", tag_keys=("sweep", "kind")
        )
        self._gauges = {
            name: Gauge(name, description, tag_keys=("sweep",))
            for name, description in GAUGES.items()
        }

    def count_failure(self, kind: str) -> None:
        """Add 1 to the number of failed attempts of a kind."""
        self._failures.inc(1, {**self._tags, "kind": kind})

    def publish(self, progress: Progress, requests: Iterable[Mapping[str, float]]) -> None:
        """Publish the state of the run, at most every two seconds.

        Args:
            progress: state of the run.
            requests: resources that each running trial requests from Ray.
        """
        if time.monotonic() - self._published_at < PUBLISH_INTERVAL_S:
            return
        self._published_at = time.monotonic()
        for state, count in progress.states().items():
            self._trials.set(count, {**self._tags, "state": state})
        requests = list(requests)
        num_gpus = sum(request.get("gpu", 0.0) for request in requests)
        values = progress.pace()
        values["isweep_gpus_asked"] = num_gpus
        values["isweep_gpu_share_used"] = num_gpus / self._num_gpus if self._num_gpus else 0.0
        values["isweep_memory_asked_bytes"] = sum(
            request.get("memory", 0.0) for request in requests
        )
        for name, value in values.items():
            self._gauges[name].set(value, self._tags)
