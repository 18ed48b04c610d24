"""Work before training: refuse what cannot run, prepare data, measure subsets.

Each check collects all problems and raises them as one
:class:`~search_spaces.errors.SweepError`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.machine.cluster import RunOptions
from orchestrator.planning.costs.networks import cost_of, was_built
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.workspace import Workspace
from orchestrator.results.provenance import provenance
from orchestrator.results.records import MeasureRecord, TrialRecord
from orchestrator.running.progress import Progress
from search_spaces.errors import ConfigError, DataError, SweepError, collect, plural, unknown_name
from search_spaces.models import source_texts
from search_spaces.specs import (
    DatasetSpec,
    MeasureSpec,
    ModelSpec,
    NetworkSpec,
    PreparedSpec,
    SubsetSpec,
    TrialSpec,
)
from tasks.atomic import write_atomic
from tasks.remote import Executor, InlineExecutor, RayExecutor, nodes_that_see

if TYPE_CHECKING:
    from tasks.prepared.subsets import TrialData

PIXEL_RANGE = (0.0, 255.0)
"""Pixel values of black and white of all prepared images, also of those stored as float32."""
READ_HERE_S = 30.0
"""Seconds for which your own data are read before a cluster is started for them: about 5,000 images
of 512 x 512."""
HERE_S = 5.0
"""Seconds for which the background preparation is waited for before Ray takes over. Processes of
Ray would take as long to begin with it."""
BLOCK_S = 10.0
"""Seconds for which a block of images is read to its end after it is no longer wanted."""


def check_raw(workspace: Workspace, raw: Mapping[str, Path]) -> None:
    """Refuse raw folders of datasets that the sweep does not have, and those that are missing.

    Args:
        workspace: The sweep.
        raw: Folder of the raw download by dataset.

    Raises:
        SweepError: All problems at once.
    """
    from tasks.sources import check_raw_folder, needs_download
    from tasks.sources.base import RawRequest

    datasets = workspace.plan.datasets
    for name in raw:
        if name not in datasets:
            raise unknown_name("dataset of this sweep", name, datasets)
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
    collect(problems, DataError)


@dataclass(frozen=True)
class _BuildSizes:
    """All that decides, besides the model, whether a network can be built."""

    num_outputs: int
    channels: int
    image_size: int
    dropout: float | None


def check_models(plan: SweepPlan, known: Collection[str]) -> None:
    """Refuse networks that cannot be built.

    Args:
        plan: The plan.
        known: Ids of trials that have a result: their networks were built.

    Raises:
        SweepError: All problems at once.
    """
    networks: dict[tuple[ModelSpec, _BuildSizes], NetworkSpec] = {}
    for trial_id, trial in plan.trials_by_id.items():
        network = trial.network
        num_outputs = plan.num_outputs(network)
        if trial_id in known or was_built(network, num_outputs):
            continue
        prepared = network.subset.prepared
        dropout = network.recipe.dropout
        sizes = _BuildSizes(num_outputs, prepared.channels, prepared.image_size, dropout)
        networks[network.model, sizes] = network
    if not networks:
        return  # without torch, which takes seconds to import
    from tasks.trials.models import check_buildable

    problems: list[SweepError] = []
    for (model, sizes), network in sorted(networks.items(), key=str):
        try:
            check_buildable(
                model,
                num_outputs=sizes.num_outputs,
                in_channels=sizes.channels,
                image_size=sizes.image_size,
                dropout=sizes.dropout,
            )
            if model.library == "own":
                cost_of(network)  # takes a step: your own network may fail only in training
        except SweepError as error:
            problems.append(error)
    collect(problems)


def own_code(cells: Iterable[TrialSpec]) -> dict[str, str]:
    """Return the source of your own networks among trials, by relative path, for the workers."""
    references: set[str] = set()
    for cell in cells:
        if cell.network.model.library == "own":
            references.add(cell.network.model.architecture)
    code: dict[str, str] = {}
    for reference in sorted(references):
        code.update(source_texts(reference))
    return code


def fetch_pretrained(
    plan: SweepPlan, known: Collection[str], paths: RootPaths, say: Callable[[str], None]
) -> dict[str, bytes]:
    """Return the weights that networks start from, and check that they fit.

    Downloads are kept, so that all trainings of a root start from the same weights.

    Args:
        plan: The plan.
        known: Ids of trials that have a result, and need no weights.
        paths: Paths below the root.
        say: Prints a message for the user.

    Returns:
        Weights by :attr:`ModelSpec.pretrained_key`.

    Raises:
        SweepError: All problems at once.
    """
    image_sizes: dict[ModelSpec, set[tuple[int, int]]] = {}
    for trial_id, trial in plan.trials_by_id.items():
        model = trial.network.model
        prepared = trial.network.subset.prepared
        if model.pretrained and trial_id not in known:
            image_sizes.setdefault(model, set()).add((prepared.channels, prepared.image_size))
    weights: dict[str, bytes] = {}
    problems: list[SweepError] = []
    for model, sizes in image_sizes.items():
        from tasks.trials.models import build_model  # imports torch, which takes seconds

        try:
            data = _pretrained_weights(model, paths, say)
            weights[model.pretrained_key] = data
            for channels, side in sorted(sizes):
                build_model(
                    model,
                    num_outputs=2,
                    in_channels=channels,
                    image_size=side,
                    input_scale=1.0,
                    dropout=None,
                    seed=0,
                    pretrained=data,
                )
        except SweepError as error:
            problems.append(error)
    collect(problems, type(problems[0]) if problems else SweepError)
    return weights


def _pretrained_weights(model: ModelSpec, paths: RootPaths, say: Callable[[str], None]) -> bytes:
    """Return the weights of a model from the root, downloaded if they are not there."""
    path = paths.pretrained(model.pretrained_key)
    if not path.is_file():
        from tasks.trials.weights import download

        say(f"Downloading the pretrained weights of {model.library} {model.architecture}")
        data = download(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    return path.read_bytes()


def check_same_start(
    records: Mapping[str, TrialRecord], plan: SweepPlan, weights: Mapping[str, bytes]
) -> None:
    """Refuse a sweep whose networks would start from different weights of one name.

    Args:
        records: Results by trial.
        plan: The plan.
        weights: Weights that further trials would start from, by
            :attr:`ModelSpec.pretrained_key`.

    Raises:
        ConfigError: Results started from other weights of the same key.
    """
    hashes = {key: hashlib.sha256(data).hexdigest() for key, data in weights.items()}
    other_starts: dict[str, Counter[str]] = {}
    for trial_id, trial in plan.trials_by_id.items():
        key = trial.network.model.pretrained_key
        start = records[trial_id].result.pretrained if trial_id in records else ""
        if start and start != hashes.get(key, start):
            other_starts.setdefault(key, Counter())[start] += 1
    problems: list[SweepError] = []
    for key, numbers in other_starts.items():
        results = ", ".join(
            f"{start[:16]}… in {plural(number, 'result')}" for start, number in numbers.items()
        )
        problems.append(
            ConfigError(
                f"The pretrained weights {key} have the SHA-256 {hashes[key][:16]}… here, but "
                f"stored results started from other weights: {results}",
                hint=f"Copy pretrained/{key}.safetensors from the root of these results, or rename "
                "the sweep",
            )
        )
    collect(problems)


def prepare_missing(
    workspace: Workspace,
    missing: list[PreparedSpec],
    options: RunOptions,
    executor: Executor,
    monitor: Progress,
) -> None:
    """Prepare datasets one after another, each in parallel.

    Args:
        workspace: The sweep.
        missing: The datasets.
        options: Folders of raw downloads, and the largest share of unusable files.
        executor: Reads images.
        monitor: Shows how far it is.

    Raises:
        DataError: All problems at once.
    """
    from tasks.prepared.prepare import prepare_dataset
    from tasks.prepared.record import doubt_lines

    problems: list[SweepError] = []
    prepared_before = set(workspace.prepared)
    own_paths = {
        choice.name: Path(choice.own.path) for choice in workspace.plan.sweep.datasets if choice.own
    }
    for spec in missing:
        name = spec.dataset
        monitor.stage("prepare", name)
        folder = options.raw.get(name) or own_paths.get(name)
        if folder is not None:
            folder = folder.expanduser().absolute()
        named_executor = executor.labelled(f"prepare {name}")

        def show(done: int, total: int, name: str = name) -> None:
            monitor.advance(f"{name} {done:,}/{total:,} items")

        try:
            record = prepare_dataset(
                spec,
                workspace.plan.datasets[name],
                raw=folder,
                destination=workspace.paths.prepared(spec),
                executor=named_executor,
                max_skipped_share=options.max_skipped_share,
                on_progress=show,
                readers=_readers(name, folder, named_executor, monitor),
                listings=workspace.listings,
            )
        except SweepError as error:
            problems.append(error)
            continue
        # Doubts of a user's own files are told once, when they are prepared.
        if folder is not None and spec.prepared_id not in prepared_before:
            for line in doubt_lines(record):
                monitor.note(f"{name}: {line.strip()}")
    collect(problems, DataError)


def prepare_own(workspace: Workspace, options: RunOptions, monitor: Progress) -> None:
    """Prepare your own data in this process, before MLflow and Ray start.

    So mistakes in them are reported within seconds. After :data:`READ_HERE_S` seconds the rest is
    left to a cluster. Files that are prepared already are listed again, to see whether they have
    changed.

    Raises:
        DataError: All problems at once.
    """
    own_names = {choice.name for choice in workspace.plan.sweep.datasets if choice.own}
    specs = [spec for spec in workspace.plan.prepared if spec.dataset in own_names]
    end = time.monotonic() + READ_HERE_S

    def check_time() -> None:
        if time.monotonic() > end:
            raise TimeoutError

    with suppress(TimeoutError):
        prepare_missing(workspace, specs, options, InlineExecutor(check_time), monitor)
    workspace.look_again()


class Meanwhile:
    """A process that prepares the datasets which packages bring, while Ray starts.

    If it is cut off, what it has read is kept. A dataset that it cannot prepare is tried again
    afterwards, and its error is reported then.

    Args:
        workspace: The sweep.
        options: Folders of raw downloads, and the largest share of unusable files.
        monitor: Shows which dataset it prepares.
    """

    def __init__(self, workspace: Workspace, options: RunOptions, monitor: Progress) -> None:
        self._workspace = workspace
        self._monitor = monitor
        self._process: Any = None
        plan = workspace.plan
        own_names = {choice.name for choice in plan.sweep.datasets if choice.own}
        pairs: list[tuple[str, str]] = []
        for spec in plan.prepared:
            is_brought = spec.dataset in own_names or spec.dataset in options.raw
            if spec.prepared_id not in workspace.prepared and not is_brought:
                dataset = plan.datasets[spec.dataset]
                pairs.append((spec.model_dump_json(), dataset.model_dump_json()))
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
            process_group=0,  # Ctrl-C reaches only this process, which then ends that one
        )
        folder = str(workspace.paths.root / "prepared")
        request = json.dumps([folder, options.max_skipped_share, pairs])
        threading.Thread(target=self._exchange, args=(self._process, request), daemon=True).start()

    def end(self, patience_s: float = 0.0) -> None:
        """End the process: wait for all of its work, and then for the block that it reads.

        Args:
            patience_s: Seconds to wait for all of its work.
        """
        process = self._process
        if process is None:
            return
        self._wait_or(patience_s, process.stdin.close)  # it then ends after its block
        self._wait_or(BLOCK_S, process.kill)
        process.wait()
        self._workspace.look_again()

    def _wait_or(self, seconds: float, give_up: Callable[[], object]) -> None:
        """Wait for the end of the process, or give up after some seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                give_up()

    def _exchange(self, process: Any, request: str) -> None:
        """Send the request to the process, and show the datasets that it names."""
        with suppress(OSError, ValueError, KeyboardInterrupt):  # either process has ended
            process.stdin.write(f"{request}\n")
            process.stdin.flush()
            for name in process.stdout:
                self._monitor.stage("prepare", name.strip())


