"""Run ten thousand schedules, or ``--schedules`` of them, on all cores; see ``make simulate``."""

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
"""Name of a schedule (empty for drawn schedules), its seeds, and whether to stop at the first
violation."""


def main() -> int:
    """Run the schedules and print a summary. Return 1 if a schedule was violated, otherwise 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--stop", action="store_true", help="at the first violation")
    parser.add_argument(
        "--begin",
        default="",
        help="with this schedule, as a violation names it, such as `seed 1 of NAME`",
    )
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    started_s = time.monotonic()
    faults_met = Counter[str]()
    violations: list[str] = []
    slowest = (0.0, 0)
    # Every named schedule runs once for each 500 schedules.
    named_seeds = range(options.first // 500, (options.first + options.schedules) // 500)
    end = options.first + options.schedules - len(named_seeds) * len(NAMED)
    chunks: list[Chunk] = [(name, named_seeds, options.stop) for name in NAMED]
    for start in range(options.first, end, CHUNK):
        chunks.append(("", range(start, min(start + CHUNK, end)), options.stop))
    number, _, name = options.begin.removeprefix("seed ").partition(" of ")
    chunks.sort(key=lambda chunk: not (number and chunk[0] == name and int(number) in chunk[1]))
    with multiprocessing.get_context("fork").Pool() as pool:
        for chunk_faults, chunk_violations, chunk_slowest in pool.imap_unordered(run_chunk, chunks):
            faults_met += chunk_faults
            violations += chunk_violations
            slowest = max(slowest, chunk_slowest)
            if violations and options.stop:
                break
    seconds = time.monotonic() - started_s
    document = {
        "schedules": options.schedules,
        "violations": len(violations),
        "seconds": round(seconds, 1),
        "processes": os.cpu_count(),
        "slowest_seed": slowest[1],
        "slowest_seconds": round(slowest[0], 2),
        "faults_met": dict(sorted(faults_met.items())),
        "environment": environment(),
    }
    for line in violations[:10]:
        print(line)
    print(json.dumps(document, indent=1))
    if options.into:
        options.into.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if violations else 0


def run_chunk(chunk: Chunk) -> tuple[Counter[str], list[str], tuple[float, int]]:
    """Run the schedules of a chunk.

    Returns:
        The number of schedules that met each fault, the violations, and the slowest schedule's
        seconds and seed.
    """
    logging.disable(logging.CRITICAL)
    name, seeds, stop = chunk
    faults_met = Counter[str]()
    violations: list[str] = []
    slowest = (0.0, 0)
    for seed in seeds:
        started_s = time.monotonic()
        try:
            world = run_named(name, seed) if name else run_seed(seed)
            faults_met += Counter(dict.fromkeys(world.outside.met, 1))
        except Violation as error:
            violations.append(str(error))
            if stop:
                break
        slowest = max(slowest, (time.monotonic() - started_s, seed))
    return faults_met, violations, slowest


if __name__ == "__main__":
    sys.exit(main())
