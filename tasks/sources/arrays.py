"""Layout: a file with named arrays (.npz, HDF5), and which of its arrays are images and labels."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError, SetupError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Split
from tasks.sources.labels import check_spellings, is_missing, mapped_label, sort_labels
from tasks.sources.own import VALIDATION_LEFT_OUT, check_group_sides, split_of
from tasks.sources.pictures import by_own_maximum, negative_flags
from tasks.sources.raw import DAMAGE, MAX_RATIO, PLAIN_METHODS

KEYS = (("images", "labels"), ("x", "y"), ("X", "y"), ("X", "Y"), ("data", "target"), ("data", "labels"))
SPLIT_KEYS = (
    ("{}_images", "{}_labels", "{}_{{}}"),
    ("x_{}", "y_{}", "{{}}_{}"),
    ("X_{}", "y_{}", "{{}}_{}"),
)
"""Names of images and labels of a split, and of its other arrays (``train_groups``, ``groups_train``)."""
_PAIRS = [pattern for images, labels, others in SPLIT_KEYS for pattern in (images, labels, others)]
MAX_NAMED = 10
WAY_OUT = "np.savez(PATH, images=images, labels=labels)"


@dataclass(frozen=True)
class ArrayHeader:
    """Shape and dtype of a stored array."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


class ArrayFile(Protocol):
    """One file with named arrays. Reading raises SkipItem for damage, headers raise DataError."""

    def names(self) -> list[str]:
        """Return the names of the arrays."""
        ...

    def header(self, name: str) -> ArrayHeader:
        """Return shape and dtype, checked against what the file can hold."""
        ...

    def load(self, name: str) -> NDArray[np.generic]:
        """Return a whole (small) array."""
        ...

    def rows(self, name: str) -> Rows:
        """Return a reader of an array's rows, cheapest in rising order."""
        ...


class Rows(Protocol):
    """Rows of one array."""

    def row(self, index: int) -> NDArray[np.generic]:
        """Return one row."""
        ...


@dataclass(frozen=True)
class Part:
    """Images of one split: names of their arrays."""

    images: str
    labels: str
    split: Split
    prefix: str = "{}"
    """How the other arrays of this split are called: ``{}`` is ``groups`` or ``splits``."""


def find_parts(file: ArrayFile, request: RawRequest) -> tuple[list[Part], int]:
    """Return the arrays to read, and how many validation images are left out.

    Raises:
        DataError: when no known pair of names is there, or several.
    """
    names = set(file.names())
    found = [[Part(images, labels, "")] for images, labels in KEYS if {images, labels} <= names]
    left_out = 0
    for images, labels, others in SPLIT_KEYS:
        parts = []
        for word in ("train", "test", "val", "valid"):
            pair = images.format(word), labels.format(word)
            if not set(pair) <= names:
                _check_no_half(pair, names, request)
                continue
            split = split_of(word)
            if split is None:
                left_out += file.header(pair[0]).shape[0]
            else:
                parts.append(Part(*pair, split or "", others.format(word)))
        if parts:
            found.append(parts)
    if len(found) > 1:
        listed = "; ".join(", ".join(part.images for part in parts) for parts in found)
        raise DataError(f"{request.dataset.name}: one set of images must be in the file", listed, WAY_OUT)
    if not found:
        for images, labels in KEYS:
            if images in ("x", "X"):
                _check_no_half((images, labels), names, request)
        for name in ("images", "labels"):
            if name not in names:
                shown = ", ".join(sorted(names)[:10]) or "no array"
                raise DataError(
                    f"{request.dataset.name}: array {name} must be in the .npz or HDF5 file",
                    f"it is not; the file has {shown}",
                    f"{WAY_OUT}; x and y, and MedMNIST's and Keras' keys are known too",
                )
    return found[0], left_out


def _check_no_half(pair: tuple[str, str], names: set[str], request: RawRequest) -> None:
    """Refuse images of a split without their labels, which would be dropped without a word."""
    if pair[0] in names:
        rule = f"{request.dataset.name}: {pair[0]} and {pair[1]} must both be in the file"
        raise DataError(rule, f"no {pair[1]}", "take the images out, or put their labels in")


