"""What a run says while it runs: to people on stderr, to ``isweep status`` in a file, to
Prometheus.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, Field
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.machine.locks import holder_pid
from orchestrator.machine.signals import raise_if_asked
from orchestrator.planning.workspace import Workspace
from search_spaces.specs import NetworkSpec
from tasks.atomic import read_whole, write_atomic
from tasks.trials.records import EpochRecord, TrialStatus

log = logging.getLogger(__name__)

PLAIN_INTERVAL_S = 10.0
SAVE_INTERVAL_S = 1.0
"""Of how far things are; that a trial starts or ends is said at once."""
WITH_TRIALS = ("train", "search")
"""Stages that train networks."""
MOST_SHOWN = 4
"""Running trials in the terminal."""


class RunningTrial(BaseModel):
    """How far a trial is: what no epoch has told yet is 0 or None; times are in seconds since
    1970.
    """

    started_at: float = Field(default_factory=time.time)
    epoch: int = 0
    num_epochs: int = 0
    images_per_second: float | None = None
    epochs_per_second: float | None = None
    seconds_left: float | None = None

    def text(self, duration: str) -> str:
        """Say it in a line, after how long it has run."""
        if self.images_per_second is None or self.seconds_left is None:  # no epoch has ended
            return duration
        left = f"about {spelled(self.seconds_left)} of training left"
        return (
            f"{duration}  epoch {self.epoch}/{self.num_epochs}  {self.images_per_second:,.0f} "
            f"img/s  {left}"
        )


class RunState(BaseModel):
    """Where a run stands, as its file says; it counts only while process ``pid`` holds the root's
    lock.
    """

    pid: int = Field(default_factory=os.getpid)
    now: str = ""
    running: dict[str, RunningTrial] = Field(default_factory=dict)
    seconds_left: float | None = None


def read_run(workspace: Workspace) -> RunState | None:
    """Return what the process that works on a sweep now says; None when none does, or it has not
    said yet.
    """
    path = workspace.sweep_paths.progress
    holder = holder_pid(workspace.paths.lock)
    if holder is None or not path.exists():
        return None
    try:
        state = RunState.model_validate_json(read_whole(path))
    except (OSError, ValueError) as error:
        # The live driver writes it anew within seconds; nothing else hangs on it.
        log.warning("%s cannot be read, so no trial counts as running: %s", path, error)
        return None
    return state if state.pid == holder else None


def running_trials(workspace: Workspace) -> list[str]:
    """Return the ids of the trials that run now."""
    state = read_run(workspace)
    return [] if state is None else sorted(state.running)


def spelled(seconds: float) -> str:
    """Spell a duration for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass
