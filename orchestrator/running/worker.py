"""One trial as Ray Tune runs it: an actor that takes cell after cell and keeps nothing between them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, TextIO

import ray
from ray import tune
from ray.tune.result import DONE
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.planning.paths import without_secrets
from orchestrator.results.records import CellReport, FailureKind, TrialFailure, TrialRecord
from orchestrator.results.storage import Patience
from orchestrator.results.store import WeightStore
from orchestrator.running.failures import DeviceError, classify, ends_process, tell_place
from orchestrator.running.gpus import NO_CARD, gpu_in_use, graphs_off, named, rest, trial_options
from search_spaces.errors import CorruptStoreError, SetupError, SweepError
from search_spaces.specs import TrialSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochRecord, EpochScore, KeptFile, TrialResult

# What one attempt logs, warns of and prints, so that it can be read when its process and node are gone.

HEAD_CHARACTERS = 16_000
TAIL_CHARACTERS = 48_000


class TrialLog:
    """The first and last lines of what was said; what lies between is counted."""

    def __init__(self) -> None:
        self._head, self._tail, self._left_out = "", "", 0

    def add(self, text: str) -> None:
        """Take more."""
        room = HEAD_CHARACTERS - len(self._head)
        self._head += text[:room]
        self._tail += text[room:] if room > 0 else text
        surplus = len(self._tail) - TAIL_CHARACTERS
        if surplus > TAIL_CHARACTERS // 4:
            self._tail = self._tail[surplus:]
            self._left_out += surplus

    def text(self) -> str:
        """Return it, without secrets."""
        gap = f"\n… {self._left_out:,} characters are left out …\n" if self._left_out else ""
        return without_secrets(self._head + gap + self._tail)


@contextlib.contextmanager
def recorded() -> Iterator[TrialLog]:
    """Copy what this process logs, warns of and prints while the block lasts."""
    found, root = TrialLog(), logging.getLogger()
    handler = logging.StreamHandler(_Copy(found))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    logging.captureWarnings(True)
    try:
        with (
            contextlib.redirect_stdout(_Copy(found, sys.stdout)),
            contextlib.redirect_stderr(_Copy(found, sys.stderr)),
        ):
            yield found
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level)


class _Copy(io.TextIOBase):
    """A stream that also goes into a log."""

    def __init__(self, found: TrialLog, stream: TextIO | None = None) -> None:
        self._found, self._stream = found, stream

    def write(self, text: str) -> int:
        self._found.add(text)
        return len(text) if self._stream is None else self._stream.write(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()


# Credentials in the driver's environment: out of Ray's files, and in the one process that needs them.
#
# Tune copies keys of AWS into the runtime environment of every trial, which Ray's agents write to their
# logs in clear. Trials need none: weights and checkpoints go through :class:`.keeper.Keeper`.

STORAGE_PREFIXES = ("AWS_", "AZURE_STORAGE_", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_")
"""Of the variables that name object stores and open them."""


def for_storage() -> dict[str, str]:
    """Return the variables of this process by which object stores are reached."""
    return {name: value for name, value in os.environ.items() if name.startswith(STORAGE_PREFIXES)}


def keep_out_of_runtime_environments() -> None:
    """Take credentials off the list of variables that Tune copies to its trials."""
    from ray.tune.execution import class_cache

    copied: Any = class_cache.ENV_VARS_TO_PROPAGATE
    copied.difference_update({name for name in copied if name.startswith(STORAGE_PREFIXES)})


# Actors of the driver's own: on its node, so that no other node takes one along when it goes.


def start_beside_driver(kind: type, *arguments: Any, **options: Any) -> Any:
    """Start an actor on this driver's node and return its handle.

    It asks for no CPU, since it must answer while trials have all of them. Left to Ray it would lie on
    any node, and every trial that asks it would fail once that node is lost. Its calls are kept out of Ray's
    list of tasks, where people look for trials.

    Args:
        kind: Class of the actor.
        arguments: Of its constructor.
        options: Further ones of Ray's, e.g. ``max_restarts``.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "enable_task_events": False, "scheduling_strategy": here, **options}
    return ray.remote(**options)(kind).remote(*arguments)


# What running trials say of their epochs: kept by a small actor until the driver asks, and nobody waits.
#
# What is lost on the way is lost to live views alone: a trial's result has all its epochs.

TELL_INTERVAL_S = 0.5
ASK_INTERVAL_S = 1.0
MOST_KEPT = 100_000


