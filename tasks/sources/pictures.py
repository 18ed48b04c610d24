"""Decode pictures such as PNG and JPEG to gray or RGB pixels in [0, 255], and resize images.

Pillow reads the formats. TIFF 6.0 defines the TIFF tags, and Exif 2.3 the orientation. The
declared size of a picture is checked before its pixels are decoded.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from search_spaces.errors import SetupError
from tasks.array_types import AnyArray, Float32Array, Uint8Array
from tasks.sources.base import Sample, SkipItem

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
"""Formats that are read. Other formats of Pillow are unsafe. For example, Pillow starts the
program Ghostscript to read EPS files."""
EXTENSIONS = (
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
"""Largest number of pixels of an image. Without our check, Pillow would decode a larger image
and only print a warning."""
MAX_DECODED_BYTES = 256 << 20
"""Largest size of a decoded image in bytes. An RGB image of :data:`MAX_PIXELS` has this
size."""
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
"""Pillow's mode -> bytes of a decoded pixel. A pixel of 1 bit is converted to a byte."""
MAX_BYTES_PER_PIXEL = 4
"""Bytes of a decoded pixel in all other modes."""
TRANSPARENT_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
ONLY_ALPHA = "constant colors, content only in the alpha channel"
"""Reason to skip an image that becomes constant on black, although its alpha channel
varies."""
BY_OWN_MAXIMUM = "scaled by own maximum"
"""Conversion of images with more than 8 bits, and of DICOM files."""
STRIP_ROWS = 256
STRIP_VALUES = 1 << 22
"""Number of rows, or of values, that are converted at once. Copies of a whole image would need
too much memory."""
MIN_SIDE = 4
"""Smallest length in pixels of an image's shorter side."""
TILE_WIDTH = 322
TILE_LENGTH = 323
PHOTOMETRIC = 262
"""Numbers of TIFF tags."""
WHITE_IS_ZERO = 0
"""Value of the tag :data:`PHOTOMETRIC` for images in which 0 is white."""
ORIENTATION = 0x0112
"""Number of the Exif tag that contains the orientation of an image."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in gray (ITU-R BT.601), the same as in Pillow."""


def is_image_name(name: str) -> bool:
    """Return whether a file name has the extension of a picture."""
    return name.lower().endswith(EXTENSIONS)


def has_image_format(path: Path) -> bool:
    """Return whether a file begins like an image. A file that cannot be opened counts as one.

    This function reads only the header, so it does not detect all damaged images.
    """
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=FORMATS):
                return True
        except UnidentifiedImageError:
            return False
        except Exception:
            return True


def decode_image(body: bytes) -> Sample:
    """Decode the bytes of an image file to uint8 gray or RGB.

    Transparent pixels are blended with black. Palettes, CMYK and 1-bit images become RGB or
    gray. The EXIF orientation is applied. As in the study, images with more than 8 bits are
    scaled by their own maximum. The field ``conversions`` of the sample lists these changes.

    Raises:
        SkipItem: The file is not an image. Or the image is damaged, too large, too small or
            animated, or it has values that are not finite.
        SetupError: Pillow is set to accept truncated images.
    """
    from PIL import Image, ImageFile, UnidentifiedImageError

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise SetupError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, so Pillow would accept truncated images",
            hint="Your code, or a library that it imports, has set LOAD_TRUNCATED_IMAGES to "
            "True. Set it to False",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Pillow warns about unusual EXIF and palette data. It raises an error if it cannot
        # decode the image.
        warnings.simplefilter("ignore", UserWarning)
        try:
            with Image.open(io.BytesIO(body), formats=FORMATS) as image:
                _check_declared_size(image)
                _check_single_frame(image)
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


def _tiff_tag(image: Image, tag: int) -> int | None:
    """Return the value of a TIFF tag; None for other formats and missing tags."""
    if image.format != "TIFF":
        return None
    value: int | None = image.tag_v2.get(tag)  # type: ignore[attr-defined]
    return value


