"""Your own arrays in an ``.npz`` or HDF5 file: images, labels and, if you have them, groups,
splits, names.

Layout: NEP 1 (``numpy.lib.format``) in a zip, h5py's quick start; keys as in PatchCamelyon,
MedMNIST (``medmnist/dataset.py``) and Keras' ``mnist.npz``. Other arrays of one entry per image are
read by the names of a table's columns. ``images`` is ``(n, height, width)``, ``(n, height, width, 1
or 3)`` or ``(n, 1 or 3, height, width)``: uint8 as stored, other integers by each image's own
maximum, floats as :func:`pixel_scale` says of the whole array.

Nothing is unpickled, declared sizes are checked before anything is read, and images stream. HDF5's
links and its external and virtual datasets, which may read other files, are refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError, SetupError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Source, Split
from tasks.sources.own import (
    MAX_NAMED,
    TRAITS,
    VALIDATION_LEFT_OUT,
    Rows,
    find_columns,
    joined,
    own_listing,
    sort_labels,
    split_of,
)
from tasks.sources.pictures import by_own_maximum, negative_flags
from tasks.sources.raw import DAMAGE, GONE, RefusedArchive, open_zip
from tasks.sources.tables import label_text

KEYS = (
    ("images", "labels"),
    ("x", "y"),
    ("X", "y"),
    ("X", "Y"),
    ("data", "target"),
    ("data", "labels"),
)
SPLIT_KEYS = (
    ("{}_images", "{}_labels", "{}_{{}}"),
    ("x_{}", "y_{}", "{{}}_{}"),
    ("X_{}", "y_{}", "{{}}_{}"),
)
"""Names of images and labels of a split, and of its other arrays (``train_groups``,
``groups_train``)."""
WAY_OUT = "np.savez(PATH, images=images, labels=labels)"
LABEL_NAMES = "label_names"
MAX_IMAGES = 10_000_000
"""More are a file that would like to take gigabytes for its labels: ImageNet has 14 million in
all."""
MAX_TEXT_BYTES = 1 << 28
"""Labels, groups and names; never more than that is held."""
MAX_WHOLE_BYTES = 512 << 20
MAX_MEMBERS = 1000
MAX_CHUNK_BYTES = 256 << 20
COPY_AGAIN = "save or copy it again"
CUT = "values outside pixel_range cut"
MOST_CUT, LEAST_FILLED = 0.9, 1e-4
"""Of all values, as a window of a CT cuts most of the air and the table; and of the range."""


@dataclass(frozen=True)
class ArrayHeader:
    """Shape and dtype of a stored array."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool = False

    @property
    def num_bytes(self) -> int:
        """What it declares."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


ReadRow = Callable[[int], NDArray[np.generic]]


@dataclass(frozen=True)
class Part:
    """Images of one split: names of their arrays, and of others beside them, without the split's
    mark.
    """

    images: str
    labels: str
    side: Split
    others: dict[str, str]


def list_arrays(file: ArrayFile, request: RawRequest) -> Listing:
    """Return one item per row; what is missing, misshapen, damaged or in no known range is a
    DataError.
    """
    parts, left_out = _find_parts(file, request)
    headers = [_image_header(file, part.images, request) for part in parts]
    sizes = [header.shape[0] for header in headers]
    if sum(sizes) > MAX_IMAGES:
        raise request.error(f"at most {MAX_IMAGES:,} images", f"{sum(sizes):,}")
    header = list(dict.fromkeys(name for part in parts for name in part.others))
    columns = find_columns(header, ("label", "group", "split"), request, known={"label": "labels"})
    asked = {
        ours: theirs for ours, theirs in columns.of.items() if ours in ("group", "split", *TRAITS)
    }
    cells, place = joined(
        [
            {"label": _cells(file, part.labels, size, request)}
            | {
                ours: _cells(file, part.others[theirs], size, request)
                for ours, theirs in asked.items()
                if theirs in part.others
            }
            for part, size in zip(parts, sizes, strict=True)
        ]
    )
    names: tuple[str, ...] = ()
    if LABEL_NAMES in file.names():
        stored = _small_array(file, LABEL_NAMES, request).reshape(-1)
        names = tuple(label_text(value) for value in stored.tolist())
    (low, high), rule = _range(file, parts, headers, request)

    def locator(row: int) -> str:
        part, index = place(row)
        return row_locator(parts[part].images, index)

    rows = Rows(
        cells=cells,
        locator=locator,
        name=lambda row: f"row {locator(row)}",
        side=lambda row: parts[place(row)[0]].side,
        details=lambda row: (parts[place(row)[0]].images, low, high),
    )
    # Arrays that belong to no split by their name, where the images do.
    known = {name for part in parts for name in (part.images, part.labels, *part.others.values())}
    words = [mark.format(word) for *_, mark in SPLIT_KEYS for word in ("val", "valid")]
    of_validation = {name for mark in words for name in _others(set(file.names()), mark).values()}
    unused = sorted(set(file.names()) - known - of_validation - {LABEL_NAMES})
    is_float = (
        any(head.dtype.kind == "f" for head in headers) or request.dataset.pixel_range is not None
    )
    return own_listing(
        rows,
        request,
        names=names,
        order=lambda found: (*names, *sort_labels(set(found) - set(names))),
        dtype="float32" if is_float else "uint8",
        block_size=4096,
        excluded={VALIDATION_LEFT_OUT: left_out},
        intensity=rule,
        flags=(
            *columns.flags,
            *([f"columns not used: {', '.join(unused[:MAX_NAMED])}"] if unused else []),
        ),
    )


def row_locator(array: str, row: int) -> str:
    """Return the locator of an image: its row, after its array's name unless that is ``images``."""
    return str(row) if array == "images" else f"{array}/{row}"


