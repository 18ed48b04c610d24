"""``isweep prepare``: prepare one dataset in the same way as a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.machine.cluster import RunOptions, connect
from orchestrator.machine.locks import lock_file
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.running.preparation import check_raw, prepare_missing, prepare_own
from orchestrator.running.progress import Progress
from search_spaces.datasets import dataset_spec
from search_spaces.errors import ConfigError
from search_spaces.sweeps import DatasetChoice, SweepSpec
from tasks.prepared.montage import save_montage
from tasks.prepared.store import PreparedDataset
from tasks.remote import RayExecutor


def prepare_one(
    name: str,
    *,
    preset: str,
    run_options: RunOptions,
    progress: Progress,
    montage: Path | None = None,
    own_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Prepare one dataset and return its record.

    Args:
        name: Name of a dataset that isweep knows, or of your own data in the sweep file.
        preset: Name of a preset, or path of a sweep file. It sets the image size, the channels
            and the data mode.
        run_options: Root and cluster.
        progress: Display of the progress.
        montage: File for a figure with example images of each label. None, the default, draws
            no figure, because the images may show patients.
        own_options: Options of your own data. They replace the options in the sweep file.

    Raises:
        SweepError: The name is unknown, the raw files cannot be used, or another command uses
            the root.
    """
    sweep = load_sweep(preset)
    # The recipe's overrides may refer to other datasets, and preparing needs no recipe.
    recipe = sweep.recipe.model_copy(update={"overrides": ()})
    dataset = _choice(name, sweep, own_options or {})
    plan = plan_sweep(sweep.model_copy(update={"datasets": (dataset,), "recipe": recipe}))
    check_raw(Workspace(plan, RootPaths.at(run_options.root)), run_options.raw)
    paths = RootPaths.at(run_options.root).make()
    workspace = Workspace(plan, paths)
    spec = plan.prepared[0]
    with lock_file(paths.lock, f"isweep prepare {name}"), progress.shown():
        prepare_own(workspace, run_options, progress)
        if spec.prepared_id not in workspace.prepared:
            num_cpus = run_options.num_cpus
            with connect(run_options.address, num_cpus=num_cpus, dashboard=False) as cluster:
                executor = RayExecutor(driver_node_only=not cluster.is_private, note=progress.note)
                prepare_missing(workspace, [spec], run_options, executor, progress)
    prepared = PreparedDataset.open(paths.prepared(spec))
    if montage is not None:
        save_montage(prepared, montage)
    return prepared.record.model_dump(mode="json")


def _choice(name: str, sweep: SweepSpec, own_options: Mapping[str, Any]) -> DatasetChoice:
    """Return the dataset with this name. If the sweep contains your own data with this name,
    return these data. Otherwise return a dataset that isweep knows.

    Args:
        name: Name of the dataset.
        sweep: The sweep.
        own_options: Options of your own data. They replace the options in the sweep.
    """
    for choice in sweep.datasets:
        if choice.name == name and choice.user_source is not None:
            label_map = {**choice.user_source.label_map, **own_options.get("label_map", {})}
            source = choice.user_source.model_copy(update={**own_options, "label_map": label_map})
            return choice.model_copy(update={"user_source": source})
    dataset_spec(name)
    if own_options:
        options = ", ".join(f"--{option.replace('_', '-')}" for option in own_options)
        raise ConfigError(
            f"{name} is a known dataset with fixed classes, so {options} cannot be used",
            hint=f"Remove {options}",
        )
    return DatasetChoice(name=name)
