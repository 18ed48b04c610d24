"""A trial of a search as Ray Tune runs it, and the actor that stops those that fall behind."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import ray

from orchestrator.running.beside_driver import start_beside_driver
from orchestrator.running.devices import computes_on_gpu
from orchestrator.running.trainable import TrialTrainable
from orchestrator.tuning.records import SearchReport
from orchestrator.tuning.rungs import Rungs
from search_spaces.trials import NetworkSpec


class IsweepJudge:
    """The actor: every rung of every cell, so that trials on all nodes are compared with each other."""

    def __init__(self, earlier: Iterable[tuple[str, str, int, float]]) -> None:
        self._rungs = Rungs()
        for entry in earlier:
            self._rungs.come(*entry)

    def come(self, study: str, trial_id: str, epoch: int, loss: float) -> bool:
        """See :meth:`orchestrator.tuning.rungs.Rungs.come`."""
        return self._rungs.come(study, trial_id, epoch, loss)


def start_judge(name: str, earlier: Iterable[tuple[str, str, int, float]]) -> Any:
    """Start the actor under a name of this driver's, knowing of trials that are done; returns its handle."""
    return start_beside_driver(IsweepJudge, list(earlier), name=name, max_restarts=-1)


class SearchTrainable(TrialTrainable):
    """Runs one trial of a search per ``step``; all else is as with the sweep's own trials."""

    def _run(self, started_at: float) -> Any:
        from tasks.trials.trial import run_search_trial

        cell, data = self._cell, self._taken()
        network = NetworkSpec.model_validate_json(cell["network"])
        num_gpus = float(cell["num_gpus"])
        on_gpu = computes_on_gpu(num_gpus)
        result = run_search_trial(
            network,
            data,
            device="cuda" if on_gpu else "cpu",
            num_threads=cell["num_threads"],
            gpu_fraction=num_gpus if on_gpu else None,
            micro_batch=cell["micro_batch"],
            go_on=self._goes_on,
            on_epoch=None if self._epochs is None else self._epochs.teller(cell["trial_id"]).ended,
        )
        return SearchReport(
            started_at=started_at,
            finished_at=time.time(),
            outcome=result,
            data_fingerprint=data.data_fingerprint,
            gpu_share=num_gpus,
        )

    def _goes_on(self, epoch: int, loss: float) -> bool:
        """Ask the judge at a rung; a trial that runs to the end is noted there all the same."""
        cell = self._cell
        if epoch not in cell["rungs"]:
            return True
        judge = ray.get_actor(cell["judge"])
        among_the_best = ray.get(judge.come.remote(cell["study"], cell["trial_id"], epoch, loss))
        return bool(among_the_best) or not cell["may_be_pruned"]