def _find_parts(file: ArrayFile, request: RawRequest) -> tuple[list[Part], int]:
    """Return the arrays to read, and how many validation images are left out."""
    names = set(file.names())
    found: list[list[Part]] = []
    half: list[tuple[str, str]] = []
    for images, labels in KEYS:
        if {images, labels} <= names:
            others = {name: name for name in sorted(names - {images, labels, LABEL_NAMES})}
            found.append([Part(images, labels, "", others)])
    left_out = 0
    for images, labels, others_of in SPLIT_KEYS:
        parts = []
        for word in ("train", "test", "val", "valid"):
            pair, split = (images.format(word), labels.format(word)), split_of(word)
            if not set(pair) <= names:
                half.append(pair)
            elif split is None:
                left_out += file.header(pair[0]).shape[0]
            else:
                parts.append(Part(*pair, split, _others(names - set(pair), others_of.format(word))))
        if parts:
            found.append(parts)
    # Images without their labels would be dropped without a word.
    for pair in half if found else (*half, *KEYS[1:4]):
        if pair[0] in names:
            rule = f"{pair[0]} and {pair[1]} must both be in the file"
            raise request.error(
                rule, f"no {pair[1]}", "take the images out, or put their labels in"
            )
    if len(found) > 1:
        listed = "; ".join(", ".join(part.images for part in parts) for parts in found)
        raise request.error("one set of images must be in the file", listed, WAY_OUT)
    if not found:
        absent = next(name for name in ("images", "labels") if name not in names)
        raise request.error(
            f"array {absent} must be in the .npz or HDF5 file",
            f"it is not; the file has {', '.join(sorted(names)[:10]) or 'no array'}",
            f"{WAY_OUT}; x and y, and MedMNIST's and Keras' keys are known too",
        )
    return found[0], left_out


def _others(names: set[str], pattern: str) -> dict[str, str]:
    """Return arrays by their name without the split's mark: those of a split that carry it."""
    before, after = pattern.split("{}")
    marked = [name for name in sorted(names) if name.startswith(before) and name.endswith(after)]
    own = {name.removeprefix(before).removesuffix(after): name for name in marked}
    return {name: theirs for name, theirs in own.items() if name}


def _image_header(file: ArrayFile, name: str, request: RawRequest) -> ArrayHeader:
    """Return the header of an array of images; another shape or dtype is a DataError."""
    header = file.header(name)
    shape = header.shape
    colour = len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3))
    if not (len(shape) == 3 or colour) or 0 in shape or header.dtype.kind not in "uif":
        raise request.error(
            f"{name} must be numbers of shape (n, height, width), "
            "(n, height, width, 3) or (n, 3, height, width)",
            f"{header.dtype} {header.shape}",
            'images.astype("uint8") * 255' if header.dtype.kind == "b" else "",
        )
    return header


def _cells(file: ArrayFile, name: str, size: int, request: RawRequest) -> list[str]:
    """Return an array of one entry per image as text."""
    header = file.header(name)
    singles = header.shape[:1] == (size,) and all(side == 1 for side in header.shape[1:])
    if not singles or header.dtype.kind not in "uibfUSO":
        more = "; several labels per image are no classes" if len(header.shape) == 2 else ""
        rule = f"{name} must be {size} numbers or texts, one per image"
        raise request.error(rule, f"{header.dtype} {header.shape}{more}")
    spelt: dict[object, str] = {}
    values = _small_array(file, name, request).reshape(-1).tolist()
    # One text per class, not per image.
    return [spelt.setdefault(value, label_text(value)) for value in values]