def unused_arrays(file: ArrayFile, parts: list[Part]) -> list[str]:
    """Return the arrays that nobody reads, such as patients under a name that is not known."""
    used = {name for part in parts for name in (part.images, part.labels)} | {"label_names"}
    used |= {part.prefix.format(name) for part in parts for name in ("groups", "splits")}
    of_validation = {name.format(word).format("groups") for name in _PAIRS for word in ("val", "valid")}
    return sorted(set(file.names()) - used - of_validation)[:MAX_NAMED]


def image_header(file: ArrayFile, name: str, request: RawRequest) -> ArrayHeader:
    """Return the header of an array of images.

    Raises:
        DataError: for another shape or dtype.
    """
    header = file.header(name)
    shape = header.shape
    colour = len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3))
    if not (len(shape) == 3 or colour) or 0 in shape or header.dtype.kind not in "uif":
        raise DataError(
            f"{request.dataset.name}: {name} must be numbers of shape (n, height, width), "
            "(n, height, width, 3) or (n, 3, height, width)",
            f"{header.dtype} {shape}",
        )
    return header


# Labels, groups and splits of arrays: whole, one spelling each, none missing.

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


# Your own arrays, whatever file holds them: images, labels and, if you have them, groups, splits and names.
#
# Layout: MedMNIST's and Keras' own loaders, as named below.
#
# Keys: ``images`` and ``labels``, or ``x`` and ``y`` (``X``/``Y``, ``data``/``target``); with splits in the
# keys, ``train_images`` and ``test_images`` as MedMNIST writes them (https://medmnist.com,
# ``medmnist/dataset.py``: ``{split}_images``, ``{split}_labels`` of shape ``(n, 1)``), or ``x_train`` and
# ``x_test`` as Keras' ``mnist.npz``. ``val`` beside them is left out and counted.
#
# ``images`` is ``(n, height, width)``, ``(n, height, width, 1 or 3)`` or ``(n, 1 or 3, height, width)``.
# uint8 is taken as it is; other integers are scaled by each image's own maximum. Floats must lie in [0, 1]
# or reach into the upper half of [0, 255], over the whole array; anything else needs ``pixel_range``.

MAX_IMAGES = 10_000_000
"""More are a file that would like to take gigabytes for its labels: ImageNet has 14 million in all."""


class RowItems(Sequence[Item]):
    """Items of array rows, made when asked for: millions of small images need no list."""

    def __init__(self, columns: Sequence[_Column], start: int = 0, stop: int | None = None) -> None:
        self._columns = columns
        self._ends = np.cumsum([0, *(len(column.labels) for column in columns)])
        self._range = range(start, int(self._ends[-1]) if stop is None else stop)

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            found = self._range[index]
            return (
                RowItems(self._columns, found.start, found.stop)
                if found.step == 1
                else [self[i] for i in range(len(self))[index]]
            )
        place = self._range[index]
        part = int(np.searchsorted(self._ends, place, side="right")) - 1
        return self._columns[part].item(place - int(self._ends[part]))

    def __reduce__(self) -> tuple[type[list[Item]], tuple[list[Item]]]:
        """Travel as a plain list: a block must not carry the columns of all the others to its task."""
        return list, (list(self),)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class _Column:
    """What is known of the rows of one part."""

    part: Part
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: list[str] | None
    splits: list[Split] | None
    low: float | None
    high: float | None

    def sides(self) -> Iterator[tuple[str, Split]]:
        """Yield group and split of every row that has a group."""
        if self.groups is not None:
            for row in self.rows:
                yield self.groups[row], self.splits[row] if self.splits else self.part.split

    def item(self, place: int) -> Item:
        row = int(self.rows[place])
        group = self.groups[row] if self.groups else ""
        split = self.splits[row] if self.splits else self.part.split
        details = (self.part.images, self.low, self.high)
        return Item(row_locator(self.part.images, row), int(self.labels[place]), group, split, details)


def row_locator(array: str, row: int) -> str:
    """Return the locator of an image: its row, after its array's name unless that is ``images``."""
    return str(row) if array == "images" else f"{array}/{row}"


