"""Guess values for a first sweep file from a few of your images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.planning.checks import LabelCounts
from search_spaces.errors import DataError, plural
from tasks.prepared.record import MIN_ENLARGED
from tasks.sources import source_for
from tasks.sources.base import Item, Listing, RawRequest, Sample, SkipItem
from tasks.sources.dicom import is_dicom_name, read_header
from tasks.sources.own.groups import plain_id
from tasks.sources.pictures import has_image_format, is_image_name
from tasks.sources.raw import split_locator

MAX_TRIED = 20
"""Largest number of images that isweep opens to find :data:`NUM_COMPARED` readable images."""
NUM_COMPARED = 5
"""Number of readable images whose sizes isweep compares."""
MAX_HEADERS = 2_000
"""Largest number of DICOM headers that isweep reads. Reading this many takes about ten
seconds."""
MAX_CHECKED = 20_000
"""Largest number of files whose format isweep checks. Checking this many takes a few seconds."""
MEDICAL_ENDINGS = (".dcm", ".dicom", ".ima", ".nii", ".nii.gz")
"""Endings of the names of medical image files."""


@dataclass(frozen=True)
class FirstImage:
    """Properties of one image from which values of the sweep file are guessed.

    Attributes:
        height: Height, pixels.
        width: Width, pixels.
        is_color: False if all channels are equal.
        is_medical: True if the file has a medical format.
    """

    height: int
    width: int
    is_color: bool
    is_medical: bool


def read_first_images(request: RawRequest, listing: Listing) -> list[FirstImage]:
    """Read images at equal distances in the listing, until :data:`NUM_COMPARED` are read.

    Raises:
        DataError: No image that was tried can be read.
    """
    num_tried = min(len(listing.items), MAX_TRIED)
    reader = source_for(request.dataset.source).reader(request)
    images: list[FirstImage] = []
    reasons: Counter[str] = Counter()
    for number in range(num_tried):
        item = listing.items[number * len(listing.items) // num_tried]
        try:
            sample = next(iter(reader(item)))
        except SkipItem as skip:
            reasons[skip.reason] += 1
        except StopIteration:
            reasons["no image"] += 1
        else:
            images.append(_image(sample, item, request))
        if len(images) == NUM_COMPARED:
            break
    if images:
        return images
    counts = ", ".join(map("{0[0]}: {0[1]}".format, reasons.items()))
    raise DataError(
        f"{request.dataset.name}: isweep tried to read {plural(num_tried, 'image')} and could "
        f"read none ({counts})",
        hint="Repair the images, or convert them to PNG",
    )


def without_other_files(request: RawRequest, listing: Listing) -> Listing:
    """Leave out files that have the name of an image but another format, for example text.

    Images in archives are not checked. If there are more files than :data:`MAX_CHECKED`, no
    file is checked.
    """
    if len(listing.items) > MAX_CHECKED:
        return listing
    base = request.base()
    images = []
    for item in listing.items:
        is_checked = is_image_name(item.locator) and len(split_locator(item.locator)) == 1
        if not is_checked or has_image_format(base / item.locator):
            images.append(item)
    return replace(listing, items=images)


def _image(sample: Sample, item: Item, request: RawRequest) -> FirstImage:
    pixels = sample.pixels
    has_colors = pixels.ndim == 3 and bool((pixels[..., :1] != pixels).any())
    is_medical = item.locator.lower().endswith(MEDICAL_ENDINGS)
    if request.dataset.source == "folder" and not is_image_name(item.locator):
        is_medical = True  # in a folder, a file without an ending is DICOM
    return FirstImage(pixels.shape[0], pixels.shape[1], has_colors, is_medical)


@dataclass(frozen=True)
class DomainGuess:
    """A guess whether images are natural or medical, with its reason as text for a comment."""

    domain: str
    reason: str


def guess_domain(
    request: RawRequest, images: Sequence[FirstImage], listing: Listing
) -> DomainGuess:
    """Guess whether images are natural or medical. If images have patients, they are medical."""
    if images[0].is_medical:
        return DomainGuess("medical", " from the format of the files")
    if any(item.group for item in listing.items):
        return DomainGuess("medical", " from the patients")
    return DomainGuess("natural", "")


def size_comment(images: Sequence[FirstImage], side: int) -> str:
    """Return a comment on images whose size differs from ``side``, their side after resizing."""
    shapes = sorted({(image.height, image.width) for image in images})
    first = f"{shapes[0][0]}x{shapes[0][1]}"
    comments = []
    if MIN_ENLARGED * min(shapes[0]) <= side:
        comments.append(
            f"your images are {first} and will be enlarged; consider `image_size: {min(shapes[0])}`"
        )
    if len(shapes) > 1:
        last = f"{shapes[-1][0]}x{shapes[-1][1]}"
        comments.append(
            f"your images have sizes from {first} to {last}; check that all images have the same "
            "scale"
        )
    if any(height != width for height, width in shapes):
        comments.append("your images are not square and will be stretched")
    return "".join(f"; {comment}" for comment in comments)


def with_patients(counts: LabelCounts, request: RawRequest, listing: Listing) -> LabelCounts | None:
    """Return the counts with patients as groups.

    The patients come from DICOM headers, as in the prepared dataset.

    Return None if there are too many headers to read.
    """
    in_folder = request.dataset.source == "folder"
    locators: dict[int, str] = {}
    for row, item in enumerate(listing.items):
        # In a folder of images, a file whose name has no ending is a DICOM file.
        is_dicom = is_dicom_name(item.locator) or (in_folder and not is_image_name(item.locator))
        if is_dicom and not item.group:
            locators[row] = item.locator
    if len(locators) > MAX_HEADERS:
        return None
    groups = counts.groups.copy()
    group_of_patient: dict[str, int] = {}
    for row, locator in locators.items():
        header = read_header(request.base(), locator)
        patient = plain_id(header.known_patient()) if header else ""
        if patient:
            groups[row] = group_of_patient.setdefault(patient, int(groups[row]))
    return replace(counts, groups=groups, has_patients=bool(group_of_patient))