def _small_array(file: ArrayFile, name: str, request: RawRequest) -> NDArray[np.generic]:
    header = file.header(name)
    if header.num_bytes > MAX_TEXT_BYTES:
        raise request.error(f"{name} must be small", f"{header.dtype} {header.shape}")
    try:
        return file.load(name)
    except SkipItem as skip:
        raise request.error(f"array {name} must be whole", skip.reason) from None


def array_reader(file: ArrayFile) -> Reader:
    """Return a reader of rows; rows are cheapest in rising order."""
    opened: dict[str, ReadRow] = {}

    def read(item: Item) -> list[Sample]:
        name, low, high = item.details
        if name not in opened:
            opened[str(name)] = file.rows(str(name))
        row = opened[str(name)](int(item.locator.rsplit("/", 1)[-1]))
        if row.ndim == 3 and row.shape[0] in (1, 3) and row.shape[2] not in (1, 3):
            row = np.moveaxis(row, 0, 2)
        row = row[..., 0] if row.ndim == 3 and row.shape[2] == 1 else row
        if low is None or high is None:
            if row.dtype == np.uint8:
                return [Sample(row)]
            pixels, note = by_own_maximum(row)
            return [Sample(pixels, conversions=note, flags=negative_flags(row))]
        if not np.isfinite(row).all():
            raise SkipItem("values not finite")
        scaled, is_cut = to_scale(row, (float(low), float(high)))
        return [Sample(scaled, flags=(CUT,) if is_cut.any() else ())]

    return read