def list_arrays(file: ArrayFile, request: RawRequest) -> Listing:
    """Return one item per row.

    Raises:
        DataError: for missing or misshapen arrays, labels that are no classes, or images in no known range.
    """
    parts, left_out = find_parts(file, request)
    headers = [image_header(file, part.images, request) for part in parts]
    num_images = sum(head.shape[0] for head in headers)
    if num_images > MAX_IMAGES:
        raise DataError(f"{request.dataset.name}: at most {MAX_IMAGES:,} images", f"{num_images:,}")
    written = [
        read_labels(file, part.labels, head.shape[0], request)
        for part, head in zip(parts, headers, strict=True)
    ]
    names = name_labels(file, written, request)
    index = {name: label for label, name in enumerate(names)}
    shown, rule = _range(file, parts, headers, request)
    columns = []
    for part, head, labels in zip(parts, headers, written, strict=True):
        groups = texts(file, part.prefix.format("groups"), head.shape[0], request)
        splits, kept = read_splits(file, part, head.shape[0], request)
        left_out += head.shape[0] - len(kept)
        codes = np.array([index[labels[row]] for row in kept], np.int64)
        columns.append(_Column(part, kept, codes, groups, splits, *shown))
    check_groups([column.groups for column in columns], request)
    check_group_sides((pair for column in columns for pair in column.sides()), request)
    is_float = any(head.dtype.kind == "f" for head in headers) or request.dataset.pixel_range is not None
    return Listing(
        RowItems(columns),
        names,
        "float32" if is_float else "uint8",
        block_size=4096,
        excluded={VALIDATION_LEFT_OUT: left_out} if left_out else {},
        intensity=rule,
        flags=dict.fromkeys((f"array not used: {name}" for name in unused_arrays(file, parts)), 1),
    )


def array_reader(file: ArrayFile) -> Reader:
    """Return a reader of rows; rows are cheapest in rising order."""
    opened: dict[str, Rows] = {}

    def read(item: Item) -> tuple[Sample]:
        name, low, high = item.details
        rows = opened.setdefault(str(name), file.rows(str(name))) if name not in opened else opened[str(name)]
        row = _channels_last(rows.row(int(item.locator.rsplit("/", 1)[-1])))
        if low is None or high is None:
            if row.dtype == np.uint8:
                return (Sample(row),)
            pixels, note = by_own_maximum(row)
            return (Sample(pixels, conversions=(note,), flags=negative_flags(row)),)
        values = row.astype(np.float32)
        if not np.isfinite(values).all():
            raise SkipItem("values not finite")
        scaled = (values - np.float32(low)) * np.float32(255 / (float(high) - float(low)))
        outside = bool(scaled.min() < 0 or scaled.max() > 255)
        clipped = np.clip(scaled, 0, 255)
        return (Sample(clipped, flags=("values outside pixel_range cut",) if outside else ()),)

    return read


def load_images(file: ArrayFile, listing: Listing) -> NDArray[np.generic]:
    """Return the images of a listing's items as one array, as they are stored.

    Raises:
        DataError: when the parts have unequal shapes.
    """
    wanted: dict[str, list[int]] = {}
    for item in listing.items:
        wanted.setdefault(str(item.details[0]), []).append(int(item.locator.rsplit("/", 1)[-1]))
    try:
        found = []
        for name, rows in wanted.items():
            whole = file.load(name)
            found.append(whole if rows == list(range(len(whole))) else whole[rows])
        return found[0] if len(found) == 1 else np.concatenate(found)
    except SkipItem as skip:
        raise DataError("The arrays must be whole", skip.reason) from None
    except ValueError:
        shapes = ", ".join(str(file.header(name).shape) for name in wanted)
        raise DataError("Images of training and test must have one shape", shapes) from None


def _channels_last(row: NDArray[np.generic]) -> NDArray[np.generic]:
    if row.ndim == 3 and row.shape[0] in (1, 3) and row.shape[2] not in (1, 3):
        row = np.moveaxis(row, 0, 2)
    return row[..., 0] if row.ndim == 3 and row.shape[2] == 1 else row


