"""Bad DICOM files (B34 to B57) and the conversions that good ones need."""

from __future__ import annotations

import io
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import RLELossless

from search_spaces.errors import DataError
from tasks.sources.base import SkipItem
from tasks.sources.dicom import decode_dicom, frame_samples
from tests.raw_trees.dicoms import make_dicom, save_dicom

VALUES = np.random.default_rng(0).integers(0, 4096, (20, 24)).astype(np.uint16)


def body(values: np.ndarray = VALUES, *, without: str = "", **options) -> bytes:
    data = make_dicom(values, **{"bits": 12, **options})
    if without:
        delattr(data, without)
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


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


def nested(depth: int = 1000) -> bytes:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    inner = Dataset()
    inner.PatientID = "x"
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        for _ in range(depth):
            outer = Dataset()
            outer.ReferencedStudySequence = Sequence([inner])
            inner = outer
        return body(ReferencedStudySequence=Sequence([inner]))
    finally:
        sys.setrecursionlimit(limit)


def huge_tag() -> bytes:
    """A private element that claims 2 GiB and is not there."""
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
        "no Rows|no Columns|no BitsAllocated|damaged DICOM header|no ",
    ),
    "B37 cut in the pixels": (lambda: body()[:-200], "less pixel data|damaged"),
    "B38 padded": (
        lambda: Path(get_testdata_file("MR_small_padded.dcm", download=False)).read_bytes(),
        "more pixel data than declared",
    ),
    "B38 more pixels": (lambda: body(PixelData=VALUES.tobytes() * 2), "more pixel data than declared"),
    "B39 no rows": (lambda: body(without="Rows"), "no Rows"),
    "B39 no bits stored": (lambda: body(without="BitsStored"), "no BitsStored"),
    "B39 no photometric": (lambda: body(without="PhotometricInterpretation"), "no PhotometricInterpretation"),
    "B41 slope 0": (lambda: body(modality="CT", RescaleSlope=0, RescaleIntercept=0), "rescale slope 0"),
    "B42 odd bits": (lambda: body(HighBit=15), "unusual pixel bits"),
    "B44 missing decoder": (lambda: with_syntax("1.2.840.10008.1.2.4.201"), "no decoder|damaged|unknown"),
    "B45 damaged frame": (damaged_rle, "damaged pixel data"),
    "B46 unknown syntax": (lambda: with_syntax("1.2.840.10008.9.9.9"), "unknown transfer syntax"),
    "B46 private syntax": (
        lambda: with_syntax("1.3.46.670589.33.1.4.1"),
        "unknown transfer syntax|damaged|no decoder",
    ),
    "B47 palette": (lambda: body(photometric="PALETTE COLOR"), "palette or other"),
    "B48 lying header": (lambda: body(Rows=65535, Columns=65535, PixelData=b"\0" * 32), "too many pixels"),
    "B49 deflate bomb": (deflate_bomb, "deflated transfer syntax"),
    "B51 huge private tag": (huge_tag, "no PixelData|damaged DICOM header"),
    "B53 DICOMDIR": (lambda: body(without="PixelData"), "no PixelData"),
    "B20 too small": (lambda: body(VALUES[:2]), "a side below 4"),
    "B21 all zero": (lambda: body(VALUES * 0), "constant image"),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_skipped(case):
    make, reason = SKIPPED[case]
    with pytest.raises(SkipItem, match=reason):
        list(frame_samples(decode_dicom(make())))


def test_deep_nesting_is_bounded():
    """pydicom reads sequences lazily, so a thousand levels cost nothing."""
    assert len(decode_dicom(nested()).values) == 1


def pixels(values=VALUES, **options) -> np.ndarray:
    (sample,) = frame_samples(decode_dicom(body(values, **options)))
    return sample.pixels


def by_maximum(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, None).astype(float) * 255 / values.max()).astype(np.uint8)


def test_stored_values_by_own_maximum():
    np.testing.assert_array_equal(pixels(), by_maximum(VALUES))


def test_monochrome1_is_inverted():
    np.testing.assert_array_equal(pixels(photometric="MONOCHROME1"), 255 - by_maximum(VALUES))


def test_overlay_bits_above_the_stored_ones_are_dropped():
    np.testing.assert_array_equal(pixels(VALUES | 0x8000), by_maximum(VALUES))


def test_signed_12_in_16():
    signed = (VALUES.astype(np.int16) - 2048).astype(np.int16)
    stored = np.where(signed < 0, signed & 0x0FFF, signed).astype(np.int16)
    np.testing.assert_array_equal(pixels(stored), by_maximum(signed))


def test_ct_does_not_depend_on_how_it_is_stored():
    units = VALUES.astype(np.int16) - 1024
    unsigned = pixels(VALUES, modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    signed = pixels(units, bits=16, modality="CT", RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(unsigned, signed)


def test_display_windows_are_never_applied():
    np.testing.assert_array_equal(pixels(WindowCenter=100, WindowWidth=10), pixels())


@pytest.mark.parametrize("name", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless"])
def test_every_syntax_decodes_to_the_same_values(name):
    """pydicom ships one small MR slice under several transfer syntaxes."""
    straight, encoded = (
        decode_dicom(Path(get_testdata_file(file, download=False)).read_bytes()).values
        for file in ("MR_small.dcm", f"MR_small_{name}.dcm")
    )
    np.testing.assert_array_equal(straight, encoded)


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_lossy_syntaxes_are_decoded(name):
    decoded = decode_dicom(Path(get_testdata_file(name, download=False)).read_bytes())
    assert all(sample.pixels.std() > 1 for sample in frame_samples(decoded))


def test_rgb_frames():
    values = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    data = make_dicom(values[..., 0], bits=8)
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.PixelData = values.tobytes()
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    (sample,) = frame_samples(decode_dicom(stream.getvalue()))
    assert sample.pixels.shape == (20, 24, 3)
    assert "colour DICOM" in sample.conversions


def test_doubtful_files_are_flagged():
    decoded = decode_dicom(body(modality="CT", BurnedInAnnotation="YES"))
    (sample,) = frame_samples(decoded)
    assert sample.flags == ("burnt-in annotation", "CT without rescale slope and intercept")


def write_set(folder, patients):
    folder.mkdir()
    lines = ["path,label"]
    for index, patient in enumerate(patients):
        rng = np.random.default_rng(index)
        data = make_dicom(rng.integers(0, 4096, (16, 16)).astype(np.uint16), patient=patient, bits=12)
        save_dicom(folder / f"{index}.dcm", data)
        lines.append(f"{index}.dcm,{index % 2}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder


def test_one_patient_id_for_everyone_is_refused(prepare, tmp_path):
    with pytest.raises(DataError, match="one group holds 6 of 6 images"):
        prepare("dicom_csv", write_set(tmp_path / "raw", ["hospital"] * 6))


def test_placeholder_ids_are_flagged(prepare, tmp_path):
    record = prepare("dicom_csv", write_set(tmp_path / "raw", ["ANON"] * 6)).record
    assert record.flags == {"no patient id in the header: the split cannot be by patient": 6}
    assert record.num_groups == 6