def to_scale(
    values: NDArray[np.generic], limits: tuple[float, float]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Bring finite values to [0, 255], float32, cut there; return also which of them were cut."""
    low, high = (np.float32(limit) for limit in limits)
    plain = values.astype(np.float32)
    scaled = (plain - low) * np.float32(255 / (limits[1] - limits[0]))
    return np.clip(scaled, 0, 255), (plain < low) | (plain > high)


def load_images(file: ArrayFile, listing: Listing) -> NDArray[np.generic]:
    """Return the images of a listing's items as one array, as stored; unequal shapes are a
    DataError.
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


def _range(
    file: ArrayFile, parts: Sequence[Part], headers: Sequence[ArrayHeader], request: RawRequest
) -> tuple[tuple[float | None, float | None], str]:
    """Return the values that are black and white (None: as stored or by own maximum), and what that
    means.
    """
    given = request.dataset.pixel_range
    kinds = {head.dtype.newbyteorder("=") for head in headers}
    if len(kinds) > 1 and {dtype.kind for dtype in kinds} != {"f"}:
        rule = "all images must be stored as one type, or their scales may differ"
        raise request.error(rule, ", ".join(sorted(map(str, kinds))), "save all as the same one")
    if given is None and kinds == {np.dtype(np.uint8)}:
        return (None, None), "as stored, 8 bits"
    if given is None and all(dtype.kind in "ui" for dtype in kinds):
        return (None, None), "whole numbers, scaled by own maximum"
    try:
        opened = (
            map(file.rows(part.images), range(head.shape[0]))
            for part, head in zip(parts, headers, strict=True)
        )
        return pixel_scale(request.dataset.name, opened, given)
    except SkipItem as skip:
        raise request.error("the images must be a whole array", skip.reason) from None


@np.errstate(over="ignore", invalid="ignore")  # of limits beyond float32
def pixel_scale(
    name: str, parts: Iterable[Iterable[NDArray[np.generic]]], given: tuple[float, float] | None
) -> tuple[tuple[float, float], str]:
    """Return the values that are black and white, ``given`` or told by those of all images, and
    what is done.

    DataError where the values leave it open, training and test (``parts``) seem to differ in it, or
    next to none of the values lie between those given.
    """
    low, highs, num_values, num_cut = np.inf, list[float](), 0, 0
    for rows in parts:
        highs.append(-np.inf)
        for row in rows:
            finite = row[np.isfinite(row)].astype(np.float32)
            if finite.size:
                low, highs[-1] = min(low, float(finite.min())), max(highs[-1], float(finite.max()))
                num_values += finite.size
                num_cut += 0 if given is None else int(to_scale(finite, given)[1].sum())
    high = max(highs)
    fits = (-1.0, 1.0) if -1 <= low < -0.5 and high <= 1 else (low, high)
    fits = (min(low, 0.0), max(high, 0.0)) if low == high else fits
    black, white = (f"{limit:.9g}" for limit in fits)
    found = f"[{low:.9g}, {high:.9g}]"
    option = f"pixel_range: [{black}, {white}], or --pixel-range {black} {white} to measure"
    if given is not None:
        if num_cut > MOST_CUT * num_values:
            rule = f"{name}: images must have values between the black and white of pixel_range"
            cut = (
                f"[{given[0]:g}, {given[1]:g}], which cuts {num_cut / num_values:.1%} of values "
                f"in {found}"
            )
            raise DataError(rule, cut, f"all of them lie in {option}")
        if 0 < high - low < LEAST_FILLED * (given[1] - given[0]):
            rule = f"{name}: images must fill at least {LEAST_FILLED:.2%} of pixel_range"
            raise DataError(
                rule, f"{found} of [{given[0]:g}, {given[1]:g}]", f"all of them lie in {option}"
            )
        return given, f"[{given[0]:g}, {given[1]:g}] (pixel_range) to [0, 255], cut there"
    if low >= 0 and high <= 1:
        return (0.0, 1.0), "floats in [0, 1], times 255"
    if low >= 0 and 127.5 < high <= 255 and any(-np.inf < one <= 1 for one in highs):
        rule = f"{name}: training and test images must be stored on one scale"
        raise DataError(
            rule, f"one of them in [0, 1], all in {found}", f"save them alike, or say {option}"
        )
    if low >= 0 and 127.5 < high <= 255:
        return (0.0, 255.0), "floats in [0, 255] as stored"
    rule = f"{name}: float images must lie in [0, 1] or [0, 255], and which must be plain"
    raise DataError(
        rule, found, f"say which values are black and white; all of these lie in {option}"
    )


class _OwnFile:
    def __init__(self, request: RawRequest) -> None:
        self._error, self._path = request.error, request.root()
        if self._path.is_dir():
            raise request.error("the source must be a file of arrays", "a folder")


class NpzFile(_OwnFile):
    """The arrays of an ``.npz``."""

    def __init__(self, request: RawRequest) -> None:
        super().__init__(request)
        try:
            with open_zip(self._path, MAX_MEMBERS) as archive:
                found = archive.infolist()
        except RefusedArchive as refused:
            rule = "the .npz must be whole, as numpy saves it"
            raise self._error(rule, refused.reason, COPY_AGAIN) from None
        self._members = {member.filename.removesuffix(".npy"): member for member in found}
        self._headers: dict[str, ArrayHeader] = {}

    def names(self) -> list[str]:
        """Return the names of the arrays."""
        return list(self._members)

    def header(self, name: str) -> ArrayHeader:
        """Return an array's shape and dtype, read once."""
        if name in self._headers:
            return self._headers[name]
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._members[name]) as file:
                header = self._headers[name] = _npy_header(file)
        except DAMAGE:
            raise self._error(f"array {name} must be a whole .npy", "damaged") from None
        if header.dtype.hasobject:
            found = "Python objects, which are never unpickled"
            raise self._error(f"array {name} must hold numbers or text", found)
        if header.num_bytes > self._members[name].file_size:
            found = f"shape {header.shape} is more than the member holds"
            raise self._error(f"array {name} must be whole", found)
        return header

    def load(self, name: str) -> NDArray[np.generic]:
        """Return a whole array; one that is damaged is a SkipItem."""
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._members[name]) as file:
                return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
        except (*DAMAGE, MemoryError):
            raise SkipItem("damaged array") from None

    def rows(self, name: str) -> ReadRow:
        """Return a reader of rows, cheap in rising order."""
        header = self.header(name)
        if header.fortran and header.num_bytes > MAX_WHOLE_BYTES:
            rule = "a large array must be in C order, which has rows to read"
            raise self._error(
                rule, f"Fortran order, {header.shape}", "np.ascontiguousarray before np.savez"
            )
        if header.fortran:
            return self.load(name).__getitem__  # there are no rows on the disk
        try:
            status = self._path.stat()
        except OSError:
            raise SkipItem(GONE) from None
        return _stream(self._path, self._members[name].filename, status.st_size, status.st_mtime_ns)

    def check_sums(self) -> None:
        """Read every member to its end, which compares its checksum; a flipped byte is a
        DataError.
        """
        try:
            with zipfile.ZipFile(self._path) as archive:
                whole = archive.testzip() is None
        except DAMAGE:
            whole = False
        if not whole:
            raise self._error("the .npz must be a whole archive", "a damaged array", COPY_AGAIN)