class EpochReport(NamedTuple):
    """An epoch of a trial has ended; ``score`` is what the test images gave after it, if they were passed."""

    trial_id: str
    epoch: EpochRecord
    score: EpochScore | None


class IsweepEpochs:
    """The actor."""

    def __init__(self) -> None:
        self._said: list[EpochReport] = []

    def tell(self, said: list[EpochReport]) -> None:
        """Keep what a trial says; the oldest goes when nobody asks."""
        self._said = (self._said + said)[-MOST_KEPT:]

    def take(self) -> list[EpochReport]:
        """Return what was said since the last call."""
        said, self._said = self._said, []
        return said


class EpochBoard:
    """The way to the actor; may be sent anywhere."""

    def __init__(self) -> None:
        self.actor = start_beside_driver(IsweepEpochs, max_restarts=-1)

    def teller(self, trial_id: str) -> EpochTeller:
        """Return the side of a trial."""
        return EpochTeller(trial_id, self.actor.tell.remote)


class EpochTeller:
    """A trial's side: epochs that are shorter than a moment are told together.

    Args:
        trial_id: Whose epochs.
        send: Sends them.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self,
        trial_id: str,
        send: Callable[[list[EpochReport]], Any],
        clock: Callable[[], float] = time.monotonic,
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


class EpochListener:
    """The driver's side.

    Args:
        board: Where trials tell.
    """

    def __init__(self, board: EpochBoard) -> None:
        self._actor = board.actor
        self._asked: Any = None
        self._heard = time.monotonic()

    def heard(self) -> list[EpochReport]:
        """Return what was said since the last call, as far as it is here; asks about once a second."""
        if self._asked is None:
            if time.monotonic() - self._heard >= ASK_INTERVAL_S:
                self._asked = self._actor.take.remote()
            return []
        if not ray.wait([self._asked], timeout=0)[0]:
            return []
        asked, self._asked, self._heard = self._asked, None, time.monotonic()
        try:
            said: list[EpochReport] = ray.get(asked)
        except ray.exceptions.RayError:
            return []  # the actor died, and is started again
        return said


# Who keeps weights and checkpoints: one actor on the driver's node, so that workers need no shared disk.

PATIENCE_S = 120.0
"""How long a file waits for storage that is full or away. Its trial waits too, and must not seem to hang."""


class IsweepKeeper:
    """The actor: everything is a file, so it may be started again at any time."""

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._store = WeightStore(url)
        self._patience = Patience(limit_s=PATIENCE_S)

    def save(self, trial_id: str, data: bytes) -> KeptFile | str:
        """See :meth:`WeightStore.save`; a failure in words."""
        try:
            return self._patience.until_done(lambda: self._store.save(trial_id, data))
        except SetupError as error:
            return str(error)

    def save_predictions(self, trial_id: str, data: bytes) -> KeptFile | str:
        """See :meth:`WeightStore.save_predictions`; a failure in words."""
        try:
            return self._patience.until_done(lambda: self._store.save_predictions(trial_id, data))
        except SetupError as error:
            return str(error)

    def read(self, trial_id: str, kept: KeptFile) -> bytes | str:
        """See :meth:`WeightStore.read`; a failure in words."""
        try:
            return self._patience.until_done(lambda: self._store.read(trial_id, kept))
        except CorruptStoreError as error:
            return str(error)

    def save_checkpoint(self, trial_id: str, data: bytes) -> str:
        """Save it; a failure in words, else nothing."""
        try:
            self._store.save_checkpoint(trial_id, data)
        except SetupError as error:
            return str(error)
        return ""

    def read_checkpoint(self, trial_id: str) -> bytes | None:
        """Return it, if there is one."""
        return self._patience.until_done(lambda: self._store.read_checkpoint(trial_id))


class Keeper:
    """A worker's way to the actor; may be sent anywhere."""

    def __init__(self, url: str) -> None:
        self._actor = start_beside_driver(
            IsweepKeeper, url, for_storage(), max_restarts=-1, max_task_retries=1
        )

    def save(self, trial_id: str, data: bytes) -> KeptFile | str:
        """Keep weights; text says why they could not be kept, which costs no result."""
        kept: KeptFile | str = ray.get(self._actor.save.remote(trial_id, data))
        return kept

    def save_predictions(self, trial_id: str, data: bytes) -> KeptFile | str:
        """Keep predictions; text says why they could not be kept, which costs no result."""
        kept: KeptFile | str = ray.get(self._actor.save_predictions.remote(trial_id, data))
        return kept

    def read(self, trial_id: str, kept: KeptFile) -> bytes:
        """Return kept weights.

        Raises:
            CorruptStoreError: when they are gone or damaged.
        """
        data = ray.get(self._actor.read.remote(trial_id, kept))
        if isinstance(data, str):
            raise CorruptStoreError(data)
        return bytes(data)

    def save_checkpoint(self, trial_id: str, data: bytes) -> str:
        """Replace a checkpoint; text says why that was not possible."""
        return str(ray.get(self._actor.save_checkpoint.remote(trial_id, data)))

    def read_checkpoint(self, trial_id: str) -> bytes | None:
        """Return a checkpoint, where there is one that is whole."""
        data: bytes | None = ray.get(self._actor.read_checkpoint.remote(trial_id))
        return data


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
            gpu_note=graphs_off() if options["device"] == "cuda" and self._cell["fast"] == "auto" else "",
        )

    def _options(self, *, own_network: bool) -> dict[str, Any]:
        """Return what the cell computes on, and note its GPU: one that failed cannot be asked any more."""
        options = trial_options(self._cell, own_network=own_network)
        if options["device"] == "cuda":
            self._gpu = gpu_in_use()
        return options

    def _taken(self) -> Any:
        """Return the cell's arrays, in a process made ready to compute: torch, so not in ``setup``."""
        from tasks.trials.isolation import keep_freed_memory
        from tasks.trials.own_models import install_code

        keep_freed_memory()
        (reference,) = ray.get(self._arrays.take.remote(self._cell["data"]))
        install_code(self._code)
        return ray.get(reference)

    def _outcome(self, spec: TrialSpec, data: Any, options: dict[str, Any]) -> TrialResult:
        from tasks.trials.training import Checkpoints
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


