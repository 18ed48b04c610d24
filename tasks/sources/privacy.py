"""Keyed hashes of file names and patient ids: the only form in which they leave the reading code."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from search_spaces.errors import SetupError
from tasks.atomic import write_once

KEY_FILE = ".hash_key"
KEY_VARIABLE = "ISWEEP_HASH_KEY"
MIN_KEY_LENGTH = 16


def hash_key(folder: Path) -> str:
    """Return the key: ``ISWEEP_HASH_KEY``, or a random one made once in ``folder`` (mode 0600).

    With the key a lab can find the file behind a hash; without it ids cannot be guessed by hashing them all.

    Raises:
        SetupError: for a key that is cut or cannot be read: ids hashed with a short one can be guessed.
    """
    given = os.environ.get(KEY_VARIABLE)
    if given:
        return _long_enough(given, KEY_VARIABLE)
    path = folder / KEY_FILE
    if not path.exists():
        # If another process was first, its key holds.
        write_once(path, secrets.token_hex(32).encode(), mode=0o600)
    try:
        return _long_enough(path.read_text(encoding="ascii").strip(), str(path))
    except (OSError, ValueError) as error:
        raise _unusable(str(path), str(error)) from None


def _long_enough(key: str, where: str) -> str:
    if len(key) < MIN_KEY_LENGTH:
        raise _unusable(where, f"{len(key)} characters")
    return key


def _unusable(where: str, reason: str) -> SetupError:
    return SetupError(
        f"The key that hides patient ids must be whole, with {MIN_KEY_LENGTH} characters or more",
        f"{where}: {reason}",
        "restore it from a backup, since with another key no hash leads back to its file; "
        "without one, delete it and prepare the datasets again",
    )


def keyed_hash(key: str, value: str) -> int:
    """Return 63 bits of a keyed BLAKE2b of ``value``."""
    raw = value.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(raw, key=key.encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def spell(hashed: int) -> str:
    """Spell a keyed hash as in messages and records: 16 hex digits."""
    return f"{hashed:016x}"
