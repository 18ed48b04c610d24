"""What names of tasks cost a Ray driver, with each of Ray's two exporters of metrics.

Each side is a driver of its own on a private one-CPU node: an actor is called ``--names`` times, each call
under another name, and the driver's own memory is read before, after, and after ``--idle`` seconds of rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata

EXPORTERS = {"older": "0", "newer": "1"}


def own_memory() -> int:
    """Return the bytes of this process that no file backs."""
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def grown(names: int, idle_s: float) -> dict[str, float]:
    """Return bytes per named call, and bytes per second of rest after them."""
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)

    @ray.remote
    class Answering:
        def answer(self) -> None:
            pass

    actor = Answering.remote()
    ray.get([actor.answer.remote() for _ in range(names)])
    start = own_memory()
    for index in range(names):
        ray.get(actor.answer.options(name=f"trial {index}").remote())
    time.sleep(15)  # the first export of them all
    called = own_memory()
    time.sleep(idle_s)
    return {"per_name": (called - start) / names, "per_idle_second": (own_memory() - called) / idle_s}


def main() -> None:
    """Run both sides and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=400)
    parser.add_argument("--idle", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(grown(options.names, options.idle)))
        return
    found = {}
    for exporter, value in EXPORTERS.items():
        done = subprocess.run(
            [sys.executable, __file__, "--side", "--names", str(options.names), "--idle", str(options.idle)],
            env={**os.environ, "RAY_enable_open_telemetry": value, "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[exporter] = json.loads(done.stdout.splitlines()[-1])
    environment = {
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "ray": metadata.version("ray"),
    }
    if options.json:
        print(
            json.dumps({"name": "named_tasks", "names": options.names, **found, "environment": environment})
        )
        return
    for exporter, one in found.items():
        print(
            f"{exporter} exporter: {one['per_name'] / 1e3:.1f} kB a name, "
            f"{one['per_idle_second'] / 1e3:.1f} kB a second at rest"
        )


if __name__ == "__main__":
    main()
