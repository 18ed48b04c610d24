"""BraTS: FLAIR, T2 and segmentation volumes; one item is one volume, its slices become the images.

Layouts: a case is ``<case>_flair``, ``<case>_t2`` and ``<case>_seg`` in one folder, ``.nii`` or
``.nii.gz``, wherever it lies: ``MICCAI_BraTS_2018_Data_Training/{HGG,LGG}/`` (the challenge's own),
``MICCAI_BraTS2020_ TrainingData/`` and Kaggle's copy of it, where case 355 calls its segmentation
``W39_1998.09.19_Segm.nii`` and some downloads put each file into a folder of its own name.
Unpacked, or in ``.zip`` or ``.tar.gz``.

As in the study's extractor: clip FLAIR to its 0.1 and 99.9 percentiles and scale to [0, 255]; keep
axial slices whose brain mask (from T2) is one region of at least 7,000 pixels; label = the slice
holds any tumour. Scanning upward, slice i is dropped when slices i to i+9 hold both kinds, so the
slices just below a tumour's lower edge and its own last nine are dropped, and slices right above it
are kept as negatives.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Source
from tasks.sources.nifti import VOLUME_INTENSITY, Volume, decode_nifti, intensity_range
from tasks.sources.official import not_there
from tasks.sources.pictures import by_own_maximum
from tasks.sources.raw import RawTree, read_locator

KINDS = ("flair", "t2", "seg")
VOLUME = re.compile(
    r"(?:^|/)(?P<case>[^/]+)_(?P<kind>flair|t1|t1ce|t2|seg)\.nii(?:\.gz)?$", re.IGNORECASE
)
MISNAMED_SEGMENTATION = re.compile(r"(?:^|/)W39_1998\.09\.19_Segm\.nii(?:\.gz)?$")
RELEASE = re.compile(r"(?i)brats[_-]?(?:20)?(\d\d)")
"""The year in a case's name: ``Brats18_``, ``BraTS20_Training_``."""
GRADES = ("HGG", "LGG")
WINDOW = 10
MIN_BRAIN_PIXELS = 7000
FULL_SLICE_PIXELS = 240 * 240
"""The brain threshold belongs to 240x240 slices; other sizes use the same share."""
MAX_VOXELS = 1 << 24
"""A volume of BraTS has nine million; three are held at once."""
MAX_SHIFT_MM = 1.0

Case = tuple[str, str]
"""Folder, and what the volumes in it are called."""


def list_brats(request: RawRequest) -> Listing:
    """Return one item per case, in the order HGG, LGG, none, then name; labels are known after
    reading.
    """
    tree = RawTree(request)
    if tree.archives and request.root().is_dir():
        unpacked = bool(_cases(tree))
        tree = RawTree(
            request, archives=True, wanted=lambda name: not unpacked or "brats" in name.casefold()
        )
    items: dict[str, Item] = {}
    partial, excluded = list[Case](), Counter[str]()
    for (folder, case), files in _cases(tree).items():
        if "seg" not in files:  # the challenge's validation cases come without labels
            excluded["case without segmentation"] += 1
        elif not all(kind in files for kind in KINDS):
            partial.append((folder, case))
        elif case in items:
            excluded["the same case again"] += 1
        else:
            details = tuple(tree.locator(files[kind]) for kind in KINDS)
            items[case] = Item(details[0], None, case, details=details)
    if not items:
        raise not_there(request, "case folders with <case>_{flair,t2,seg}.nii[.gz]", tree)
    years = {found[1] for case in items if (found := RELEASE.search(case))}
    if len(years) > 1:
        rule = "all cases must be of one year: later releases hold the cases of earlier ones again"
        raise request.error(
            rule, f"years {', '.join(sorted(years))}", "give the folder of one of them"
        )
    return Listing(
        list(items.values()),
        request.dataset.label_names,
        block_size=1,
        excluded=dict(excluded),
        skipped=[
            ("/".join(case), "a volume of the case is missing")
            for case in partial
            if case[1] not in items
        ],
        intensity=VOLUME_INTENSITY,
    )


