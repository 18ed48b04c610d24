"""Measures on two Ray workers against one, same tiles, same cluster."""

from __future__ import annotations

import numpy as np
from measure_common import fastest, parser, report

from tasks.measures.measure import measure_nested
from tasks.measures.records import MeasureSettings
from tasks.remote import RayExecutor


class SameTiles(RayExecutor):
    """As many tasks in flight as workers, but work cut as for two: only the workers differ."""

    def __init__(self, num_workers: int) -> None:
        super().__init__(2)
        self.in_flight = num_workers

    def map_unordered(self, function, argument_tuples, *, num_cpus=1.0, spread=False):
        """Run with fewer tasks in flight than the work was cut for."""
        return RayExecutor(self.in_flight).map_unordered(
            function, argument_tuples, num_cpus=num_cpus, spread=spread
        )


def main() -> None:
    import ray

    arguments = parser(__doc__)
    arguments.add_argument("--side", type=int, default=224)
    arguments.add_argument("--num-images", type=int, default=6000)
    options = arguments.parse_args()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.num_images, 3, options.side, options.side), dtype=np.uint8)
    labels = np.arange(len(images)) % 2
    settings = MeasureSettings(estimators=("mle", "twonn"))

    def on(num_workers: int) -> object:
        return measure_nested(
            images, labels, [len(images)], executor=SameTiles(num_workers), settings=settings
        )

    on(2)  # start both workers
    one, two = fastest(lambda: on(1), lambda: on(2), repeats=options.repeats)
    report(
        options.json,
        f"measures of {images.shape} on two Ray workers, seconds",
        two,
        {"one Ray worker": one},
        {"one Ray worker": two / one},
        speed_up=one / two,
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