def _readers(name: str, raw: Path | None, executor: Executor, monitor: Progress) -> Executor | None:
    """Return an executor that reads on all nodes of a shared cluster, if that is faster.

    Return None if the images are read by ``executor``: only nodes that have the raw download too
    can read it.
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
        f"{name} is read by {readers.num_workers} CPUs on {len(nodes)} nodes that have its raw "
        "download"
    )
    return readers.labelled(f"prepare {name}")


def measure_subset(
    spec: MeasureSpec, data: TrialData, dataset: DatasetSpec, executor: Executor
) -> MeasureRecord:
    """Measure the training images of a subset, and return the record.

    Args:
        spec: The measure.
        data: Images of the subset.
        dataset: The dataset.
        executor: Computes distances.
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
    from tasks.prepared.conditions import load_subset
    from tasks.prepared.subsets import make_subset

    data = workspace.prepared[subset.prepared.prepared_id]
    try:
        chosen = make_subset(
            data.labels, data.groups, subset, data.splits, max_train_size=train_size
        )
        tests = workspace.plan.further_tests.get(subset.dataset, ())
        return load_subset(data, chosen, subset, train_size, tests)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"The prepared dataset {workspace.paths.prepared(subset.prepared)} was changed or "
            f"removed while a run used it ({type(error).__name__} {error})",
            hint="Run the same command again, which prepares the dataset again. Finished trials "
            "are kept",
        ) from error
