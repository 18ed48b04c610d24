"""Data before anything is trained: what is missing is prepared, and every subset is found to be possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.planning.workspace import Workspace
from orchestrator.running.options import RunOptions
from orchestrator.running.progress import Monitor
from search_spaces.errors import DataError, SweepError, collect, unknown_name
from search_spaces.specs import PreparedSpec

if TYPE_CHECKING:
    from tasks.remote import Executor


def prepare_missing(
    workspace: Workspace,
    missing: list[PreparedSpec],
    options: RunOptions,
    executor: Executor,
    monitor: Monitor,
) -> None:
    """Prepare datasets one after another, each in parallel; all that cannot be prepared are reported at once.

    Raises:
        DataError: naming every dataset that could not be prepared and what to do.
    """
    from tasks.preparation.prepare import prepare_dataset

    problems: list[SweepError] = []
    own = {choice.name: choice.own for choice in workspace.plan.sweep.datasets if choice.own}
    for spec in missing:
        monitor.stage("prepare", spec.dataset)
        folder = options.raw.get(spec.dataset)
        if folder is None and spec.dataset in own:
            folder = Path(own[spec.dataset].path)
        folder = folder.expanduser().absolute() if folder is not None else None
        named = executor.labelled(f"prepare {spec.dataset}")
        try:
            prepare_dataset(
                spec,
                workspace.plan.datasets[spec.dataset],
                raw=folder,
                destination=workspace.paths.prepared(spec),
                executor=named,
                max_skipped_share=options.max_skipped_share,
                on_progress=_progress(monitor, spec.dataset),
                readers=_readers(spec.dataset, folder, named, monitor),
            )
        except SweepError as error:
            problems.append(error)
    collect(problems, DataError)


def _readers(name: str, raw: Path | None, executor: Executor, monitor: Monitor) -> Executor | None:
    """Return what reads on every node of a shared cluster that has the raw download too; None without any."""
    from tasks.remote import RayExecutor, nodes_that_see

    if raw is None or not isinstance(executor, RayExecutor) or not executor.driver_node_only:
        return None
    nodes = nodes_that_see(raw)
    readers = RayExecutor(nodes=nodes, note=monitor.note) if nodes else None
    if readers is None or readers.num_workers <= executor.num_workers:
        return None
    monitor.note(
        f"{name} is read on {len(nodes)} nodes, {readers.num_workers} CPUs, that see its raw download"
    )
    return readers.labelled(f"prepare {name}")


def check_raw(workspace: Workspace, raw: Mapping[str, Path]) -> None:
    """Refuse raw folders of datasets that the sweep does not have, and find all that are missing.

    Preparing the first of several datasets can take hours, in which nobody learns that the last has no files.

    Raises:
        ConfigError: naming the nearest dataset.
        DataError: naming every dataset that is read from a download which is not there.
    """
    from tasks.sources import FROM_RAW, RawRequest

    datasets, problems = workspace.plan.datasets, list[SweepError]()
    for name in raw:
        if name not in datasets:
            raise unknown_name("dataset of this sweep", name, datasets)
    for spec in workspace.plan.prepared:
        dataset = datasets[spec.dataset]
        folder = raw.get(spec.dataset)
        needed = dataset.source in FROM_RAW and spec.prepared_id not in workspace.prepared
        if needed or folder is not None:
            try:
                RawRequest(dataset, spec, None if folder is None else folder.expanduser()).root()
            except SweepError as error:
                problems.append(error)
    collect(problems, DataError)


def _progress(monitor: Monitor, name: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        monitor.advance(f"{name} {done:,}/{total:,} items")

    return show
