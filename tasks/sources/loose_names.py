"""Files of a known name as browsers, unzip tools and disks leave them: other case, other folders, `` (1)``.

Looked for first where the download has them, then anywhere below the raw folder, then in archives: those
named after the dataset before all others.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest, SkipItem
from tasks.sources.raw import RawTree, read_locator

COPY = re.compile(r"(?:[ _-]?\(\d+\)| copy(?: \d+)?| \d+)(?=(?:\.\w+)*$)")
"""What a browser or a file manager adds to a second copy's name, before its endings."""


def plain_name(name: str) -> str:
    """Spell a file's own name in lower case, without the mark of a copy."""
    return COPY.sub("", name.rpartition("/")[2].casefold())


def find_together(
    request: RawRequest, wanted: Sequence[Iterable[str]], *, hint: str, others: Sequence[str] = ()
) -> list[str] | None:
    """Return the locators of files that lie in one folder, one of each kind of name, or None.

    Args:
        request: What is read.
        wanted: For each file the names it may have, in lower case.
        hint: Part of the name of the dataset's own folders and archives, which go first, in lower case.
        others: Words of folders that hold another dataset with the same names, in lower case.

    Raises:
        DataError: when several folders have them and differ.
    """
    kinds = [set(names) for names in wanted]
    unpacked = [lambda _: False] if request.root().is_dir() else []
    for look_into in (*unpacked, lambda name: hint in name.casefold(), lambda _: True):
        found = _sets(RawTree(request, archives=True, wanted=look_into), kinds, others)
        found = [names for names in found if hint in names[0].casefold()] or found
        if found:
            _check_alike(found, request)
            return found[0]
    return None


def _sets(tree: RawTree, kinds: Sequence[set[str]], others: Sequence[str]) -> list[list[str]]:
    """Return one list of locators for each folder that has all files, those nearest to the top first."""
    folders: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for name in tree:
        for index, names in enumerate(kinds):
            if plain_name(name) in names and not any(word in name.casefold() for word in others):
                folder = _without_own(name.rpartition("/")[0], names)
                folders[folder].setdefault(index, tree.locator(name))
    whole = [folder for folder, files in folders.items() if len(files) == len(kinds)]
    ranked = sorted(whole, key=lambda folder: (folder.count("/") + bool(folder), folder))
    return [[folders[folder][index] for index in range(len(kinds))] for folder in ranked]


def _without_own(folder: str, names: set[str]) -> str:
    """Return a file's folder without one of the file's own name, in which Kaggle puts each file."""
    above, _, last = folder.rpartition("/")
    return above if last.casefold() in names or f"{last.casefold()}.gz" in names else folder


def _check_alike(found: Sequence[Sequence[str]], request: RawRequest) -> None:
    if len(found) < 2:
        return
    try:
        digests = {
            tuple(hashlib.sha256(read_locator(request.base(), name)).hexdigest() for name in names)
            for names in found
        }
    except SkipItem as skip:
        rule = f"{request.dataset.name}: every copy of the download must be readable"
        raise DataError(rule, skip.reason, "take the broken one away") from None
    if len(digests) > 1:
        rule = f"{request.dataset.name}: the raw folder must hold one such download"
        raise DataError(rule, f"{len(found)} that differ", "give the folder of the right one")
