"""PNG, JPEG and the like: decode wholly or skip, convert every mode by a stated rule, never run a
bomb.

Formats: as read by Pillow; TIFF tags by TIFF 6.0, orientation by Exif 2.3. Pixels are in [0, 255]
throughout.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import SetupError
from tasks.sources.base import Sample, SkipItem

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
"""Never all of Pillow's: EPS starts Ghostscript, PDF and FPX have plugins of their own."""

ENDINGS = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".webp",
    ".pgm",
    ".ppm",
)
MAX_PIXELS = 89_478_485
"""Pillow's own limit, where it warns; here it is an error."""
MAX_DECODED_BYTES = 256 << 20
"""What a decoded image may take: that many pixels of RGB, fewer with alpha or 32 bits."""
BYTES_PER_PIXEL = {
    "1": 1,
    "L": 1,
    "P": 1,
    "LA": 2,
    "PA": 2,
    "I;16": 2,
    "I;16B": 2,
    "RGB": 3,
    "YCbCr": 3,
}
"""By Pillow's mode; all others take up to four. 1-bit images are one byte once converted."""
STRIP_ROWS = 256
STRIP_VALUES = 1 << 22
MIN_SIDE = 4
TILE_WIDTH, TILE_LENGTH = 322, 323
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
ORIENTATION = 0x0112
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R BT.601, as in Pillow's conversion to grey."""


def is_image_name(name: str) -> bool:
    """Tell whether a file's ending is one of those we read."""
    return name.lower().endswith(ENDINGS)


def decode_image(body: bytes) -> Sample:
    """Decode the bytes of an image file to uint8 grey or RGB.

    Transparency is blended on black, palettes, CMYK and 1-bit images become RGB or grey, EXIF
    orientation is applied, more than 8 bits are scaled by the image's own maximum (the study's
    rule); each is recorded. What is no image, damaged, too large, too small, animated or not finite
    is a SkipItem.
    """
    from PIL import Image, ImageFile, UnidentifiedImageError

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        found = "LOAD_TRUNCATED_IMAGES is on"
        raise SetupError("Pillow must refuse truncated images", found, "a library switched it on")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter(
            "ignore", UserWarning
        )  # odd EXIF or palette data: the decoder decides
        try:
            with Image.open(io.BytesIO(body), formats=FORMATS) as image:
                _check_size(image)
                return replace(_convert(image), traits=(("file format", str(image.format)),))
        except UnidentifiedImageError:
            raise SkipItem("not an image") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise SkipItem("too many pixels") from None
        except (
            OSError,
            SyntaxError,
            ValueError,
            EOFError,
            TypeError,
            KeyError,
            IndexError,
            OverflowError,
        ):
            # Pillow's decoders raise any of these on damaged files.
            raise SkipItem("damaged image") from None


def _check_size(image: Image) -> None:
    width, height = image.size
    width_bytes = BYTES_PER_PIXEL.get(image.mode, 4)
    # A tile is decoded whole, however small the image is.
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    tile_pixels = int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_LENGTH, 0))
    if (
        width * height > MAX_PIXELS
        or max(width * height, tile_pixels) * width_bytes > MAX_DECODED_BYTES
    ):
        raise SkipItem("too many pixels")
    if min(width, height) < MIN_SIDE:
        raise SkipItem(f"a side below {MIN_SIDE} pixels")
    if (
        image.format == "MPO"
    ):  # a phone's JPEG with a preview behind it: the first picture is the photograph
        return
    try:
        image.seek(1)
    except EOFError:
        image.seek(0)
        return
    raise SkipItem("several frames")


def _convert(image: Image) -> Sample:
    from PIL import Image as Pillow
    from PIL import ImageOps

    notes = []
    stored = str(getattr(image, "tile", ""))  # gone once loaded; ends in the raw mode
    image.load()
    cut = ";16" in stored and image.mode in (
        "RGB",
        "RGBA",
        "LA",
    )  # Pillow keeps the high byte of each
    flags = ("16-bit channels cut to their high byte",) if cut else ()
    if image.getexif().get(ORIENTATION, 1) not in (0, 1):
        image = ImageOps.exif_transpose(image)
        notes.append("EXIF orientation applied")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        notes.append(f"mode {image.mode} blended on black")
        width, height = image.size
        pixels = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, STRIP_ROWS):  # so that a large image is not held several times
            strip = image.crop((0, top, width, min(top + STRIP_ROWS, height))).convert("RGBA")
            black = Pillow.new("RGBA", strip.size, (0, 0, 0, 255))
            pixels[top : top + STRIP_ROWS] = np.asarray(
                Pillow.alpha_composite(black, strip).convert("RGB")
            )
        return Sample(pixels, conversions=tuple(notes), flags=flags)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            values = values.max() - values  # Pillow turns 8 bits over only
            notes.append("white as zero turned over")
        pixels, note = by_own_maximum(values)
        return Sample(pixels, conversions=(*notes, *note), flags=negative_flags(values))
    if image.mode not in ("L", "RGB"):
        notes.append(f"mode {image.mode} converted")
        image = image.convert("L" if image.mode == "1" else "RGB")
    return Sample(np.asarray(image), conversions=tuple(notes), flags=flags)


