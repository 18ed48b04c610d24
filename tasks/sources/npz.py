"""Your own arrays: an ``.npz`` with ``images`` and ``labels`` and, if you have them, ``groups``, ``splits``
and ``label_names``.

``images`` is ``(num_images, height, width)``, ``(num_images, height, width, 3)`` or ``(num_images, 1 or 3,
height, width)``. uint8 is taken as it is; floats must lie in [0, 1] or in [0, 255], over the whole array;
other integers are scaled by each image's own maximum. Nothing is unpickled, and declared sizes are checked
before anything is read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Split
from tasks.sources.image_files import by_own_maximum
from tasks.sources.label_tables import check_zip

MAX_BYTES = 256 << 30
SPLITS: tuple[Split, ...] = ("", "train", "test")
WAY_OUT = "np.savez(PATH, images=images, labels=labels)"


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool


class Npz:
    """Images and labels in one archive."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row.

        Raises:
            DataError: for missing or misshapen arrays, objects, labels that are no classes, or float images
                in no
                known range.
        """
        path = request.root()
        check_zip(path, path, request, MAX_BYTES)
        header = _image_header(path, request)
        labels, label_names = _labels(path, header.shape[0], request)
        groups = _column(path, "groups", header.shape[0], request)
        splits = _column(path, "splits", header.shape[0], request)
        if splits is not None and not set(splits) <= {"", "train", "test"}:
            raise DataError(f"{request.dataset.name}: splits must be train, test or empty", "other values")
        if groups is not None and len(set(groups)) < 2:
            raise DataError(f"{request.dataset.name}: groups must tell patients apart", "one id for all")
        scale, rule = _scale(path, header, request)
        items = [
            Item(
                str(row),
                int(label),
                groups[row] if groups else "",
                SPLITS[SPLITS.index(splits[row])] if splits else "",
                (scale,),
            )
            for row, label in enumerate(labels)
        ]
        is_float = header.dtype.kind == "f"
        return Listing(
            items, label_names, "float32" if is_float else "uint8", block_size=4096, intensity=rule
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows that streams through the archive; rows must be asked for in order."""
        path = request.root()
        header = _image_header(path, request)
        stream = _Rows(path, header)

        def read(item: Item) -> tuple[Sample]:
            row = _channels_last(stream.row(int(item.locator)))
            if row.dtype == np.uint8:
                return (Sample(row),)
            values = row.astype(np.float32)
            if not np.isfinite(values).all():
                raise SkipItem("values not finite")
            if item.details[0] is None:
                pixels, note = by_own_maximum(values)
                return (Sample(pixels, conversions=(note,)),)
            return (Sample(values * np.float32(item.details[0])),)

        return read


class _Rows:
    """Rows of the images of an archive, one after another, without holding them all."""

    def __init__(self, path: Path, header: _Header) -> None:
        self._header = header
        self._row_bytes = int(np.prod(header.shape[1:])) * header.dtype.itemsize
        self._whole = _load(path, "images") if header.fortran else None
        self._archive = zipfile.ZipFile(path)
        self._file = self._archive.open("images.npy")
        _read_header(self._file)
        self._start = self._file.tell()

    def row(self, index: int) -> NDArray[np.generic]:
        if self._whole is not None:
            row: NDArray[np.generic] = self._whole[index]
            return row
        self._file.seek(self._start + index * self._row_bytes)
        body = self._file.read(self._row_bytes)
        if len(body) != self._row_bytes:
            raise SkipItem("array ends early")
        return np.frombuffer(body, self._header.dtype).reshape(self._header.shape[1:])


def _channels_last(row: NDArray[np.generic]) -> NDArray[np.generic]:
    if row.ndim == 3 and row.shape[0] in (1, 3) and row.shape[2] not in (1, 3):
        row = np.moveaxis(row, 0, 2)
    return row[..., 0] if row.ndim == 3 and row.shape[2] == 1 else row


@contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        yield file


