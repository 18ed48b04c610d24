"""Read your own images or a known dataset, and measure them.

:func:`measure_source` chooses one of three ways by the path of the source:

- Image files and the names of datasets are prepared as for a sweep, in a temporary folder.
  Then :func:`~tasks.measures.measure.measure_nested` reads the prepared images in blocks.
- A folder with prepared images is measured in the same way.
- The images of an array file are read into memory (:mod:`orchestrator.measuring.array_files`)
  and rescaled to [0, 255] (:mod:`orchestrator.measuring.arrays`). Then
  :func:`~tasks.measures.measure.measure_array` measures them. With a class pair or train
  sizes, prepared images are also read into memory.
"""

from __future__ import annotations

import os
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
from search_spaces.datasets import DATASETS, dataset_spec, user_dataset_spec
from search_spaces.errors import (
    ConfigError,
    DataError,
    SetupError,
    missing_path_hint,
    pydantic_error,
)
from search_spaces.specs import DatasetSpec, PreparedSpec
from tasks.measures.measure import measure_nested
from tasks.measures.products import check_device
from tasks.prepared.store import MARKER, PreparedDataset
from tasks.remote import Executor
from tasks.sources import check_raw_folder
from tasks.sources.arrays.files import ARRAY_FILES
from tasks.sources.base import RawRequest
from tasks.sources.detect import detect_own_kind, unknown_kind_hint
from tasks.sources.pictures import is_image_name

OWN_NAME = "own"
"""Name of the dataset if the source is a path."""
MAX_FOLDERS_BELOW = 2
"""Largest number of levels below the given folder where a message looks for class folders."""
DEFAULT_SIDE = 224
"""Default side of resized images, pixels. The study used the same side."""


def measure_source(request: MeasureRequest, executor: Executor, paths: RootPaths) -> Measured:
    """Read a source and measure it.

    Image files are prepared below the root. The prepared images are deleted afterwards. The
    key with which file names are hashed is not deleted.

    Args:
        request: The source and the settings.
        executor: Executor that reads images and computes distances.
        paths: Paths below the root.

    Raises:
        SweepError: The source or an option cannot be used.
    """
    try:
        check_device(request.settings.device)
    except SetupError as error:
        if request.settings.device == "gpu":
            raise ConfigError(
                "torch has no device gpu", hint="Did you mean `--device cuda`?"
            ) from None
        raise ConfigError(
            error.problem, hint="Choose another device, for example with `--device cpu`"
        ) from None
    if request.settings.pixel_range is not None:
        limits = {"pixel_range": request.settings.pixel_range}
        request = replace(request, own_options={**request.own_options, **limits})
    path = Path(os.path.expanduser(request.source))
    is_dataset_name = request.source in DATASETS and not path.exists()
    is_prepared = (path / MARKER).exists()
    if request.own_options and (is_dataset_name or is_prepared):
        raise ConfigError(
            f"{options_text(request.own_options)} cannot be used with {path.name}, because the "
            "classes and pixel values of a known or prepared dataset are fixed",
            hint=f"Remove {options_text(request.own_options)}, or use the path of the original "
            "images",
        )
    if is_dataset_name:
        dataset = dataset_spec(request.source)
        return _prepare_and_measure(request, dataset, request.raw, executor, paths)
    _check_exists(path, request.source)
    is_npy = path.is_file() and path.suffix.lower() == ".npy"
    is_array_file = path.is_file() and path.suffix.lower() in ARRAY_FILES
    measures_as_stored = (is_npy or is_array_file) and not request.image_size
    _check_options(request, path, is_npy=is_npy, measures_as_stored=measures_as_stored)
    if is_prepared:
        return _measure_prepared(request, PreparedDataset.open(path), executor)
    if measures_as_stored:
        try:
            return measure_file(request, path, executor)
        except DataError as error:
            problem = _problem_with_path(error.problem, request)
            raise DataError(problem, hint=error.hint) from error
    if is_npy:
        raise ConfigError(
            f"--image-size cannot be used with {path.name}, because isweep does not resize "
            "images of .npy files",
            hint="Remove --image-size, or save images and labels in an .npz file with "
            "`numpy.savez('images.npz', images=images, labels=labels)`",
        )
    own_data = own_source(data_kind(path), path, request)
    dataset = user_dataset_spec(OWN_NAME, own_data)
    try:
        return _prepare_and_measure(request, dataset, path, executor, paths)
    except DataError as error:
        hint = error.hint
        inner = _folder_of_classes(path)
        if inner is not None:
            hint = f"Try the folder {inner}, which has one subfolder per class"
        raise DataError(_problem_with_path(error.problem, request), hint=hint) from error


