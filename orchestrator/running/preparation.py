"""What comes before training: what cannot run is refused, data are prepared, subsets measured.

All that is wrong is found before it is raised, as one :class:`~search_spaces.errors.SweepError`.
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
"""Of all prepared images, also of those stored as float32."""
READ_HERE_S = 30.0
"""How long own data are read before anything is started for them: some 5,000 images of 512 x
512."""
HERE_S = 5.0
"""How long what is left is waited for, since processes of Ray would take seconds to begin with
it."""
BLOCK_S = 10.0
"""How long a block of images may take to be read to its end when it is wanted no more."""


def check_raw(workspace: Workspace, raw: Mapping[str, Path]) -> None:
    """Refuse raw folders of datasets that the sweep does not have, and find all that are
    missing.
    """
    from tasks.sources import check_raw_folder, needs_download
    from tasks.sources.base import RawRequest

    datasets, problems = workspace.plan.datasets, list[SweepError]()
    for name in raw:
        if name not in datasets:
            raise unknown_name("dataset of this sweep", name, datasets)
    for spec in workspace.plan.prepared:
        dataset, folder = datasets[spec.dataset], raw.get(spec.dataset)
        needed = needs_download(dataset) and spec.prepared_id not in workspace.prepared
        request = RawRequest(dataset, spec, None if folder is None else folder.expanduser())
        try:
            check_raw_folder(request, needed=needed)
        except SweepError as error:
            problems.append(error)
    collect(problems, DataError)


def check_models(plan: SweepPlan, known: Collection[str]) -> None:
    """Find every network that cannot be built; those of trials ``known``, which have a result,
    were.
    """
    asked: dict[tuple[ModelSpec, int, int, int, float | None], NetworkSpec] = {}
    for trial_id, trial in plan.trials_by_id.items():
        if trial_id not in known:
            network, prepared = trial.network, trial.network.subset.prepared
            outputs, dropout = plan.num_outputs(network), network.recipe.dropout
            asked[network.model, outputs, prepared.channels, prepared.image_size, dropout] = network
    asked = {key: network for key, network in asked.items() if not was_built(network, key[1])}
    if not asked:
        return  # without torch, which takes seconds
    from tasks.trials.models import check_buildable

    problems: list[SweepError] = []
    for (model, outputs, channels, side, dropout), network in sorted(asked.items(), key=str):
        size = {"num_outputs": outputs, "in_channels": channels, "image_size": side}
        try:
            check_buildable(model, **size, dropout=dropout)
            if model.library == "own":
                cost_of(
                    network
                )  # a step without memory: one's own network may fail only in training
        except SweepError as error:
            problems.append(error)
    collect(problems)


def own_code(cells: Iterable[TrialSpec]) -> dict[str, str]:
    """Return the source of one's own networks among ``cells``, by relative path, for the
    workers.
    """
    references = {
        cell.network.model.architecture for cell in cells if cell.network.model.library == "own"
    }
    return {path: text for name in sorted(references) for path, text in source_texts(name).items()}


def fetch_pretrained(
    plan: SweepPlan, known: Collection[str], paths: RootPaths, say: Callable[[str], None]
) -> dict[str, bytes]:
    """Return the weights that networks start from, by :attr:`ModelSpec.pretrained_key`; all fit.

    Trials ``known`` need none. Downloads are kept, so that all trainings of a root start from the
    same.
    """
    asked: dict[ModelSpec, set[tuple[int, int]]] = {}
    for trial_id, trial in plan.trials_by_id.items():
        model, prepared = trial.network.model, trial.network.subset.prepared
        if model.pretrained and trial_id not in known:
            asked.setdefault(model, set()).add((prepared.channels, prepared.image_size))
    found: dict[str, bytes] = {}
    problems: list[SweepError] = []
    for model, images in asked.items():
        from tasks.trials.models import build_model
        from tasks.trials.weights import download

        path = paths.pretrained(model.pretrained_key)
        try:
            if not path.is_file():
                say(f"Downloading the pretrained weights of {model.library} {model.architecture}")
                data = download(model)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, data)
            found[model.pretrained_key] = data = path.read_bytes()
            for channels, side in sorted(images):
                size: dict[str, Any] = {
                    "in_channels": channels,
                    "image_size": side,
                    "num_outputs": 2,
                }
                build_model(model, **size, input_scale=1.0, dropout=None, seed=0, pretrained=data)
        except SweepError as error:
            problems.append(error)
    collect(problems, type(problems[0]) if problems else SweepError)
    return found


def check_same_start(
    records: Mapping[str, TrialRecord], plan: SweepPlan, weights: Mapping[str, bytes]
) -> None:
    """Refuse to start networks of one sweep from different weights of one name, as libraries give
    them.
    """
    here = {key: hashlib.sha256(data).hexdigest() for key, data in weights.items()}
    others: dict[str, Counter[str]] = {}
    for trial_id, trial in plan.trials_by_id.items():
        key = trial.network.model.pretrained_key
        start = records[trial_id].result.pretrained if trial_id in records else ""
        if start and start != here.get(key, start):
            others.setdefault(key, Counter())[start] += 1
    rule = "Networks of a sweep must start from the same pretrained weights"
    problems: list[SweepError] = []
    for key, found in others.items():
        theirs = ", ".join(
            f"{start[:16]}… in {plural(number, 'result')}" for start, number in found.items()
        )
        hint = (
            f"copy pretrained/{key}.safetensors from the root that made them, or rename the sweep"
        )
        problems.append(ConfigError(rule, f"{key}: SHA-256 {here[key][:16]}… here, {theirs}", hint))
    collect(problems)


def prepare_missing(
    workspace: Workspace,
    missing: list[PreparedSpec],
    options: RunOptions,
    executor: Executor,
    monitor: Progress,
) -> None:
    """Prepare datasets one after another, each in parallel, and raise what could not be
    prepared.
    """
    from tasks.prepared.prepare import prepare_dataset
    from tasks.prepared.record import doubt_lines

    problems: list[SweepError] = []
    known = set(workspace.prepared)
    own = {
        choice.name: Path(choice.own.path) for choice in workspace.plan.sweep.datasets if choice.own
    }
    for spec in missing:
        name = spec.dataset
        monitor.stage("prepare", name)
        folder = options.raw.get(name) or own.get(name)
        folder = None if folder is None else folder.expanduser().absolute()
        named = executor.labelled(f"prepare {name}")

        def show(done: int, total: int, name: str = name) -> None:
            monitor.advance(f"{name} {done:,}/{total:,} items")

        try:
            record = prepare_dataset(
                spec,
                workspace.plan.datasets[name],
                raw=folder,
                destination=workspace.paths.prepared(spec),
                executor=named,
                max_skipped_share=options.max_skipped_share,
                on_progress=show,
                readers=_readers(name, folder, named, monitor),
                listings=workspace.listings,
            )
        except SweepError as error:
            problems.append(error)
            continue
        if folder is not None and spec.prepared_id not in known:  # of somebody's files, once
            for line in doubt_lines(record):
                monitor.note(f"{name}: {line.strip()}")
    collect(problems, DataError)


def prepare_own(workspace: Workspace, options: RunOptions, monitor: Progress) -> None:
    """Read own data in this process, so that what is wrong with them is said before MLflow and Ray
    start.

    After :data:`READ_HERE_S` seconds the rest is left to a cluster. Files that are prepared are
    listed again, which tells whether they changed.
    """
    own = {choice.name for choice in workspace.plan.sweep.datasets if choice.own}
    listed = [spec for spec in workspace.plan.prepared if spec.dataset in own]
    end = time.monotonic() + READ_HERE_S

    def go_on() -> None:
        if time.monotonic() > end:
            raise TimeoutError

    with suppress(TimeoutError):
        prepare_missing(workspace, listed, options, InlineExecutor(go_on), monitor)
    workspace.look_again()


class Meanwhile:
    """A process that prepares the datasets which packages bring while Ray starts.

    What is read of one that is cut off is kept. What cannot be prepared is left to be tried, and
    told, after.
    """

    def __init__(self, workspace: Workspace, options: RunOptions, monitor: Progress) -> None:
        self._workspace, self._monitor, plan = workspace, monitor, workspace.plan
        brought = {choice.name for choice in plan.sweep.datasets if choice.own} | options.raw.keys()
        asked = [
            (spec.model_dump_json(), plan.datasets[spec.dataset].model_dump_json())
            for spec in plan.prepared
            if spec.prepared_id not in workspace.prepared and spec.dataset not in brought
        ]
        self._process: Any = None
        if asked:
            code = "from tasks.prepared.prepare import prepare_from_stdin; prepare_from_stdin()"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],  # whatever lies in the working directory
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
                process_group=0,  # Ctrl-C is for this one, which ends it
            )
            told = json.dumps(
                [str(workspace.paths.root / "prepared"), options.max_skipped_share, asked]
            )
            threading.Thread(target=self._tell, args=(self._process, told), daemon=True).start()

    def end(self, patience_s: float = 0.0) -> None:
        """Wait for its end, and then for that of the block of images that is read."""
        if (process := self._process) is None:
            return
        for patience, give_up in ((patience_s, process.stdin.close), (BLOCK_S, process.kill)):
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                with suppress(OSError):
                    give_up()
        process.wait()
        self._workspace.look_again()

    def _tell(self, process: Any, asked: str) -> None:
        with suppress(OSError, ValueError, KeyboardInterrupt):  # it has ended, or the sweep ends
            process.stdin.write(f"{asked}\n")
            process.stdin.flush()
            for name in process.stdout:
                self._monitor.stage("prepare", name.strip())


def _readers(name: str, raw: Path | None, executor: Executor, monitor: Progress) -> Executor | None:
    """Return what reads on every node of a shared cluster that has the raw download too, if it is
    faster.
    """
    if raw is None or not isinstance(executor, RayExecutor) or not executor.driver_node_only:
        return None
    nodes = nodes_that_see(raw)
    readers = RayExecutor(nodes=nodes, note=monitor.note) if nodes else None
    if readers is None or readers.num_workers <= executor.num_workers:
        return None
    monitor.note(
        f"{name} is read on {len(nodes)} nodes, {readers.num_workers} CPUs, that see its raw "
        "download"
    )
    return readers.labelled(f"prepare {name}")


def measure_subset(
    spec: MeasureSpec, data: TrialData, dataset: DatasetSpec, executor: Executor
) -> MeasureRecord:
    """Return the record of the intrinsic dimension and label sharpness of a subset's train
    images.
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
    images, labels = (
        np.asarray(array[:num_rows]) for array in (data.train_images, data.train_labels)
    )
    measured = measure_nested(
        images, labels, spec.train_sizes, executor=executor, settings=settings
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
    """Return the arrays of a subset, with so many training images."""
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
            "A prepared dataset must stay as it is while its cells are trained",
            f"{workspace.paths.prepared(subset.prepared)}: {type(error).__name__} {error}",
            "run the same command again: it is prepared anew, and what is done is kept",
        ) from error