def _range(
    file: ArrayFile, parts: Sequence[Part], headers: Sequence[ArrayHeader], request: RawRequest
) -> tuple[tuple[float | None, float | None], str]:
    """Return the values that are black and white (None: as stored or by own maximum), and what that means."""
    given = request.dataset.pixel_range
    if given is not None:
        return given, f"[{given[0]:g}, {given[1]:g}] (pixel_range) to [0, 255], cut there"
    kinds = {head.dtype for head in headers}
    if kinds == {np.dtype(np.uint8)}:
        return (None, None), "as stored, 8 bits"
    if all(dtype.kind in "ui" for dtype in kinds):
        return (None, None), "whole numbers, scaled by own maximum"
    low, high = np.inf, -np.inf
    for part, head in zip(parts, headers, strict=True):
        rows = file.rows(part.images)
        for index in range(head.shape[0]):
            finite = _scanned(rows, index, request)
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low >= 0 and high <= 1:
        return (0.0, 1.0), "floats in [0, 1], times 255"
    if low >= 0 and 127.5 < high <= 255:
        return (0.0, 255.0), "floats in [0, 255] as stored"
    rule = f"{request.dataset.name}: float images must lie in [0, 1] or [0, 255], and which must be plain"
    way_out = "say which values are black and white: pixel_range: [-1, 1], or --pixel-range -1 1 to measure"
    raise DataError(rule, f"[{low:.9g}, {high:.9g}]", way_out)


def _scanned(rows: Rows, index: int, request: RawRequest) -> NDArray[np.float32]:
    try:
        values = rows.row(index).astype(np.float32)
    except SkipItem as skip:
        raise DataError(f"{request.dataset.name}: the images must be a whole array", skip.reason) from None
    return values[np.isfinite(values)]


# Your own arrays in an ``.npz`` (:mod:`tasks.sources.arrays` says which).
#
# Layout: NEP 1 (``numpy.lib.format``) in a zip. Nothing is unpickled, declared sizes are checked against
# the packed ones before anything is read, the checksum of the images is checked before any is believed, and
# images stream, so the archive may be larger than memory.

MAX_BYTES = 256 << 30
MAX_WHOLE_BYTES = 512 << 20
MAX_MEMBERS = 1000
MAX_HEADER = 1 << 16
CHUNK = 1 << 22


class Npz:
    """Images and labels in one archive."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row, see :func:`tasks.sources.arrays.list_arrays`."""
        file = NpzFile(request)
        listing = list_arrays(file, request)
        file.check_sums()
        return listing

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows that streams through the archive."""
        return array_reader(NpzFile(request))


class NpzFile:
    """The arrays of an ``.npz``."""

    def __init__(self, request: RawRequest) -> None:
        self._request = request
        self._path = request.root()
        self._members = _checked_members(self._path, request)
        self._headers: dict[str, tuple[ArrayHeader, bool]] = {}

    def names(self) -> list[str]:
        """Return the names of the arrays."""
        return list(self._members)

    def header(self, name: str) -> ArrayHeader:
        """Return an array's shape and dtype, read once."""
        return self._header(name)[0]

    def _header(self, name: str) -> tuple[ArrayHeader, bool]:
        if name not in self._headers:
            self._headers[name] = self._read_header(name)
        return self._headers[name]

    def _read_header(self, name: str) -> tuple[ArrayHeader, bool]:
        where = f"{self._request.dataset.name}: array {name}"
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._members[name]) as file:
                header, fortran = _npy_header(file)
        except DAMAGE:
            raise DataError(f"{where} must be a whole .npy", "damaged") from None
        if header.dtype.hasobject:
            raise DataError(f"{where} must hold numbers or text", "Python objects, which are never unpickled")
        if int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize > self._members[name].file_size:
            raise DataError(f"{where} must be whole", f"shape {header.shape} is more than the member holds")
        return header, fortran

    def load(self, name: str) -> NDArray[np.generic]:
        """Return a whole array."""
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._members[name]) as file:
                array: NDArray[np.generic] = np.lib.format.read_array(file, allow_pickle=False)
        except (*DAMAGE, MemoryError):
            raise SkipItem("damaged array") from None
        return array

    def rows(self, name: str) -> Rows:
        """Return a reader of rows, cheap in rising order."""
        header, fortran = self._header(name)
        if fortran and int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize > MAX_WHOLE_BYTES:
            rule = f"{self._request.dataset.name}: a large array must be in C order, which has rows to read"
            raise DataError(rule, f"Fortran order, {header.shape}", "np.ascontiguousarray before np.savez")
        if fortran:
            return _Whole(self.load(name))
        try:
            status = self._path.stat()
        except OSError:
            raise SkipItem("file is gone or unreadable") from None
        return _stream(self._path, self._members[name].filename, status.st_size, status.st_mtime_ns)

    def check_sums(self) -> None:
        """Read every member to its end, which compares its checksum.

        Raises:
            DataError: for a flipped byte, or one that is missing.
        """
        try:
            with zipfile.ZipFile(self._path) as archive:
                for member in self._members.values():
                    with archive.open(member) as file:
                        while file.read(CHUNK):
                            pass
        except DAMAGE:
            rule = f"{self._request.dataset.name}: the .npz must be a whole archive"
            raise DataError(rule, "a damaged array", "copy or download it again") from None


