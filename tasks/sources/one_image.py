"""Files that hold one image each, pictures and DICOM alike: the file decides, not its ending."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tasks.sources.archives import read_locator
from tasks.sources.base import Item, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import NO_PATIENT, decode_dicom, frames_to_pixels
from tasks.sources.image_files import decode_image, is_image_name
from tasks.sources.labels import plain_id

DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
INTENSITY = "8 bits as stored; more by own maximum; DICOM: stored values (CT: HU + 1024) by own maximum"


def is_dicom_name(name: str) -> bool:
    """Tell whether a name looks like a DICOM file's."""
    return name.lower().endswith(DICOM_ENDINGS)


def is_single_image_name(name: str) -> bool:
    """Tell whether a name looks like that of a picture or a DICOM file."""
    return is_image_name(name) or is_dicom_name(name)


def read_single(base: Path, item: Item) -> list[Sample]:
    """Read the one image in an item's file.

    A DICOM file without a group of its item gets the header's patient, whose id may be spelt in several ways,
    and a flag when there is none.

    Raises:
        SkipItem: for what is no image, damaged, too large, or holds several frames.
    """
    body = read_locator(base, item.locator)
    if body[128:132] != b"DICM" and not is_dicom_name(item.locator):
        return [decode_image(body)]
    dicom = decode_dicom(body)
    if len(dicom.values) != 1:
        raise SkipItem("several frames")
    known = dicom.known_patient()
    lacking = () if known or item.group else (NO_PATIENT,)
    patient = plain_id(known)
    return [
        Sample(
            pixels,
            group="" if item.group else patient,
            conversions=notes,
            flags=(*flags, *lacking),
            traits=dicom.traits,
            patient=patient,
        )
        for pixels, notes, flags in frames_to_pixels(dicom)
    ]


def single_reader(request: RawRequest) -> Reader:
    """Return a reader of files with one image each."""
    base = request.base()

    return lambda item: with_traits(read_single(base, item), item.details)


def with_traits(samples: Iterable[Sample], details: Sequence[str | int | float | None]) -> list[Sample]:
    """Give samples the traits that a table's columns say: name, value, name, value ..."""
    traits = tuple((str(name), str(value)) for name, value in zip(details[::2], details[1::2], strict=True))
    return [replace(sample, traits=(*sample.traits, *traits)) for sample in samples]
