"""What readers of official downloads share: the tree, the tables in it, rows that repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Sample, Source
from tasks.sources.pictures import by_own_maximum, decode_image
from tasks.sources.raw import RawTree, read_locator
from tasks.sources.tables import column_key, first_hashed, header_of, read_lines

TABLE_ENDINGS = (".xlsx", ".csv", ".txt", ".tsv", ".sas7bdat")
MAX_TABLE_DEPTH = 6
FILE_MISSING = "file is missing"
OWN_MAXIMUM = "each image by its own maximum"


class NotThereError(DataError):
    """A table or all images of a download are neither unpacked nor in an archive."""


def download(
    list_tree: Callable[[RawTree, RawRequest], Listing],
    read: Callable[[bytes, Item, RawRequest], Iterable[Sample]],
    wanted: Callable[[str], bool] = lambda _: True,
) -> Source:
    """Return the source of a download, with its archives when a part of it is not unpacked.

    Archives left beside a whole one stay shut. ``list_tree`` tells what is not there by
    :func:`not_there` or items skipped as ``FILE_MISSING``; ``read`` makes samples of the bytes of
    an item's file; ``wanted`` says which archives to look into.
    """

    def list_items(request: RawRequest) -> Listing:
        tree = RawTree(request)
        if not tree.archives or not request.root().is_dir():
            return list_tree(tree, request)
        try:
            found = list_tree(tree, request)
        except NotThereError:
            found = None
        if found is not None and all(reason != FILE_MISSING for _, reason in found.skipped):
            return found
        return list_tree(RawTree(request, archives=True, wanted=wanted), request)

    def reader(request: RawRequest) -> Callable[[Item], Iterable[Sample]]:
        base = request.base()
        return lambda item: read(read_locator(base, item.locator), item, request)

    return Source(list_items, reader)


def read_picture(body: bytes, _item: Item, _request: RawRequest) -> tuple[Sample]:
    """Read a picture scaled by its own maximum."""
    sample = decode_image(body)
    pixels, note = by_own_maximum(sample.pixels)
    return (replace(sample, pixels=pixels, conversions=(*sample.conversions, *note)),)


def not_there(request: RawRequest, what: str, tree: RawTree) -> NotThereError:
    """Return the error for something that is neither unpacked nor in an archive."""
    found = (
        f"it is not there, nor in {len(tree.archives)} archives"
        if tree.archives
        else "it is not there"
    )
    rule = f"{request.dataset.name} needs {what}"
    return NotThereError(rule, found, f"expected: {request.dataset.raw_layout}")


def repeated_rows(
    name: str, labels: Iterable[tuple[str, int | None]], request: RawRequest
) -> dict[str, int]:
    """Return how many rows repeat another's image, as a reason; two labels for one are a
    DataError.
    """
    first: dict[str, int | None] = {}
    unlike, repeats = set[str](), 0
    for image, label in labels:
        repeats += image in first
        if first.setdefault(image, label) != label:
            unlike.add(image)
    if unlike:
        rule = f"{name} must give an image one label"
        raise request.error(
            rule, f"two: {first_hashed(request, sorted(unlike))}", "download the table again"
        )
    return {"repeated row": repeats}


def find_named(tree: RawTree, file: str) -> list[str]:
    """Return all names of the tree that end in ``file``, those nearest to the top first."""
    ending = f"/{file.casefold()}"
    names = [name for name in tree if f"/{name.casefold()}".endswith(ending)]
    return sorted(names, key=lambda name: (name.count("/"), name))


def find_table(
    tree: RawTree,
    request: RawRequest,
    stem: str,
    columns: Sequence[str],
    *,
    only_named: bool = False,
) -> str | None:
    """Return the locator of the table with these columns, whatever it is called; one called
    ``stem`` first.

    Browsers add `` (1)`` to a name and archives a date; columns are what makes a table the right
    one, unless other tables of the download have them, too (``only_named``). Several that differ
    are a DataError.
    """
    wanted = set(map(column_key, columns))
    near: list[str] = []
    far: list[str] = []
    for name in tree:
        path = PurePosixPath(name)
        if path.suffix.lower() in TABLE_ENDINGS and name.count("/") <= MAX_TABLE_DEPTH:
            (near if column_key(path.stem).startswith(column_key(stem)) else far).append(
                tree.locator(name)
            )
    for locators in (near,) if only_named else (near, far):
        found = [locator for locator in locators if wanted <= set(header_of(locator, request))]
        lines = [read_lines(locator, request).rows for locator in found] if len(found) > 1 else []
        if any(other != lines[0] for other in lines):
            rule = f"one table must have the columns of {stem}"
            listed = ", ".join(map(request.hashed, found[:5]))
            way_out = "keep the right one, move the others away"
            raise request.error(rule, f"{len(found)} that differ: {listed}", way_out)
        if found:
            return found[0]
    return None
