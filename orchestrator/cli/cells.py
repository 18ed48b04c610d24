"""The story of one cell, as `isweep status PRESET --cell ID` tells it."""

from __future__ import annotations

import difflib
import time
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from orchestrator.cli.options import Place
from orchestrator.cli.printing import emit, stdout
from search_spaces.errors import ConfigError, CorruptStoreError

if TYPE_CHECKING:
    from orchestrator.planning.workspace import Workspace

LOG_LINES = 20
"""Of the last attempt's log, for people; the document has the path."""


def show_cell(workspace: Workspace, asked: str, place: Place) -> None:
    """Print what happened to one cell: its attempts, where they ran, how they ended, where their logs lie.

    Raises:
        ConfigError: when ``asked`` begins no id of the plan, or several.
    """
    from orchestrator.results.history import History
    from orchestrator.results.state import look_at_state
    from orchestrator.running.run_state import running_trials

    trial_id = _named(workspace, asked)
    state = look_at_state(workspace, running_trials(workspace))
    history, problem = History(workspace.results_url), ""
    try:
        story = history.story(trial_id)
    except CorruptStoreError as error:
        story, problem = [], str(error)
    said = {number: history.log(trial_id, number) for number in sorted({event.attempt for event in story})}
    logs = {number: history.log_path(trial_id, number) for number, text in said.items() if text is not None}
    failure = state.failures.get(trial_id)
    document: dict[str, Any] = {
        "trial_id": trial_id,
        "status": str(state.status(trial_id)),
        "events": [event.plain() for event in story],
        "logs": {str(number): path for number, path in logs.items()},
        "failure": None if failure is None else failure.row() | {"traceback": failure.failure.traceback},
        "unreadable": problem,
    }

    def show() -> None:
        stdout.print(escape(f"{trial_id}: {document['status']}"), soft_wrap=True)
        if problem:
            stdout.print(escape(problem), soft_wrap=True)
        elif not story:
            stdout.print("no attempt at it is recorded")
        for event in story:
            where = f" on {event.node}" if event.node else ""
            when = time.strftime("%F %T", time.localtime(event.at))
            text = f"{when}  attempt {event.attempt} {event.what}{where}{': ' * bool(event.said)}{event.said}"
            stdout.print(escape(text), soft_wrap=True)
        for number, path in logs.items():
            stdout.print(escape(f"log of attempt {number}: {path}"), soft_wrap=True)
        if logs:
            lines = (said[max(logs)] or "").splitlines()[-LOG_LINES:]
            stdout.print(escape("\n".join(f"  {line}" for line in lines)), soft_wrap=True)

    emit(place, document, show)


def _named(workspace: Workspace, asked: str) -> str:
    """Return the id that is meant: in full, or as much of its beginning or end as only it has."""
    planned = workspace.plan.trials_by_id
    if asked in planned:
        return asked
    matching = [one for one in planned if one.startswith(asked) or one.endswith(asked)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        found = f"{asked}: {', '.join(matching[:3])}{' …' * (len(matching) > 3)}"
        raise ConfigError(f"--cell must name one cell, not {len(matching)}", found, "write more of the id")
    near = difflib.get_close_matches(asked, planned, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        "--cell must name a cell of the sweep", repr(asked), f"{hint}isweep plan --all lists them"
    )
