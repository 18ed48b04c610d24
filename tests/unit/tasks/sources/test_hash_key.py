"""The key of hashes: where it comes from, and what is refused with which hint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from search_spaces.errors import SetupError
from tasks.sources import base
from tasks.sources.base import hash_key


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("short", "ISWEEP_HASH_KEY has 5 characters"),
        (" " * 20, "ISWEEP_HASH_KEY has 0 characters, not counting spaces"),
        (os.fsdecode(b"\xe9" * 20), "ISWEEP_HASH_KEY contains bytes that are not UTF-8"),
    ],
    ids=["short", "blank", "not UTF-8"],
)
def test_an_unusable_key_of_the_user_is_refused(tmp_path, monkeypatch, key, message):
    monkeypatch.setenv("ISWEEP_HASH_KEY", key)
    with pytest.raises(SetupError, match=message):
        hash_key(tmp_path)


@pytest.mark.parametrize(
    ("owner", "function"),
    [(Path, "exists"), (base, "read_whole")],
    ids=["folder", "file"],
)
def test_without_permission_the_hint_is_not_to_delete_the_key(
    tmp_path, monkeypatch, owner, function
):
    hash_key(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(owner, function, refuse)
    with pytest.raises(SetupError, match="no permission to use the file") as caught:
        hash_key(tmp_path)
    assert "Change the permissions of the folder" in caught.value.hint
    assert "Do not delete the file" in caught.value.hint
