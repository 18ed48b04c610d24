"""What datasets there are, which are prepared, and preparing one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.running.cluster import connect
from orchestrator.running.lock import exclusive
from orchestrator.running.options import RunOptions
from orchestrator.running.preparation import check_raw, prepare_missing
from orchestrator.running.progress import Progress
from search_spaces.datasets import DATASETS, dataset_spec
from search_spaces.errors import ConfigError, CorruptStoreError
from search_spaces.sweeps import DatasetChoice, SweepSpec
from tasks.prepared.dataset import PreparedDataset


def dataset_rows(root: str | None, name: str | None = None) -> list[dict[str, Any]]:
    """Return one row per dataset of the table, or of ``name`` alone: what it is, needs, and where it stands.

    Raises:
        ConfigError: for an unknown name.
    """
    paths = RootPaths.at(root)
    folder = paths.root / "prepared"
    prepared: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        try:
            record = PreparedDataset.open(path).record
        except CorruptStoreError:
            continue
        prepared.setdefault(record.dataset, []).append(path.name)
    specs = [dataset_spec(name)] if name else list(DATASETS.values())
    return [
        {
            **json.loads(spec.model_dump_json()),
            "prepared": prepared.get(spec.name, []),
            "status": "prepared" if spec.name in prepared else "not prepared",
        }
        for spec in specs
    ]


def prepare_one(
    name: str,
    *,
    preset: str,
    run_options: RunOptions,
    progress: Progress,
    montage: Path | None = None,
    said: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Prepare one dataset with the image size, channels and data mode of ``preset``; return its record.

    Args:
        name: A dataset of the table, or own data of the sweep file.
        preset: Preset or sweep file that names image size, channels and data mode.
        run_options: Where and how; ``raw`` names the download.
        progress: Shows what happens.
        montage: Where to draw examples of each label; None draws nothing, for patients' sake.
        said: Fields of own data, such as ``label_map``, over what the sweep file says of them.

    Raises:
        SweepError: for an unknown name, an unusable download, or a root in use.
    """
    sweep = load_sweep(preset)
    # Overrides of the recipe may name the sweep's other datasets; preparing needs no recipe.
    recipe = sweep.recipe.model_copy(update={"overrides": ()})
    only = {"datasets": (_choice(name, sweep, said or {}),), "recipe": recipe}
    plan = plan_sweep(sweep.model_copy(update=only))
    check_raw(Workspace(plan, RootPaths.at(run_options.root)), run_options.raw)
    paths = RootPaths.create(run_options.root)
    workspace = Workspace(plan, paths)
    with exclusive(paths.lock, f"isweep prepare {name}"), progress.shown():
        if plan.prepared[0].prepared_id not in workspace.prepared:
            with connect(run_options.address, num_cpus=run_options.num_cpus, dashboard=False) as cluster:
                from tasks.remote import RayExecutor

                executor = RayExecutor(driver_node_only=not cluster.local, note=progress.note)
                prepare_missing(workspace, list(plan.prepared), run_options, executor, progress)
    dataset = PreparedDataset.open(paths.prepared(plan.prepared[0]))
    if montage is not None:
        from tasks.preparation.montage import save_montage

        save_montage(dataset, montage)
    return dataset.record.to_json()


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
        raise ConfigError(
            f"{options} is for own data", f"{name}, whose classes are the table's", "leave it out"
        )
    return DatasetChoice(name=name)