def _cases(tree: RawTree) -> dict[Case, dict[str, str]]:
    """Return case -> kind -> file, in order, by the files' names: a folder may be renamed or hold
    several.
    """
    cases: defaultdict[Case, dict[str, str]] = defaultdict(dict)
    misnamed: dict[str, str] = {}
    for name in tree:
        parts = name.split("/")
        # Some downloads hold a folder of a volume's name with the file in it.
        nested = len(parts) > 1 and parts[-2].lower().endswith((".nii", ".nii.gz"))
        folder = "/".join(parts[:-2] if nested else parts[:-1])
        match = VOLUME.search(name)
        if match:
            cases[folder, match["case"]].setdefault(match["kind"].lower(), name)
        elif MISNAMED_SEGMENTATION.search(name):
            misnamed[folder] = name
    for folder, name in misnamed.items():
        here = [case for case in cases if case[0] == folder]
        if len(here) == 1:
            cases[here[0]].setdefault("seg", name)

    def place(case: Case) -> tuple[int, list[str], str]:
        parts = case[0].split("/")
        grade = next((GRADES.index(part) for part in parts if part in GRADES), len(GRADES))
        return grade, parts, case[1]

    return {case: cases[case] for case in sorted(cases, key=place)}


def read_brats(request: RawRequest) -> Reader:
    """Return a reader of cases."""
    base = request.base()

    def read(item: Item) -> Iterator[Sample]:
        flair, t2, seg = (
            decode_nifti(read_locator(base, str(locator)), max_voxels=MAX_VOXELS)
            for locator in item.details
        )
        if not flair.values.shape == t2.values.shape == seg.values.shape:
            raise SkipItem("volumes of unequal shapes")
        if max(np.abs(flair.affine - other.affine).max() for other in (t2, seg)) > MAX_SHIFT_MM:
            raise SkipItem("volumes that lie elsewhere in space")
        if not np.isin(np.unique(seg.values), (0, 1, 2, 4)).all():
            raise SkipItem("segmentation with other labels than 0, 1, 2, 4")
        yield from _slices(flair, t2.values, seg.values)

    return read


brats = Source(list_brats, read_brats)


def _slices(flair: Volume, t2: NDArray[np.float32], seg: NDArray[np.float32]) -> Iterator[Sample]:
    from scipy import ndimage

    reach = np.arange(-2, 3)
    disk = reach[:, None] ** 2 + reach[None, :] ** 2 <= 4
    low, high = intensity_range(flair.values)
    scaled = (np.clip(flair.values, low, high) - low) * (255 / (high - low))
    depth = scaled.shape[2]
    wanted = MIN_BRAIN_PIXELS * scaled.shape[0] * scaled.shape[1] / FULL_SLICE_PIXELS
    tumour: NDArray[np.bool_] = np.any(seg > 0, axis=(0, 1))
    for level in range(depth):
        window = tumour[level : level + WINDOW]
        if level + WINDOW <= depth and window.any() and not window.all():
            continue
        # The brain must fill one region: erode, close, take edges (Roberts), fill, count.
        mask = ndimage.binary_closing(ndimage.binary_erosion(t2[:, :, level] > 0, disk), disk)
        mask = mask.astype(np.float32)
        diagonal = np.zeros_like(mask)
        diagonal[:-1, :-1] = (mask[:-1, :-1] - mask[1:, 1:]) ** 2 + (
            mask[:-1, 1:] - mask[1:, :-1]
        ) ** 2
        regions, count = ndimage.label(ndimage.binary_fill_holes(diagonal > 0))
        if count != 1 or (regions > 0).sum() < wanted:
            continue
        pixels, _ = by_own_maximum(scaled[:, :, level])
        yield Sample(
            pixels, label=int(tumour[level]), conversions=flair.conversions, flags=flair.flags
        )
