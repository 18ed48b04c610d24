"""All files of a raw download by name, those in its archives included, as if these were unpacked in place.

A file that lies there unpacked goes before the same name in an archive. Archives are opened only when asked
for, so a download that is unpacked pays nothing for the archives that were left beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from search_spaces.errors import DataError
from tasks.sources.archives import (
    MARK,
    MAX_DEPTH,
    RefusedArchive,
    is_archive_name,
    open_archive,
    split_locator,
)
from tasks.sources.base import RawRequest
from tasks.sources.files import walk


class RawTree:
    """Names below a raw folder or in a raw archive, found without regard to case; walked once.

    Args:
        request: What is read; its raw path may be a folder, or an archive.
        archives: Look into the archives below the folder, too.
        wanted: Which archives to look into, by name as if unpacked; all by default.

    Raises:
        DataError: for links out, FIFOs, unreadable folders, and archives that must not be read.
    """

    def __init__(
        self, request: RawRequest, *, archives: bool = False, wanted: Callable[[str], bool] = lambda _: True
    ) -> None:
        root = request.root()
        self.folders: list[str] = []
        self._locators: dict[str, str] = {}
        self.archives: list[str] = []
        if root.is_dir():
            for name in walk(root, request, self.folders):
                self._locators[name] = name
                if is_archive_name(name):
                    self.archives.append(name)
            todo = self.archives if archives else []
        else:
            todo = [root.name]
            self.archives = [root.name]
        for name in todo:
            place = name.rpartition("/")[0] if root.is_dir() else ""
            for virtual, locator in _members(request, name, (), place, wanted) if wanted(name) else ():
                before = self._locators.get(virtual)
                if before is None or MARK not in before:
                    self._locators.setdefault(virtual, locator)
                else:  # one name in two archives: OAI's series all hold a file 001
                    self._locators[locator] = locator
        self.names = sorted(self._locators, key=lambda name: name.split("/"))
        self._by_case = {name.casefold(): name for name in reversed(self.names)}

    def __iter__(self) -> Iterator[str]:
        """Yield all names in sorted order."""
        return iter(self.names)

    def locator(self, name: str) -> str:
        """Return where a file of this tree is, as an item's locator."""
        return self._locators[name]

    def get(self, name: str) -> str | None:
        """Return the locator of a name in whatever case, or None."""
        found = self._by_case.get(name.casefold())
        return None if found is None else self._locators[found]


def _members(
    request: RawRequest, file: str, inner: tuple[str, ...], place: str, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, str]]:
    """Yield (name as if unpacked, locator) of an archive's members, of inner archives too."""
    try:
        names = open_archive(request.base() / file, inner).members()
    except RefusedArchive as refused:
        rule = f"{request.dataset.name}: archives of the raw download must be whole and safe"
        where = request.hashed(MARK.join((file, *inner)))
        way_out = "download it again, or unpack it beside the others and take it away"
        raise DataError(rule, f"{where}: {refused.reason}", way_out) from None
    for name in names:
        virtual = f"{place}/{name}" if place else name
        if is_archive_name(name) and len(inner) + 1 < MAX_DEPTH:
            if wanted(virtual):
                yield from _members(request, file, (*inner, name), virtual.rpartition("/")[0], wanted)
        else:
            yield virtual, MARK.join((file, *inner, name))


def outer_file(locator: str) -> str:
    """Return the plain file that a locator leads into."""
    return split_locator(locator)[0]