def _read_header(file: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return _Header(shape, dtype, fortran)


def _names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _checked_header(path: Path, name: str, request: RawRequest) -> _Header:
    """Return an array's header, refusing objects and shapes that the member's declared size cannot hold."""
    where = f"{request.dataset.name}: array {name}"
    try:
        with _member(path, name) as file:
            header = _read_header(file)
        with zipfile.ZipFile(path) as archive:
            declared = archive.getinfo(f"{name}.npy").file_size
    except KeyError:
        raise DataError(f"{where} must be in the .npz", "it is not", WAY_OUT) from None
    except (ValueError, OSError, zipfile.BadZipFile, EOFError):
        raise DataError(f"{where} must be a whole .npy", "damaged") from None
    if header.dtype.hasobject:
        raise DataError(f"{where} must hold numbers or text", "Python objects, which are never unpickled")
    if int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize > declared:
        raise DataError(f"{where} must be whole", f"shape {header.shape} is more than the member holds")
    return header


def _image_header(path: Path, request: RawRequest) -> _Header:
    header = _checked_header(path, "images", request)
    shape = header.shape
    colour = len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3))
    if not (len(shape) == 3 or colour) or 0 in shape or header.dtype.kind not in "uif":
        raise DataError(
            f"{request.dataset.name}: images must be numbers of shape (n, height, width), "
            "(n, height, width, 3) or (n, 3, height, width)",
            f"{header.dtype} {shape}",
        )
    return header


def _load(path: Path, name: str) -> NDArray[np.generic]:
    with _member(path, name) as file:
        array: NDArray[np.generic] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _column(path: Path, name: str, num_images: int, request: RawRequest) -> list[str] | None:
    if name not in _names(path):
        return None
    header = _checked_header(path, name, request)
    if header.shape != (num_images,) or header.dtype.kind not in "uiU":
        rule = f"{request.dataset.name}: {name} must be {num_images} whole numbers or texts"
        raise DataError(rule, f"{header.dtype} {header.shape}")
    return [str(value) for value in _load(path, name).tolist()]


def _labels(path: Path, num_images: int, request: RawRequest) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    header = _checked_header(path, "labels", request)
    name = request.dataset.name
    if header.shape != (num_images,) or header.dtype.kind not in "uibU":
        rule = f"{name}: labels must be {num_images} whole numbers or texts, one per image"
        raise DataError(rule, f"{header.dtype} {header.shape}", "cast floats to integers on purpose")
    values = _load(path, "labels")
    classes, labels = np.unique(values, return_inverse=True)
    if classes.dtype.kind == "i" and classes.min() < 0:
        raise DataError(
            f"{name}: labels must not be negative", "-1 often means unknown", "drop or map those images"
        )
    if classes.dtype.kind == "U" and "" in classes:
        raise DataError(f"{name}: labels must not be empty", "empty text")
    if len(classes) < 2:
        raise DataError(f"{name}: labels need two classes", "one only")
    if "label_names" in _names(path):
        _checked_header(path, "label_names", request)
        given = [str(value) for value in _load(path, "label_names").tolist()]
        if classes.dtype.kind == "U" or int(classes.max()) >= len(given):
            raise DataError(f"{name}: label_names must name labels 0, 1, ... in order", f"{len(given)} names")
        return values.astype(np.int64), tuple(given)
    return labels.astype(np.int64), tuple(str(value) for value in classes.tolist())


def _scale(path: Path, header: _Header, request: RawRequest) -> tuple[float | None, str]:
    """Return the factor that brings pixels to [0, 255] (None: each image's own maximum) and its
    description.
    """
    if header.dtype == np.uint8:
        return 1.0, "as stored, 8 bits"
    if header.dtype.kind in "ui":
        return None, "whole numbers, scaled by own maximum"
    rows = _Rows(path, header)
    low, high = np.inf, -np.inf
    for index in range(header.shape[0]):
        finite = rows.row(index).astype(np.float32)
        finite = finite[np.isfinite(finite)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low < 0 or high > 255:
        rule = f"{request.dataset.name}: float images must lie in [0, 1] or [0, 255]"
        raise DataError(rule, f"[{low:g}, {high:g}]", "undo the standardisation, or rescale them")
    return (255.0, "floats in [0, 1], times 255") if high <= 1 else (1.0, "floats in [0, 255] as stored")
