"""Measure a file of arrays without resizing its images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import ValidationError

from orchestrator.measuring.arrays import rescale_and_measure
from orchestrator.measuring.labels import Labels, name_labels, raw_request
from orchestrator.measuring.request import Images, LabeledImages, Measured, MeasureRequest
from search_spaces.errors import ConfigError, DataError, missing_path_hint, plural, pydantic_error
from search_spaces.sweeps import UserSourceSpec
from tasks.prepared.record import set_lines
from tasks.remote import Executor
from tasks.sources import source_for
from tasks.sources.arrays.files import ARRAY_FILES
from tasks.sources.base import format_counts
from tasks.sources.detect import detect_own_kind

MAX_HELD_BYTES = 2 << 30
"""Largest size of a file of arrays that isweep reads into memory, bytes."""
ONLY_FOR_ARRAYS = frozenset({"label_map", "pixel_range"})
"""Options of your own data that a user may give for a file of arrays."""
NUM_PROBED = 64
"""Number of values of an image that isweep compares first. In most images, these values are
not all equal, so the others need not be compared."""


def measure_file(request: MeasureRequest, path: Path, executor: Executor) -> Measured:
    """Measure a file of arrays without resizing its images.

    Raises:
        SweepError: The file, its labels or an option cannot be used.
    """
    kind = detect_own_kind(path)
    if kind is not None and path.stat().st_size > MAX_HELD_BYTES:
        raise ConfigError(
            f"{path.name} has {path.stat().st_size / 2**30:.1f} GiB, but without --image-size, "
            "isweep measures only files of at most 2 GiB",
            hint="Add --image-size with the side of the stored images, for example "
            "`--image-size 224`",
        )
    unfit = sorted(set(request.own_options) - ONLY_FOR_ARRAYS)
    if unfit:
        raise ConfigError(
            f"{options_text(unfit)} cannot be used with {path.name}, because {path.name} is a file "
            "of arrays",
            hint=f"Remove {options_text(unfit)}",
        )
    # A .npy file has no kind of its own. isweep checks its options as the options of an .npz
    # file.
    own_data = own_source(kind or "npz", path, request)
    if kind is None:
        return _measure_npy(request, path, own_data, executor)
    from tasks.sources.arrays.listing import load_images  # imports more than a .npy needs

    # list_items checks the declared sizes, labels and types before large arrays are read.
    raw = raw_request(own_data)
    listing = source_for(kind).list_items(raw)
    images = load_images(ARRAY_FILES[path.suffix.lower()](raw), listing)
    codes = np.array([item.label for item in listing.items], np.int64)
    labels = Labels(tuple(listing.label_names), codes)
    # An image without a group id forms a separate group.
    groups = [item.group or f"\0{item.locator}" for item in listing.items]
    notes = format_counts(left_out=listing.excluded, doubtful=listing.flags)
    return _measure_labeled(images, labels, groups, notes, request, executor)


def _measure_npy(
    request: MeasureRequest, path: Path, own_data: UserSourceSpec, executor: Executor
) -> Measured:
    """Measure a ``.npy`` file. Labels, if there are any, are in another file."""
    images = _load_npy(path)
    if request.labels is None:
        return rescale_and_measure(LabeledImages(images), request, executor)
    if not request.labels.exists():
        hint = f"Correct --labels. {missing_path_hint(request.labels)}".rstrip()
        raise ConfigError(f"The label file {request.labels} does not exist", hint=hint)
    labels = _read_labels(request.labels, own_data)
    if len(labels.codes) != len(images):
        raise DataError(
            f"{request.labels.name} has {plural(len(labels.codes), 'label')}, but {path.name} "
            f"has {plural(len(images), 'image')}",
            hint="Set --labels to a file with one label per image",
        )
    return _measure_labeled(images, labels, range(len(images)), [], request, executor)


def _measure_labeled(
    images: Images,
    labels: Labels,
    groups: Sequence[object],
    notes: Iterable[str],
    request: MeasureRequest,
    executor: Executor,
) -> Measured:
    """Measure images with labels, and add lines that summarize the images."""
    lines = _set_lines(images, labels, groups)
    data = LabeledImages(images, labels.codes, labels.names)
    measured = rescale_and_measure(data, request, executor)
    return replace(measured, image_lines=(*lines, *measured.image_lines, *notes))


def own_source(kind: str, path: Path, request: MeasureRequest) -> UserSourceSpec:
    """Return your own data as in a sweep file.

    Raises:
        ConfigError: An option has a wrong value.
    """
    fields = {"kind": kind, "path": str(path), "domain": None, "channels": request.channels}
    try:
        return UserSourceSpec.model_validate({**fields, **request.own_options})
    except ValidationError as error:
        raise pydantic_error(error) from None


def options_text(names: Iterable[str]) -> str:
    """Return options as a user types them, for example ``--label-map and --layout``."""
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


def _load_npy(path: Path) -> Images:
    try:
        # If the header declares more data than the file has, mmap raises an error before
        # memory is allocated.
        return cast("Images", np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path.name} cannot be read as one numeric array: {str(error).splitlines()[0]}",
            hint=f"Save the array with `numpy.save({path.name!r}, array)`",
        ) from None


def _read_labels(path: Path, own_data: UserSourceSpec) -> Labels:
    """Return the labels in a ``.npy`` file, or in a text file on one line or one per line."""
    is_array = path.suffix.lower() == ".npy"
    if is_array:
        values = _load_npy(path)
    else:
        from orchestrator.planning.plain_yaml import read_text  # imports ruamel

        lines = read_text(path, "label file", MAX_HELD_BYTES).rstrip().splitlines()
        values = np.array(lines[0].split() if len(lines) == 1 else lines, np.str_)
    if values.ndim != 1 or values.dtype.kind not in "uibfUS":
        raise DataError(
            f"{path.name} must contain one label per image, but contains an array of type "
            f"{values.dtype} and shape {values.shape}",
            hint="Save the labels as a one-dimensional array of numbers or text",
        )
    return name_labels(values.tolist(), own_data, first=0 if is_array else 1)


def _set_lines(images: Images, labels: Labels, groups: Sequence[object]) -> list[str]:
    """Return lines with the numbers of images and groups of each class."""
    images_of_class: dict[str, int] = {}
    groups_of_class: list[int] = []
    for code, name in enumerate(labels.names):
        rows = np.flatnonzero(labels.codes == code).tolist()
        images_of_class[name] = len(rows)
        groups_of_class.append(len({groups[row] for row in rows}))
    lines = set_lines(images_of_class, groups_of_class, len(set(groups)))
    num_blank = _count_blank(images)
    if num_blank:
        lines.append(f"  doubtful: images of one value, {num_blank:,}")
    return lines


def _count_blank(images: Images) -> int:
    """Return the number of images whose pixels all have the same value."""
    flat = images.reshape(len(images), -1)
    probed = flat[:, :: flat.shape[1] // NUM_PROBED or 1]
    candidates = flat[(probed == probed[:, :1]).all(axis=1)]
    return int((candidates == candidates[:, :1]).all(axis=1).sum())
