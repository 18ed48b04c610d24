"""One trial as Ray Tune runs it: an actor that takes cell after cell and keeps nothing between them."""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.result import DONE

from orchestrator.results.records import CellReport, FailureKind, TrialFailure, TrialRecord
from orchestrator.running.devices import NO_CARD, gpu_in_use, named, rest, trial_options
from orchestrator.running.epochs import EpochBoard
from orchestrator.running.failures import DeviceError, classify, ends_process
from orchestrator.running.keeper import Keeper
from orchestrator.running.lost_workers import tell_place
from orchestrator.running.trial_log import recorded
from search_spaces.errors import CorruptStoreError
from search_spaces.trials import TrialSpec
from tasks.trials.result import TrialResult

log = logging.getLogger(__name__)

REPORT = "report"
"""Key of a trial's only Tune result: its :class:`CellReport` as JSON text."""


class TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray ships without types
    """Runs one trial per ``step`` and reports what came of it, once, as a :class:`CellReport`.

    An exception inside a trial is an outcome like any other, so that one bad cell neither ends the sweep nor
    costs a worker. Only the death of the process reaches Tune as an error, and a failure of its device, which
    Tune answers by ending the process: nothing that such a process computes can be believed.
    """

    _epochs: EpochBoard | None = None
    _gpu = "", ""
    _num_finished = 0

    def setup(
        self,
        config: dict[str, Any],
        arrays: Any = None,
        keeper: Keeper | None = None,
        code: dict[str, str] | None = None,
        epochs: EpochBoard | None = None,
        pretrained: dict[str, bytes] | None = None,
    ) -> None:
        """Take the first cell.

        Args:
            config: has the cell.
            arrays: the actor that hands out references to :class:`TrialData`.
            keeper: who keeps weights and checkpoints; None keeps none.
            code: source of one's own networks, by relative path.
            epochs: where epochs are told while they end; None tells nobody.
            pretrained: weights that pretrained networks start from, by :attr:`ModelSpec.pretrained_key`.
        """
        self._arrays, self._keeper, self._code, self._epochs = arrays, keeper, code or {}, epochs
        self._pretrained = pretrained or {}
        self._cell = config["cell"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another cell in the same process: starting one costs seconds."""
        self._cell = new_config["cell"]
        return True

    def step(self) -> dict[str, Any]:
        """Run the cell; the report is its result or its failure, with start and end times."""
        started_at, trial_id = time.time(), self._cell["trial_id"]
        _title_process(trial_id)
        tell_place(trial_id)
        with recorded() as said:
            try:
                report = self._run(started_at)
            except (Exception, SystemExit) as error:  # the latter of somebody's own network
                failure = classify(error)
                if failure.kind == FailureKind.DEVICE_ERROR or failure.message.startswith(NO_CARD):
                    rest(self._num_finished)
                if ends_process(error):
                    gpu = f" ({named(self._gpu[1])})" if self._cell["num_gpus"] else ""
                    raise DeviceError(f"{failure.kind}: {failure.message}{gpu}") from error
                report = CellReport(started_at=started_at, finished_at=time.time(), outcome=failure)
            else:
                self._num_finished += 1
            # Into the worker's log, which the dashboard shows beside the task, and into the trial's.
            seconds = report.finished_at - started_at
            print(f"{trial_id}: {_spelled(report.outcome)} after {seconds:.1f} s", flush=True)  # noqa: T201
        return {DONE: True, REPORT: report.model_copy(update={"log": said.text()}).text()}

    def _run(self, started_at: float) -> CellReport:
        cell, data = self._cell, self._taken()
        spec = TrialSpec.model_validate_json(cell["spec"])
        options = self._options(own_network=spec.network.model.library == "own")
        return CellReport(
            started_at=started_at,
            outcome=self._outcome(spec, data, options),
            finished_at=time.time(),
            data_fingerprint=data.data_fingerprint,
            shared_group_share=data.shared_group_share,
            gpu_share=float(cell["num_gpus"]),
            gpu_name=self._gpu[0],
        )

    def _options(self, *, own_network: bool) -> dict[str, Any]:
        """Return what the cell computes on, and note its GPU: one that failed cannot be asked any more."""
        options = trial_options(self._cell, own_network=own_network)
        if options["device"] == "cuda":
            self._gpu = gpu_in_use()
        return options

    def _taken(self) -> Any:
        """Return the cell's arrays, in a process made ready to compute: torch, so not in ``setup``."""
        from tasks.trials.memory import keep_freed_memory
        from tasks.trials.own_models import install_code

        keep_freed_memory()
        (reference,) = ray.get(self._arrays.take.remote(self._cell["data"]))
        install_code(self._code)
        return ray.get(reference)

    def _outcome(self, spec: TrialSpec, data: Any, options: dict[str, Any]) -> TrialResult:
        from tasks.trials.checkpoints import Checkpoints
        from tasks.trials.trial import measure_trial, run_trial

        keeper, trial_id = self._keeper, spec.trial_id
        text = self._cell.get("known")
        known = TrialRecord.model_validate(json.loads(text), strict=False) if text else None
        if keeper is not None and known is not None and known.result.weights is not None:
            try:
                weights = keeper.read(trial_id, known.result.weights)
                keep = partial(keeper.save_predictions, trial_id)
                missing = known.lacks(spec)
                kept = {name: value for name, value in options.items() if name != "graphs"}
                return measure_trial(
                    spec, data, weights, known.result, missing, keep_predictions=keep, **kept
                )
            except CorruptStoreError as error:
                log.warning("%s is trained again: %s", trial_id, error)
        options["micro_batch"] = self._cell["micro_batch"]
        options["pretrained"] = self._pretrained.get(spec.network.model.pretrained_key)
        if self._epochs is not None:
            teller = self._epochs.teller(trial_id)
            options |= {"on_epoch": teller.ended, "on_score": teller.scored}
        if keeper is None:
            return run_trial(spec, data, **options)
        return run_trial(
            spec,
            data,
            keep=partial(keeper.save, trial_id) if self._cell["keep_weights"] else None,
            keep_predictions=partial(keeper.save_predictions, trial_id),
            checkpoints=Checkpoints(
                partial(keeper.read_checkpoint, trial_id), partial(keeper.save_checkpoint, trial_id)
            ),
            **options,
        )

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: a trial is short and its result is the only state worth keeping."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing."""


def equipped(trainable: type[TrialTrainable], **shared: Any) -> Any:
    """Return ``trainable`` with what its trials share (arguments of its ``setup``), named for people."""
    made = tune.with_parameters(trainable, **shared)
    made = tune.with_resources(made, lambda config: config["cell"]["request"])
    # What Ray's dashboard calls the actors; it would be ResourceTrainable.
    made.__name__ = made.__qualname__ = "IsweepTrial"
    return made


def _spelled(outcome: Any) -> str:
    return f"failed ({outcome.kind})" if isinstance(outcome, TrialFailure) else str(outcome.status)


def _title_process(trial_id: str) -> None:
    """Show the trial in ``top`` and on the dashboard's node page; Ray puts its own title back later."""
    # Private: with a Ray that has it no more, the class's name is shown instead.
    set_title = getattr(ray._raylet, "setproctitle", None)
    if set_title is not None:
        set_title(f"ray::isweep {trial_id}")
