"""Labels, groups and splits of arrays: whole, one spelling each, none missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.array_files import ArrayFile, Part
from tasks.sources.base import RawRequest, SkipItem, Split
from tasks.sources.labels import check_spellings, is_missing, mapped_label, sort_labels
from tasks.sources.splits import split_of

MAX_TEXT_BYTES = 1 << 28
"""Labels, groups and names; never more than that is held."""


def small_array(file: ArrayFile, name: str, request: RawRequest) -> NDArray[np.generic]:
    """Return a whole array of labels, groups or names."""
    header = file.header(name)
    if int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize > MAX_TEXT_BYTES:
        raise DataError(f"{request.dataset.name}: {name} must be small", f"{header.dtype} {header.shape}")
    try:
        return file.load(name)
    except SkipItem as skip:
        raise DataError(f"{request.dataset.name}: array {name} must be whole", skip.reason) from None


def texts(file: ArrayFile, name: str, num_images: int, request: RawRequest) -> list[str] | None:
    """Return an array of texts or whole numbers as text, None when it is not there."""
    if name not in file.names():
        return None
    header = file.header(name)
    if header.shape not in ((num_images,), (num_images, 1)) or header.dtype.kind not in "uiUSO":
        rule = f"{request.dataset.name}: {name} must be {num_images} whole numbers or texts"
        raise DataError(rule, f"{header.dtype} {header.shape}")
    return [text(value) for value in small_array(file, name, request).reshape(-1).tolist()]


def text(value: object) -> str:
    """Spell a label, group or split; bytes that are no UTF-8 stay apart from one another."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def read_labels(file: ArrayFile, key: str, num_images: int, request: RawRequest) -> list[str]:
    """Return each image's class as written, through ``label_map``."""
    header, name = file.header(key), request.dataset.name
    singles = header.shape[:1] == (num_images,) and all(size == 1 for size in header.shape[1:])
    if not singles or header.dtype.kind not in "uibUSO":
        more = "; several labels per image are no classes" if len(header.shape) == 2 else ""
        rule = f"{name}: {key} must be {num_images} whole numbers or texts, one per image"
        raise DataError(rule, f"{header.dtype} {header.shape}{more}", "cast floats to integers on purpose")
    values = small_array(file, key, request).reshape(-1)
    mapping = {text: mapped_label(text, request) for text in {text(value) for value in values.tolist()}}
    if values.dtype.kind == "i" and any(label.startswith("-") for label in mapping.values()):
        raise DataError(
            f"{name}: labels must not be negative",
            "-1 often means unknown",
            "drop those images, or say what it means with --label-map or label_map",
        )
    if any(is_missing(label) for label in mapping.values()):
        raise DataError(f"{name}: labels must not be empty", "blank, NaN, NA or None", "drop those images")
    check_spellings(set(mapping.values()), request)
    return [mapping[text(value)] for value in values.tolist()]


def name_labels(file: ArrayFile, written: Sequence[Sequence[str]], request: RawRequest) -> tuple[str, ...]:
    """Return the classes in the order of their index; ``label_names`` renames 0, 1, ..."""
    name, found = request.dataset.name, {label for labels in written for label in labels}
    check_spellings(found, request)
    if len(found) < 2:
        raise DataError(f"{name}: labels need two classes", "one only")
    if "label_names" not in file.names():
        return sort_labels(found)
    given = [text(value) for value in small_array(file, "label_names", request).reshape(-1).tolist()]
    if not all(label.isdigit() and int(label) < len(given) for label in found):
        raise DataError(f"{name}: label_names must name labels 0, 1, ... in order", f"{len(given)} names")
    check_spellings(given, request)
    if len(set(given)) < len(given):
        raise DataError(f"{name}: label_names must differ", "a name twice")
    for labels in written:
        if isinstance(labels, list):
            labels[:] = [given[int(label)] for label in labels]
    return tuple(given)


def read_splits(
    file: ArrayFile, part: Part, num_images: int, request: RawRequest
) -> tuple[list[Split] | None, NDArray[np.int64]]:
    """Return each row's split, if any is given, and the rows that are no validation images."""
    cells = texts(file, part.prefix.format("splits"), num_images, request)
    if cells is None:
        return None, np.arange(num_images)
    if any(cell and split_of(cell) == "" for cell in cells):
        raise DataError(f"{request.dataset.name}: splits must be train, test, val or empty", "other values")
    kept = np.array([row for row, cell in enumerate(cells) if split_of(cell) is not None], np.int64)
    return [split_of(cell) or "" for cell in cells], kept


def check_groups(columns: Sequence[Sequence[str] | None], request: RawRequest) -> None:
    """Check that group ids tell patients apart and that none is on both sides of the split."""
    given = [set(groups) for groups in columns if groups is not None]
    if not given:
        return
    name, every = request.dataset.name, set().union(*given)
    if len(every) < 2:
        raise DataError(f"{name}: groups must tell patients apart", "one id for all")
    if any(is_missing(group) for group in every):
        raise DataError(f"{name}: every image needs a group when there are any", "blank, NaN or None")
