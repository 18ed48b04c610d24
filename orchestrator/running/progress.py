"""Live progress for people, on stderr: stages, counts, failures and the time that is left."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.planning.workspace import Workspace
from orchestrator.running.lock import holder_pid
from tasks.atomic import write_atomic
from tasks.trials.result import TrialStatus

log = logging.getLogger(__name__)

PLAIN_INTERVAL_S = 10.0
SAVE_INTERVAL_S = 2.0


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

    def trial_started(self, trial_id: str) -> None:
        """A trial runs."""

    def trial_finished(self, trial_id: str, status: str) -> None:
        """A trial has its result."""

    def trial_failed(self, trial_id: str, kind: str, message: str) -> None:
        """An attempt failed."""


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
    running: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    name: str = ""
    detail: str = ""
    step: int = 0
    total: int = 0
    _seconds: list[float] = field(default_factory=list)
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
                self._save(force=True)
            return
        with Live(
            get_renderable=self._render, console=self.console, refresh_per_second=4, transient=True
        ) as live:
            self._live = live
            try:
                yield self
            finally:
                self._live = None
                self._save(force=True)

    def stage(self, name: str, detail: str = "", total: int = 0) -> None:
        """A stage begins."""
        self.name, self.detail, self.step, self.total = name, detail, 0, total
        self._say(force=True)

    def advance(self, detail: str = "", by: int = 1) -> None:
        """The stage moved on."""
        self.step += by
        self.detail = detail or self.detail
        self._say()

    def note(self, message: str) -> None:
        """Print a line that stays."""
        if self.console is not None:
            self.console.print(Text(message))

    def trials_planned(self, planned: int, done: int) -> None:
        """Set the counts; trials done before do not count for the time left."""
        self.planned, self.done = planned, done

    def trial_started(self, trial_id: str) -> None:
        """A trial runs."""
        self.running[trial_id] = time.monotonic()
        self.failed.pop(trial_id, None)
        self._say()

    def trial_finished(self, trial_id: str, status: str) -> None:
        """A trial has its result."""
        self._seconds.append(time.monotonic() - self.running.pop(trial_id, time.monotonic()))
        self.done += 1
        self.diverged += status == TrialStatus.DIVERGED
        self._say()

    def trial_failed(self, trial_id: str, kind: str, message: str) -> None:
        """An attempt failed."""
        self.running.pop(trial_id, None)
        self.failed[trial_id] = kind
        self.note(f"  failed ({kind}) {trial_id}: {message}")
        self._say()

    def time_left(self) -> float | None:
        """Seconds until the last trial ends, from the trials of this run; None before the first one."""
        if not self._seconds:
            return None
        mean = sum(self._seconds) / len(self._seconds)
        left = self.planned - self.done - len(self.failed)
        return mean * left / max(1, self.slots)

    def _line(self) -> str:
        parts = [self.name]
        if self.total:
            parts.append(f"{self.step}/{self.total}")
        if self.detail:
            parts.append(self.detail)
        if self.planned and self.name == "train":
            parts = [f"train  {self.done}/{self.planned} done"]
            if self.running:
                parts.append(f"{len(self.running)} running")
            if self.failed:
                parts.append(f"{len(self.failed)} failed")
            if self.diverged:
                parts.append(f"{self.diverged} diverged")
            left = self.time_left()
            if left is not None and self.done < self.planned:
                parts.append(f"about {_duration(left)} left")
        return "  ".join(parts)

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_row(Text(_duration(time.monotonic() - self._started), style="dim"), Text(self._line()))
        for trial_id, since in list(self.running.items())[:4]:
            table.add_row("", Text(f"{trial_id}  {_duration(time.monotonic() - since)}", style="dim"))
        return table

    def _say(self, *, force: bool = False) -> None:
        self._save()
        now = time.monotonic()
        if self.console is None or self._live is not None:
            return
        if force or now - self._printed >= PLAIN_INTERVAL_S:
            self._printed = now
            self.console.print(Text(f"[{_duration(now - self._started):>6}] {self._line()}"))

    def _save(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self.path is None or not (force or now - self._saved >= SAVE_INTERVAL_S):
            return
        self._saved = now
        state = {"pid": os.getpid(), "stage": self.name, "running": sorted(self.running)}
        try:
            write_atomic(self.path, json.dumps(state).encode())
        except OSError as error:
            # A view for `isweep status`: the sweep neither ends nor waits for want of it.
            log.warning("%s cannot be written: %s", self.path, error)


def running_trials(workspace: Workspace) -> list[str]:
    """Return what the lock's holder says it runs; the list of a killed run counts for nothing."""
    path = workspace.sweep_paths.progress
    holder = holder_pid(workspace.paths.lock)
    if holder is None or not path.exists():
        return []
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return [str(trial_id) for trial_id in state["running"]] if state["pid"] == holder else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        # The live driver writes it anew within seconds; nothing else hangs on it.
        log.warning("%s cannot be read, so no trial counts as running: %s", path, error)
        return []


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
