"""Streams of ``.gz``, ``.bz2`` and ``.xz`` files, read forward; going back starts again.

Formats: RFC 1952, bzip2 and the XZ file format 1.1, as read by the standard library. Its own ``LZMAFile``
cannot be told how much memory a header may ask for, which is up to 4 GiB; hence the class here.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import IO, Any

READ_BYTES = 1 << 16
MAX_XZ_MEMORY = 256 << 20
"""The strongest preset of ``xz`` (-9) asks for 65 MiB."""
GZIP, BZIP2, XZ = (".tar.gz", ".tgz"), (".tar.bz2", ".tbz2", ".tbz"), (".tar.xz", ".txz")
PACKED_TARS = GZIP + BZIP2 + XZ
"""Endings of tars that can only be read forward."""


def open_packed(file: IO[bytes], name: str) -> IO[bytes]:
    """Return the unpacked stream of a packed tar, by its name's ending."""
    lower = name.lower()
    if lower.endswith(GZIP):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    make: Callable[[], Any] = bz2.BZ2Decompressor if lower.endswith(BZIP2) else _xz
    return io.BufferedReader(_Unpacked(file, make), READ_BYTES)


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)


class _Unpacked(io.RawIOBase):
    """What one or several packed streams one after another unpack to."""

    def __init__(self, file: IO[bytes], make: Callable[[], Any]) -> None:
        self._file, self._make = file, make
        self._rewind()

    def _rewind(self) -> None:
        self._file.seek(0)
        self._unpacker, self._place, self._ended = self._make(), 0, False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place counted from the start, or from here."""
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end is known only once it was read")
        offset += self._place if whence == io.SEEK_CUR else 0
        if offset < self._place:
            self._rewind()
        while self._place < offset and self._next(min(READ_BYTES, offset - self._place)):
            pass
        return self._place

    def readinto(self, buffer: Any) -> int:
        found = self._next(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _next(self, size: int) -> bytes:
        while not self._ended:
            packed = b""
            if self._unpacker.eof:
                packed = self._unpacker.unused_data.lstrip(b"\0") or self._file.read(READ_BYTES).lstrip(b"\0")
                if not packed:
                    self._ended = True
                    break
                self._unpacker = self._make()
            elif self._unpacker.needs_input:
                packed = self._file.read(READ_BYTES)
                if not packed:
                    raise EOFError("a packed stream ends early")
            found: bytes = self._unpacker.decompress(packed, size)
            if found:
                self._place += len(found)
                return found
        return b""
