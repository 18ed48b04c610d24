"""``isweep prepare``: one dataset, prepared as a sweep would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.datasets import dataset_spec
from search_spaces.errors import ConfigError
from search_spaces.sweeps import DatasetChoice, SweepSpec
from tasks.prepared.montage import save_montage
from tasks.prepared.store import PreparedDataset

if TYPE_CHECKING:
    from orchestrator.machine.cluster import RunOptions
    from orchestrator.running.progress import Progress


def prepare_one(
    name: str,
    *,
    preset: str,
    run_options: RunOptions,
    progress: Progress,
    montage: Path | None = None,
    said: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Prepare one dataset with the image size, channels and data mode of ``preset``; return its
    record.

    ``name`` is of the table, or own data of the sweep file, of which ``said`` are fields over the
    file's. ``montage`` is where to draw examples of each label; None draws nothing, for patients'
    sake.

    Raises:
        SweepError: for an unknown name, an unusable download, or a root in use.
    """
    # Measuring, which prepares nothing, does without these.
    from orchestrator.machine.cluster import connect
    from orchestrator.machine.locks import exclusive
    from orchestrator.planning.plan import plan_sweep
    from orchestrator.planning.workspace import Workspace
    from orchestrator.running.preparation import check_raw, prepare_missing, prepare_own
    from tasks.remote import RayExecutor

    sweep = load_sweep(preset)
    # Overrides of the recipe may name the sweep's other datasets; preparing needs no recipe.
    recipe = sweep.recipe.model_copy(update={"overrides": ()})
    only = {"datasets": (_choice(name, sweep, said or {}),), "recipe": recipe}
    plan = plan_sweep(sweep.model_copy(update=only))
    check_raw(Workspace(plan, RootPaths.at(run_options.root)), run_options.raw)
    paths = RootPaths.at(run_options.root).make()
    workspace = Workspace(plan, paths)
    with exclusive(paths.lock, f"isweep prepare {name}"), progress.shown():
        prepare_own(workspace, run_options, progress)
        if plan.prepared[0].prepared_id not in workspace.prepared:
            with connect(
                run_options.address, num_cpus=run_options.num_cpus, dashboard=False
            ) as cluster:
                executor = RayExecutor(driver_node_only=not cluster.local, note=progress.note)
                prepare_missing(workspace, list(plan.prepared), run_options, executor, progress)
    dataset = PreparedDataset.open(paths.prepared(plan.prepared[0]))
    if montage is not None:
        save_montage(dataset, montage)
    found: dict[str, Any] = dataset.record.model_dump(mode="json")
    return found


def _choice(name: str, sweep: SweepSpec, said: Mapping[str, Any]) -> DatasetChoice:
    """Return the sweep's own data of that name, or else the dataset of the table."""
    for choice in sweep.datasets:
        if choice.name == name and choice.own is not None:
            labels = {**choice.own.label_map, **said.get("label_map", {})}
            own = choice.own.model_copy(update={**said, "label_map": labels})
            return choice.model_copy(update={"own": own})
    dataset_spec(name)
    if said:
        options = ", ".join(f"--{field.replace('_', '-')}" for field in said)
        found = f"{name}, whose classes are the table's"
        raise ConfigError(f"{options} is for own data", found, "leave it out")
    return DatasetChoice(name=name)
