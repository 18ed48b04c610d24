"""The data of a run: checks of raw downloads, prepared datasets, measures and loaded images.

Data of the user are prepared first, so that mistakes in them are reported within seconds.
Datasets from Python packages are prepared in another process while Ray starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.machine.cluster import RunOptions
from orchestrator.planning.workspace import Workspace
from orchestrator.results.provenance import provenance
from orchestrator.results.records import MeasureRecord
from orchestrator.running.progress import Progress
from search_spaces.errors import DataError, SweepError, plural, raise_all, unknown_name
from search_spaces.specs import (
    DatasetSpec,
    MeasureSpec,
    PreparedSpec,
    SubsetSpec,
)
from tasks.remote import Executor, InlineExecutor, RayExecutor, nodes_that_see

if TYPE_CHECKING:
    from tasks.prepared.subsets import TrialData

PIXEL_RANGE = (0.0, 255.0)
"""Pixel values of black and white in all prepared images, also in images stored as float32."""
OWN_DATA_LIMIT_S = 30.0
"""Seconds during which the driver itself reads the user's data. Ray's workers read the
remaining images. In 30 seconds the driver reads about 5,000 images of 512 x 512 pixels."""
BACKGROUND_LIMIT_S = 5.0
"""Seconds that a run waits for the background preparation. Then Ray's workers prepare the
remaining datasets. The limit is about the time that Ray's workers need to start."""
LAST_BLOCK_LIMIT_S = 10.0
"""Seconds that the background process may take to finish its present block of images."""


def check_raw(workspace: Workspace, raw: Mapping[str, Path]) -> None:
    """Check that each folder of a raw download exists, is needed and belongs to a dataset of
    the sweep.

    Args:
        workspace: The sweep.
        raw: Folder of the raw download, by dataset.

    Raises:
        SweepError: Some folders are wrong or missing. One error lists all problems.
    """
    from tasks.sources import check_raw_folder, needs_download
    from tasks.sources.base import RawRequest

    datasets = workspace.plan.datasets
    for name in raw:
        if name not in datasets:
            raise unknown_name("dataset", name, datasets, of="this sweep")
    problems: list[SweepError] = []
    for spec in workspace.plan.prepared:
        dataset = datasets[spec.dataset]
        folder = raw.get(spec.dataset)
        if folder is not None:
            folder = folder.expanduser()
        is_needed = needs_download(dataset) and spec.prepared_id not in workspace.prepared
        try:
            check_raw_folder(RawRequest(dataset, spec, folder), needed=is_needed)
        except SweepError as error:
            problems.append(error)
    raise_all(problems, DataError)


def prepare_missing(
    workspace: Workspace,
    missing: list[PreparedSpec],
    options: RunOptions,
    executor: Executor,
    monitor: Progress,
) -> None:
    """Prepare datasets one after the other. The images of a dataset are read in parallel.

    Args:
        workspace: The sweep.
        missing: The datasets to prepare.
        options: Folders of raw downloads, and the largest share of unusable files.
        executor: Executor that reads images.
        monitor: Display of the progress.

    Raises:
        DataError: Some datasets cannot be prepared. One error lists all problems.
    """
    from tasks.prepared.prepare import prepare_dataset
    from tasks.prepared.record import reading_lines, total_and_class_lines

    problems: list[SweepError] = []
    flags_before = {key: data.record.flags for key, data in workspace.prepared.items()}
    for spec in missing:
        name = spec.dataset
        monitor.stage("prepare", name)
        folder = None
        path = options.raw.get(name) or workspace.plan.own_paths.get(name)
        if path is not None:
            folder = Path(path).expanduser().absolute()
        named_executor = executor.with_label(f"prepare {name}")
        try:
            record = prepare_dataset(
                spec,
                workspace.plan.datasets[name],
                raw=folder,
                destination=workspace.paths.prepared(spec),
                executor=named_executor,
                max_skipped_share=options.max_skipped_share,
                on_progress=partial(_show_items, monitor, name),
                other_nodes=_other_nodes(name, folder, named_executor, monitor),
                listings=workspace.listings,
            )
        except SweepError as error:
            problems.append(error)
            continue
        # The groups and possible problems are printed only if they are new to the user.
        if folder is not None and flags_before.get(spec.prepared_id) != record.flags:
            totals = total_and_class_lines(record)[0]
            for line in (totals, *reading_lines(record)):
                monitor.note(f"{name}: {line.strip()}")
    raise_all(problems, DataError)


def _show_items(monitor: Progress, name: str, done: int, total: int) -> None:
    """Show how many items of a dataset have been read."""
    monitor.advance(f"{name} {done:,}/{total:,} items")


def prepare_own(workspace: Workspace, options: RunOptions, monitor: Progress) -> None:
    """Prepare the user's data in this process, for at most :data:`OWN_DATA_LIMIT_S` seconds.

    Ray's workers prepare the remaining datasets later. If a dataset is already prepared, its
    files are listed again to detect changes.

    Raises:
        DataError: Some datasets cannot be prepared. One error lists all problems.
    """
    plan = workspace.plan
    specs = [spec for spec in plan.prepared if spec.dataset in plan.own_paths]
    end = time.monotonic() + OWN_DATA_LIMIT_S

    def check_time() -> None:
        if time.monotonic() > end:
            raise TimeoutError

    with suppress(TimeoutError):
        prepare_missing(workspace, specs, options, InlineExecutor(check_time), monitor)
    workspace.forget_prepared()


