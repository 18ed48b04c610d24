"""The small sweep of the integration tests, and the command as a user runs it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from orchestrator.cli.app import main

SWEEP = """
name: small
models: [small_mlp]
datasets: [manifold_d4, manifold_d12]
train_sizes: [40, 80]
test_size: 40
image_size: 16
seeds: [0, 1, 2]
recipe: smoke
num_neighbors: 10
"""
NUM_TRIALS = 12
NUM_CURVES = 2
"""Runs of learning curves in MLflow besides those of trials: one per model and dataset."""


def write_sweep(folder: Path, text: str = SWEEP) -> str:
    """Write a sweep file and return its path."""
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def command(*arguments: str) -> list[str]:
    """Return the command line of ``isweep`` in this interpreter."""
    return [sys.executable, "-m", "orchestrator.cli", *arguments]


def isweep(*arguments: str, root: Path, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``isweep`` in this process. Check its exit code, and that it prints no traceback."""
    stdout = io.StringIO()
    stderr = io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        code = main([*arguments, "--root", str(root)])
    assert code == exit_code, f"exit {code}\n{stdout.getvalue()}\n{stderr.getvalue()}"
    assert "Traceback" not in stderr.getvalue() + stdout.getvalue(), stderr.getvalue()
    return subprocess.CompletedProcess(
        ["isweep", *arguments], code, stdout.getvalue(), stderr.getvalue()
    )


def isweep_json(*arguments: str, root: Path) -> Any:
    """Run a command with ``--json`` in this process and parse what it prints."""
    return json.loads(isweep(*arguments, "--json", root=root).stdout)


def stored(root: Path) -> dict[str, dict[str, Any]]:
    """Return the result records of the small sweep by trial id, read without the product's reader."""
    folder = root / "sweeps" / "small" / "trials"
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["record"]
        for path in folder.glob("*/result.json")
    }


def mlflow_runs(root: Path) -> Any:
    """Return all MLflow runs of the small sweep as a table."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    return mlflow.search_runs(experiment_names=["isweep/small"])