def negative_flags(values: NDArray[np.generic]) -> tuple[str, ...]:
    """Return the flag of an image whose negative values its own maximum cuts at 0."""
    return ("negative values cut at 0",) if values.dtype.kind in "if" and values.min() < 0 else ()


def by_own_maximum(values: NDArray[np.generic]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Scale values by their own maximum to uint8, negative ones to 0; returns pixels, and what it
    is called.

    This is the study's rule for every image, which rounds towards zero; so do we. Values that are
    not finite, or none above 0, are a SkipItem.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise SkipItem("values not finite")
    top = values.max()
    if top <= 0:
        raise SkipItem("no value above 0" if values.min() < 0 else "constant image")
    if values.dtype == np.uint8 and top == 255:
        return np.asarray(values, dtype=np.uint8), ()
    pixels = np.empty(values.shape, np.uint8)
    # Exact, in a fifth of the time of floats: a value times 255 fits into 32 bits.
    is_whole = values.dtype.kind in "ui" and top < 1 << 24
    # In strips: a float takes eight times a pixel's byte.
    step = max(1, STRIP_VALUES // max(1, values[:1].size))
    for start in range(0, len(values), step):
        strip = np.maximum(values[start : start + step], 0)
        if is_whole:
            pixels[start : start + step] = strip.astype(np.uint32) * 255 // int(top)
        else:
            pixels[start : start + step] = (strip.astype(np.float64) * 255 / float(top)).astype(
                np.uint8
            )
    return pixels, ("scaled by own maximum",)


def to_prepared(
    pixels: NDArray[np.generic],
    *,
    image_size: int,
    channels: int,
    dtype: Literal["uint8", "float32"] = "uint8",
    antialias: bool = True,
) -> NDArray[np.generic]:
    """Return ``(channels, image_size, image_size)`` from ``(height, width)`` or ``(height, width,
    3)``.

    The aspect ratio is not kept, as in the study. Grey becomes three equal channels; colour becomes
    luma. uint8 results are rounded. ``antialias=False`` is the released code's plain bilinear
    resize (F15).
    """
    from PIL import Image

    planes = np.asarray(pixels)
    if (
        channels == 1 and pixels.ndim == 3
    ):  # in strips: a large image takes four times its bytes as floats
        rows = max(1, STRIP_VALUES // pixels.shape[1])
        strips = (
            planes[top : top + rows].astype(np.float32) @ LUMA
            for top in range(0, len(planes), rows)
        )
        planes = np.concatenate(list(strips))
    planes = planes[..., None] if planes.ndim == 2 else planes
    resized, side = [], image_size
    for index in range(planes.shape[2]):  # one at a time, for the same reason
        plane: NDArray[np.float32] = np.asarray(planes[..., index], np.float32)
        if plane.shape != (side, side) and antialias:
            # Pillow widens the filter when it shrinks, which is the antialiasing.
            image = Image.fromarray(np.ascontiguousarray(plane))
            plane = np.asarray(
                image.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32
            )
        elif plane.shape != (side, side):
            plane = _bilinear(_bilinear(plane, side).T, side).T
        resized.append(plane)
    stacked = np.stack(resized * (channels // len(resized)))
    return np.rint(np.clip(stacked, 0, 255)).astype(np.uint8) if dtype == "uint8" else stacked


def _bilinear(plane: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Resize the rows by two-point interpolation at half-pixel centres, as torch does without
    antialias.
    """
    scale = np.float32(plane.shape[0] / size)
    place = np.maximum(
        (np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0
    )
    low = np.minimum(place.astype(np.int64), plane.shape[0] - 1)
    high = np.minimum(low + 1, plane.shape[0] - 1)
    weight = (place - low.astype(np.float32))[:, None]
    mixed: NDArray[np.float32] = plane[low] * (1 - weight) + plane[high] * weight
    return mixed
