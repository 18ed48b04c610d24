"""The progress of a run. It is printed to stderr, and written to a file for ``isweep status``."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, Field
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.machine.locks import holder_pid
from orchestrator.machine.signals import raise_if_stop_requested
from orchestrator.planning.workspace import Workspace
from orchestrator.results.state import State, read_state
from search_spaces.specs import NetworkSpec
from tasks.atomic import read_whole, write_atomic
from tasks.trials.records import EpochRecord, TrialStatus

log = logging.getLogger(__name__)

PRINT_INTERVAL_S = 10.0
"""Seconds between two printed lines of progress if stderr is not a terminal."""
SAVE_INTERVAL_S = 1.0
"""Seconds between two updates of the file ``progress.json``. If a trial starts or ends, the
file is updated at once."""
TRIAL_STAGES = ("train", "search")
"""Stages that train networks. Their progress is counted in trials."""
MAX_TRIALS_SHOWN = 4
"""Largest number of running trials that the terminal shows."""


class RunningTrial(BaseModel):
    """The progress of a running trial.

    Attributes:
        started_at: time at which the trial started, in seconds since 1970.
        epoch: number of finished epochs.
        num_epochs: number of epochs in the recipe, or 0 before the first epoch has ended.
        images_per_second: training images per second in the last epoch, or None before the
            first epoch has ended.
        epochs_per_second: 1 divided by the seconds of the last epoch, or None before the first
            epoch has ended.
        seconds_left: remaining seconds of training, estimated from the last epoch, or None
            before the first epoch has ended.
    """

    started_at: float = Field(default_factory=time.time)
    epoch: int = 0
    num_epochs: int = 0
    images_per_second: float | None = None
    epochs_per_second: float | None = None
    seconds_left: float | None = None

    def text(self, duration: str) -> str:
        """Return a line of text about the trial. The line begins with ``duration``."""
        if self.images_per_second is None or self.seconds_left is None:
            return duration
        left = format_duration(self.seconds_left)
        return (
            f"{duration}  epoch {self.epoch}/{self.num_epochs}  "
            f"{self.images_per_second:,.0f} img/s  about {left} of training left"
        )


class WaitingTrial(BaseModel):
    """A trial whose last attempt failed and that the run will try again.

    Attributes:
        kind: kind of the last failure.
        retry_at: time at which the pause before the next attempt ends, in seconds since 1970.
            After the pause, the trial waits for a free worker.
    """

    kind: str
    retry_at: float

    @property
    def pause_left_s(self) -> float:
        """Seconds until the pause ends, or 0 if it has ended."""
        return max(0.0, self.retry_at - time.time())


def next_attempt(retry_at: float) -> str:
    """Return a text that says when a waiting trial is tried again."""
    if retry_at <= time.time():
        return "tried again as soon as a worker is free"
    form = "%T" if retry_at - time.time() < 12 * 3600 else "%F %T"
    return f"tried again at {time.strftime(form, time.localtime(retry_at))}"


class RunState(BaseModel):
    """The state of a run as it is written to the run's file.

    Attributes:
        pid: process id of the driver. The state is valid as long as this process locks the
            root.
        now: line of text about the present stage, for example ``train 3/40 done``.
        running: running trials by id.
        waiting: failed trials that will be tried again, by id.
        seconds_left: estimated seconds until the last trial ends, or None if it is unknown.
    """

    pid: int = Field(default_factory=os.getpid)
    now: str = ""
    running: dict[str, RunningTrial] = Field(default_factory=dict)
    waiting: dict[str, WaitingTrial] = Field(default_factory=dict)
    seconds_left: float | None = None


def read_run(workspace: Workspace) -> RunState | None:
    """Return the state of a sweep's present run. Return None if no run is active, or if it has
    not written its state yet.
    """
    path = workspace.sweep_paths.progress
    holder = holder_pid(workspace.paths.lock)
    if holder is None or not path.exists():
        return None
    try:
        state = RunState.model_validate_json(read_whole(path))
    except (OSError, ValueError) as error:
        # The driver writes the file again within seconds, and only displays read it.
        log.warning("%s cannot be read, so no trial is shown as running: %s", path, error)
        return None
    return state if state.pid == holder else None


def read_live_state(workspace: Workspace) -> State:
    """Return the state of a sweep, with the running and waiting trials of its present run."""
    run = read_run(workspace) or RunState()
    return read_state(workspace, run.running, run.waiting, quick=True)


def format_duration(seconds: float) -> str:
    """Return a duration as text, such as ``8 s``, ``2 min 05 s`` or ``3 h 07 min``."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


