"""Members of a ``.zip`` (APPNOTE.TXT 6.3, as read by :mod:`zipfile`)."""

from __future__ import annotations

import io
import stat
import zipfile
from typing import IO

from tasks.sources.archive_rules import (
    DAMAGE,
    MAX_MEMBERS,
    MAX_RATIO,
    PLAIN_METHODS,
    RefusedArchive,
    checked_member,
)
from tasks.sources.base import SkipItem
from tasks.sources.files import MAX_FILE_BYTES


class ZipMembers:
    """Members of a zip, by name, in any order."""

    def __init__(self, file: IO[bytes]) -> None:
        self._archive = zipfile.ZipFile(file)
        size = file.seek(0, io.SEEK_END)
        if sum(info.compress_size for info in self._archive.infolist()) > size:
            raise RefusedArchive("an archive whose members overlap")
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            name = checked_member(info.filename)
            if info.is_dir():
                continue
            self._check(info)
            if name is None:
                continue
            if name in self._members:  # a//b and a\\b are one place, too
                raise RefusedArchive("an archive with repeated names")
            self._members[name] = info
            if len(self._members) > MAX_MEMBERS:
                raise RefusedArchive(f"an archive with more than {MAX_MEMBERS:,} members")

    @staticmethod
    def _check(info: zipfile.ZipInfo) -> None:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise RefusedArchive("an archive with links or devices")
        if info.flag_bits & 1:
            raise RefusedArchive("an encrypted archive; unpack it with its password first")
        if info.file_size > MAX_RATIO * info.compress_size + MAX_RATIO:
            raise RefusedArchive("an archive that declares more than its packed size can hold")
        if info.compress_type not in PLAIN_METHODS:
            raise RefusedArchive("an archive packed by another method than deflate")

    def members(self) -> list[str]:
        """Return the names of all plain files, in stored order."""
        return list(self._members)

    def read(self, member: str, max_bytes: int) -> bytes:
        """Return a member's bytes, of at most ``max_bytes``."""
        info = self._members.get(member)
        if info is None:
            raise SkipItem("file is gone or unreadable")
        if info.file_size > max_bytes:
            raise SkipItem("file too large")
        try:
            with self._archive.open(info) as file:
                # Asked for all, zipfile unpacks whatever there is before it looks at the declared size.
                return file.read(info.file_size)
        except (*DAMAGE, MemoryError):
            raise SkipItem("damaged archive member") from None

    def open(self, member: str) -> IO[bytes]:
        """Return a seekable stream of a member, for an archive in this one."""
        return io.BytesIO(self.read(member, MAX_FILE_BYTES))
