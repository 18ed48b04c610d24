"""Image files (reliability cases B1 to B33): skipped, converted or flagged, each by its reason;
resized."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision.transforms.v2.functional import resize

from search_spaces.errors import SetupError
from tasks.sources.base import SkipItem
from tasks.sources.pictures import decode_image, scale_by_image_maximum, to_prepared
from tasks.sources.raw import read_plain
from tests.unit.tasks.sources.conftest import picture, png


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=image_format, **options)
    return stream.getvalue()


def jpeg(size=(40, 50)) -> bytes:
    return encode(Image.fromarray(picture(1, size)), "JPEG", quality=95)


def png_of(width: int, height: int, rows: bytes = b"", depth: int = 8, colour: int = 0) -> bytes:
    """Return a PNG whose header declares the given size."""
    ihdr = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", ihdr), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def bad_checksum() -> bytes:
    body = bytearray(png(picture(1)))
    place = body.index(b"IDAT") + 8
    body[place] ^= 0xFF
    return bytes(body)


def frames(image_format: str, count: int) -> bytes:
    pictures = [Image.fromarray(picture(index)) for index in range(count)]
    return encode(pictures[0], image_format, save_all=True, append_images=pictures[1:])


def float_tiff(value: float) -> bytes:
    values = picture(1).astype(np.float32)
    values[3, 3] = value
    return encode(Image.fromarray(values), "TIFF")


def transparent(color: int, alpha: np.ndarray, mode: str) -> bytes:
    """A picture of one color, in RGBA or in gray with alpha."""
    colors = [np.full_like(alpha, color)] * (3 if mode == "RGBA" else 1)
    return png(np.stack([*colors, alpha], axis=-1))


SKIPPED = {
    "a picture in the alpha channel": (
        lambda: transparent(0, picture(1, (300, 12)), "RGBA"),
        "^constant colors, content only in the alpha channel$",
    ),
    "a gray picture in the alpha channel": (
        lambda: transparent(0, picture(1), "LA"),
        "^constant colors, content only in the alpha channel$",
    ),
    "B2 web page": (lambda: b"<html><body>404</body></html>", "not an image"),
    "B3 text": (lambda: b"hello", "not an image"),
    "B4 half a JPEG": (lambda: jpeg()[: len(jpeg()) // 2], "damaged image"),
    "B5 half a PNG": (lambda: png(picture(1, (40, 40)))[:700], "damaged image"),
    "B6 bad checksum": (bad_checksum, "damaged image"),
    "B8 144 megapixels": (lambda: png_of(12_000, 12_000), "too many pixels"),
    "B9 900 megapixels": (lambda: png_of(30_000, 30_000), "too many pixels"),
    "B11 animated GIF": (lambda: frames("GIF", 50), "several frames"),
    "B11 animated PNG": (lambda: frames("PNG", 3), "several frames"),
    "B11 many-page TIFF": (lambda: frames("TIFF", 3), "several frames"),
    "B20 one pixel": (lambda: png(picture(1, (1, 1))), "a side below 4 pixels"),
    "B20 a line": (lambda: png(picture(1, (1, 5000))), "a side below 4 pixels"),
    "B20 zero height": (lambda: png_of(10, 0), "not an image|damaged image|a side below"),
    "B22 NaN": (lambda: float_tiff(np.nan), "values not finite"),
    "B22 infinity": (lambda: float_tiff(np.inf), "values not finite"),
    "B33 EPS": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "not an image",
    ),
    "B33 PDF": (lambda: encode(Image.fromarray(picture(1)), "PDF"), "not an image"),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_an_unusable_image_is_skipped_with_its_reason(case):
    make, reason = SKIPPED[case]
    with pytest.raises(SkipItem, match=reason):
        decode_image(make())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.png", "empty file"),
        ("gone.png", "gone or unreadable"),
        (".", "not a plain file"),
        ("fifo.png", "not a plain file"),
    ],
)
def test_what_is_no_file_with_content_is_skipped_and_not_waited_for(tmp_path, name, reason):
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(SkipItem, match=reason):
        read_plain(tmp_path / name)


def test_truncated_images_switch_is_refused(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(SetupError, match="LOAD_TRUNCATED_IMAGES is True"):
        decode_image(jpeg())


GREY_16 = np.arange(64, dtype=np.uint16).reshape(8, 8)
SHADES = (GREY_16 * 255 // 63).astype(np.uint8)
CLEAR = np.full((10, 10, 4), 255, np.uint8)
CLEAR[5:, :, 3] = 0
CONVERTED = {
    "16 bits keep their shades": (png(GREY_16 * 16), SHADES, "scaled by own maximum"),
    # Pillow inverts 8 bits, but not 16.
    "16 bits with white as zero": (
        encode(Image.fromarray(GREY_16 * 10), "TIFF", tiffinfo={262: 0}),
        255 - SHADES,
        "white as zero turned over",
    ),
    "hidden colours stay hidden": (
        png(CLEAR),
        np.repeat(CLEAR[..., 3:], 3, axis=-1),
        "mode RGBA blended on black",
    ),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_pixels_are_converted_and_that_is_recorded(name):
    body, pixels, note = CONVERTED[name]
    sample = decode_image(body)
    np.testing.assert_allclose(sample.pixels.astype(int), pixels, atol=1)
    assert sample.conversions[0] == note


def test_one_color_is_not_skipped_for_its_alpha_channel_if_blending_shows_the_content():
    alpha = picture(1)
    white = decode_image(transparent(255, alpha, "RGBA")).pixels
    np.testing.assert_array_equal(white, np.repeat(alpha[..., None], 3, axis=-1))
    black = decode_image(transparent(0, np.full_like(alpha, 128), "RGBA")).pixels
    assert not black.any()  # constant in the alpha channel too: skipped as a constant image


@pytest.mark.parametrize(
    ("mode", "note"),
    [("P", "converted"), ("CMYK", "converted"), ("1", "converted"), ("LA", "blended on black")],
)
def test_other_modes_are_converted_and_recorded(mode, note):
    image = Image.fromarray(
        np.stack([picture(index, (20, 20)) for index in range(3)], axis=-1)
    ).convert(mode)
    sample = decode_image(encode(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert f"mode {mode} {note}" in sample.conversions
    assert sample.pixels.dtype == np.uint8


def test_exif_orientation_is_applied_and_recorded():
    exif = Image.Exif()
    exif[0x0112] = 6
    sample = decode_image(encode(Image.fromarray(picture(1, (40, 20))), "JPEG", exif=exif))
    assert sample.pixels.shape == (20, 40)
    assert sample.conversions == ("EXIF orientation applied",)


def test_16_bit_colour_is_flagged_since_low_bytes_are_lost():
    """12-bit color in 16 bits would keep only 16 of 4,096 shades, without a warning."""
    rows = b"".join(b"\0" + np.full(8 * 3, 4000, ">u2").tobytes() for _ in range(8))
    flags = decode_image(png_of(8, 8, rows, depth=16, colour=2)).flags
    assert flags == ("16-bit channels cut to their high byte",)


PICTURE = np.random.default_rng(0).integers(0, 256, (37, 53)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (20, 20, 3)).astype(np.uint8)


@pytest.mark.parametrize("side", [16, 37, 64])
def test_resizing_without_antialias_equals_torchs_bilinear_interpolation(side):
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(PICTURE).float()[None, None],
        (side, side),
        mode="bilinear",
        align_corners=False,
    )[0].numpy()
    resized = to_prepared(PICTURE, image_size=side, channels=1, dtype="float32", antialias=False)
    np.testing.assert_allclose(resized, expected, atol=1e-3)


@pytest.mark.parametrize("side", [16, 64])
def test_resizing_with_antialias_equals_torchvisions(side):
    expected = resize(torch.from_numpy(PICTURE).float()[None], [side, side], antialias=True).numpy()
    resized = to_prepared(PICTURE, image_size=side, channels=1, dtype="float32")
    np.testing.assert_allclose(resized, expected, atol=0.05)


def test_channels():
    assert to_prepared(PICTURE, image_size=8, channels=3).shape == (3, 8, 8)
    grey = to_prepared(COLOUR, image_size=20, channels=1)[0]
    np.testing.assert_allclose(grey, COLOUR @ np.array([0.299, 0.587, 0.114]), atol=0.51)
    np.testing.assert_array_equal(
        to_prepared(COLOUR, image_size=20, channels=3), COLOUR.transpose(2, 0, 1)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_own_maximum_is_the_studys_rule_exactly(dtype):
    values = np.random.default_rng(2).integers(-50, 3000, (80, 80))
    values = {np.uint8: values % 200, np.uint16: abs(values)}.get(dtype, values).astype(dtype)
    expected = (np.clip(values, 0, None).astype(float) * 255.0 / values.max()).astype(np.uint8)
    np.testing.assert_array_equal(scale_by_image_maximum(values)[0], expected)
