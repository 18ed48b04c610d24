"""Where the tracker shows a sweep's trials, kept beside the sweep so that a report can link there unasked."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, Field

from tasks.atomic import read_whole, write_atomic

log = logging.getLogger(__name__)


class RunPages(BaseModel):
    """Where a tracker shows the runs of trials, as far as it knows.

    Attributes:
        prefix: What stands before a run's id in the address of its page.
        runs: The run's id, by trial id.
    """

    prefix: str = ""
    runs: dict[str, str] = Field(default_factory=dict)


def keep_run_pages(path: Path, pages: RunPages) -> None:
    """Write down what a tracker knows; one that knows nothing leaves what an earlier run knew.

    A link is a convenience: that it cannot be written is said in the log and ends nothing.
    """
    if not pages.runs:
        return
    try:
        write_atomic(path, pages.model_dump_json().encode(), durable=False)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)


def read_run_pages(path: Path) -> RunPages:
    """Return what was kept; nothing where nothing was, or where it cannot be read."""
    if not path.exists():
        return RunPages()
    try:
        return RunPages.model_validate_json(read_whole(path))
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, and reports link to no runs: %s", path, error)
        return RunPages()