def _problem_with_path(problem: str, request: MeasureRequest) -> str:
    """Return a problem with the path that the user typed, in place of the name of the dataset."""
    without_name = problem.removeprefix(f"{OWN_NAME}: ")
    if request.labels is not None:
        # Only problems with the labels begin with the name of the dataset.
        return problem if without_name == problem else f"{request.labels}: {without_name}"
    if without_name.startswith(Path(request.source).name):
        return without_name
    return f"{request.source}: {without_name}"


def _folder_of_classes(folder: Path) -> Path | None:
    """Return the folder below ``folder`` that has the class folders, or None.

    A folder has class folders if at least two of its subfolders contain images. The search
    goes at most two levels down, and only into a folder that is the only subfolder.
    """
    for _ in range(MAX_FOLDERS_BELOW):
        subfolders = _subfolders(folder)
        if len(subfolders) != 1:
            return None
        folder = subfolders[0]
        with_images = [
            subfolder
            for subfolder in _subfolders(folder)
            if any(is_image_name(path.name) for path in subfolder.iterdir())
        ]
        if len(with_images) >= 2:
            return folder
    return None


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder. If the path is a file, return none."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir()]


def _check_exists(path: Path, source: str) -> None:
    if path.exists():
        return
    if "://" in source:
        raise ConfigError(
            f"{source} is a URL, but only local files can be measured",
            hint="Download the data, and use the path of the folder or file",
        )
    hint = (
        "Give the path of a folder or file, or the name of a known dataset: "
        f"{', '.join(sorted(DATASETS))}. {missing_path_hint(path)}"
    )
    raise ConfigError(
        f"{source} is neither an existing path nor the name of a known dataset", hint=hint.rstrip()
    )


def _check_options(
    request: MeasureRequest, path: Path, *, is_npy: bool, measures_as_stored: bool
) -> None:
    """Raise an error if an option cannot be used for the source."""
    if request.labels and not is_npy:
        raise ConfigError(
            f"--labels is only for .npy files, but {path.name} has another type",
            hint="Remove --labels",
        )
    if request.raw:
        raise ConfigError(
            f"--raw is only for known datasets, but {path.name} is a file or folder",
            hint="Remove --raw",
        )
    if measures_as_stored and request.channels != 1:
        raise ConfigError(
            f"--channels cannot be used, because the images of {path.name} are measured as stored",
            hint="Remove --channels" if is_npy else "Remove --channels, or add --image-size",
        )


def data_kind(path: Path) -> str:
    """Return the kind of your own data at a path.

    Raises:
        ConfigError: The path has no known kind of data.
    """
    kind = detect_own_kind(path)
    if kind is not None:
        return kind
    raise ConfigError(
        f"{path.name} is not a folder, table or file of arrays that isweep can read",
        hint=unknown_kind_hint(path),
    )


def _prepare_and_measure(
    request: MeasureRequest,
    dataset: DatasetSpec,
    raw: Path | None,
    executor: Executor,
    paths: RootPaths,
) -> Measured:
    """Measure a dataset. If it is not prepared, first prepare it in a temporary folder.

    Args:
        request: The source and the settings.
        dataset: The dataset.
        raw: Raw files of the dataset. None for a dataset that comes with a package.
        executor: Executor that reads images and computes distances.
        paths: Paths below the root.
    """
    from tasks.prepared.prepare import prepare_dataset  # imports scipy, which arrays do not need

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
        raise pydantic_error(error) from None
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
        # Read blocks of images, so that the images need not fit into memory.
        record = measure_nested(
            data, data.classes, [data.num_images], executor=executor, settings=settings
        )
        measured = with_pair(record, data.read_rows, data.classes, data.label_names)
    else:
        rows = np.arange(data.num_images)
        if request.class_pair is not None:
            rows = rows_of_pair(data.classes, data.label_names, request.class_pair)
        images = LabeledImages(data.read_rows(rows), data.classes[rows], data.label_names)
        request = replace(request, class_pair=None, settings=settings)
        measured = measure_arrays(images, request, executor)
    return replace(measured, preparation=data.record.model_dump(mode="json"))
