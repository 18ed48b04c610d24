"""What runs beside the driver: workers, which take cell after cell, and the actors that they speak with.

Workers keep nothing between cells, and need no disk of the driver's: three actors on its node hand out
arrays, keep files and hear what trials say.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TextIO

import ray
from ray import tune
from ray.tune.result import DONE
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.planning.paths import without_secrets
from orchestrator.results.storage import Patience
from orchestrator.results.store import (
    CellReport,
    FailureKind,
    FileKind,
    ResultStore,
    TrialFailure,
    TrialRecord,
    code_fingerprint,
    provenance,
)
from orchestrator.running import gpus
from orchestrator.running.failures import (
    CellFailed,
    DeviceError,
    OtherCodeError,
    Place,
    classify,
    ends_process,
)
from search_spaces.errors import CorruptStoreError, SetupError, SweepError
from search_spaces.specs import TrialSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochRecord, EpochScore, KeptFile, SearchResult, TrialResult

log = logging.getLogger(__name__)

REPORT = "report"
"""Key of a trial's only Tune result: its :class:`CellReport` as JSON text."""
HEAD_CHARACTERS = 16_000
TAIL_CHARACTERS = 48_000
STORAGE_PREFIXES = ("AWS_", "AZURE_STORAGE_", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_")
"""Of the variables that name object stores and open them."""
TELL_INTERVAL_S = 0.5
ASK_INTERVAL_S = 1.0
ANSWER_TIMEOUT_S = 2.0
MOST_KEPT = 100_000
"""Of what trials say, until the driver asks. Live views alone lose the rest: a result has all its epochs."""
PATIENCE_S = 120.0
"""How long a file waits for storage that is full or away. Its trial waits too, and must not seem to hang."""
SAID_AFTER_S = 10.0

Perform = Callable[["TrialTrainable", TrialData, dict[str, Any]], tuple[TrialResult | SearchResult, bool]]
"""Does a worker's cell on its arrays, with options of :func:`tasks.trials.trial.run_trial`; returns what was
found, and whether a network was trained for it."""


class TrialLog(io.TextIOBase):
    """The first and last of what an attempt said, to be read when its process and node are gone.

    What lies between is counted.
    """

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

    An exception inside a cell is an outcome, of which the driver is told in full. It reaches Tune as an
    error, which Tune answers by ending the process: Ray shows the task as failed, and nothing that a failure
    left in the process meets the next cell.
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
        """Take the first cell, and what all have in common: see :class:`orchestrator.running.trials.Work`.

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
        """Run the cell; return its report, or raise it as :class:`CellFailed` or ``DeviceError``."""
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
            # Into the worker's log, which the dashboard shows beside the task, and into the trial's.
            ended = f"failed ({outcome.kind})" if isinstance(outcome, TrialFailure) else outcome.status
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
        options, note = gpus.trial_options(self.cell)
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
        of_node = failure.kind in (FailureKind.DEVICE_ERROR, FailureKind.OTHER_CODE)
        if of_node or failure.message.startswith(gpus.NO_GPU):
            gpus.rest(self._has_run)  # or this node would be given, and fail, every cell of the sweep
        if ends_process(error):
            gpu = f" ({gpus.named(self._gpu[1])})" if self.cell["num_gpus"] else ""
            raise DeviceError(f"{failure.kind}: {failure.message}{gpu}") from error
        return failure

    def _taken(self) -> TrialData:
        """Return the cell's arrays, in a process made ready to compute."""
        from tasks.trials.isolation import keep_freed_memory
        from tasks.trials.own_models import install_code

        keep_freed_memory()
        (reference,) = ray.get(self._arrays.take.remote(self.cell["data"]))
        if isinstance(reference, SweepError):
            raise reference
        install_code(self._code)
        data: TrialData = ray.get(reference)
        return data

    def _check_code(self) -> None:
        """See that this process runs the driver's code; one that has run a cell has loaded what it needs."""
        wanted = self.cell["code"]
        if not self._has_run and (here := code_fingerprint()) != wanted:
            found = f"{provenance().code_version} with source {here} on node {ray.util.get_node_ip_address()}"
            way_out = "install the same everywhere, and leave it as it is while a sweep runs"
            rule = "A worker must run the code of the driver"
            raise OtherCodeError(rule, f"{found}, the driver's is {wanted}", way_out)

    def save_checkpoint(self, _: Any) -> None:
        """Save and load nothing: a trial's result is the only state worth keeping."""

    load_checkpoint = save_checkpoint


def perform_cell(
    worker: TrialTrainable, data: TrialData, options: dict[str, Any]
) -> tuple[TrialResult, bool]:
    """Train and measure a cell of a grid, or measure on its kept network what an earlier result lacks."""
    from tasks.trials.training import Checkpoints
    from tasks.trials.trial import measure_trial, run_trial

    spec, keeper = TrialSpec.model_validate_json(worker.cell["spec"]), worker.keeper
    trial_id, text = spec.trial_id, worker.cell["known"]
    known = TrialRecord.model_validate(json.loads(text), strict=False) if text else None
    keep_predictions = None if keeper is None else partial(keeper.put, FileKind.PREDICTIONS, trial_id)
    if keeper is not None and known is not None and known.result.weights is not None:
        how = {name: value for name, value in options.items() if name != "graphs"}
        how["keep_predictions"] = keep_predictions
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
        keep = partial(keeper.put, FileKind.WEIGHTS, trial_id) if worker.cell["keep_weights"] else None
        written = partial(keeper.put, FileKind.CHECKPOINT, trial_id)
        checkpoints = Checkpoints(partial(keeper.checkpoint, trial_id), written)
        options |= {"keep": keep, "keep_predictions": keep_predictions, "checkpoints": checkpoints}
    return run_trial(spec, data, **options), True


def equipped(trainable: type[TrialTrainable], **shared: Any) -> Any:
    """Return ``trainable`` with what its trials share (arguments of its ``setup``), named for people."""
    made = tune.with_parameters(trainable, **shared)
    made = tune.with_resources(made, lambda config: config["cell"]["request"])
    # What Ray's dashboard calls the actors; it would be ResourceTrainable.
    made.__name__ = made.__qualname__ = "IsweepTrial"
    return made


def start_beside_driver(kind: type, *arguments: Any, **options: Any) -> Any:
    """Start an actor on this driver's node, since one lost with another node would fail every trial.

    It asks for no CPU, for it must answer while trials have all of them; Ray's list of tasks is for trials.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "enable_task_events": False, "scheduling_strategy": here, **options}
    return ray.remote(**options)(kind).remote(*arguments)


class EpochReport(NamedTuple):
    """An epoch of a trial has ended; ``score`` is what the test images gave after it, if they were passed."""

    trial_id: str
    epoch: EpochRecord
    score: EpochScore | None


class Note(NamedTuple):
    """Something that a person should know of a running trial."""

    trial_id: str
    text: str


Said = EpochReport | Place | Note


class IsweepEpochs:
    """The actor that keeps what running trials say until the driver asks; nobody waits."""

    def __init__(self) -> None:
        self._said: list[Said] = []

    def tell(self, said: list[Said]) -> None:
        """Keep what a trial says; the oldest goes when nobody asks."""
        self._said = (self._said + said)[-MOST_KEPT:]

    def take(self) -> list[Said]:
        """Return what was said since the last call."""
        said, self._said = self._said, []
        return said


class EpochBoard:
    """The way to the actor, of trials, to which it may be sent, and of the driver."""

    def __init__(self) -> None:
        self.actor = start_beside_driver(IsweepEpochs, max_restarts=-1)
        self._asked: Any = None
        self._heard_at = 0.0

    def say(self, said: Said) -> None:
        """Say something, and go on."""
        self.actor.tell.remote([said])

    def teller(self, trial_id: str) -> EpochTeller:
        """Return what tells the epochs of a trial."""
        return EpochTeller(trial_id, self.actor.tell.remote, time.monotonic)

    def heard(self, *, wait: bool = False) -> list[Said]:
        """Return, in the driver, what was said since the last call; asks about once a second.

        With ``wait`` it asks now and waits: a process has ended that may just have said something.
        """
        said = self._answer(0.0)
        if self._asked is None and (wait or time.monotonic() - self._heard_at >= ASK_INTERVAL_S):
            self._asked = self.actor.take.remote()
        return said + (self._answer(ANSWER_TIMEOUT_S) if wait else [])

    def _answer(self, timeout_s: float) -> list[Said]:
        if self._asked is None or not ray.wait([self._asked], timeout=timeout_s)[0]:
            return []
        asked, self._asked, self._heard_at = self._asked, None, time.monotonic()
        try:
            said: list[Said] = ray.get(asked)
        except ray.exceptions.RayError:
            return []  # the actor died, and is started again
        return said


class EpochTeller:
    """Tells the epochs of a trial; those that are shorter than a moment are told together."""

    def __init__(
        self, trial_id: str, send: Callable[[list[EpochReport]], Any], clock: Callable[[], float]
    ) -> None:
        self._trial_id, self._send, self._clock = trial_id, send, clock
        self._kept: list[EpochReport] = []
        self._score: EpochScore | None = None
        self._sent = clock()

    def scored(self, score: EpochScore) -> None:
        """Take what the test images gave after the epoch that is told next."""
        self._score = score

    def ended(self, epoch: EpochRecord) -> None:
        """Tell an epoch, now or together with the next ones."""
        self._kept.append(EpochReport(self._trial_id, epoch, self._score))
        self._score = None
        if self._clock() - self._sent >= TELL_INTERVAL_S:
            self._send(self._kept)
            self._kept, self._sent = [], self._clock()


class IsweepKeeper:
    """The one actor that writes weights, predictions and checkpoints; it may be started again at any time."""

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._files = ResultStore(url)
        self._patience = Patience(limit_s=PATIENCE_S)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of :class:`ResultStore`; of a file that could not be kept, return why."""
        work = partial(getattr(self._files, method), *arguments)
        if method != "put":
            return self._patience.until_done(work)
        try:
            # A checkpoint does not wait: another follows.
            return work() if arguments[0] == FileKind.CHECKPOINT else self._patience.until_done(work)
        except SetupError as error:
            return str(error)


class Keeper:
    """A worker's way to the actor, with the methods of :class:`ResultStore`; may be sent anywhere."""

    def __init__(self, url: str, board: EpochBoard) -> None:
        self._board = board
        credentials = {name: value for name, value in os.environ.items() if name.startswith(STORAGE_PREFIXES)}
        self._actor = start_beside_driver(IsweepKeeper, url, credentials, max_restarts=-1, max_task_retries=1)

    def put(self, kind: FileKind, trial_id: str, data: bytes) -> KeptFile | str:
        """Keep a file; text says why it could not be kept, which costs no result."""
        asked = self._actor.call.remote("put", kind, trial_id, data)
        if not ray.wait([asked], timeout=SAID_AFTER_S)[0]:
            told = f"its {kind} wait for storage that is full or away, {PATIENCE_S:.0f} s at most"
            self._board.say(Note(trial_id, told))
        kept: KeptFile | str = ray.get(asked)
        return kept

    def get(self, kind: FileKind, trial_id: str, kept: KeptFile) -> bytes:
        """See :meth:`ResultStore.get`, whose errors Ray passes on."""
        data: bytes = ray.get(self._actor.call.remote("get", kind, trial_id, kept))
        return data

    def checkpoint(self, trial_id: str) -> bytes | None:
        """See :meth:`ResultStore.checkpoint`."""
        data: bytes | None = ray.get(self._actor.call.remote("checkpoint", trial_id))
        return data


class IsweepArrays:
    """The actor that hands out references; who comes before the driver has put the array waits."""

    def __init__(self) -> None:
        self._references: dict[str, list[Any]] = {}
        self._there = asyncio.Condition()

    async def put(self, key: str, boxed: list[Any]) -> None:
        """Keep a reference, boxed so that Ray does not fetch the array itself, or why there is none."""
        async with self._there:
            self._references[key] = boxed
            self._there.notify_all()

    async def drop(self, key: str) -> None:
        """Forget a reference."""
        self._references.pop(key, None)

    async def take(self, key: str) -> list[Any]:
        """Return the boxed reference as soon as it is there."""
        async with self._there:
            await self._there.wait_for(lambda: key in self._references)
            return self._references[key]
