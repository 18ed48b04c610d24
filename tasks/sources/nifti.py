"""NIfTI volumes: check the declared size first, bring every file to one orientation, skip what is not 3-D.

Format: NIfTI-1.1 and NIfTI-2 (``nifti1.h``, ``nifti2.h``: header and extensions), as read by nibabel.
"""

from __future__ import annotations

import gzip
import io
import logging
import struct
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError, SetupError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.manifest import Manifest, Row
from tasks.sources.pictures import by_own_maximum
from tasks.sources.raw import read_locator
from tasks.sources.tables import first_hashed

MAX_VOXELS = 1 << 26
"""64 million voxels, 256 slices of 512x512: 256 MiB as float32. The header is believed only up to here."""
MAX_RAW_BYTES = 256 << 20
MAX_EXTENSION = 4 << 20


@dataclass(frozen=True)
class Volume:
    """A volume in nibabel's canonical order of axes.

    Attributes:
        values: ``(right, anterior, superior)``, float32.
        affine: Where its voxels are, in mm.
        conversions: What was done to make it so.
        flags: What is doubtful.
    """

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    conversions: tuple[str, ...]
    flags: tuple[str, ...]


def decode_nifti(body: bytes, *, packed: bool, max_voxels: int = MAX_VOXELS) -> Volume:
    """Decode the bytes of a ``.nii`` or (``packed``) ``.nii.gz`` file with one 3-D volume.

    Raises:
        SkipItem: for damage, other dimensions, a declared size beyond the limit, no orientation, NaN, or only
            zeros.
        SetupError: when nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise SetupError(
            "NIfTI files need nibabel", "not installed", "pip install 'isweep[medical]'"
        ) from error
    logging.getLogger("nibabel").setLevel(logging.CRITICAL + 1)
    stream: Any = gzip.GzipFile(fileobj=io.BytesIO(body)) if packed else io.BytesIO(body)
    kind = _checked_kind(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stream.seek(0)
            image = getattr(nibabel, kind).from_stream(stream)
            header, shape = image.header, tuple(image.shape)
        except Exception:  # nibabel raises whatever its readers do
            raise SkipItem("no NIfTI volume") from None
        if len(shape) == 4 and shape[3] == 1:
            image, shape = nibabel.squeeze_image(image), shape[:3]
        if len(shape) != 3 or header.get_data_dtype().fields:
            raise SkipItem("not a 3-D volume of numbers")
        voxels = int(np.prod(shape, dtype=object))
        if voxels > max_voxels or voxels * header.get_data_dtype().itemsize > MAX_RAW_BYTES or min(shape) < 1:
            raise SkipItem("too many voxels")
        notes, flags = _notes(image)
        try:
            # A gzip stream is read only as far as the declared size, so a bomb behind it never unpacks.
            canonical = nibabel.as_closest_canonical(image)
            values = np.asarray(canonical.dataobj, dtype=np.float32)
        except Exception:
            raise SkipItem("damaged volume") from None
    if not np.isfinite(values).all():
        raise SkipItem("values not finite")
    if not values.any():
        notes = (*notes, "empty volume")
    return Volume(values, np.asarray(canonical.affine, dtype=np.float64), notes, flags)


def _checked_kind(stream: IO[bytes]) -> str:
    """Return nibabel's class for a header, after its extensions were found to be no larger than they may.

    nibabel reads an extension as long as it says it is; one may say two GiB.
    """
    try:
        head = stream.read(544)
        order = "<" if head[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
        (size,) = struct.unpack_from(order + "i", head)
        kind, place, code = {348: ("Nifti1Image", 108, "f"), 540: ("Nifti2Image", 168, "q")}[size]
        (start,) = struct.unpack_from(order + code, head, place)
        if not 0 <= start <= size + MAX_EXTENSION:
            raise SkipItem("NIfTI extensions too large")
        stream.seek(size)
        place, flag = size + 4, stream.read(4)
        while flag[:1] not in (b"\0", b"") and place + 16 <= start:
            (length,) = struct.unpack(order + "i", stream.read(4))
            if not 16 <= length <= start - place:
                raise SkipItem("damaged NIfTI extensions")
            place += length
            stream.seek(place)
    except (KeyError, struct.error, OSError, EOFError, zlib.error, ValueError):
        raise SkipItem("no NIfTI volume") from None
    return kind


def _notes(image: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from nibabel import aff2axcodes

    notes, flags = [], []
    if not np.isfinite(image.affine).all():
        raise SkipItem("no orientation in the header")
    axes = aff2axcodes(image.affine)
    if None in axes:  # an axis of length 0
        raise SkipItem("no orientation in the header")
    codes = "".join(axes)
    if codes != "RAS":
        notes.append(f"orientation {codes} to RAS")
    header = image.header
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        flags.append("orientation guessed: both form codes are 0")
    sizes = [float(size) for size in header.get_zooms()[:3]]
    if max(sizes) > 1.01 * min(sizes):
        flags.append("voxels not cubic")
    return tuple(notes), tuple(flags)


# Your own NIfTI volumes with a table, laid out like the one for images (:mod:`tasks.sources.manifest`).
#
# A column ``slice`` names one axial slice, counted from 0 at the feet; a volume may then have several rows.
# Without it, ten axial slices evenly spaced over the middle half of the volume are taken. Each slice is
# scaled by its own maximum after the volume was clipped to its 0.1 and 99.9 percentiles, the study's rule
# for BraTS. Without a ``group`` column a volume is a group. Format: NIfTI-1 and -2 as read by nibabel.

ENDINGS = (".nii", ".nii.gz")
SLICES_PER_VOLUME = 10


def is_nifti_name(name: str) -> bool:
    """Tell whether a name looks like a NIfTI volume's."""
    return name.lower().endswith(ENDINGS)