class BackgroundPreparation:
    """A process that prepares datasets from Python packages while Ray starts.

    If the process is ended early, the images that it has prepared are not lost. If the process
    cannot prepare a dataset, the run tries again after Ray has started. Only this second
    attempt reports the error.

    Args:
        workspace: The sweep.
        options: Folders of raw downloads, and the largest share of unusable files.
        monitor: Display that shows the name of the dataset that is being prepared.
    """

    def __init__(self, workspace: Workspace, options: RunOptions, monitor: Progress) -> None:
        self._workspace = workspace
        self._monitor = monitor
        self._process: Any = None
        pairs = _packaged_datasets(workspace, options)
        if not pairs:
            return
        code = "from tasks.prepared.prepare import prepare_from_stdin; prepare_from_stdin()"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],  # -P: modules of the working directory are not used
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
            process_group=0,  # Ctrl-C reaches only this process, which then ends the child process.
        )
        folder = str(workspace.paths.root / "prepared")
        request = json.dumps([folder, options.max_skipped_share, pairs])
        threading.Thread(target=self._exchange, args=(self._process, request), daemon=True).start()

    def end(self, wait_s: float = 0.0) -> None:
        """Wait for the process. If it still runs, end it after its present block of images.

        Args:
            wait_s: Seconds to wait until all datasets are prepared.
        """
        process = self._process
        if process is None:
            return
        # The process ends after its present block if its standard input is closed.
        self._wait_then(wait_s, process.stdin.close)
        self._wait_then(LAST_BLOCK_LIMIT_S, process.kill)
        process.wait()
        self._workspace.forget_prepared()

    def _wait_then(self, limit_s: float, end: Callable[[], object]) -> None:
        """Wait for the end of the process. If it still runs after the limit, call ``end``."""
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                end()

    def _exchange(self, process: Any, request: str) -> None:
        """Send the request to the process. Show the names of datasets that the process prints."""
        # These errors mean that one of the processes has ended.
        with suppress(OSError, ValueError, KeyboardInterrupt):
            process.stdin.write(f"{request}\n")
            process.stdin.flush()
            for name in process.stdout:
                self._monitor.stage("prepare", name.strip())


def _packaged_datasets(workspace: Workspace, options: RunOptions) -> list[tuple[str, str]]:
    """Return the datasets from Python packages that are not prepared yet.

    Returns:
        For each dataset, its :class:`PreparedSpec` and its :class:`DatasetSpec` as JSON text.
    """
    plan = workspace.plan
    pairs: list[tuple[str, str]] = []
    for spec in plan.prepared:
        is_packaged = spec.dataset not in plan.own_paths and spec.dataset not in options.raw
        if is_packaged and spec.prepared_id not in workspace.prepared:
            dataset = plan.datasets[spec.dataset]
            pairs.append((spec.model_dump_json(), dataset.model_dump_json()))
    return pairs


def _other_nodes(
    name: str, raw: Path | None, executor: Executor, monitor: Progress
) -> Executor | None:
    """Return an executor that reads images on several nodes, or None if this is not faster.

    Only nodes that have a copy of the raw download can read it.
    """
    if raw is None or not isinstance(executor, RayExecutor) or not executor.driver_node_only:
        return None
    nodes = nodes_that_see(raw)
    if not nodes:
        return None
    readers = RayExecutor(nodes=nodes, note=monitor.note)
    if readers.num_workers <= executor.num_workers:
        return None
    monitor.note(
        f"isweep reads {name} with {plural(readers.num_workers, 'CPU')} on "
        f"{plural(len(nodes), 'node')} that have its raw files"
    )
    return readers.with_label(f"prepare {name}")


def measure_subset(
    spec: MeasureSpec, data: TrialData, dataset: DatasetSpec, executor: Executor
) -> MeasureRecord:
    """Measure the training images of a subset, and return the record of the measures.

    Args:
        spec: The measures to compute.
        data: Images of the subset.
        dataset: The dataset.
        executor: Executor that computes distances between images.
    """
    import numpy as np

    from tasks.measures.measure import measure_nested
    from tasks.measures.records import MeasureSettings

    started_at = time.time()
    began = time.monotonic()
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
    result = measure_nested(
        np.asarray(data.train_images[:num_rows]),
        np.asarray(data.train_labels[:num_rows]),
        spec.train_sizes,
        executor=executor,
        settings=settings,
    )
    return MeasureRecord(
        measure_id=spec.measure_id,
        spec=spec,
        result=result,
        domain=dataset.domain,
        data_fingerprint=data.data_fingerprint,
        provenance=provenance(),
        started_at=started_at,
        finished_at=started_at + time.monotonic() - began,
    )


def load_arrays(workspace: Workspace, subset: SubsetSpec, train_size: int) -> TrialData:
    """Return the images of a subset.

    Args:
        workspace: The sweep.
        subset: The subset.
        train_size: Number of training images.

    Raises:
        DataError: The prepared dataset was changed or removed.
    """
    from tasks.prepared.blending import load_subset
    from tasks.prepared.subsets import make_subset

    data = workspace.prepared[subset.prepared.prepared_id]
    try:
        indices = make_subset(
            data.classes, data.groups, subset, data.splits, max_train_size=train_size
        )
        tests = workspace.plan.further_tests_by_dataset.get(subset.dataset, ())
        return load_subset(data, indices, subset, train_size, tests)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"The prepared dataset {workspace.paths.prepared(subset.prepared)} was changed or "
            f"removed while a run used the dataset ({type(error).__name__} {error})",
            hint="To prepare the dataset again, run the same command again. Finished trials "
            "are kept",
        ) from error
