"""Contents of files that take gigabytes of memory if they are unpacked without a limit."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, PngImagePlugin
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from tests.raw_trees.dicoms import dicom_bytes, make_dicom


def _encapsulated(frame: bytes, syntax: str, rows: int, columns: int, bits: int = 8) -> bytes:
    data = make_dicom(np.ones((8, 8), np.uint8), bits=8)
    data.Rows, data.Columns = rows, columns
    if bits == 16:
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = encapsulate([frame])
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = syntax
    return dicom_bytes(data)


def _rle(num_bytes: int) -> bytes:
    """A PackBits stream of one segment that unpacks to ``num_bytes`` ones."""
    runs = b"\x81\x01" * (num_bytes // 128)
    return struct.pack("<16I", 1, 64, *[0] * 14) + runs


def _jpeg(side: int) -> bytes:
    """Return a small JPEG whose frame header declares ``side`` times ``side`` pixels."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)).save(
        stream, "JPEG"
    )
    body = bytearray(stream.getvalue())
    place = body.index(b"\xff\xc0") + 5
    body[place : place + 4] = struct.pack(">HH", side, side)
    return bytes(body)


def _jpeg2000(side: int, components: int = 1) -> bytes:
    """Return a small codestream whose SIZ marker declares more pixels."""
    stream = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    Image.fromarray(values).save(stream, "JPEG2000", no_jp2=True)
    body = bytearray(stream.getvalue())
    place = body.index(b"\xff\x51")
    body[place + 6 : place + 14] = struct.pack(">II", side, side)
    body[place + 22 : place + 30] = struct.pack(">II", side, side)
    if components > 1:
        body[place + 38 : place + 40] = struct.pack(">H", components)
    return bytes(body)


def _repeated(body: bytes, count: int, checksum: Callable[..., int]) -> tuple[bytes, int]:
    """Deflate ``count`` copies of ``body``, packed once; returns blocks without an end, and the
    checksum."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = packer.compress(body) + packer.flush(zlib.Z_FULL_FLUSH)
    check = checksum(b"")
    for _ in range(count):
        check = checksum(body, check)
    return packed * count, check


def _png(width: int, height: int, colour: int, depth: int, channels: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    row = b"\0" + bytes(range(1, 251)) * (width * channels * depth // 8 // 250 + 1)
    row = row[: 1 + width * channels * depth // 8]
    data, checksum = _repeated(row, height, zlib.adler32)
    data = b"\x78\x01" + data + b"\x03\0" + struct.pack(">I", checksum)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _tiled_tiff(side: int, tile: int) -> bytes:
    """A small TIFF in one tile of gigabytes (TIFF 6.0, section 15)."""
    data, checksum = _repeated(b"\1" * tile, tile, zlib.adler32)
    data = b"\x78\x01" + data + b"\x03\0" + struct.pack(">I", checksum)
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile}
    tags |= {324: 8 + 2 + 12 * 10 + 4, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def _zip(name: str, packed: bytes, declared: int) -> bytes:
    """A deflated member that unpacks to more than it declares (APPNOTE.TXT 4.3.7 and 4.3.12)."""
    sizes = struct.pack("<III", 0, len(packed), declared)
    local = (
        struct.pack("<IHHHHH", 0x04034B50, 20, 0, 8, 0, 0)
        + sizes
        + struct.pack("<HH", len(name), 0)
    )
    central = struct.pack("<IHHHHHH", 0x02014B50, 20, 20, 0, 8, 0, 0) + sizes
    central += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name.encode()
    start = len(local) + len(name) + len(packed)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(central), start, 0)
    return local + name.encode() + packed + central + end


def _lying_zip(name: str, first: bytes, declared: int) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    head = packer.compress(first) + packer.flush(zlib.Z_FULL_FLUSH)
    return _zip(name, head + _repeated(bytes(1 << 20), 1500, zlib.adler32)[0] + b"\x03\0", declared)


def _text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 60_000_000, zip=True)
    stream = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(
        stream, "PNG", pnginfo=info
    )
    return stream.getvalue()


def _nifti(
    shape: tuple[int, ...], code: int, bits: int, start: int, extension: int, zeros: int
) -> bytes:
    head = bytearray(348)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<hh", head, 70, code, bits)
    struct.pack_into("<8f", head, 76, *[1.0] * 8)
    struct.pack_into("<f", head, 108, float(start))
    head[344:348] = b"n+1\0"
    first = bytes(head) + (b"\1\0\0\0" if extension else bytes(4))
    if extension:
        first += struct.pack("<ii", extension, 6)
    # Members of one gzip file are read as one stream.
    chunk = gzip.compress(b"\0\0\0\0\0\0\xf0\x3f" * (1 << 17), 1)
    return gzip.compress(first) + chunk * (zeros >> 20)


BODIES: dict[str, Callable[[], bytes]] = {
    "good DICOM": lambda: dicom_bytes(
        make_dicom(np.arange(64, dtype=np.uint16).reshape(8, 8), bits=12)
    ),
    "good PNG": lambda: _png(100, 100, 0, 8, 1),
    "DICOM RLE 1 GiB": lambda: _encapsulated(_rle(1 << 30), RLELossless, 32768, 32768),
    "DICOM RLE 250 MiB": lambda: _encapsulated(_rle(250 << 20), RLELossless, 16000, 16384),
    "DICOM RLE 62 MiB": lambda: _encapsulated(_rle(62 << 20), RLELossless, 7936, 8192),
    "DICOM JPEG larger than declared": lambda: _encapsulated(
        _jpeg(40000), JPEGBaseline8Bit, 64, 64
    ),
    "DICOM JPEG 2000 larger than declared": lambda: _encapsulated(
        _jpeg2000(30000), JPEG2000Lossless, 64, 64
    ),
    "DICOM JPEG 2000 of many components": lambda: _encapsulated(
        _jpeg2000(4096, 16000), JPEG2000Lossless, 4096, 4096
    ),
    "DICOM plain 250 MiB": lambda: dicom_bytes(
        make_dicom(np.tile(np.arange(1000, dtype=np.uint16), (125, 1024, 1)), bits=12)
    ),
    "NIfTI extension of 2 GiB": lambda: _nifti((64, 64, 64), 2, 8, 1360, 2**31 - 16, 1 << 31),
    "NIfTI 250 MiB of float64": lambda: _nifti((512, 500, 125), 64, 64, 352, 0, 250 << 20),
    "NIfTI bomb": lambda: _nifti((64, 64, 64), 2, 8, 352, 0, 2 << 30),
    "88 megapixels of RGBA": lambda: _png(9400, 9400, 6, 8, 4),
    "60 megapixels of RGBA": lambda: _png(8000, 7500, 6, 8, 4),
    "88 megapixels of RGB": lambda: _png(9400, 9400, 2, 8, 3),
    "88 megapixels of 16 bits": lambda: _png(9400, 9400, 0, 16, 1),
    "PNG text bomb": _text_bomb,
    "TIFF in a tile of 1.5 GiB": lambda: _tiled_tiff(64, 40_000),
    "zip member of 1.5 GiB that declares 2 MiB": lambda: _lying_zip("x", b"", 2 << 20),
}
