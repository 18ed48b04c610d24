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
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import environment
from tests.simulation.scheduler import Violation
from tests.simulation.schedules import NAMED, run_named, run_seed

CHUNK, NUM_OF_EACH = 50, 20


def main() -> int:
    """Run them and write what was met; returns 1 where something was violated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--stop", action="store_true", help="at the first violation")
    parser.add_argument("--into", type=Path)
    asked = parser.parse_args()
    began, met, violations, slowest = time.monotonic(), Counter[str](), list[str](), (0.0, 0)
    chunks = [*NAMED, *range(asked.first, asked.first + asked.schedules, CHUNK)]
    with multiprocessing.get_context("fork").Pool() as pool:
        for found, wrong, slow in pool.imap_unordered(run_chunk, chunks):
            met, violations, slowest = met + found, violations + wrong, max(slowest, slow)
            if violations and asked.stop:
                break
    seconds = time.monotonic() - began
    document = {
        "schedules": asked.schedules + NUM_OF_EACH * len(NAMED),
        "violations": len(violations),
        "seconds": round(seconds, 1),
        "processes": os.cpu_count(),
        "slowest_seed": slowest[1],
        "slowest_seconds": round(slowest[0], 2),
        "faults_met": dict(sorted(met.items())),
        "environment": environment(),
    }
    for line in violations[:3]:
        print(line)
    print(json.dumps(document, indent=1))
    if asked.into:
        asked.into.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if violations else 0


def run_chunk(which: int | str) -> tuple[Counter[str], list[str], tuple[float, int]]:
    """Run a chunk of seeds, or a named schedule with some; returns faults met, violations, the slowest."""
    logging.disable(logging.CRITICAL)
    met, violations, slowest = Counter[str](), list[str](), (0.0, 0)
    for seed, seconds, found in _runs(which):
        slowest = max(slowest, (seconds, seed))
        if isinstance(found, str):
            violations.append(found)
        else:
            met += found
    return met, violations, slowest


def _runs(which: int | str) -> Iterator[tuple[int, float, Counter[str] | str]]:
    named = isinstance(which, str)
    for seed in range(NUM_OF_EACH) if named else range(which, which + CHUNK):
        began = time.monotonic()
        try:
            world = run_named(which, seed) if named else run_seed(seed)
            found: Counter[str] | str = Counter(dict.fromkeys(world.outside.met, 1))
        except Violation as error:
            found = str(error)
        yield seed, time.monotonic() - began, found


if __name__ == "__main__":
    sys.exit(main())