class Progress:
    """The state of a run, told to whoever watches: on a ``console``, and at a ``path`` for ``isweep
    status``.

    Attributes:
        slots: Trials that run at the same time, for the time left.
        expected: Seconds by trial, for the time left: the longest go first, so their mean is too
            long.
        done: Those with a result, of earlier runs too.
    """

    console: Console | None = None
    path: Path | None = None
    slots: int = 1
    planned: int = 0
    done: int = 0
    diverged: int = 0
    running: dict[str, RunningTrial] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    name: str = ""
    detail: str = ""
    step: int = 0
    total: int = 0
    expected: Mapping[str, float] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _began: dict[str, float] = field(default_factory=dict)
    _live: bool = False
    _started: float = field(default_factory=time.monotonic)
    _printed: float = 0.0
    _saved: float = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress inside the block: live in a terminal, a line now and then elsewhere."""
        try:
            if self.console is None or not self.console.is_terminal:
                yield
                return
            with Live(get_renderable=self._render, console=self.console, transient=True):
                self._live = True
                yield
        finally:
            self._live = False
            self.save()

    def stage(self, name: str, detail: str = "", total: int = 0) -> None:
        """A stage begins."""
        raise_if_asked()
        self.name, self.detail, self.step, self.total = name, detail, 0, total
        log.info("stage %s %s", name, detail)
        self._say(force=True)

    def advance(self, detail: str) -> None:
        """The stage moved on."""
        raise_if_asked()
        self.step, self.detail = self.step + 1, detail
        self._say()

    def note(self, message: str) -> None:
        """Print a line that stays."""
        log.info("%s", message)
        if self.console is not None:
            self.console.print(Text(message), soft_wrap=True)

    def trial_started(self, trial_id: str) -> None:
        """A trial runs."""
        log.info("trial %s starts", trial_id)
        self.running[trial_id], self._began[trial_id] = RunningTrial(), time.monotonic()
        self.failed.pop(trial_id, None)
        self._say(save=True)

    def trial_epoch(self, trial_id: str, epoch: EpochRecord, network: NetworkSpec) -> None:
        """An epoch of a running trial has ended."""
        if (trial := self.running.get(trial_id)) is None:
            return
        num_epochs, seconds = network.recipe.epochs, max(epoch.seconds, 1e-9)
        self.running[trial_id] = RunningTrial(
            started_at=trial.started_at,
            epoch=epoch.epoch,
            num_epochs=num_epochs,
            images_per_second=network.train_size / seconds,
            epochs_per_second=1 / seconds,
            seconds_left=epoch.seconds * (num_epochs - epoch.epoch),
        )
        self._say()

    def trial_finished(self, trial_id: str, status: str) -> None:
        """A trial has its result."""
        self._seconds[trial_id] = seconds = self._ran(trial_id)
        log.info("trial %s ends: %s after %.1f s", trial_id, status, seconds)
        self.done += 1
        self.diverged += status == TrialStatus.DIVERGED
        self.trial_stopped(trial_id)

    def trial_failed(self, trial_id: str, kind: str, message: str) -> None:
        """An attempt failed."""
        self.failed[trial_id] = kind
        self.note(f"  failed ({kind}) {trial_id}: {message}")
        self.trial_stopped(trial_id)

    def trial_stopped(self, trial_id: str) -> None:
        """A trial runs no more; where nothing else was said of it, it waits again."""
        self.running.pop(trial_id, None)
        self._began.pop(trial_id, None)
        self._say(save=True)

    def counts(self) -> dict[str, int]:
        """Return how many trials there are, under the names of a tracker's metrics."""
        return {
            "trials_planned": self.planned,
            "trials_done": self.done,
            "trials_failed": len(self.failed),
            "trials_diverged": self.diverged,
        }

    def states(self) -> dict[str, int]:
        """Return how many trials are in each state now."""
        done, failed, running = self.done - self.diverged, len(self.failed), len(self.running)
        pending = max(0, self.planned - self.done - failed - running)
        states = {"done": done, "diverged": self.diverged, "failed": failed, "running": running}
        return states | {"pending": pending}

    def pace(self) -> dict[str, float]:
        """Return how fast running trials are, and when the last will end, as far as is known."""
        left, names = self.time_left(), ("images_per_second", "epochs_per_second")
        pace = {
            f"isweep_{n}": sum(getattr(one, n) or 0.0 for one in self.running.values())
            for n in names
        }
        return pace | ({} if left is None else {"isweep_seconds_left": left})

    def time_left(self) -> float | None:
        """Seconds until the last trial ends, from the trials of this run; None before the first
        one.
        """
        if not self._seconds:
            return None
        took, ended = sum(self._seconds.values()), self._seconds.keys() | self.failed
        expected = {
            name: seconds for name, seconds in self.expected.items() if math.isfinite(seconds)
        }
        foreseen = sum(expected.get(trial_id, 0.0) for trial_id in self._seconds)
        left = took / len(self._seconds) * (self.planned - self.done - len(self.failed))
        if foreseen > 0:
            open_s = {
                name: took / foreseen * s for name, s in expected.items() if name not in ended
            }
            left = sum(max(0.0, seconds - self._ran(name)) for name, seconds in open_s.items())
        return left / max(1, self.slots)

    def save(self) -> None:
        """Say in the run's file where it stands; that it cannot be written neither ends nor stops a
        sweep.
        """
        if self.path is None:
            return
        self._saved = time.monotonic()
        state = RunState(now=self._line(), running=self.running, seconds_left=self.time_left())
        try:
            write_atomic(self.path, state.model_dump_json().encode(), durable=False)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.path, error)

    def _ran(self, trial_id: str) -> float:
        began = self._began.get(trial_id)
        return 0.0 if began is None else time.monotonic() - began

    def _line(self) -> str:
        if not self.planned or self.name not in WITH_TRIALS:
            step = f"{self.step}/{self.total}" if self.total else ""
            return "  ".join(filter(None, (self.name, step, self.detail)))
        left = self.time_left()
        counts = {
            "running": len(self.running),
            "failed": len(self.failed),
            "diverged": self.diverged,
        }
        parts = [f"{self.name}  {self.done}/{self.planned} done"]
        parts += [f"{count} {what}" for what, count in counts.items() if count]
        if left is not None and self.done < self.planned:
            parts.append(f"about {spelled(left)} left")
        return "  ".join(parts)

    def _render(self) -> Table:
        table, running = Table.grid(padding=(0, 1)), list(self.running.items())
        table.add_row(
            Text(spelled(time.monotonic() - self._started), style="dim"), Text(self._line())
        )
        lines = [
            f"{name}  {one.text(spelled(self._ran(name)))}" for name, one in running[:MOST_SHOWN]
        ]
        if len(running) > MOST_SHOWN:
            lines.append(f"and {len(running) - MOST_SHOWN} more: isweep status --watch shows them")
        for line in lines:
            table.add_row("", Text(line, style="dim"))
        return table

    def _say(self, *, force: bool = False, save: bool = False) -> None:
        now = time.monotonic()
        if force or save or now - self._saved >= SAVE_INTERVAL_S:
            self.save()
        if self.console is None or self._live:
            return
        if force or now - self._printed >= PLAIN_INTERVAL_S:
            self._printed = now
            self.console.print(
                Text(f"[{spelled(now - self._started):>6}] {self._line()}"), soft_wrap=True
            )