@dataclass
class Progress:
    """The state of a run. It is shown on a console, and written to a file for ``isweep
    status``.

    Attributes:
        console: console that shows the progress. None means that nothing is shown.
        path: file for ``isweep status``. None means that no file is written.
        slots: number of trials that run at the same time.
        planned: number of planned trials.
        done: number of trials with a result, including those of earlier runs.
        diverged: number of trials of this run that diverged.
        running: running trials by id.
        failed: failure kind of each trial that gets no further attempt, by trial id.
        waiting: failed trials that will be tried again, by id.
        name: name of the present stage.
        detail: text about the present step of the stage.
        step: number of finished steps of the stage.
        total: number of steps of the stage, or 0 if it is unknown.
        expected: expected seconds of each trial, by trial id. The time left is estimated from
            these values. An estimate from the mean time of the finished trials would be too
            large, because long trials start first.
    """

    console: Console | None = None
    path: Path | None = None
    slots: int = 1
    planned: int = 0
    done: int = 0
    diverged: int = 0
    running: dict[str, RunningTrial] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, WaitingTrial] = field(default_factory=dict)
    name: str = ""
    detail: str = ""
    step: int = 0
    total: int = 0
    expected: Mapping[str, float] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _began: dict[str, float] = field(default_factory=dict)
    _is_live: bool = False
    _started_at: float = field(default_factory=time.monotonic)
    _printed_at: float = 0.0
    _saved_at: float = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress during a ``with`` block. A terminal shows a live view. Any other
        output gets a line every 10 s.
        """
        try:
            if self.console is None or not self.console.is_terminal:
                yield
                return
            with Live(get_renderable=self._render, console=self.console, transient=True):
                self._is_live = True
                yield
        finally:
            self._is_live = False
            self.save()

    def stage(self, name: str, detail: str = "", total: int = 0) -> None:
        """Start a stage of ``total`` steps."""
        raise_if_stop_requested()
        self.name = name
        self.detail = detail
        self.step = 0
        self.total = total
        log.info("stage %s %s", name, detail)
        self._update(print_now=True)

    def advance(self, detail: str) -> None:
        """Count a finished step of the stage."""
        raise_if_stop_requested()
        self.step += 1
        self.detail = detail
        self._update()

    def note(self, message: str) -> None:
        """Print a line that stays on the screen, and log it."""
        log.info("%s", message)
        if self.console is not None:
            self.console.print(Text(message), soft_wrap=True)

    def trial_started(self, trial_id: str) -> None:
        """Show a trial as running."""
        log.info("trial %s starts", trial_id)
        self.running[trial_id] = RunningTrial()
        self._began[trial_id] = time.monotonic()
        self.failed.pop(trial_id, None)
        self.waiting.pop(trial_id, None)
        self._update(save_now=True)

    def trial_epoch(self, trial_id: str, epoch: EpochRecord, network: NetworkSpec) -> None:
        """Show that a running trial has finished an epoch."""
        trial = self.running.get(trial_id)
        if trial is None:
            return
        num_epochs = network.recipe.epochs
        seconds = max(epoch.seconds, 1e-9)
        self.running[trial_id] = RunningTrial(
            started_at=trial.started_at,
            epoch=epoch.epoch,
            num_epochs=num_epochs,
            images_per_second=network.train_size / seconds,
            epochs_per_second=1 / seconds,
            seconds_left=epoch.seconds * (num_epochs - epoch.epoch),
        )
        self._update()

    def trial_finished(self, trial_id: str, status: str) -> None:
        """Count a trial that has a result."""
        seconds = self._seconds_since_start(trial_id)
        self._seconds[trial_id] = seconds
        log.info("trial %s ends: %s after %.1f s", trial_id, status, seconds)
        self.done += 1
        self.diverged += status == TrialStatus.DIVERGED
        self.trial_stopped(trial_id)

    def trial_failed(
        self, trial_id: str, kind: str, message: str, retry_after_s: float | None
    ) -> None:
        """Show that an attempt failed.

        Args:
            trial_id: id of the trial.
            kind: kind of failure.
            message: text with the cause and the decision about a retry.
            retry_after_s: seconds until the next attempt, or None if there is none.
        """
        if retry_after_s is None:
            self.waiting.pop(trial_id, None)
            self.failed[trial_id] = kind
        else:
            self.waiting[trial_id] = WaitingTrial(kind=kind, retry_at=time.time() + retry_after_s)
        self.note(f"  failed ({kind}) {trial_id}: {message}")
        self.trial_stopped(trial_id)

    def trial_stopped(self, trial_id: str) -> None:
        """Show that a trial is not running any more."""
        self.running.pop(trial_id, None)
        self._began.pop(trial_id, None)
        self._update(save_now=True)

    def counts(self) -> dict[str, int]:
        """Return the numbers of trials, by the name of the metric in MLflow."""
        return {
            "trials_planned": self.planned,
            "trials_done": self.done,
            "trials_failed": len(self.failed),
            "trials_diverged": self.diverged,
        }

    def states(self) -> dict[str, int]:
        """Return the number of trials by state."""
        counts = {
            "failed": len(self.failed),
            "running": len(self.running),
            "waiting": len(self.waiting),
        }
        return {
            "done": self.done - self.diverged,
            "diverged": self.diverged,
            **counts,
            "pending": max(0, self.planned - self.done - sum(counts.values())),
        }

    def pace(self) -> dict[str, float]:
        """Return the total speed of all running trials and the time left, by the name of the
        metric.

        If the time left is unknown, the result does not contain it.
        """
        trials = self.running.values()
        pace = {
            "isweep_images_per_second": sum(trial.images_per_second or 0.0 for trial in trials),
            "isweep_epochs_per_second": sum(trial.epochs_per_second or 0.0 for trial in trials),
        }
        left = self.time_left()
        if left is not None:
            pace["isweep_seconds_left"] = left
        return pace

    def time_left(self) -> float | None:
        """Return the estimated seconds until the last trial ends. Return None if no trial of
        this run has finished yet.
        """
        if not self._seconds:
            return None
        expected = {
            trial_id: seconds
            for trial_id, seconds in self.expected.items()
            if math.isfinite(seconds)
        }
        seconds_taken = sum(self._seconds.values())
        expected_of_ended = sum(expected.get(trial_id, 0.0) for trial_id in self._seconds)
        if expected_of_ended > 0:
            scale = seconds_taken / expected_of_ended
            left = self._expected_left(expected, scale)
            durations = {name: scale * expected.get(name, 0.0) for name in self.waiting}
        else:
            mean_s = seconds_taken / len(self._seconds)
            left = mean_s * (self.planned - self.done - len(self.failed))
            durations = dict.fromkeys(self.waiting, mean_s)
        # A waiting trial starts after its pause, even if all slots are free.
        ends = [self.waiting[name].pause_left_s + seconds for name, seconds in durations.items()]
        return max(left / max(1, self.slots), *ends, 0.0)

    def _expected_left(self, expected: Mapping[str, float], scale: float) -> float:
        """Return the expected remaining seconds, summed over all trials that have not ended.

        Args:
            expected: expected seconds by trial id.
            scale: measured seconds of this run's finished trials, divided by their expected
                seconds.
        """
        ended = self._seconds.keys() | self.failed.keys()
        return sum(
            max(0.0, scale * seconds - self._seconds_since_start(trial_id))
            for trial_id, seconds in expected.items()
            if trial_id not in ended
        )

    def save(self) -> None:
        """Write the state to the run's file. If writing fails, log the error and do not raise
        it.

        Write nothing if the file's folder was moved or deleted.
        """
        if self.path is None or not self.path.parent.is_dir():
            return
        self._saved_at = time.monotonic()
        state = RunState(
            now=self._line(),
            running=self.running,
            waiting=self.waiting,
            seconds_left=self.time_left(),
        )
        try:
            write_atomic(self.path, state.model_dump_json().encode(), durable=False)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.path, error)

    def _seconds_since_start(self, trial_id: str) -> float:
        """Return the seconds since a running trial started, or 0 for any other trial."""
        began = self._began.get(trial_id)
        return 0.0 if began is None else time.monotonic() - began

    def _line(self) -> str:
        """Return the state as a line of text."""
        if not self.planned or self.name not in TRIAL_STAGES:
            step = f"{self.step}/{self.total}" if self.total else ""
            return "  ".join(filter(None, (self.name, step, self.detail)))
        parts = [f"{self.name}  {self.done}/{self.planned} done"]
        counts = {
            "running": len(self.running),
            "failed": len(self.failed),
            "diverged": self.diverged,
        }
        parts += [f"{count} {state}" for state, count in counts.items() if count]
        if self.waiting:
            retry_at = min(trial.retry_at for trial in self.waiting.values())
            parts.append(f"{len(self.waiting)} waiting, {next_attempt(retry_at)}")
        left = self.time_left()
        if left is not None and self.done < self.planned:
            parts.append(f"about {format_duration(left)} left")
        return "  ".join(parts)

    def _render(self) -> Table:
        """Return the live view: one line for the run, and one line for each of the first few
        running trials.
        """
        table = Table.grid(padding=(0, 1))
        since_start = format_duration(time.monotonic() - self._started_at)
        table.add_row(Text(since_start, style="dim"), Text(self._line()))
        running = list(self.running.items())
        for trial_id, trial in running[:MAX_TRIALS_SHOWN]:
            duration = format_duration(self._seconds_since_start(trial_id))
            table.add_row("", Text(f"{trial_id}  {trial.text(duration)}", style="dim"))
        num_hidden = len(running) - MAX_TRIALS_SHOWN
        if num_hidden > 0:
            more = f"{num_hidden} more trials are running. See `isweep status --watch`."
            table.add_row("", Text(more, style="dim"))
        return table

    def _update(self, *, print_now: bool = False, save_now: bool = False) -> None:
        """Write and print the state. Skip a step that was done a moment ago, unless it is
        requested now.
        """
        now = time.monotonic()
        if print_now or save_now or now - self._saved_at >= SAVE_INTERVAL_S:
            self.save()
        if self.console is None or self._is_live:
            return
        if print_now or now - self._printed_at >= PRINT_INTERVAL_S:
            self._printed_at = now
            since_start = format_duration(now - self._started_at)
            self.console.print(Text(f"[{since_start:>6}] {self._line()}"), soft_wrap=True)
