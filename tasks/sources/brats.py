"""BraTS: FLAIR, T2 and segmentation volumes. An item is one case; its axial slices are the images.

Layouts: a case is ``<case>_flair``, ``<case>_t2`` and ``<case>_seg`` in one folder, ``.nii`` or
``.nii.gz``, wherever it lies: ``MICCAI_BraTS_2018_Data_Training/{HGG,LGG}/`` (the challenge's own),
``MICCAI_BraTS2020_TrainingData/`` and Kaggle's copy of it. There, case 355 calls its segmentation
``W39_1998.09.19_Segm.nii``, and some downloads put each file into a folder of the same name.
Unpacked, or in ``.zip`` or ``.tar.gz``.

As in the study's extractor, FLAIR is clipped to its 0.1 and 99.9 percentiles and scaled to
[0, 255]. A slice is kept if its brain mask (from T2) is one region of at least 7,000 pixels. Its
label is 1 if it holds any tumor. Scanning upward, slice i is dropped if slices i to i+9 hold both
kinds. So the slices just below a tumor's lower edge and the tumor's last nine are dropped, and
the slices right above the tumor are kept as negatives.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Source
from tasks.sources.nifti import VOLUME_INTENSITY, Volume, decode_nifti, intensity_range
from tasks.sources.official import incomplete_download
from tasks.sources.pictures import by_own_maximum
from tasks.sources.raw import RawTree, read_locator

KINDS = ("flair", "t2", "seg")
VOLUME_FILE = re.compile(
    r"(?:^|/)(?P<case>[^/]+)_(?P<kind>flair|t1|t1ce|t2|seg)\.nii(?:\.gz)?$", re.IGNORECASE
)
MISNAMED_SEGMENTATION = re.compile(r"(?:^|/)W39_1998\.09\.19_Segm\.nii(?:\.gz)?$")
RELEASE_YEAR = re.compile(r"(?i)brats[_-]?(?:20)?(\d\d)")
"""The year in a case's name: ``Brats18_``, ``BraTS20_Training_``."""
GRADES = ("HGG", "LGG")
SEGMENTATION_VALUES = (0, 1, 2, 4)
WINDOW_SLICES = 10
"""Slices that must be all with or all without tumor for the lowest of them to be kept."""
MIN_BRAIN_PIXELS = 7000
FULL_SLICE_PIXELS = 240 * 240
"""Pixels of a slice for which the brain threshold holds. Other sizes use the same share."""
BRAIN_RADIUS = 2
"""Pixels by which the brain mask is eroded and closed."""
MAX_VOXELS = 1 << 24
"""Voxels of one volume: BraTS has nine million, and three volumes are held at once."""
MAX_SHIFT_MM = 1.0
"""Largest difference between the affines of a case's volumes."""


class Case(NamedTuple):
    """The folder of a case's volumes, and the name that they begin with."""

    folder: str
    name: str


def list_brats(request: RawRequest) -> Listing:
    """Return one item per case, in the order HGG, LGG, neither, then by name.

    Labels are None: they are known after reading only.

    Raises:
        DataError: There is no case, or there are cases of several years.
    """
    tree = RawTree(request)
    if tree.archives and request.root().is_dir():
        has_unpacked_cases = bool(_find_cases(tree))

        def is_wanted(archive: str) -> bool:
            return not has_unpacked_cases or "brats" in archive.casefold()

        tree = RawTree(request, is_wanted)
    items: dict[str, Item] = {}
    incomplete: list[Case] = []
    excluded = Counter[str]()
    for case, files in _find_cases(tree).items():
        if "seg" not in files:  # the challenge's validation cases come without labels
            excluded["case without segmentation"] += 1
        elif not all(kind in files for kind in KINDS):
            incomplete.append(case)
        elif case.name in items:
            excluded["the same case again"] += 1
        else:
            locators = tuple(tree.locator(files[kind]) for kind in KINDS)
            items[case.name] = Item(
                locator=locators[0],
                label=None,
                group=case.name,
                details=locators,
            )
    if not items:
        raise incomplete_download(request, "case folders with <case>_{flair,t2,seg}.nii[.gz]", tree)
    _check_one_release(items, request)
    skipped = []
    for case in incomplete:
        if case.name not in items:
            skipped.append(("/".join(case), "a volume of the case is missing"))
    return Listing(
        list(items.values()),
        request.dataset.label_names,
        block_size=1,
        excluded=dict(excluded),
        skipped=skipped,
        intensity=VOLUME_INTENSITY,
    )


def _check_one_release(cases: Iterable[str], request: RawRequest) -> None:
    """Check that all cases are of one year, by their names."""
    years = set()
    for case in cases:
        years.update(RELEASE_YEAR.findall(case)[:1])
    if len(years) > 1:
        raise request.error(
            f"the cases are of the years {', '.join(sorted(years))}, and later releases have the "
            "cases of earlier ones again",
            hint="Give the folder of one year",
        )