@lru_cache(maxsize=4)
def _stream(path: Path, member: str, size: int, time_ns: int) -> ReadRow:
    """Return a reader of a member's rows without holding them all, kept until its file changes.

    A process reads blocks in rising order, so the next one goes on where the last one ended; from
    the start, each would unpack all that lies before it.
    """
    try:
        file = zipfile.ZipFile(path).open(member)  # noqa: SIM115
        header = _npy_header(file)
        start = file.tell()
    except DAMAGE:
        raise SkipItem("damaged array") from None
    row_bytes = int(np.prod(header.shape[1:])) * header.dtype.itemsize

    def row(index: int) -> NDArray[np.generic]:
        try:
            file.seek(start + index * row_bytes)
            body = file.read(row_bytes)
        except DAMAGE:
            raise SkipItem("damaged array") from None
        if len(body) != row_bytes:
            raise SkipItem("array ends early")
        return np.frombuffer(body, header.dtype).reshape(header.shape[1:])

    return row


def _npy_header(file: IO[bytes]) -> ArrayHeader:
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    return ArrayHeader(shape, dtype, fortran)


def open_hdf5(path: Path | IO[bytes], name: str) -> Any:
    """Open an HDF5 file for reading; what is none is a DataError."""
    try:
        import h5py
    except ImportError as error:
        raise SetupError(
            "HDF5 files need h5py", "not installed", "pip install 'isweep[formats]'"
        ) from error
    try:
        # A chunk that does not fit into the cache (1 MiB by default) is unpacked again for every
        # row of it.
        return h5py.File(path, "r", rdcc_nbytes=MAX_CHUNK_BYTES)
    except (OSError, RuntimeError, ValueError):
        found = "damaged or another format"
        raise DataError(f"{name}: the file must be a whole HDF5 file", found, COPY_AGAIN) from None


class Hdf5File(_OwnFile):
    """The datasets in the root group of an HDF5 file."""

    def __init__(self, request: RawRequest) -> None:
        super().__init__(request)
        self._file = open_hdf5(self._path, request.dataset.name)

    def names(self) -> list[str]:
        """Return the names in the root group."""
        try:
            return list(self._file)
        except (OSError, RuntimeError, KeyError, ValueError):
            raise self._error("the file must be whole", "damaged", COPY_AGAIN) from None

    def header(self, name: str) -> ArrayHeader:
        """Return shape and dtype of a dataset."""
        import h5py

        try:
            # A soft link may lead through an external one.
            is_link = not isinstance(self._file.get(name, getlink=True), h5py.HardLink)
            data = None if is_link else self._file[name]
            if is_link or (isinstance(data, h5py.Dataset) and (data.is_virtual or data.external)):
                rule, what = (
                    f"{name} must lie in the file itself",
                    "a link, or a view of other files",
                )
                raise self._error(rule, what, f"store the array: file[{name!r}] = array")
            if not isinstance(data, h5py.Dataset):
                way_out = "give its arrays in a file of their own"
                raise self._error(f"{name} must be an array", "a group", way_out)
            chunk = int(np.prod(data.chunks or (0,), dtype=object)) * data.dtype.itemsize
            stored = data.id.get_storage_size()
            header = ArrayHeader(tuple(data.shape), data.dtype)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError):
            raise self._error(f"{name} must be a whole array", "damaged", COPY_AGAIN) from None
        if chunk > MAX_CHUNK_BYTES:
            raise self._error(
                f"{name} must have chunks below 256 MiB", f"{chunk:,} bytes", "smaller chunks"
            )
        # Chunks never written read as zeros: a header may declare terabytes of them.
        if 0 not in header.shape and not stored:
            raise self._error(f"{name} must hold values", "none were written", "write them")
        return header

    def load(self, name: str) -> NDArray[np.generic]:
        """Return a whole dataset; one that is damaged is a SkipItem."""
        return _hdf5_values(self._file[name], ...)  # text of any length comes as bytes

    def rows(self, name: str) -> ReadRow:
        """Return a reader of rows."""
        self.header(name)
        return partial(_hdf5_values, self._file[name])


def _hdf5_values(data: Any, index: Any) -> NDArray[np.generic]:
    try:
        return np.asarray(data[index])
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError):
        raise SkipItem("damaged array") from None


ArrayFile = NpzFile | Hdf5File


def list_npz(request: RawRequest) -> Listing:
    """Return one item per row of arrays whose checksums are right."""
    file = NpzFile(request)
    listing = list_arrays(file, request)
    file.check_sums()
    return listing


npz = Source(list_npz, lambda request: array_reader(NpzFile(request)))
hdf5 = Source(
    lambda request: list_arrays(Hdf5File(request), request),
    lambda request: array_reader(Hdf5File(request)),
)
"""A chunk's checksum, where it has one, is compared when it is read."""
