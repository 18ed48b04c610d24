"""One trial as Ray Tune runs it: an actor that takes cell after cell and keeps nothing between them."""

from __future__ import annotations

import json
import time
from typing import Any

import ray
from ray import tune
from ray.tune.result import DONE

from orchestrator.running.failures import classify
from search_spaces.specs import TrialSpec


class TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray ships without types
    """Runs one trial per ``step`` and reports its outcome as JSON.

    An exception inside a trial is an outcome like any other, so that one bad cell neither ends the sweep nor
    costs a worker. Only the death of the process itself reaches Tune as an error.
    """

    def setup(self, config: dict[str, Any], arrays: dict[str, Any] | None = None) -> None:
        """Take the first cell; ``arrays`` maps data keys to references to :class:`TrialData`."""
        self._arrays = arrays or {}
        self._cell = config["cell"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another cell in the same process: starting one costs seconds."""
        self._cell = new_config["cell"]
        return True

    def step(self) -> dict[str, Any]:
        """Run the cell; the report is its outcome or its failure, with start and end times."""
        started_at = time.time()
        report: dict[str, Any] = {DONE: True}
        try:
            report["outcome"] = json.dumps(self._run(), allow_nan=False)
        except Exception as error:
            report["failure"] = json.dumps(classify(error).to_json())
        report["started_at"], report["finished_at"] = started_at, time.time()
        return report

    def _run(self) -> dict[str, Any]:
        from tasks.trials.trial import run_trial

        cell = self._cell
        spec = TrialSpec.model_validate_json(cell["spec"])
        data = ray.get(self._arrays[cell["data"]])
        device = "cuda" if cell["num_gpus"] and _has_cuda() else "cpu"
        outcome = run_trial(
            spec,
            data,
            device=device,
            num_threads=cell["num_threads"],
            **({"gpu_fraction": cell["num_gpus"]} if device == "cuda" else {}),
        )
        return {
            **outcome.to_json(),
            "data_fingerprint": data.data_fingerprint,
            "shared_group_share": data.shared_group_share,
            "gpu_share": cell["num_gpus"],
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: a trial is short and its result is the only state worth keeping."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing."""


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())
