"""One trial as Ray Tune runs it: an actor that takes cell after cell and keeps nothing between them."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import tune
from ray.tune.result import DONE

from orchestrator.results.records import CellReport
from orchestrator.running.failures import classify
from search_spaces.trials import TrialSpec

REPORT = "report"
"""Key of a trial's only Tune result: its :class:`CellReport` as JSON text."""


class TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray ships without types
    """Runs one trial per ``step`` and reports what came of it, once, as a :class:`CellReport`.

    An exception inside a trial is an outcome like any other, so that one bad cell neither ends the sweep nor
    costs a worker. Only the death of the process itself reaches Tune as an error.
    """

    def setup(self, config: dict[str, Any], arrays: Any = None) -> None:
        """Take the first cell; ``arrays`` is the actor that hands out references to :class:`TrialData`."""
        from tasks.trials.memory import keep_freed_memory

        keep_freed_memory()
        self._arrays = arrays
        self._cell = config["cell"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another cell in the same process: starting one costs seconds."""
        self._cell = new_config["cell"]
        return True

    def step(self) -> dict[str, Any]:
        """Run the cell; the report is its result or its failure, with start and end times."""
        started_at = time.time()
        try:
            report = self._run(started_at)
        except Exception as error:
            report = CellReport(started_at=started_at, finished_at=time.time(), outcome=classify(error))
        return {DONE: True, REPORT: report.text()}

    def _run(self, started_at: float) -> CellReport:
        from tasks.trials.trial import run_trial

        cell = self._cell
        spec = TrialSpec.model_validate_json(cell["spec"])
        (reference,) = ray.get(self._arrays.take.remote(cell["data"]))
        data = ray.get(reference)
        num_gpus = float(cell["num_gpus"])
        device = "cuda" if num_gpus and _has_cuda() else "cpu"
        result = run_trial(
            spec,
            data,
            device=device,
            num_threads=cell["num_threads"],
            gpu_fraction=num_gpus if device == "cuda" else None,
            micro_batch=cell["micro_batch"],
        )
        return CellReport(
            started_at=started_at,
            finished_at=time.time(),
            outcome=result,
            data_fingerprint=data.data_fingerprint,
            shared_group_share=data.shared_group_share,
            gpu_share=num_gpus,
        )

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: a trial is short and its result is the only state worth keeping."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing."""


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())
