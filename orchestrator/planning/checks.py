"""What of a plan the data cannot give, found before Ray starts and before anything is prepared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.planning.workspace import Workspace
from search_spaces.errors import ConfigError, DataError, SweepError, collect
from tasks.prepared.subsets import make_subset


def check_feasible(workspace: Workspace, raw: Mapping[str, Path] | None = None) -> None:
    """Find every own source that is not there, and every subset that prepared data cannot give.

    Args:
        workspace: The sweep.
        raw: Folders that are read in place of those that the sweep names, by dataset.

    Raises:
        SweepError: naming all of them.
    """
    problems: list[SweepError] = []
    for choice in workspace.plan.sweep.datasets:
        given = (raw or {}).get(choice.name)
        if choice.own is not None and given is None and not Path(choice.own.path).exists():
            rule = f"datasets.{choice.name}.own.path must exist"
            problems.append(ConfigError(rule, choice.own.path, "a relative path starts at the sweep file"))
    collect(problems, ConfigError)
    for measure in workspace.plan.measures:
        data = workspace.prepared.get(measure.subset.prepared.prepared_id)
        if data is None:
            continue
        try:
            size = max(measure.train_sizes)
            make_subset(data.labels, data.groups, measure.subset, data.splits, max_train_size=size)
        except SweepError as error:
            problems.append(error)
    collect(problems, DataError)