def _check_declared_size(image: Image) -> None:
    """Check the size in an image's header, before its pixels are decoded.

    Raises:
        SkipItem: The image is too large or too small.
    """
    width, height = image.size
    # Pillow decodes a whole tile, even if the image is smaller than the tile.
    tile_width = int(_tiff_tag(image, TILE_WIDTH) or 0)
    tile_length = int(_tiff_tag(image, TILE_LENGTH) or 0)
    num_decoded = max(width * height, tile_width * tile_length)
    num_bytes = num_decoded * BYTES_PER_PIXEL.get(image.mode, MAX_BYTES_PER_PIXEL)
    if width * height > MAX_PIXELS or num_bytes > MAX_DECODED_BYTES:
        raise SkipItem("too many pixels")
    if min(width, height) < MIN_SIDE:
        raise SkipItem(f"a side below {MIN_SIDE} pixels")


def _check_single_frame(image: Image) -> None:
    """Check that an image has one frame.

    Raises:
        SkipItem: The image has several frames.
    """
    if image.format == "MPO":  # a JPEG of a phone, whose first frame is the photograph
        return
    try:
        image.seek(1)
    except EOFError:
        image.seek(0)
        return
    raise SkipItem("several frames")


def _convert(image: Image) -> Sample:
    """Decode an image to 8-bit gray or RGB. The sample lists the conversions."""
    from PIL import ImageOps

    conversions = []
    flags = []
    # Pillow's decoder arguments contain the stored mode. image.load removes these arguments.
    decoder_arguments = str(getattr(image, "tile", ""))
    image.load()
    if ";16" in decoder_arguments and image.mode in ("RGB", "RGBA", "LA"):
        # Pillow drops the low byte of each value.
        flags.append("16-bit channels cut to their high byte")
    if image.getexif().get(ORIENTATION, 1) not in (0, 1):
        image = ImageOps.exif_transpose(image)
        conversions.append("EXIF orientation applied")
    if image.mode in TRANSPARENT_MODES or "transparency" in image.info:
        conversions.append(f"mode {image.mode} blended on black")
        pixels = _blend_on_black(image)
    elif image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if _tiff_tag(image, PHOTOMETRIC) == WHITE_IS_ZERO:
            values = values.max() - values  # Pillow itself inverts only 8-bit images
            conversions.append("white as zero turned over")
        flags = list(negative_flags(values))
        pixels, scaling = scale_by_image_maximum(values)
        conversions += scaling
    elif image.mode in ("L", "RGB"):
        pixels = np.asarray(image)
    else:
        conversions.append(f"mode {image.mode} converted")
        pixels = np.asarray(image.convert("L" if image.mode == "1" else "RGB"))
    return Sample(pixels, conversions=tuple(conversions), flags=tuple(flags))


def _blend_on_black(image: Image) -> Uint8Array:
    """Return the RGB pixels of a transparent image on black.

    The image is blended in strips of rows to save memory.

    Raises:
        SkipItem: All pixels become equal, because only the alpha channel has content.
    """
    from PIL import Image as Pillow

    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    is_constant = True
    alpha_extremes: set[object] = set()
    for top in range(0, height, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, height)
        strip = image.crop((0, top, width, bottom)).convert("RGBA")
        black = Pillow.new("RGBA", strip.size, (0, 0, 0, 255))
        blended = Pillow.alpha_composite(black, strip)
        pixels[top:bottom] = np.asarray(blended.convert("RGB"))
        is_constant = is_constant and bool((pixels[top:bottom] == pixels[0, 0]).all())
        alpha_extremes.update(strip.getchannel("A").getextrema())
    if is_constant and len(alpha_extremes) > 1:
        raise SkipItem(ONLY_ALPHA)
    return pixels


def negative_flags(values: AnyArray) -> tuple[str, ...]:
    """Return a flag if scaling by the maximum clips negative values to 0."""
    if values.dtype.kind in "if" and values.min() < 0:
        return ("negative values clipped to 0",)
    return ()


