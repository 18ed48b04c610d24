"""The long form of the fault tests: each case several times, judged by what the store holds at the end.

Every case runs in PID, mount and network namespaces of its own (``tests/isolation.py``). A cell counts as
right when a fresh look at the store finds the one result that an undisturbed run would give. Writes faults,
failures by kind and seconds to ``benchmarks/results/chaos.json``; exits with 1 when a cell is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.integration.faults import CASES
from tests.integration.several_nodes import environment
from tests.isolation import isolated

OUT = Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.json"


def run_case(name: str) -> list[dict[str, Any]]:
    """Run one case once; returns its outcomes."""
    with tempfile.TemporaryDirectory(prefix="isweep-chaos-") as root:
        done = subprocess.run(
            isolated(sys.executable, "-m", "tests.integration.faults", name, root),
            capture_output=True,
            text=True,
            timeout=900,
            check=True,
            env=environment(os.urandom(32).hex()),
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return [found] if "planned" in found else list(found.values())


def verdict(outcome: dict[str, Any]) -> dict[str, Any]:
    """Return what matters of an outcome: cells right, failures by kind, faults, seconds."""
    kinds = [kind for _, kind, _, _ in outcome["told"]]
    return {
        "planned": len(outcome["planned"]),
        "right": sum(outcome["results"].get(cell) == f"found {cell}" for cell in outcome["planned"]),
        "faults": len(outcome["history"]),
        "failures": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "statuses": outcome["statuses"],
        "seconds": round(outcome["seconds"], 1),
    }


def main() -> int:
    """Run all cases and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    rounds: dict[str, list[dict[str, Any]]] = {}
    for name in arguments.cases:
        rounds[name] = [verdict(found) for _ in range(arguments.rounds) for found in run_case(name)]
        print(name, json.dumps(rounds[name]))
    document = {
        "date": time.strftime("%F"),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}",
        "load": os.getloadavg()[0],
        "ray": metadata.version("ray"),
        "cases": rounds,
    }
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(any(case["right"] < case["planned"] for cases in rounds.values() for case in cases))


if __name__ == "__main__":
    sys.exit(main())
