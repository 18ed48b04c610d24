"""What a compressed frame says of itself before anything is decoded.

A decoder allocates what the codestream asks for, whatever the file around it declared. JPEG and JPEG-LS:
frame header (SOF marker), ITU-T T.81 B.2.2 and T.87 C.2.2; JPEG 2000: SIZ marker, ITU-T T.800 A.5.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SOF_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
STANDALONE = frozenset({0x01, *range(0xD0, 0xDA)})
START_OF_SCAN = 0xDA
CODESTREAM = b"\xff\x4f\xff\x51"
SEARCHED = 4096
"""How far into a JP2 file the codestream must begin."""


@dataclass(frozen=True)
class FrameHeader:
    """Size and components of one frame."""

    rows: int
    columns: int
    components: int


def read_frame_header(frame: bytes) -> FrameHeader | None:
    """Return what a JPEG, JPEG-LS or JPEG 2000 frame declares; None for other data (RLE).

    Raises:
        ValueError: when it begins as one of them and has no whole header.
    """
    if frame[:3] == b"\xff\xd8\xff":
        return _jpeg(frame)
    place = frame.find(CODESTREAM, 0, SEARCHED)
    return _jpeg2000(frame, place) if place >= 0 else None


def _jpeg(frame: bytes) -> FrameHeader:
    place = 2
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif marker in STANDALONE:
            place += 2
        elif marker in SOF_MARKERS:
            rows, columns, components = struct.unpack_from(">HHB", frame, place + 5)
            return FrameHeader(rows, columns, components)
        elif marker == START_OF_SCAN:
            break
        else:
            place += 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    raise ValueError("no frame header")


def _jpeg2000(frame: bytes, place: int) -> FrameHeader:
    try:
        right, bottom, left, top = struct.unpack_from(">IIII", frame, place + 8)
        (components,) = struct.unpack_from(">H", frame, place + 40)
    except struct.error:
        raise ValueError("no frame header") from None
    return FrameHeader(bottom - top, right - left, components)
