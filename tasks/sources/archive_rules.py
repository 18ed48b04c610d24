"""What no archive may be or hold, whatever its format."""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib

from tasks.sources.files import is_noise

MAX_RATIO = 1040
"""Deflate cannot do better than 1032 to 1; more is a lie."""
PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members of a zip may be packed. zipfile reads others without any bound: bzip2 unpacks a chunk of a
member at once, 45,000 to 1, and LZMA takes as much memory as a member asks for."""
MAX_MEMBERS = 5_000_000
DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, RuntimeError, ValueError, KeyError, NotImplementedError),
)
"""What the standard library's readers raise on damaged or odd archives."""


class RefusedArchive(Exception):
    """An archive that must not be read; ``reason`` names no member."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def checked_member(name: str) -> str | None:
    """Return a member's name in ``/``-separated normal form; None for what file managers leave behind.

    Raises:
        RefusedArchive: for an absolute name, a drive, ``..`` or a zero byte.
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or parts[0][1:2] == ":":
        raise RefusedArchive("an archive with names that lead elsewhere")
    kept = [part for part in parts if part not in ("", ".")]
    return None if not kept or any(map(is_noise, kept)) else "/".join(kept)
