"""The parts that readers of official downloads share: archives, tables and repeated rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Sample, Source
from tasks.sources.pictures import by_own_maximum, decode_image
from tasks.sources.raw import RawTree, read_locator
from tasks.sources.tables import column_key, column_keys, first_hashed, read_lines

TABLE_ENDINGS = (".xlsx", ".csv", ".txt", ".tsv", ".sas7bdat")
MAX_TABLE_DEPTH = 6
"""Folders above a table; deeper ones are of single patients."""
FILE_MISSING = "file is missing"
OWN_MAXIMUM = "each image by its own maximum"


class IncompleteDownloadError(DataError):
    """A download lacks a table or all images: they are neither unpacked nor in an archive."""


def download(
    list_tree: Callable[[RawTree, RawRequest], Listing],
    read: Callable[[bytes, Item, RawRequest], Iterable[Sample]],
    wanted: Callable[[str], bool] = lambda _: True,
) -> Source:
    """Return the source of a download whose parts may still be packed in archives.

    Archives are opened only if something is not there without them. So archives that were left
    beside a complete download cost nothing.

    Args:
        list_tree: Lists the items of a tree. It reports what is absent by
            :func:`incomplete_download`, or by items skipped as :data:`FILE_MISSING`.
        read: Returns the samples in the bytes of an item's file.
        wanted: Whether an archive of that name is looked into.
    """

    def list_items(request: RawRequest) -> Listing:
        tree = RawTree(request)
        if not tree.archives or not request.root().is_dir():
            return list_tree(tree, request)
        try:
            listing = list_tree(tree, request)
        except IncompleteDownloadError:
            pass
        else:
            if all(reason != FILE_MISSING for _, reason in listing.skipped):
                return listing
        return list_tree(RawTree(request, wanted), request)

    def reader(request: RawRequest) -> Callable[[Item], Iterable[Sample]]:
        base = request.base()
        return lambda item: read(read_locator(base, item.locator), item, request)

    return Source(list_items, reader)


def read_picture(body: bytes, _item: Item, _request: RawRequest) -> tuple[Sample]:
    """Return a picture scaled by its own maximum."""
    sample = decode_image(body)
    pixels, conversions = by_own_maximum(sample.pixels)
    return (replace(sample, pixels=pixels, conversions=(*sample.conversions, *conversions)),)


def incomplete_download(request: RawRequest, part: str, tree: RawTree) -> IncompleteDownloadError:
    """Return the error for a download that lacks a part.

    Args:
        request: What is prepared.
        part: The part in words, such as ``a table with the columns ID, Label``.
        tree: All files of the download.
    """
    among = ""
    if tree.archives:
        among = f", also not in {len(tree.archives)} archives"
    return IncompleteDownloadError(
        f"{request.dataset.name} needs {part}. This part was not found{among}",
        hint=f"The download needs this layout: {request.dataset.raw_layout}",
    )


def repeated_rows(
    name: str, labels: Iterable[tuple[str, int | None]], request: RawRequest
) -> dict[str, int]:
    """Count rows of a table that repeat another row's image.

    Args:
        name: Name of the table in messages.
        labels: Pairs (image, label), one per row.
        request: For errors.

    Returns:
        The reason and the count, for :attr:`Listing.excluded`.

    Raises:
        DataError: An image has two labels.
    """
    first_labels: dict[str, int | None] = {}
    contradictory = set()
    num_repeats = 0
    for image, label in labels:
        num_repeats += image in first_labels
        if first_labels.setdefault(image, label) != label:
            contradictory.add(image)
    if contradictory:
        raise request.error(
            f"{name} gives images two labels: {first_hashed(request, sorted(contradictory))}",
            hint="Download the table again",
        )
    return {"repeated row": num_repeats}


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
) -> str:
    """Return the locator of the table with these columns, whatever its name.

    Browsers add `` (1)`` to a name and archives a date, so a name proves nothing.

    Args:
        tree: Where to look.
        request: For errors.
        stem: Start of the usual name. Tables with it are looked at first.
        columns: The columns that make a table the right one.
        only_named: Look at no others, because other tables of the download have these columns too.

    Raises:
        IncompleteDownloadError: No table has the columns.
        DataError: Several have them, and they differ.
    """
    needed = set(map(column_key, columns))
    named = []
    unnamed = []
    for name in tree:
        path = PurePosixPath(name)
        if path.suffix.lower() not in TABLE_ENDINGS or name.count("/") > MAX_TABLE_DEPTH:
            continue
        if column_key(path.stem).startswith(column_key(stem)):
            named.append(tree.locator(name))
        else:
            unnamed.append(tree.locator(name))
    if only_named:
        unnamed = []
    for locators in (named, unnamed):
        matching = []
        for locator in locators:
            if needed <= column_keys(locator, request):
                matching.append(locator)
        if len(matching) > 1:
            _check_alike(matching, stem, request)
        if matching:
            return matching[0]
    listed = ", ".join(columns)
    raise incomplete_download(request, f"a table {stem} with the columns {listed}", tree)


def _check_alike(locators: Sequence[str], stem: str, request: RawRequest) -> None:
    """Check that several tables are copies of one."""
    first_rows = read_lines(locators[0], request).rows
    for locator in locators[1:]:
        if read_lines(locator, request).rows != first_rows:
            listed = ", ".join(map(request.hashed, locators[:5]))
            raise request.error(
                f"{len(locators)} tables that differ have the columns of {stem}: {listed}",
                hint="Keep the right one, and move the others away",
            )
