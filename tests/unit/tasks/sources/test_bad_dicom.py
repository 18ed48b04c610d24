"""DICOM files that are refused (B34 to B57), and the conversions that good ones need."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import get_decoder
from pydicom.uid import RLELossless

from tasks.sources.base import SkipItem
from tasks.sources.dicom import decode_dicom, frame_samples
from tests.raw_trees.dicoms import dicom_bytes, make_dicom

VALUES = np.random.default_rng(0).integers(0, 4096, (20, 24)).astype(np.uint16)


def body(values: np.ndarray = VALUES, *, without: str = "", **options) -> bytes:
    data = make_dicom(values, **{"bits": 12, **options})
    if without:
        delattr(data, without)
    return dicom_bytes(data)


def shipped(name: str) -> bytes:
    return Path(get_testdata_file(name, download=False)).read_bytes()


def with_syntax(uid: str) -> bytes:
    """Rewrite the transfer syntax in a finished file, whatever its pixels are."""
    good = body()
    old = b"1.2.840.10008.1.2.1\0"
    new = uid.encode() + b"\0" * (len(uid) % 2)
    place = good.index(old) - 2
    return good[:place] + len(new).to_bytes(2, "little") + new + good[place + 2 + len(old) :]


def deflate_bomb() -> bytes:
    good = with_syntax("1.2.840.10008.1.2.1.99")
    meta_end = good.index(b"1.2.840.10008.1.2.1.99") + 22
    return good[:meta_end] + zlib.compress(b"\0" * 100_000_000)


def huge_tag() -> bytes:
    """Append a private element that declares 2 GiB without content."""
    good = body(without="PixelData")
    return good + b"\x09\x00\x10\x10OB\0\0" + (2**31 - 2).to_bytes(4, "little") + b"xx"


def damaged_rle() -> bytes:
    good = bytearray(body(syntax=RLELossless))
    good[-300:-20] = bytes(280)
    return bytes(good)


SKIPPED = {
    "B34 no preamble": (lambda: body()[132:], "no DICOM preamble"),
    "B35 random bytes": (lambda: np.random.default_rng(1).bytes(5000), "no DICOM preamble"),
    "B36 cut in the header": (
        lambda: body()[:600],
        "damaged DICOM header|no |DICOM without pixel data",
    ),
    "B37 cut in the pixels": (lambda: body()[:-200], "less pixel data|damaged"),
    "B38 padded": (lambda: shipped("MR_small_padded.dcm"), "more pixel data than declared"),
    "B38 more pixels": (
        lambda: body(PixelData=VALUES.tobytes() * 2),
        "more pixel data than declared",
    ),
    "B39 no rows": (lambda: body(without="Rows"), "no Rows"),
    "B39 no bits stored": (lambda: body(without="BitsStored"), "no BitsStored"),
    "B39 no photometric": (
        lambda: body(without="PhotometricInterpretation"),
        "no PhotometricInterpretation",
    ),
    "B41 slope 0": (
        lambda: body(modality="CT", RescaleSlope=0, RescaleIntercept=0),
        "rescale slope 0",
    ),
    "B42 odd bits": (lambda: body(HighBit=15), "unusual pixel bits"),
    "B44 missing decoder": (
        lambda: with_syntax("1.2.840.10008.1.2.4.201"),
        "no decoder|damaged|unknown",
    ),
    "B45 damaged frame": (damaged_rle, "damaged pixel data"),
    "B46 unknown syntax": (lambda: with_syntax("1.2.840.10008.9.9.9"), "unknown transfer syntax"),
    "B46 private syntax": (
        lambda: with_syntax("1.3.46.670589.33.1.4.1"),
        "unknown transfer|damaged|no dec",
    ),
    "B47 palette": (lambda: body(photometric="PALETTE COLOR"), "palette or other"),
    "B48 lying header": (
        lambda: body(Rows=65535, Columns=65535, PixelData=b"\0" * 32),
        "too many pixels",
    ),
    "B49 deflate bomb": (deflate_bomb, "deflated transfer syntax"),
    "B51 huge private tag": (huge_tag, "DICOM without pixel data|damaged DICOM header"),
    "B53 DICOMDIR": (lambda: body(without="PixelData"), "^DICOM without pixel data$"),
    "B20 too small": (lambda: body(VALUES[:2]), "a side below 4"),
    "B21 all zero": (lambda: body(VALUES * 0), "constant image"),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_a_file_that_cannot_be_used_is_skipped_with_its_reason(case):
    make, reason = SKIPPED[case]
    with pytest.raises(SkipItem, match=reason):
        list(frame_samples(decode_dicom(make())))


def test_a_syntax_without_an_installed_decoder_is_skipped_with_the_package_to_install(monkeypatch):
    decoder = get_decoder(RLELossless)
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: self is not decoder))
    with pytest.raises(SkipItem, match="no decoder for RLE Lossless: pip install"):
        decode_dicom(shipped("MR_small_RLE.dcm"))
    decode_dicom(shipped("MR_small_jp2klossless.dcm"))


def pixels(values=VALUES, **options) -> np.ndarray:
    (sample,) = frame_samples(decode_dicom(body(values, **options)))
    return sample.pixels


def by_maximum(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, None).astype(float) * 255 / values.max()).astype(np.uint8)


SIGNED = VALUES.astype(np.int16) - 2048
STORED = {
    "by own maximum": (VALUES, {}, by_maximum(VALUES)),
    "MONOCHROME1 is inverted": (VALUES, {"photometric": "MONOCHROME1"}, 255 - by_maximum(VALUES)),
    "overlay bits above the stored ones are dropped": (VALUES | 0x8000, {}, by_maximum(VALUES)),
    "signed 12 in 16": (np.where(SIGNED < 0, SIGNED & 0x0FFF, SIGNED), {}, by_maximum(SIGNED)),
    "display windows are never applied": (
        VALUES,
        {"WindowCenter": 9, "WindowWidth": 9},
        by_maximum(VALUES),
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_stored_values_become_pixels_by_the_stated_rule(name):
    values, options, expected = STORED[name]
    np.testing.assert_array_equal(pixels(values, **options), expected)


def test_ct_does_not_depend_on_how_it_is_stored():
    units = VALUES.astype(np.int16) - 1024
    unsigned = pixels(VALUES, modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    signed = pixels(units, bits=16, modality="CT", RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(unsigned, signed)


@pytest.mark.parametrize(
    "name", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless"]
)
def test_every_syntax_decodes_to_the_same_values(name):
    """pydicom ships one small MR slice under several transfer syntaxes."""
    plain = decode_dicom(shipped("MR_small.dcm"))
    encoded = decode_dicom(shipped(f"MR_small_{name}.dcm"))
    np.testing.assert_array_equal(encoded.values, plain.values)


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_lossy_syntaxes_are_decoded_to_pictures(name):
    for sample in frame_samples(decode_dicom(shipped(name))):
        assert sample.pixels.std() > 1


def test_a_colour_frame_keeps_its_channels_and_is_counted_as_one():
    values = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    data = make_dicom(values[..., 0], bits=8)
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.PixelData = values.tobytes()
    (sample,) = frame_samples(decode_dicom(dicom_bytes(data)))
    assert sample.pixels.shape == (20, 24, 3)
    assert "colour DICOM" in sample.conversions


def test_doubtful_files_are_flagged():
    decoded = decode_dicom(body(modality="CT", BurnedInAnnotation="YES"))
    (sample,) = frame_samples(decoded)
    assert sample.flags == ("burnt-in annotation", "CT without rescale slope and intercept")
