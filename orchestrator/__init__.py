"""All units together: plan, Ray Tune sweep, measures, result store, MLflow, analysis, command line.

The names below are for notebooks and for people who bring their own pipeline; importing this package
imports neither torch, ray nor mlflow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.analysis import fit_scaling_laws, predict
    from orchestrator.analysis.reporting import results_table
    from orchestrator.planning.plan import plan_sweep
    from orchestrator.planning.sweep_file import load_sweep
    from orchestrator.planning.workspace import Workspace
    from orchestrator.running.pipeline import RunOptions, run_sweep

_HOMES = {
    "RunOptions": "orchestrator.running.pipeline",
    "Workspace": "orchestrator.planning.workspace",
    "fit_scaling_laws": "orchestrator.analysis",
    "load_sweep": "orchestrator.planning.sweep_file",
    "plan_sweep": "orchestrator.planning.plan",
    "predict": "orchestrator.analysis",
    "results_table": "orchestrator.analysis.reporting",
    "run_sweep": "orchestrator.running.pipeline",
}

__all__ = [
    "RunOptions",
    "Workspace",
    "fit_scaling_laws",
    "load_sweep",
    "plan_sweep",
    "predict",
    "results_table",
    "run_sweep",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
