"""Read your own images, or a dataset, from wherever they are, and measure them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from orchestrator.measuring.array_files import measure_file, options_text, own_source
from orchestrator.measuring.arrays import (
    PREPARED_RANGE,
    measure_arrays,
    rows_of_pair,
    with_pair,
)
from orchestrator.measuring.request import LabeledImages, Measured, MeasureRequest
from orchestrator.measuring.scratch import scratch_folder
from orchestrator.planning.paths import RootPaths
from search_spaces.datasets import DATASETS, dataset_spec, own_dataset_spec
from search_spaces.errors import ConfigError, SetupError, invalid, nearest_path
from search_spaces.specs import DatasetSpec, PreparedSpec
from tasks.measures.measure import measure_nested
from tasks.measures.products import check_device
from tasks.prepared.store import MARKER, PreparedDataset
from tasks.remote import Executor
from tasks.sources import check_raw_folder, own_kinds_text
from tasks.sources.array_files import ARRAY_FILES
from tasks.sources.base import RawRequest
from tasks.sources.detect import detect_own_kind

DEFAULT_SIDE = 224
"""Side of image files, pixels, if none is given: the study's."""


def measure_source(request: MeasureRequest, executor: Executor, paths: RootPaths) -> Measured:
    """Read a source and measure it.

    Image files are prepared in the root, and the prepared images are removed afterwards. The key of
    hashed file names stays.

    Args:
        request: What to measure and how.
        executor: Reads images and computes distances.
        paths: Paths below the root.

    Raises:
        SweepError: The source or an option cannot be used.
    """
    try:
        check_device(request.settings.device)
    except SetupError as error:
        raise ConfigError(error.problem, hint="Choose, for example, `--device cpu`") from None
    if request.settings.pixel_range is not None:
        limits = {"pixel_range": request.settings.pixel_range}
        request = replace(request, said={**request.said, **limits})
    path = Path(request.source)
    is_listed = request.source in DATASETS and not path.exists()
    is_prepared = (path / MARKER).exists()
    if request.said and (is_listed or is_prepared):
        raise ConfigError(
            f"{path.name} has fixed classes and pixels, so {options_text(request.said)} cannot be "
            "used",
            hint="Leave the option out, or name the original images",
        )
    if is_listed:
        dataset = dataset_spec(request.source)
        return _prepare_and_measure(request, dataset, request.raw, executor, paths)
    _check_exists(path, request.source)
    is_npy = path.is_file() and path.suffix.lower() == ".npy"
    is_array_file = path.is_file() and path.suffix.lower() in ARRAY_FILES
    is_as_stored = (is_npy or is_array_file) and not request.image_size
    _check_options(request, path, is_npy=is_npy, is_as_stored=is_as_stored)
    if is_prepared:
        return _measure_prepared(request, PreparedDataset.open(path), executor)
    if is_as_stored:
        return measure_file(request, path, executor)
    if is_npy:
        raise ConfigError(
            f"{path.name} is a .npy file, whose images --image-size cannot resize",
            hint="Save images and labels together as .npz, or leave --image-size out",
        )
    own_data = own_source(known_kind(path), path, request)
    return _prepare_and_measure(request, own_dataset_spec("own", own_data), path, executor, paths)


def _check_exists(path: Path, source: str) -> None:
    if path.exists():
        return
    if "://" in source:
        raise ConfigError(
            f"{source} is a URL, and only files of this machine can be measured",
            hint="Download it, then name the folder or file",
        )
    hint = (
        f"Name a folder, a file or a known dataset: {', '.join(sorted(DATASETS))}. "
        f"{nearest_path(path)}"
    )
    raise ConfigError(f"{source} does not exist, and is no known dataset", hint=hint.rstrip())


def _check_options(
    request: MeasureRequest, path: Path, *, is_npy: bool, is_as_stored: bool
) -> None:
    """Refuse options that the source has no use for."""
    if request.labels and not is_npy:
        raise ConfigError(
            f"--labels is for a .npy file, and {path.name} is not one", hint="Leave --labels out"
        )
    if request.raw:
        raise ConfigError(
            f"--raw is for a known dataset, and {path.name} is a file or folder",
            hint="Leave --raw out",
        )
    if is_as_stored and request.channels != 1:
        raise ConfigError(
            f"--channels cannot be used, because the images of {path.name} are measured as stored",
            hint="Leave --channels out, or give --image-size too",
        )


def known_kind(path: Path) -> str:
    """Return the kind of own data that a file or folder is.

    Raises:
        ConfigError: It is of no known kind.
    """
    kind = detect_own_kind(path)
    if kind is not None:
        return kind
    raise ConfigError(
        f"{path.name} is no folder, table or file of arrays that isweep can read",
        hint=f"Use a .npy file, or one of these kinds: {own_kinds_text()}",
    )


def _prepare_and_measure(
    request: MeasureRequest,
    dataset: DatasetSpec,
    raw: Path | None,
    executor: Executor,
    paths: RootPaths,
) -> Measured:
    """Prepare a dataset in a scratch folder and measure it, or one that is prepared already.

    Args:
        request: What to measure and how.
        dataset: The dataset.
        raw: Its raw files; None for a dataset that a package brings.
        executor: Reads images and computes distances.
        paths: Paths below the root.
    """
    from tasks.prepared.prepare import prepare_dataset  # imports scipy, which arrays do without

    fields = {
        "dataset": dataset.name,
        "task": dataset.task,
        "image_size": request.image_size or DEFAULT_SIDE,
        "channels": request.channels,
        "max_images_per_class": dataset.max_images_per_class,
    }
    try:
        spec = PreparedSpec.model_validate(fields)
    except ValidationError as error:
        raise invalid(error) from None
    check_raw_folder(RawRequest(dataset, spec, raw))
    if raw is None and (paths.prepared(spec) / MARKER).exists():
        return _measure_prepared(request, PreparedDataset.open(paths.prepared(spec)), executor)
    paths.make()
    with scratch_folder(paths.prepared(spec).parent) as folder:
        prepare_dataset(
            spec,
            dataset,
            raw=raw,
            destination=folder,
            executor=executor,
            max_skipped_share=request.max_skipped_share,
            for_training=False,
        )
        return _measure_prepared(request, PreparedDataset.open(folder), executor)


def _measure_prepared(
    request: MeasureRequest, data: PreparedDataset, executor: Executor
) -> Measured:
    settings = replace(request.settings, pixel_range=PREPARED_RANGE)
    if request.class_pair is None and not request.train_sizes:
        # Read in blocks from the store: the images need not fit into memory.
        record = measure_nested(
            data, data.labels, [data.num_images], executor=executor, settings=settings
        )
        measured = with_pair(record, data.read_rows, data.labels, data.label_names)
    else:
        rows = np.arange(data.num_images)
        if request.class_pair is not None:
            rows = rows_of_pair(data.labels, data.label_names, request.class_pair)
        images = LabeledImages(data.read_rows(rows), data.labels[rows], data.label_names)
        request = replace(request, class_pair=None, settings=settings)
        measured = measure_arrays(images, request, executor)
    return replace(measured, preparation=data.record.model_dump(mode="json"))
