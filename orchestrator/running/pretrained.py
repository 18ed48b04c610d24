"""Pretrained weights of a sweep's networks: downloaded by the driver, once per root, before all else."""

from __future__ import annotations

from collections.abc import Callable, Collection

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan
from search_spaces.errors import SweepError, collect
from search_spaces.specs import ModelSpec
from tasks.atomic import write_atomic


def fetch_pretrained(
    plan: SweepPlan, known: Collection[str], paths: RootPaths, say: Callable[[str], None]
) -> dict[str, bytes]:
    """Return the weights that networks start from, by library and architecture.

    Args:
        plan: The whole grid.
        known: Ids of trials that have a result: these need none.
        paths: What was downloaded is kept here, so that all trainings of a root start from the same.
        say: Told of downloads.

    Raises:
        SweepError: naming all that are not there and cannot be downloaded, or do not fit.
    """
    models = {
        trial.network.model.pretrained_key: trial.network.model
        for trial_id, trial in plan.trials_by_id.items()
        if trial.network.model.pretrained and trial_id not in known
    }
    found: dict[str, bytes] = {}
    problems: list[SweepError] = []
    for key, model in sorted(models.items()):
        try:
            found[key] = _fetched(model, paths, say)
        except SweepError as error:
            problems.append(error)
    collect(problems, type(problems[0]) if problems else SweepError)
    return found


def _fetched(model: ModelSpec, paths: RootPaths, say: Callable[[str], None]) -> bytes:
    path = paths.pretrained(model.pretrained_key)
    if path.is_file():
        return path.read_bytes()
    from tasks.trials.pretrained import download

    say(f"Downloading the pretrained weights of {model.library} {model.architecture}")
    data = download(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return data