INTERVAL_S = 2.0
GAUGES = {
    "isweep_images_per_second": "Images trained on per second, over all running trials.",
    "isweep_epochs_per_second": "Epochs per second, over all running trials.",
    "isweep_seconds_left": "Seconds until the last trial ends; no value before the first has.",
    "isweep_gpus_asked": "GPUs that running trials share.",
    "isweep_gpu_share_used": "The same as a share of the cluster's GPUs.",
    "isweep_memory_asked_bytes": "Memory that running trials asked for.",
}


class Series:
    """The series of one sweep for Prometheus, served as ``ray_isweep_…``; ``grafana.json`` draws
    them.
    """

    def __init__(self, sweep: str, num_gpus: float) -> None:
        from ray.util.metrics import Counter, Gauge  # late: a finished sweep needs no Ray

        self._sweep, self._num_gpus, self._told = {"sweep": sweep}, num_gpus, 0.0
        self._trials = Gauge("isweep_trials", "Trials by state.", tag_keys=("sweep", "state"))
        kinds = "Failed attempts by kind."
        self._failed = Counter("isweep_failed_attempts", kinds, tag_keys=("sweep", "kind"))
        self._gauges = {
            name: Gauge(name, text, tag_keys=("sweep",)) for name, text in GAUGES.items()
        }

    def failed(self, kind: str) -> None:
        """Count an attempt that failed."""
        self._failed.inc(1, {**self._sweep, "kind": kind})

    def tell(self, progress: Progress, requests: Iterable[Mapping[str, float]]) -> None:
        """Say where the sweep stands, and what running trials asked of Ray, every two seconds at
        most.
        """
        if time.monotonic() - self._told < INTERVAL_S:
            return
        self._told = time.monotonic()
        for state, count in progress.states().items():
            self._trials.set(count, {**self._sweep, "state": state})
        asked = list(requests)
        num_gpus = sum(request.get("gpu", 0.0) for request in asked)
        found = progress.pace() | {
            "isweep_gpus_asked": num_gpus,
            "isweep_gpu_share_used": num_gpus / self._num_gpus if self._num_gpus else 0.0,
            "isweep_memory_asked_bytes": sum(request.get("memory", 0.0) for request in asked),
        }
        for name, value in found.items():
            self._gauges[name].set(value, self._sweep)
