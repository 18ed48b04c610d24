"""Ten thousand schedules, or as many as are asked for, on all cores; see ``make simulate``."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.harness import environment
from tests.simulation.scheduler import Violation
from tests.simulation.schedules import NAMED, run_named, run_seed

CHUNK = 50
Chunk = tuple[str, range, bool]
"""Name of a schedule, empty for those that are drawn; seeds; whether to stop at the first
violation."""


def main() -> int:
    """Run them and write what was met; returns 1 where something was violated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--stop", action="store_true", help="at the first violation")
    parser.add_argument(
        "--begin", default="", help="with a schedule as it is told, such as `seed 1 of NAME`"
    )
    parser.add_argument("--into", type=Path)
    asked = parser.parse_args()
    began, met, violations, slowest = time.monotonic(), Counter[str](), list[str](), (0.0, 0)
    of_each = range(asked.first // 500, (asked.first + asked.schedules) // 500)
    end = asked.first + asked.schedules - len(of_each) * len(NAMED)
    chunks: list[Chunk] = [(name, of_each, asked.stop) for name in NAMED]
    for at in range(asked.first, end, CHUNK):
        chunks.append(("", range(at, min(at + CHUNK, end)), asked.stop))
    number, _, name = asked.begin.removeprefix("seed ").partition(" of ")
    chunks.sort(key=lambda chunk: not (number and chunk[0] == name and int(number) in chunk[1]))
    with multiprocessing.get_context("fork").Pool() as pool:
        for found, wrong, slow in pool.imap_unordered(run_chunk, chunks):
            met, violations, slowest = met + found, violations + wrong, max(slowest, slow)
            if violations and asked.stop:
                break
    seconds = time.monotonic() - began
    document = {
        "schedules": asked.schedules,
        "violations": len(violations),
        "seconds": round(seconds, 1),
        "processes": os.cpu_count(),
        "slowest_seed": slowest[1],
        "slowest_seconds": round(slowest[0], 2),
        "faults_met": dict(sorted(met.items())),
        "environment": environment(),
    }
    for line in violations[:10]:
        print(line)
    print(json.dumps(document, indent=1))
    if asked.into:
        asked.into.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if violations else 0


def run_chunk(chunk: Chunk) -> tuple[Counter[str], list[str], tuple[float, int]]:
    """Run some schedules; returns faults met, violations, the slowest."""
    logging.disable(logging.CRITICAL)
    name, seeds, stop = chunk
    met, violations, slowest = Counter[str](), list[str](), (0.0, 0)
    for seed in seeds:
        began = time.monotonic()
        try:
            world = run_named(name, seed) if name else run_seed(seed)
            met += Counter(dict.fromkeys(world.outside.met, 1))
        except Violation as error:
            violations.append(str(error))
            if stop:
                break
        slowest = max(slowest, (time.monotonic() - began, seed))
    return met, violations, slowest


if __name__ == "__main__":
    sys.exit(main())
