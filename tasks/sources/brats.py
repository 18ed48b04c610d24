"""BraTS 2018: FLAIR, T2 and segmentation volumes; one item is one volume, its slices become the images.

As in the study's extractor: clip FLAIR to its 0.1 and 99.9 percentiles and scale to [0, 255]; keep axial
slices whose brain mask (from T2) is one region of at least 7,000 pixels; label = the slice holds any tumour.
Scanning upward, slice i is dropped when slices i to i+9 hold both kinds, so the slices just below a tumour's
lower edge and its own last nine are dropped, and slices right above it are kept as negatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.files import check_inside
from tasks.sources.image_files import by_own_maximum
from tasks.sources.nifti import Volume, read_nifti

GRADES = ("HGG", "LGG")
PLACES = ("MICCAI_BraTS_2018_Data_Training", "")
WINDOW = 10
MIN_BRAIN_PIXELS = 7000
FULL_SLICE_PIXELS = 240 * 240
"""The brain threshold belongs to 240x240 slices; other sizes use the same share."""


class Brats:
    """Cases in the order HGG, LGG, then name."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per case; labels are known after reading.

        Raises:
            DataError: when there are no case folders.
        """
        root = request.root()
        items, skipped, unlabelled = [], [], 0
        for place in PLACES:
            for grade in GRADES:
                folder = root / place / grade
                for case in sorted(folder.iterdir()) if folder.is_dir() else ():
                    check_inside(root.resolve(), case, case.name, request)
                    if not case.is_dir() or case.name.startswith("."):
                        continue
                    name = case.relative_to(root).as_posix()
                    if all(_file(case, kind) for kind in ("flair", "t2", "seg")):
                        items.append(Item(name, None, case.name))
                    elif _file(case, "seg"):
                        skipped.append((name, "a volume of the case is missing"))
                    else:  # the challenge's validation cases come without labels
                        unlabelled += 1
            if items:
                break
        if not items:
            raise DataError("brats needs case folders", "none", f"expected: {request.dataset.raw_layout}")
        return Listing(
            items,
            request.dataset.label_names,
            block_size=1,
            excluded={"case without segmentation": unlabelled} if unlabelled else {},
            skipped=skipped,
            intensity="clipped to 0.1 and 99.9 percentiles of the volume, then each slice by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of cases."""
        root = request.root()

        def read(item: Item) -> Iterator[Sample]:
            case = root / item.locator
            flair, t2, seg = (_volume(case, kind) for kind in ("flair", "t2", "seg"))
            if not flair.values.shape == t2.values.shape == seg.values.shape:
                raise SkipItem("volumes of unequal shapes")
            if not np.isin(np.unique(seg.values), (0, 1, 2, 4)).all():
                raise SkipItem("segmentation with other labels than 0, 1, 2, 4")
            yield from _slices(flair, t2.values, seg.values)

        return read


def _file(case: Path, kind: str) -> Path | None:
    for ending in (".nii.gz", ".nii"):
        path = case / f"{case.name}_{kind}{ending}"
        # Some downloads hold a folder of that name with the file in it.
        for found in (path, path / path.name):
            if found.is_file() and not found.is_symlink():
                return found
    return None


def _volume(case: Path, kind: str) -> Volume:
    path = _file(case, kind)
    if path is None:
        raise SkipItem("file is gone or unreadable")
    return read_nifti(path)


def _slices(flair: Volume, t2: NDArray[np.float32], seg: NDArray[np.float32]) -> Iterator[Sample]:
    low, high = np.percentile(flair.values, (0.1, 99.9))
    if high <= low:
        raise SkipItem("constant volume")
    scaled = (np.clip(flair.values, low, high) - low) * (255 / (high - low))
    depth = scaled.shape[2]
    wanted = MIN_BRAIN_PIXELS * scaled.shape[0] * scaled.shape[1] / FULL_SLICE_PIXELS
    tumour: NDArray[np.bool_] = np.any(seg > 0, axis=(0, 1))
    for level in range(depth):
        window = tumour[level : level + WINDOW]
        if level + WINDOW <= depth and window.any() and not window.all():
            continue
        if not _is_one_brain(t2[:, :, level], wanted):
            continue
        pixels, _ = by_own_maximum(scaled[:, :, level])
        yield Sample(pixels, label=int(tumour[level]), conversions=flair.conversions, flags=flair.flags)


def _is_one_brain(plane: NDArray[np.float32], wanted: float) -> bool:
    """Tell whether the brain fills one region: erode, close, take edges (Roberts), fill, count."""
    from scipy import ndimage

    if not (plane > 0).any():
        return False
    reach = np.arange(-2, 3)
    disk = reach[:, None] ** 2 + reach[None, :] ** 2 <= 4
    mask = ndimage.binary_closing(ndimage.binary_erosion(plane > 0, disk), disk).astype(np.float32)
    diagonal = np.zeros_like(mask)
    diagonal[:-1, :-1] = (mask[:-1, :-1] - mask[1:, 1:]) ** 2 + (mask[:-1, 1:] - mask[1:, :-1]) ** 2
    regions, count = ndimage.label(ndimage.binary_fill_holes(diagonal > 0))
    return bool(count == 1 and (regions > 0).sum() >= wanted)