@lru_cache(maxsize=4)
def _stream(path: Path, member: str, size: int, time_ns: int) -> _Stream:
    """Return a member's stream, kept until its file changes.

    A process reads blocks in rising order, so the next one goes on where the last one ended; from the start,
    each would unpack all that lies before it.
    """
    return _Stream(path, member)


class _Whole:
    """Rows of an array in Fortran order, which has no rows on the disk."""

    def __init__(self, values: NDArray[np.generic]) -> None:
        self._values = values

    def row(self, index: int) -> NDArray[np.generic]:
        found: NDArray[np.generic] = self._values[index]
        return found


class _Stream:
    """Rows one after another, without holding them all."""

    def __init__(self, path: Path, member: str) -> None:
        try:
            self._archive = zipfile.ZipFile(path)
            self._file = self._archive.open(member)
            self._header, _ = _npy_header(self._file)
            self._start = self._file.tell()
        except DAMAGE:
            raise SkipItem("damaged array") from None
        self._row_bytes = int(np.prod(self._header.shape[1:])) * self._header.dtype.itemsize

    def row(self, index: int) -> NDArray[np.generic]:
        try:
            self._file.seek(self._start + index * self._row_bytes)
            body = self._file.read(self._row_bytes)
        except DAMAGE:
            raise SkipItem("damaged array") from None
        if len(body) != self._row_bytes:
            raise SkipItem("array ends early")
        return np.frombuffer(body, self._header.dtype).reshape(self._header.shape[1:])


def _npy_header(file: IO[bytes]) -> tuple[ArrayHeader, bool]:
    version = np.lib.format.read_magic(file)
    place = file.tell()
    # numpy reads as much of a header as it says it has before it finds it too long.
    if int.from_bytes(file.read(2 if version == (1, 0) else 4), "little") > MAX_HEADER:
        raise ValueError("a huge header")
    file.seek(place)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return ArrayHeader(shape, dtype), fortran