def _find_cases(tree: RawTree) -> dict[Case, dict[str, str]]:
    """Return each case's files by kind, in the listing's order.

    Cases are found by the names of their files: a folder may be renamed or hold several cases.
    """
    cases: defaultdict[Case, dict[str, str]] = defaultdict(dict)
    misnamed_segmentations: dict[str, str] = {}
    for name in tree:
        folder = _case_folder(name)
        match = VOLUME_FILE.search(name)
        if match:
            kind = match["kind"].lower()
            cases[Case(folder, match["case"])].setdefault(kind, name)
        elif MISNAMED_SEGMENTATION.search(name):
            misnamed_segmentations[folder] = name
    for folder, name in misnamed_segmentations.items():
        folder_cases = [case for case in cases if case.folder == folder]
        if len(folder_cases) == 1:
            cases[folder_cases[0]].setdefault("seg", name)
    return {case: cases[case] for case in sorted(cases, key=_listing_key)}


def _case_folder(name: str) -> str:
    """Return the folder of a file, without the folder of the file's own name in some downloads."""
    *folders, _ = name.split("/")
    if folders and folders[-1].lower().endswith((".nii", ".nii.gz")):
        folders.pop()
    return "/".join(folders)


def _listing_key(case: Case) -> tuple[int, list[str], str]:
    folders = case.folder.split("/")
    grades = [GRADES.index(folder) for folder in folders if folder in GRADES]
    return next(iter(grades), len(GRADES)), folders, case.name


def read_brats(request: RawRequest) -> Reader:
    """Return a reader of cases, which yields the kept slices of each from bottom to top.

    The reader raises SkipItem if a case's volumes do not belong together.
    """
    base = request.base()

    def read(item: Item) -> Iterator[Sample]:
        volumes = []
        for locator in item.details:
            body = read_locator(base, str(locator))
            volumes.append(decode_nifti(body, max_voxels=MAX_VOXELS))
        flair, t2, segmentation = volumes
        for volume in (t2, segmentation):
            if volume.values.shape != flair.values.shape:
                raise SkipItem("volumes of unequal shapes")
            if np.abs(flair.affine - volume.affine).max() > MAX_SHIFT_MM:
                raise SkipItem("volumes that lie elsewhere in space")
        if not np.isin(np.unique(segmentation.values), SEGMENTATION_VALUES).all():
            raise SkipItem("segmentation with other labels than 0, 1, 2, 4")
        has_tumor = np.any(segmentation.values > 0, axis=(0, 1))
        yield from _slices(flair, t2.values, has_tumor)

    return read


brats = Source(list_brats, read_brats)


def _slices(
    flair: Volume, t2: NDArray[np.float32], has_tumor: NDArray[np.bool_]
) -> Iterator[Sample]:
    """Yield slices with a whole brain that are not near a tumor's edge."""
    low, high = intensity_range(flair.values)
    clipped = np.clip(flair.values, low, high)
    scaled = (clipped - low) * (255 / (high - low))
    height, width, depth = scaled.shape
    min_pixels = MIN_BRAIN_PIXELS * height * width / FULL_SLICE_PIXELS
    for level in range(depth):
        window = has_tumor[level : level + WINDOW_SLICES]
        is_whole_window = level + WINDOW_SLICES <= depth
        if is_whole_window and window.any() and not window.all():
            continue
        if not _has_one_brain(t2[:, :, level], min_pixels):
            continue
        pixels, _ = by_own_maximum(scaled[:, :, level])
        yield Sample(
            pixels,
            label=int(has_tumor[level]),
            conversions=flair.conversions,
            flags=flair.flags,
        )


def _has_one_brain(t2: NDArray[np.float32], min_pixels: float) -> bool:
    """Return whether the brain is one region of enough pixels, found as in the study's extractor.

    The steps: erode, close, take edges (Roberts), fill, count.
    """
    from scipy import ndimage

    offsets = np.arange(-BRAIN_RADIUS, BRAIN_RADIUS + 1)
    disk = offsets[:, None] ** 2 + offsets[None, :] ** 2 <= BRAIN_RADIUS**2
    eroded = ndimage.binary_erosion(t2 > 0, disk)
    mask = ndimage.binary_closing(eroded, disk).astype(np.float32)
    falling = mask[:-1, :-1] - mask[1:, 1:]
    rising = mask[:-1, 1:] - mask[1:, :-1]
    edges = np.zeros(mask.shape, bool)
    edges[:-1, :-1] = falling**2 + rising**2 > 0
    regions, num_regions = ndimage.label(ndimage.binary_fill_holes(edges))
    return bool(num_regions == 1 and (regions > 0).sum() >= min_pixels)