def scale_by_image_maximum(values: AnyArray) -> tuple[Uint8Array, tuple[str, ...]]:
    """Scale an image so that its maximum becomes 255. Negative values become 0.

    As in the study, values are rounded toward zero.

    Args:
        values: ``(height, width[, 3])`` numbers of any type.

    Returns:
        The uint8 pixels, and the conversion in words; no conversion if nothing changed.

    Raises:
        SkipItem: A value is not finite, or no value is above 0.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise SkipItem("values not finite")
    maximum = values.max()
    if maximum <= 0:
        raise SkipItem("no value above 0" if values.min() < 0 else "constant image")
    if values.dtype == np.uint8 and maximum == 255:
        return np.asarray(values, dtype=np.uint8), ()
    pixels = np.empty(values.shape, np.uint8)
    # Below this limit, a value times 255 fits into 32 bits. Computing with integers is exact,
    # and five times as fast as with floats.
    is_small_integer = values.dtype.kind in "ui" and maximum < 1 << 24
    # Strips of rows save memory, because a float needs eight times the memory of a uint8
    # pixel.
    step = max(1, STRIP_VALUES // max(1, values[:1].size))
    for start in range(0, len(values), step):
        stop = start + step
        strip = np.maximum(values[start:stop], 0)
        # Both divisions, and the conversion to uint8, round toward zero.
        if is_small_integer:
            pixels[start:stop] = strip.astype(np.uint32) * 255 // int(maximum)
        else:
            pixels[start:stop] = strip.astype(np.float64) * 255 / float(maximum)
    return pixels, (BY_OWN_MAXIMUM,)


def to_prepared(
    pixels: AnyArray,
    *,
    image_size: int,
    channels: int,
    dtype: Literal["uint8", "float32"] = "uint8",
    antialias: bool = True,
) -> AnyArray:
    """Resize an image to a square. As in the study, its aspect ratio may change.

    For 3 channels, the channel of a gray image is repeated. For 1 channel, a color image
    becomes gray.

    Args:
        pixels: ``(height, width)`` or ``(height, width, 3)`` in [0, 255].
        image_size: Side of the square in pixels.
        channels: 1 or 3.
        dtype: Type of the result. For uint8, values are rounded.
        antialias: False for the bilinear resize of the released code (F15).

    Returns:
        ``(channels, image_size, image_size)`` in [0, 255].
    """
    planes = np.asarray(pixels)
    if channels == 1 and pixels.ndim == 3:
        planes = _luma(planes)
    if planes.ndim == 2:
        planes = planes[..., None]
    resized = []
    for index in range(planes.shape[2]):  # one plane at a time saves memory
        plane: Float32Array = np.asarray(planes[..., index], np.float32)
        resized.append(_resize(plane, image_size, antialias=antialias))
    stacked = np.stack(resized * (channels // len(resized)))
    if dtype == "float32":
        return stacked
    return np.rint(np.clip(stacked, 0, 255)).astype(np.uint8)


def _luma(pixels: AnyArray) -> AnyArray:
    """Return the gray values of an RGB image, computed in strips of rows."""
    step = max(1, STRIP_VALUES // pixels.shape[1])
    strips = []
    for top in range(0, len(pixels), step):
        strips.append(pixels[top : top + step].astype(np.float32) @ LUMA)
    return np.concatenate(strips)


def _resize(plane: Float32Array, side: int, *, antialias: bool) -> Float32Array:
    """Resize one channel to a square by bilinear interpolation."""
    from PIL import Image

    if plane.shape == (side, side):
        return plane
    if not antialias:
        return _resize_first_axis(_resize_first_axis(plane, side).T, side).T
    # To shrink an image, Pillow widens the filter. This is the antialiasing.
    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32)


def _resize_first_axis(plane: Float32Array, size: int) -> Float32Array:
    """Interpolate at half-pixel centers along the first axis, as torch does without antialias."""
    half = np.float32(0.5)
    scale = np.float32(plane.shape[0] / size)
    coordinate = (np.arange(size, dtype=np.float32) + half) * scale - half
    coordinate = np.maximum(coordinate, 0)
    low = np.minimum(coordinate.astype(np.int64), plane.shape[0] - 1)
    high = np.minimum(low + 1, plane.shape[0] - 1)
    weight = (coordinate - low.astype(np.float32))[:, None]
    mixed: Float32Array = plane[low] * (1 - weight) + plane[high] * weight
    return mixed
