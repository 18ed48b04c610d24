"""Workers, which take cell after cell, keep nothing between, and need no disk of the driver's."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TextIO

import ray
from ray import tune
from ray.tune.result import DONE

from orchestrator.machine import gpus
from orchestrator.planning.redaction import without_secrets
from orchestrator.results.provenance import code_fingerprint, provenance
from orchestrator.results.records import CellReport, FailureKind, TrialFailure, TrialRecord
from orchestrator.results.store import FileKind
from orchestrator.running import trial_device
from orchestrator.running.actors import EpochBoard, Keeper
from orchestrator.running.failures import (
    CellFailed,
    DeviceError,
    OtherCodeError,
    Place,
    classify,
    ends_process,
)
from search_spaces.errors import CorruptStoreError, SweepError
from search_spaces.specs import TrialSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import CAPTURE_FAILED, SearchResult, TrialResult

log = logging.getLogger(__name__)

REPORT = "report"
"""Key of a trial's only Tune result: its :class:`CellReport` as JSON text."""
HEAD_CHARACTERS = 16_000
TAIL_CHARACTERS = 48_000

Perform = Callable[
    ["TrialTrainable", TrialData, dict[str, Any]], tuple[TrialResult | SearchResult, bool]
]
"""Does a worker's cell on its arrays, with options of :func:`tasks.trials.trial.run_trial`; returns
what was found, and whether a network was trained for it."""


class TrialLog(io.TextIOBase):
    """The first and last of what an attempt said, to be read when its process and node are gone."""

    def __init__(self) -> None:
        self._head, self._tail, self._left_out = "", "", 0

    def write(self, text: str) -> int:
        """Take more."""
        room = HEAD_CHARACTERS - len(self._head)
        self._head += text[:room]
        self._tail += text[room:]
        surplus = len(self._tail) - TAIL_CHARACTERS
        if surplus > TAIL_CHARACTERS // 4:
            self._tail = self._tail[surplus:]
            self._left_out += surplus
        return len(text)

    def text(self) -> str:
        """Return it, without secrets."""
        gap = f"\n… {self._left_out:,} characters are left out …\n" if self._left_out else ""
        return without_secrets(self._head + gap + self._tail)


class _Tee(io.TextIOBase):
    """A stream that also goes into a log."""

    def __init__(self, stream: TextIO, found: TrialLog) -> None:
        self._stream, self._found = stream, found

    def write(self, text: str) -> int:
        self._found.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def recorded() -> Iterator[TrialLog]:
    """Copy what this process logs, warns of and prints while the block lasts."""
    found, root = TrialLog(), logging.getLogger()
    handler = logging.StreamHandler(found)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    logging.captureWarnings(True)
    out, error = _Tee(sys.stdout, found), _Tee(sys.stderr, found)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            yield found
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level)


class TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray ships without types
    """Runs one cell per ``step`` and reports what came of it, once, as a :class:`CellReport`.

    An exception inside a cell is an outcome, of which the driver is told in full. It reaches Tune
    as an error, which Tune answers by ending the process: Ray shows the task as failed, and nothing
    that a failure left in the process meets the next cell.
    """

    def setup(
        self,
        config: dict[str, Any],
        perform: Perform | None = None,
        arrays: Any = None,
        keeper: Keeper | None = None,
        code: dict[str, str] | None = None,
        epochs: EpochBoard | None = None,
        pretrained: dict[str, bytes] | None = None,
    ) -> None:
        """Take the first cell, and what all have in common: see
        :class:`orchestrator.running.trials.Work`.

        ``code`` is the source of one's own networks, by relative path.
        """
        self._perform, self._arrays, self._code = perform or perform_cell, arrays, code or {}
        self.keeper, self.epochs, self.pretrained = keeper, epochs, pretrained or {}
        self.cell = config["cell"]
        self._has_run, self._gpu = False, ("", "")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another cell in the same process: starting one costs seconds."""
        self.cell = new_config["cell"]
        return True

    def step(self) -> dict[str, Any]:
        """Run the cell; return its report, or raise it as :class:`CellFailed` or
        ``DeviceError``.
        """
        trial_id, started_at, began = self.cell["trial_id"], time.time(), time.monotonic()
        if self.epochs is not None:
            self.epochs.say(Place.here(trial_id))
        # In ``top`` and on the dashboard's node page, until Ray puts its own title back.
        # Private: with a Ray that has it no more, the class's name is shown instead.
        getattr(ray._raylet, "setproctitle", lambda title: None)(f"ray::isweep {trial_id}")
        with recorded() as said:
            try:
                self._check_code()
                report = self._run(started_at)
                self._check_code()
                self._has_run = True
            except (Exception, SystemExit) as error:  # the latter of somebody's own network
                failed = self._failure(error)
                report = CellReport(started_at=started_at, finished_at=started_at, outcome=failed)
            # By a clock that nobody sets: durations are stored.
            seconds, outcome = time.monotonic() - began, report.outcome
            # Into the worker's log, which the dashboard shows beside the task, and into the
            # trial's.
            ended = (
                f"failed ({outcome.kind})" if isinstance(outcome, TrialFailure) else outcome.status
            )
            print(f"{trial_id}: {ended} after {seconds:.1f} s", flush=True)  # noqa: T201
        told: dict[str, Any] = {"finished_at": started_at + seconds, "provenance": provenance()}
        told |= {"node": ray.util.get_node_ip_address(), "log": said.text()}
        text = report.model_copy(update=told).text()
        if isinstance(outcome, TrialFailure):
            # Costs the process, and shows the task as failed in Ray's dashboard.
            raise CellFailed(f"{outcome.kind}: {outcome.message}", text)
        return {DONE: True, REPORT: text}

    def _run(self, started_at: float) -> CellReport:
        data = self._taken()
        options, note = trial_device.trial_options(self.cell)
        if options["device"] == "cuda":
            self._gpu = gpus.gpu_in_use()  # one that failed cannot be asked any more
        found, trained = self._perform(self, data, options)
        return CellReport(
            started_at=started_at,
            finished_at=started_at,
            outcome=found,
            trained=trained,
            data_fingerprint=data.data_fingerprint,
            shared_group_share=data.shared_group_share,
            gpu_share=float(self.cell["num_gpus"]),
            gpu_name=self._gpu[0],
            gpu_note=note,
        )

    def _failure(self, error: BaseException) -> TrialFailure:
        """Return the failure that an error in a cell stands for, or end this process."""
        failure = classify(error)
        # Of a share that is too small its limit tells, not what other trials hold.
        if failure.kind == FailureKind.OUT_OF_MEMORY and self.cell["num_gpus"] >= 1:
            failure = failure.model_copy(
                update={"message": f"{trial_device.held_by_others()}{failure.message}"}
            )
        of_node = failure.kind in (FailureKind.DEVICE_ERROR, FailureKind.OTHER_CODE)
        of_node &= CAPTURE_FAILED not in failure.message  # which is the network's doing
        if not self._has_run and (of_node or failure.message.startswith(trial_device.NO_GPU)):
            time.sleep(
                trial_device.REST_S
            )  # or this node would be given, and fail, every cell of the sweep
        if ends_process(error):
            gpu = f" ({trial_device.gpu_and_node(self._gpu[1])})" if self.cell["num_gpus"] else ""
            raise DeviceError(f"{failure.kind}: {failure.message}{gpu}") from error
        return failure

    def _taken(self) -> TrialData:
        """Return the cell's arrays, in a process made ready to compute."""
        from tasks.trials.isolation import keep_freed_memory
        from tasks.trials.models import install_code

        keep_freed_memory()
        (reference,) = ray.get(self._arrays.take.remote(self.cell["data"]))
        if isinstance(reference, SweepError):
            raise reference
        install_code(self._code)
        data: TrialData = ray.get(reference)
        return data

    def _check_code(self) -> None:
        """See that this process runs the driver's code; one that has run a cell has loaded what it
        needs.
        """
        wanted = self.cell["code"]
        if not self._has_run and (here := code_fingerprint()) != wanted:
            found = (
                f"{provenance().code_version} with source {here} on node "
                f"{ray.util.get_node_ip_address()}"
            )
            hint = "install the same everywhere, and leave it as it is while a sweep runs"
            rule = "A worker must run the code of the driver"
            raise OtherCodeError(rule, f"{found}, the driver's is {wanted}", hint)

    def save_checkpoint(self, _: Any) -> None:
        """Save and load nothing: a trial's result is the only state worth keeping."""

    load_checkpoint = save_checkpoint


def perform_cell(
    worker: TrialTrainable, data: TrialData, options: dict[str, Any]
) -> tuple[TrialResult, bool]:
    """Train and measure a cell of a grid, or measure on its kept network what an earlier result
    lacks.
    """
    from tasks.trials.training import Checkpoints
    from tasks.trials.trial import measure_trial, run_trial

    spec, keeper = TrialSpec.model_validate_json(worker.cell["spec"]), worker.keeper
    trial_id, text = spec.trial_id, worker.cell["known"]
    known = TrialRecord.model_validate_json(text) if text else None
    keep_predictions = (
        None if keeper is None else partial(keeper.put, FileKind.PREDICTIONS, trial_id)
    )
    if keeper is not None and known is not None and known.result.weights is not None:
        how = {name: value for name, value in options.items() if name != "graphs"}
        how |= {"keep_predictions": keep_predictions, "micro_batch": worker.cell["micro_batch"]}
        try:
            weights = keeper.get(FileKind.WEIGHTS, trial_id, known.result.weights)
            return measure_trial(spec, data, weights, known.result, known.lacks(spec), **how), False
        except CorruptStoreError as error:
            log.warning("%s is trained again: %s", trial_id, error)
    options["micro_batch"] = worker.cell["micro_batch"]
    options["pretrained"] = worker.pretrained.get(spec.network.model.pretrained_key)
    if worker.epochs is not None:
        teller = worker.epochs.teller(trial_id)
        options |= {"on_epoch": teller.ended, "on_score": teller.scored}
    if keeper is not None:
        keep = (
            partial(keeper.put, FileKind.WEIGHTS, trial_id) if worker.cell["keep_weights"] else None
        )
        written = partial(keeper.put, FileKind.CHECKPOINT, trial_id)
        checkpoints = Checkpoints(partial(keeper.checkpoint, trial_id), written)
        options |= {"keep": keep, "keep_predictions": keep_predictions, "checkpoints": checkpoints}
    return run_trial(spec, data, **options), True


def equipped(trainable: type[TrialTrainable], **shared: Any) -> Any:
    """Return ``trainable`` with what its trials share (arguments of its ``setup``), named for
    people.
    """
    made = tune.with_parameters(trainable, **shared)
    made = tune.with_resources(made, lambda config: config["cell"]["request"])
    # What Ray's dashboard calls the actors; it would be ResourceTrainable.
    made.__name__ = made.__qualname__ = "IsweepTrial"
    return made
