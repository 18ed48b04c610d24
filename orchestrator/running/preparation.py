"""What comes before training: data are prepared, subsets measured, and what is impossible is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.planning.plan import Workspace
from orchestrator.results.records import MeasureRecord, provenance
from orchestrator.running.options import RunOptions
from orchestrator.running.progress import Monitor
from search_spaces.errors import DataError, SweepError, collect, unknown_name
from search_spaces.specs import DatasetSpec, MeasureSpec, PreparedSpec, SubsetSpec

if TYPE_CHECKING:
    from tasks.prepared.subsets import TrialData
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
    from tasks.prepared.prepare import prepare_dataset

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


READ_HERE_S = 30.0
"""How long own data are read before anything is started for them: some 5,000 images of 512 x 512."""


class _OutOfTimeError(Exception):
    """The rest is read when a cluster is there."""


def prepare_own(workspace: Workspace, options: RunOptions, monitor: Monitor) -> None:
    """Read own data in this process, so that what is wrong with them is said before MLflow and Ray start.

    What is not done after :data:`READ_HERE_S` seconds goes on where it is once a cluster reads. Files that
    are prepared are listed again, which tells whether they changed.

    Raises:
        DataError: naming every dataset that could not be prepared and what to do.
    """
    from tasks.remote import InlineExecutor

    end = time.monotonic() + READ_HERE_S

    class UntilThen(InlineExecutor):
        def map_unordered(
            self, function: Callable[..., Any], argument_tuples: Iterable[Sequence[Any]], **_: Any
        ) -> Iterator[tuple[int, Any]]:
            for index, arguments in enumerate(argument_tuples):
                if time.monotonic() > end:
                    raise _OutOfTimeError
                yield index, function(*arguments)

    own = {choice.name for choice in workspace.plan.sweep.datasets if choice.own}
    problems: list[SweepError] = []
    for spec in workspace.plan.prepared:
        if spec.dataset in own:
            try:
                prepare_missing(workspace, [spec], options, UntilThen(), monitor)
            except SweepError as error:
                problems.append(error)
            except _OutOfTimeError:
                break
    collect(problems, DataError)
    workspace.look_again()


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


PIXEL_RANGE = (0.0, 255.0)
"""Of all prepared images, also of those stored as float32."""


def measure_subset(
    spec: MeasureSpec, data: TrialData, dataset: DatasetSpec, executor: Executor
) -> MeasureRecord:
    """Return the stored record of one subset's intrinsic dimension and label sharpness.

    Args:
        spec: What to measure.
        data: The subset's arrays; the train images in nested order are measured, the test images are not.
        dataset: What the images are.
        executor: Runs the block tasks.

    Raises:
        DataError: for images that cannot be measured (not finite, one class only).
    """
    import numpy as np

    from tasks.measures.measure import measure_nested
    from tasks.measures.records import MeasureSettings

    started_at, began = time.time(), time.monotonic()
    num_rows = max(spec.train_sizes)
    settings = MeasureSettings(
        num_neighbors=spec.num_neighbors,
        estimators=spec.estimators,
        sharpness_sample=spec.sharpness_sample,
        sharpness_seeds=spec.sharpness_seeds,
        pixel_range=PIXEL_RANGE,
        calibrate=spec.calibrate,
        discard_fraction=spec.subset.twonn_discard_fraction,
        seed=spec.derived_seed % 2**32,
    )
    measured = measure_nested(
        np.asarray(data.train_images[:num_rows]),
        np.asarray(data.train_labels[:num_rows]),
        spec.train_sizes,
        executor=executor,
        settings=settings,
    )
    return MeasureRecord(
        measure_id=spec.measure_id,
        spec=spec,
        result=measured,
        domain=dataset.domain,
        data_fingerprint=data.data_fingerprint,
        provenance=provenance(),
        started_at=started_at,
        finished_at=started_at + time.monotonic() - began,
    )


def load_arrays(workspace: Workspace, subset: SubsetSpec, train_size: int) -> TrialData:
    """Return the arrays of a subset, with so many training images.

    Raises:
        DataError: when its prepared dataset, which was whole when the command started, is not any more.
    """
    from tasks.prepared.subsets import make_subset

    data = workspace.prepared[subset.prepared.prepared_id]
    try:
        chosen = make_subset(data.labels, data.groups, subset, data.splits, max_train_size=train_size)
        return chosen.load(data, train_size)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            "A prepared dataset must stay as it is while its cells are trained",
            f"{workspace.paths.prepared(subset.prepared)}: {type(error).__name__} {error}",
            "run the same command again: it is prepared anew, and what is done is kept",
        ) from error
