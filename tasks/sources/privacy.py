"""Keyed hashes of file names and patient ids: the only form in which they leave the reading code."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from tasks.atomic import write_once

KEY_FILE = ".hash_key"
KEY_VARIABLE = "ISWEEP_HASH_KEY"


def hash_key(folder: Path) -> str:
    """Return the key: ``ISWEEP_HASH_KEY``, or a random one made once in ``folder`` (mode 0600).

    With the key a lab can find the file behind a hash; without it ids cannot be guessed by hashing them all.
    """
    given = os.environ.get(KEY_VARIABLE)
    if given:
        return given
    path = folder / KEY_FILE
    if not path.exists():
        # If another process was first, its key holds.
        write_once(path, secrets.token_hex(32).encode(), mode=0o600)
    return path.read_text().strip()


def keyed_hash(key: str, value: str) -> int:
    """Return 63 bits of a keyed BLAKE2b of ``value``."""
    raw = value.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(raw, key=key.encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def spell(hashed: int) -> str:
    """Spell a keyed hash as in messages and records: 16 hex digits."""
    return f"{hashed:016x}"


def locate(raw: Path, key_folder: Path, hashed: str) -> str | None:
    """Return the file or archive member below ``raw`` behind a hash from a message or record, for those who
    hold the key.

    Args:
        raw: Raw folder, or the manifest in it.
        key_folder: Folder with the prepared datasets, where the key lies.
        hashed: 16 hex digits.
    """
    key = hash_key(key_folder)
    from tasks.sources.tree import all_locators

    base = raw if raw.is_dir() else raw.parent
    return next((name for name in all_locators(base) if spell(keyed_hash(key, name)) == hashed), None)
