"""Your own NIfTI volumes with a table, laid out like the one for images (:mod:`tasks.sources.manifest`).

A column ``slice`` names one axial slice, counted from 0 at the feet; a volume may then have several rows.
Without it, ten axial slices evenly spaced over the middle half of the volume are taken. Each slice is
scaled by its own maximum after the volume was clipped to its 0.1 and 99.9 percentiles, the study's rule for
BraTS. Without a ``group`` column a volume is a group. Format: NIfTI-1 and -2 as read by nibabel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.archives import read_locator
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.image_files import by_own_maximum
from tasks.sources.label_tables import first_hashed
from tasks.sources.manifest import Manifest
from tasks.sources.manifest_tables import Row
from tasks.sources.nifti import decode_nifti

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
