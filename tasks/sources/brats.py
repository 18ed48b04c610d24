"""Source of BraTS. An item is a case with three volumes: FLAIR, T2 and a segmentation.

A case consists of ``<case>_flair``, ``<case>_t2`` and ``<case>_seg`` in one folder, as
``.nii`` or ``.nii.gz``, unpacked or in ``.zip`` or ``.tar.gz``. The folder may be at any
depth. These are usual layouts:

- ``MICCAI_BraTS_2018_Data_Training/{HGG,LGG}/`` is the layout of the challenge.
- ``MICCAI_BraTS2020_TrainingData/`` is the layout of the 2020 release and of Kaggle's copy of
  it. In this release, the segmentation of case 355 is called ``W39_1998.09.19_Segm.nii``.
- Some downloads put each file into a folder with the name of the file.

The images are axial slices of FLAIR. As in the study's code, a volume is clipped to its 0.1
and 99.9 percentiles and scaled to [0, 255]. A slice is used if its brain mask, computed from
T2, is one connected region of at least 7,000 pixels (of 240 x 240). The label is 1 for a slice
with tumor, and 0 otherwise.

Slices are numbered from bottom to top. Slice i is left out if some but not all of the slices i
to i+9 contain tumor. By this rule, the nine slices below a tumor and the last nine slices of a
tumor are left out. Slices directly above a tumor are used and have label 0.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from tasks.array_types import BoolArray, Float32Array
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Source
from tasks.sources.nifti import VOLUME_INTENSITY, Volume, decode_nifti, intensity_range
from tasks.sources.official import incomplete_download
from tasks.sources.pictures import scale_by_image_maximum
from tasks.sources.raw import RawTree, read_locator

KINDS = ("flair", "t2", "seg")
VOLUME_FILE = re.compile(
    r"(?:^|/)(?P<case>[^/]+)_(?P<kind>flair|t1|t1ce|t2|seg)\.nii(?:\.gz)?$", re.IGNORECASE
)
MISNAMED_SEGMENTATION = re.compile(r"(?:^|/)W39_1998\.09\.19_Segm\.nii(?:\.gz)?$")
RELEASE_YEAR = re.compile(r"(?i)brats[_-]?(?:20)?(\d\d)")
"""Pattern of the year in a case's name, such as ``Brats18_`` or ``BraTS20_Training_``."""
GRADES = ("HGG", "LGG")
"""Folders of high-grade and low-grade gliomas."""
SEGMENTATION_VALUES = (0, 1, 2, 4)
"""The values that a segmentation may have. 0 is no tumor."""
WINDOW_SLICES = 10
"""Number of consecutive slices that are compared. The lowest slice is used only if all or none
of them contain tumor."""
MIN_BRAIN_PIXELS = 7000
"""Smallest number of pixels of the brain mask, in a slice with :data:`FULL_SLICE_PIXELS` pixels."""
FULL_SLICE_PIXELS = 240 * 240
"""Number of pixels of a slice of BraTS. In slices of another size, the brain mask must cover
the same share of the pixels."""
BRAIN_RADIUS = 2
"""Radius in pixels of the disk that erodes and closes the brain mask."""
MAX_VOXELS = 1 << 24
"""Largest number of voxels of a volume. A volume of BraTS has nine million, and three volumes
are in memory at once."""
MAX_SHIFT_MM = 1.0
"""Largest difference in mm between the affine matrices of a case's volumes."""


class Case(NamedTuple):
    """A case of BraTS.

    Attributes:
        folder: Folder of the case's volumes.
        name: Prefix of the file names of the case's volumes.
    """

    folder: str
    name: str


def list_brats(request: RawRequest) -> Listing:
    """List the cases in the order HGG, LGG, other folders, and then by name.

    The labels are None, because only the reader knows them.

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
        if "seg" not in files:  # a validation case of the challenge
            excluded["case without segmentation"] += 1
        elif not all(kind in files for kind in KINDS):
            incomplete.append(case)
        elif case.name in items:
            excluded["the same case again"] += 1
        else:
            locators = tuple(tree.locator(files[kind]) for kind in KINDS)
            items[case.name] = Item(locators[0], None, group=case.name, details=locators)
    if not items:
        files_text = "<case>_flair, <case>_t2 and <case>_seg (.nii or .nii.gz)"
        raise incomplete_download(request, f"case folders with the files {files_text}", tree)
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
    """Check that the names of all cases have the same year.

    Raises:
        DataError: The names have several years.
    """
    years = set()
    for case in cases:
        years.update(RELEASE_YEAR.findall(case)[:1])
    if len(years) > 1:
        raise request.error(
            f"the cases come from the years {', '.join(sorted(years))}. Later releases repeat "
            "cases of earlier releases",
            hint="Set --raw to the folder of one year",
        )


def _find_cases(tree: RawTree) -> dict[Case, dict[str, str]]:
    """Return the files of each case by kind, in the order of the listing.

    The file's name determines its case, because a folder may be renamed or contain several
    cases.
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
    """Return the folder of a file.

    If this folder has the name of a volume, return the folder above it.
    """
    *folders, _ = name.split("/")
    if folders and folders[-1].lower().endswith((".nii", ".nii.gz")):
        folders.pop()
    return "/".join(folders)


def _listing_key(case: Case) -> tuple[int, list[str], str]:
    """Return the sort key of a case: grade, folder, name."""
    folders = case.folder.split("/")
    grades = [GRADES.index(folder) for folder in folders if folder in GRADES]
    return next(iter(grades), len(GRADES)), folders, case.name


def read_brats(request: RawRequest) -> Reader:
    """Return a reader that yields the used slices of a case from bottom to top.

    The reader raises :class:`SkipItem` if the volumes of a case do not belong together.
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
                raise SkipItem("volumes at different positions in space")
        if not np.isin(np.unique(segmentation.values), SEGMENTATION_VALUES).all():
            raise SkipItem("segmentation with other labels than 0, 1, 2, 4")
        has_tumor = np.any(segmentation.values > 0, axis=(0, 1))
        yield from _slices(flair, t2.values, has_tumor)

    return read


brats = Source(list_brats, read_brats)


def _slices(flair: Volume, t2: Float32Array, has_tumor: BoolArray) -> Iterator[Sample]:
    """Yield the slices of a case that are used, see the module's docstring.

    Args:
        flair: The FLAIR volume.
        t2: Values of the T2 volume.
        has_tumor: ``(depth,)`` mask of the axial slices that contain tumor.
    """
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
        pixels, _ = scale_by_image_maximum(scaled[:, :, level])
        yield Sample(
            pixels,
            label=int(has_tumor[level]),
            conversions=flair.conversions,
            flags=flair.flags,
        )


def _has_one_brain(t2: Float32Array, min_pixels: float) -> bool:
    """Return whether the brain mask of a slice is one connected region of enough pixels.

    The steps are the same as in the study's code: erode, close, find edges (Roberts), fill,
    and count regions.
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
