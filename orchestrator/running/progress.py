"""Live progress for people, on stderr: stages, counts, failures and the time that is left."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.running.run_state import RunningTrial, RunState, spelled
from orchestrator.running.signals import raise_if_asked
from search_spaces.specs import NetworkSpec
from tasks.trials.records import EpochRecord, TrialStatus

log = logging.getLogger(__name__)

PLAIN_INTERVAL_S = 10.0
SAVE_INTERVAL_S = 1.0
"""Of how far things are; that a trial starts or ends is said at once."""
WITH_TRIALS = ("train", "search")
"""Stages that train networks."""
MOST_SHOWN = 4
"""Running trials in the terminal."""


class Monitor(Protocol):
    """What a run tells whoever watches it."""

    def stage(self, name: str, detail: str = "", total: int = 0) -> None:
        """A stage begins."""

    def advance(self, detail: str = "", by: int = 1) -> None:
        """The stage moved on."""

    def note(self, message: str) -> None:
        """Something worth a line that stays."""

    def trials_planned(self, planned: int, done: int) -> None:
        """How many trials there are, and how many were done before."""

    def trials_expected(self, seconds: Mapping[str, float]) -> None:
        """How long each trial of this run is expected to take, on any scale; infinite if unknown."""

    def trial_started(self, trial_id: str) -> None:
        """A trial runs."""

    def trial_epoch(self, trial_id: str, epoch: EpochRecord, network: NetworkSpec) -> None:
        """An epoch of a running trial has ended."""

    def trial_finished(self, trial_id: str, status: str) -> None:
        """A trial has its result."""

    def trial_failed(self, trial_id: str, kind: str, message: str) -> None:
        """An attempt failed."""

    def trial_stopped(self, trial_id: str) -> None:
        """An attempt ended through no fault of the trial, which waits again."""

    def counts(self) -> dict[str, int]:
        """Return how many trials there are by what became of them, under the names of a tracker's metrics."""

    def states(self) -> dict[str, int]:
        """Return how many trials are in each state now."""

    def pace(self) -> dict[str, float]:
        """Return how fast running trials are, and when the last will end, as far as is known."""


