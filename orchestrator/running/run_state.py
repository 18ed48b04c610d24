"""What a run says of itself while it runs, in a file that ``isweep status`` reads."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from pydantic import BaseModel, Field

from orchestrator.planning.plan import Workspace
from orchestrator.running.locks import holder_pid
from tasks.atomic import read_whole, write_atomic

log = logging.getLogger(__name__)


class RunningTrial(BaseModel):
    """How far a trial is.

    Attributes:
        started_at: Seconds since 1970.
        epoch: Epochs that have ended.
        num_epochs: Epochs in all; 0 where nobody has said.
        images_per_second: Of the last epoch; None before the first.
        epochs_per_second: Likewise.
        seconds_left: Of training, at the pace of the last epoch; None before the first.
    """

    started_at: float = Field(default_factory=time.time)
    epoch: int = 0
    num_epochs: int = 0
    images_per_second: float | None = None
    epochs_per_second: float | None = None
    seconds_left: float | None = None

    def text(self, duration: str) -> str:
        """Say it in a line, after how long it has run."""
        parts = [duration]
        if self.num_epochs:
            parts.append(f"epoch {self.epoch}/{self.num_epochs}")
        if self.images_per_second is not None:
            parts.append(f"{self.images_per_second:,.0f} img/s")
        if self.seconds_left is not None:
            parts.append(f"about {spelled(self.seconds_left)} of training left")
        return "  ".join(parts)


class RunState(BaseModel):
    """Where a run stands.

    Attributes:
        pid: Of its process; what is said counts only while that process holds the root's lock.
        now: What it does, in words.
        running: Trials that run, by id.
        seconds_left: Until the last trial ends; None where nothing tells.
    """

    pid: int = Field(default_factory=os.getpid)
    now: str = ""
    running: dict[str, RunningTrial] = Field(default_factory=dict)
    seconds_left: float | None = None

    def save(self, path: Path) -> None:
        """Write it; that it cannot be written neither ends a sweep nor stops it for a moment."""
        try:
            write_atomic(path, self.model_dump_json().encode(), durable=False)
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error)


def read_run(workspace: Workspace) -> RunState | None:
    """Return what the process that works on a sweep now says; None when none does, or it has not said yet."""
    path = workspace.sweep_paths.progress
    holder = holder_pid(workspace.paths.lock)
    if holder is None or not path.exists():
        return None
    try:
        state = RunState.model_validate_json(read_whole(path))
    except (OSError, ValueError, RecursionError) as error:
        # The live driver writes it anew within seconds; nothing else hangs on it.
        log.warning("%s cannot be read, so no trial counts as running: %s", path, error)
        return None
    return state if state.pid == holder else None


def running_trials(workspace: Workspace) -> list[str]:
    """Return the ids of the trials that run now; the list of a killed run counts for nothing."""
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