class NiftiManifest(Manifest):
    """NIfTI volumes named in a table; their axial slices become the images."""

    optional = ("slice",)
    intensity = "clipped to 0.1 and 99.9 percentiles of the volume, then each slice by its own maximum"
    block_size = 4

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row, see :meth:`Manifest.list_items`.

        Raises:
            DataError: for slices of one volume in several groups, or named beside the rule's, too.
        """
        listing = super().list_items(request)
        _check_volumes(listing.items, request)
        return listing

    def reads(self, name: str) -> bool:
        """Tell whether a name looks like a NIfTI volume's."""
        return is_nifti_name(name)

    def identity(self, row: Row) -> str:
        """Return what no two rows may share: volume and slice."""
        cell = row.get("slice", "")
        return f"{row['path']}\0{int(cell) if _is_whole(cell) else cell}"

    def item(self, row: Row, label: int, request: RawRequest) -> Item:
        """Return the item of one row.

        Raises:
            DataError: for a slice that is no whole number.
        """
        made, cell = super().item(row, label, request), row.get("slice", "")
        if cell and not _is_whole(cell):
            raise DataError(f"{request.dataset.name}: slice must be a whole number from 0", "another cell")
        details = (int(cell) if cell else None,)
        return Item(made.locator, label, made.group or made.locator, made.split, details)

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of volumes."""
        base = request.base()

        def read(item: Item) -> Iterator[Sample]:
            packed = item.locator.lower().endswith(".gz")
            volume = decode_nifti(read_locator(base, item.locator), packed=packed)
            low, high = np.percentile(volume.values, (0.1, 99.9))
            if high <= low:
                raise SkipItem("constant volume")
            for level in _levels(volume.values.shape[2], item.details[0]):
                plane = np.clip(volume.values[:, :, level], low, high) - low
                pixels, note = by_own_maximum(_upright(plane))
                notes = (*volume.conversions, note)
                yield Sample(pixels, conversions=notes, flags=volume.flags)

        return read


def _is_whole(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) < 10


def _check_volumes(items: Sequence[Item], request: RawRequest) -> None:
    """Check that a volume has one group, and either named slices or those of the rule.

    Raises:
        DataError: when slices of one volume are in several groups, or would be taken twice.
    """
    groups: defaultdict[str, set[str]] = defaultdict(set)
    forms: defaultdict[str, set[bool]] = defaultdict(set)
    for item in items:
        groups[item.locator].add(item.group)
        forms[item.locator].add(item.details[0] is None)
    several = [name for name, found in groups.items() if len(found) > 1]
    if several:
        rule = f"{request.dataset.name}: all slices of a volume must be in one group"
        raise DataError(rule, first_hashed(request, several), "a volume is of one patient")
    mixed = [name for name, found in forms.items() if len(found) > 1]
    if mixed:
        rule = f"{request.dataset.name}: a volume's rows must all name a slice, or none"
        raise DataError(rule, first_hashed(request, mixed), "else slices may be taken twice")


def _levels(depth: int, wanted: object) -> list[int]:
    if isinstance(wanted, int):
        if wanted >= depth:
            raise SkipItem("slice beyond the volume")
        return [wanted]
    places = np.linspace(depth / 4, 3 * depth / 4, SLICES_PER_VOLUME, endpoint=False)
    return sorted({int(place) for place in places})


def _upright(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn a (right, anterior) plane so that the front is up, as radiologists look at it."""
    return plane.T[::-1, ::-1]