def _checked_members(path: Path, request: RawRequest) -> dict[str, zipfile.ZipInfo]:
    """Return the arrays of an archive by name.

    Raises:
        DataError: for damage, encryption, repeated, absolute or ``..`` names, and declared sizes above the
            limit or above what the packed bytes can hold.
    """
    rule = f"{request.dataset.name}: the .npz"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except PermissionError:
        raise DataError(f"{rule} must be readable", "permission denied") from None
    except DAMAGE:
        raise DataError(f"{rule} must be a whole archive", "damaged", "copy or download it again") from None
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise DataError(f"{rule} must have each member once", "repeated names")
    if any(member.flag_bits & 1 for member in members):
        raise DataError(f"{rule} must not be encrypted", "encrypted members")
    if any(member.compress_type not in PLAIN_METHODS for member in members):
        raise DataError(
            f"{rule} must be packed as numpy does", "another method than deflate", "save it again"
        )
    if any(name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") for name in names):
        raise DataError(f"{rule} must hold plain names", "names that lead elsewhere")
    too_dense = any(member.file_size > MAX_RATIO * (member.compress_size + 1) for member in members)
    if len(names) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_BYTES or too_dense:
        raise DataError(f"{rule} must unpack to less than {MAX_BYTES:,} bytes", "more, by its own account")
    return {member.filename.removesuffix(".npy"): member for member in members}


# Your own arrays in an HDF5 file (:mod:`tasks.sources.arrays` says which), read row by row.
#
# Layout: plain datasets in the root group, as h5py's quick start writes them and as PatchCamelyon's ``x``
# and ``y``. External and virtual datasets, which read other files, are refused, and so are chunks too large
# to hold.

MAX_CHUNK_BYTES = 256 << 20


class Hdf5:
    """Images and labels in one HDF5 file."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row, see :func:`tasks.sources.arrays.list_arrays`."""
        return list_arrays(Hdf5File(request), request)

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return array_reader(Hdf5File(request))


def open_hdf5(path: Path | IO[bytes], name: str) -> Any:
    """Open an HDF5 file for reading.

    Raises:
        DataError: when it is none.
        SetupError: when h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise SetupError("HDF5 files need h5py", "not installed", "pip install 'isweep[formats]'") from error
    try:
        # A chunk that does not fit into the cache (1 MiB by default) is unpacked again for every row of it.
        return h5py.File(path, "r", rdcc_nbytes=MAX_CHUNK_BYTES)
    except (OSError, RuntimeError, ValueError):
        raise DataError(f"{name}: the file must be a whole HDF5 file", "damaged or another format") from None


class Hdf5File:
    """The datasets in the root group of an HDF5 file."""

    def __init__(self, request: RawRequest) -> None:
        self._request = request
        self._file = open_hdf5(request.root(), request.dataset.name)

    def names(self) -> list[str]:
        """Return the names in the root group."""
        import h5py

        try:
            kinds = {name: self._file.get(name, getlink=True) for name in self._file}
        except (OSError, RuntimeError, KeyError, ValueError):
            raise self._error("must be whole", "damaged") from None
        return [name for name, link in kinds.items() if isinstance(link, h5py.HardLink)]

    def header(self, name: str) -> ArrayHeader:
        """Return shape and dtype of a dataset."""
        return self._checked(name)[1]

    def _checked(self, name: str) -> tuple[Any, ArrayHeader]:
        import h5py

        try:
            data = self._file[name]
            if not isinstance(data, h5py.Dataset):
                raise self._error(f"{name} must be an array", "a group")
            if data.is_virtual or data.external:
                raise self._error(f"{name} must lie in the file itself", "a link to other files")
            chunk = int(np.prod(data.chunks or (0,), dtype=object)) * data.dtype.itemsize
            stored, declared = data.id.get_storage_size(), int(np.prod(data.shape, dtype=object))
            header = ArrayHeader(tuple(data.shape), data.dtype)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError):
            raise self._error(f"{name} must be a whole array", "damaged") from None
        if chunk > MAX_CHUNK_BYTES:
            raise self._error(f"{name} must have chunks below 256 MiB", f"{chunk:,} bytes")
        # Chunks never written read as zeros: a header may declare terabytes of them.
        if declared and not stored:
            raise self._error(f"{name} must hold values", "none were written")
        return data, header

    def load(self, name: str) -> NDArray[np.generic]:
        """Return a whole dataset."""
        data, _ = self._checked(name)
        try:
            values = data.asstr()[...] if data.dtype.kind == "O" else data[...]
        except (OSError, RuntimeError, ValueError, TypeError, MemoryError):
            raise SkipItem("damaged array") from None
        return np.asarray(values)

    def rows(self, name: str) -> Rows:
        """Return a reader of rows."""
        return _Hdf5Rows(self._checked(name)[0])

    def _error(self, rule: str, found: str) -> DataError:
        return DataError(f"{self._request.dataset.name}: {rule}", found)


class _Hdf5Rows:
    def __init__(self, data: Any) -> None:
        self._data = data

    def row(self, index: int) -> NDArray[np.generic]:
        try:
            return np.asarray(self._data[index])
        except (OSError, RuntimeError, ValueError):
            raise SkipItem("damaged array") from None