# Arrays enter and leave the object store as trials start and end: it holds what runs, and little more.
#
# The driver puts an array when the first trial that needs it starts, and drops it when none that is left
# needs it, or when others need its room. Ray copies it to each node once. Trials ask a small actor for the
# reference, because theirs is not made yet when they are planned.


class IsweepArrays:
    """The actor: hands out references, and lets those wait who come before the driver has put the array."""

    def __init__(self) -> None:
        self._references: dict[str, list[Any]] = {}
        self._there = asyncio.Condition()

    async def put(self, key: str, boxed: list[Any]) -> None:
        """Keep a reference, boxed in a list so that Ray does not fetch the array itself."""
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


class Shelf:
    """The driver's side: which arrays are in the object store, and who still needs them.

    Args:
        keys: the array of every cell that is left, once per cell.
        load: reads an array.
        budget: bytes that may be in the store at once; running trials may exceed it.
    """

    def __init__(self, keys: Iterable[str], load: Callable[[str], TrialData], budget: float) -> None:
        self._left = Counter(keys)
        self._running: dict[str, str] = {}  # array by trial
        self._held: dict[str, tuple[Any, int]] = {}  # in the order of last use
        self._load, self._budget = load, budget
        self.num_loads = 0
        self.references = start_beside_driver(IsweepArrays)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays that are held now."""
        return sum(size for _, size in self._held.values())

    def trial_started(self, trial: str, key: str) -> None:
        """Make sure that the array of a trial that starts is there."""
        self._running[trial] = key
        if key in self._held:
            self._held[key] = self._held.pop(key)
            return
        try:
            data = self._load(key)
        except SweepError:
            ray.get(self.references.put.remote(key, []))  # or the trial would wait for ever
            raise
        size = data.train_images.nbytes + data.test_images.nbytes
        self._make_room(size)
        reference = ray.put(data)
        self.num_loads += 1
        self._held[key] = (reference, size)
        ray.get(self.references.put.remote(key, [reference]))

    def trial_ended(self, trial: str, key: str, *, for_good: bool) -> None:
        """Let the array go with the last trial that needs it; not ``for_good`` is one that is tried again."""
        self._running.pop(trial, None)
        self._left[key] -= for_good
        if self._left[key] <= 0:
            self._drop(key)

    def close(self) -> None:
        """Let everything go."""
        self._held.clear()
        ray.kill(self.references)

    def _make_room(self, size: int) -> None:
        in_use = set(self._running.values())
        for key in [key for key in self._held if key not in in_use]:
            if self.num_bytes + size <= self._budget:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        if self._held.pop(key, None) is not None:
            self.references.drop.remote(key)