@dataclass
class Progress:
    """The state of a run, and its :class:`Monitor`.

    Args:
        console: Where to show it; None shows nothing.
        path: Where to keep it for ``isweep status``; None keeps nothing.
        slots: Trials that run at the same time, for the time left.
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
    _expected: Mapping[str, float] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _began: dict[str, float] = field(default_factory=dict)
    _live: Live | None = None
    _started: float = field(default_factory=time.monotonic)
    _printed: float = 0.0
    _saved: float = 0.0

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """Show progress inside the block: live in a terminal, a line now and then elsewhere."""
        if self.console is None or not self.console.is_terminal:
            try:
                yield self
            finally:
                self.save()
            return
        with Live(
            get_renderable=self._render, console=self.console, refresh_per_second=4, transient=True
        ) as live:
            self._live = live
            try:
                yield self
            finally:
                self._live = None
                self.save()

    def stage(self, name: str, detail: str = "", total: int = 0) -> None:
        """A stage begins."""
        raise_if_asked()
        self.name, self.detail, self.step, self.total = name, detail, 0, total
        log.info("stage %s %s", name, detail)
        self._say(force=True)

    def advance(self, detail: str = "", by: int = 1) -> None:
        """The stage moved on."""
        raise_if_asked()
        self.step += by
        self.detail = detail or self.detail
        self._say()

    def note(self, message: str) -> None:
        """Print a line that stays."""
        log.info("%s", message)
        if self.console is not None:
            self.console.print(Text(message), soft_wrap=True)

    def trials_planned(self, planned: int, done: int) -> None:
        """Set the counts; trials done before do not count for the time left."""
        self.planned, self.done = planned, done

    def trials_expected(self, seconds: Mapping[str, float]) -> None:
        """Weigh trials by these for the time left: the longest go first, so their mean is too long."""
        self._expected = {name: value for name, value in seconds.items() if math.isfinite(value)}

    def trial_started(self, trial_id: str) -> None:
        """A trial runs."""
        log.info("trial %s starts", trial_id)
        self.running[trial_id], self._began[trial_id] = RunningTrial(), time.monotonic()
        self.failed.pop(trial_id, None)
        self.save()
        self._say()

    def trial_epoch(self, trial_id: str, epoch: EpochRecord, network: NetworkSpec) -> None:
        """An epoch of a running trial has ended."""
        trial = self.running.get(trial_id)
        if trial is None:
            return
        num_epochs = network.recipe.epochs
        self.running[trial_id] = RunningTrial(
            started_at=trial.started_at,
            epoch=epoch.epoch,
            num_epochs=num_epochs,
            images_per_second=network.train_size / max(epoch.seconds, 1e-9),
            epochs_per_second=1 / max(epoch.seconds, 1e-9),
            seconds_left=epoch.seconds * (num_epochs - epoch.epoch),
        )
        self._say()

    def trial_finished(self, trial_id: str, status: str) -> None:
        """A trial has its result."""
        seconds = self._ran(trial_id)
        self._forget(trial_id)
        log.info("trial %s ends: %s after %.1f s", trial_id, status, seconds)
        self._seconds[trial_id] = seconds
        self.done += 1
        self.diverged += status == TrialStatus.DIVERGED
        self.save()
        self._say()

    def trial_failed(self, trial_id: str, kind: str, message: str) -> None:
        """An attempt failed."""
        self._forget(trial_id)
        self.failed[trial_id] = kind
        self.note(f"  failed ({kind}) {trial_id}: {message}")
        self.save()
        self._say()

    def trial_stopped(self, trial_id: str) -> None:
        """An attempt ended through no fault of the trial, which waits again."""
        self._forget(trial_id)
        self.save()
        self._say()

    def counts(self) -> dict[str, int]:
        """Return how many trials there are by what became of them, under the names of a tracker's metrics."""
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
        running, left = list(self.running.values()), self.time_left()
        return {
            "isweep_images_per_second": sum(trial.images_per_second or 0.0 for trial in running),
            "isweep_epochs_per_second": sum(trial.epochs_per_second or 0.0 for trial in running),
        } | ({} if left is None else {"isweep_seconds_left": left})

    def time_left(self) -> float | None:
        """Seconds until the last trial ends, from the trials of this run; None before the first one."""
        if not self._seconds:
            return None
        took, expected = sum(self._seconds.values()), self._expected
        foreseen = sum(expected.get(trial_id, 0.0) for trial_id in self._seconds)
        if foreseen > 0:
            scale = took / foreseen
            left = sum(
                max(0.0, scale * seconds - self._ran(trial_id))
                for trial_id, seconds in expected.items()
                if trial_id not in self._seconds and trial_id not in self.failed
            )
        else:
            left = took / len(self._seconds) * (self.planned - self.done - len(self.failed))
        return left / max(1, self.slots)

    def _forget(self, trial_id: str) -> None:
        self.running.pop(trial_id, None)
        self._began.pop(trial_id, None)

    def _ran(self, trial_id: str) -> float:
        began = self._began.get(trial_id)
        return 0.0 if began is None else time.monotonic() - began

    def _line(self) -> str:
        parts = [self.name]
        if self.total:
            parts.append(f"{self.step}/{self.total}")
        if self.detail:
            parts.append(self.detail)
        if self.planned and self.name in WITH_TRIALS:
            parts = [f"{self.name}  {self.done}/{self.planned} done"]
            if self.running:
                parts.append(f"{len(self.running)} running")
            if self.failed:
                parts.append(f"{len(self.failed)} failed")
            if self.diverged:
                parts.append(f"{self.diverged} diverged")
            left = self.time_left()
            if left is not None and self.done < self.planned:
                parts.append(f"about {spelled(left)} left")
        return "  ".join(parts)

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_row(Text(spelled(time.monotonic() - self._started), style="dim"), Text(self._line()))
        for trial_id, trial in list(self.running.items())[:MOST_SHOWN]:
            said = trial.text(spelled(self._ran(trial_id)))
            table.add_row("", Text(f"{trial_id}  {said}", style="dim"))
        if len(self.running) > MOST_SHOWN:
            more = f"and {len(self.running) - MOST_SHOWN} more: isweep status --watch shows them"
            table.add_row("", Text(more, style="dim"))
        return table

    def _say(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._saved >= SAVE_INTERVAL_S:
            self.save()
        if self.console is None or self._live is not None:
            return
        if force or now - self._printed >= PLAIN_INTERVAL_S:
            self._printed = now
            self.console.print(Text(f"[{spelled(now - self._started):>6}] {self._line()}"), soft_wrap=True)

    def save(self) -> None:
        """Say in the run's file where it stands."""
        if self.path is not None:
            self._saved = time.monotonic()
            state = RunState(now=self._line(), running=self.running, seconds_left=self.time_left())
            state.save(self.path)


# Series for Prometheus, told by the driver: a handful per sweep whatever its size, never one per trial.
#
# Ray's nodes serve them beside Ray's own, as ``ray_isweep_…``; ``grafana.json`` draws them.

INTERVAL_S = 2.0
BOARD = Path(__file__).with_name("grafana.json")
GAUGES = {
    "isweep_images_per_second": "Images trained on per second, over all running trials.",
    "isweep_epochs_per_second": "Epochs per second, over all running trials.",
    "isweep_seconds_left": "Seconds until the last trial ends; no value before the first has.",
    "isweep_gpus_asked": "Graphics cards that running trials share.",
    "isweep_gpu_share_used": "The same as a share of the cluster's cards.",
    "isweep_memory_asked_bytes": "Memory that running trials asked for.",
}


class Series:
    """The series of one sweep.

    Args:
        sweep: Its name, a label of every series.
        num_gpus: Cards of the cluster.
    """

    def __init__(self, sweep: str, num_gpus: float) -> None:
        from ray.util.metrics import Counter, Gauge  # late: a finished sweep needs no Ray

        self._sweep, self._num_gpus, self._told = {"sweep": sweep}, num_gpus, 0.0
        self._trials = Gauge("isweep_trials", "Trials by state.", tag_keys=("sweep", "state"))
        self._failed = Counter(
            "isweep_failed_attempts", "Failed attempts by kind.", tag_keys=("sweep", "kind")
        )
        self._gauges = {name: Gauge(name, text, tag_keys=("sweep",)) for name, text in GAUGES.items()}

    def failed(self, kind: str) -> None:
        """Count an attempt that failed."""
        self._failed.inc(1, {**self._sweep, "kind": kind})

    def tell(self, monitor: Monitor, requests: Iterable[Mapping[str, float]]) -> None:
        """Say where the sweep stands, every two seconds however often it is called.

        Args:
            monitor: Knows the counts and the pace.
            requests: What each running trial asked of Ray.
        """
        if time.monotonic() - self._told < INTERVAL_S:
            return
        self._told = time.monotonic()
        for state, count in monitor.states().items():
            self._trials.set(count, {**self._sweep, "state": state})
        asked = list(requests)
        num_gpus = sum(request.get("gpu", 0.0) for request in asked)
        found = monitor.pace() | {
            "isweep_gpus_asked": num_gpus,
            "isweep_gpu_share_used": num_gpus / self._num_gpus if self._num_gpus else 0.0,
            "isweep_memory_asked_bytes": sum(request.get("memory", 0.0) for request in asked),
        }
        for name, value in found.items():
            self._gauges[name].set(value, self._sweep)


def offer_board(session: str) -> None:
    """Lay our board beside Ray's own, where a Grafana that Ray provisions finds it.

    Args:
        session: Ray's folder on this node; empty where there is none.
    """
    folder = Path(session) / "metrics" / "grafana" / "dashboards"
    if not session or not folder.is_dir():
        return
    try:
        (folder / "isweep.json").write_bytes(BOARD.read_bytes())
    except OSError as error:
        log.info("the Grafana board stays in %s: %s", BOARD, error)
