"""Functions that the sources of official downloads share: archives, tables and repeated rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from search_spaces.errors import DataError, plural
from tasks.sources.base import Item, Listing, RawRequest, Sample, Source
from tasks.sources.pictures import decode_image, scale_by_image_maximum
from tasks.sources.raw import RawTree, read_locator
from tasks.sources.tables import column_key, column_keys, first_hashed, read_table_rows

TABLE_EXTENSIONS = (".xlsx", ".csv", ".txt", ".tsv", ".sas7bdat")
MAX_TABLE_DEPTH = 6
"""Largest number of folders above a table. Tables in deeper folders belong to single
patients."""
FILE_MISSING = "file is missing"
OWN_MAXIMUM = "each image by its own maximum"


class IncompleteDownloadError(DataError):
    """The error for a download that lacks a table or all images."""


def download(
    list_tree: Callable[[RawTree, RawRequest], Listing],
    read: Callable[[bytes, Item, RawRequest], Iterable[Sample]],
    wanted: Callable[[str], bool] = lambda _: True,
) -> Source:
    """Return the source of a download whose parts may be unpacked or in archives.

    Archives are opened only if the unpacked files are incomplete. Archives that are not needed
    therefore cost no time.

    Args:
        list_tree: Function that lists the items of a tree. If a table or all images are
            missing, it raises :func:`incomplete_download`. If a single image is missing, it
            skips the item with the reason :data:`FILE_MISSING`.
        read: Function that returns the samples in the bytes of an item's file.
        wanted: Function that returns whether to open the archive with this name.
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
    """Return the picture of an item, scaled by its own maximum."""
    sample = decode_image(body)
    pixels, conversions = scale_by_image_maximum(sample.pixels)
    return (replace(sample, pixels=pixels, conversions=(*sample.conversions, *conversions)),)


def incomplete_download(
    request: RawRequest,
    part: str,
    tree: RawTree,
) -> IncompleteDownloadError:
    """Return the error for a download that lacks a part.

    Args:
        request: The dataset and its download.
        part: The part in words, such as ``a table with the columns ID, Label``.
        tree: All files of the download.
    """
    archives = ""
    if tree.archives:
        archives = f" and its {plural(len(tree.archives), 'archive')}"
    return IncompleteDownloadError(
        f"Missing from the download of {request.dataset.name}{archives}: {part}",
        hint=f"Arrange the files in this layout: {request.dataset.raw_layout}",
    )


def repeated_rows(
    name: str, labels: Iterable[tuple[str, int | None]], request: RawRequest
) -> dict[str, int]:
    """Return the number of rows whose image already has an earlier row.

    Args:
        name: Name of the table in messages.
        labels: Pairs (image, label), one per row.
        request: The request. Its method ``error`` makes the errors.

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
            f"{name} has two different labels for the same image. Number of such images: "
            f"{first_hashed(request, sorted(contradictory))}",
            hint="Download the table again",
        )
    return {"repeated row": num_repeats}


def find_named(tree: RawTree, file: str) -> list[str]:
    """Return the paths of all files called ``file``.

    Files with the fewest folders above them come first.
    """
    suffix = f"/{file.casefold()}"
    names = [name for name in tree if f"/{name.casefold()}".endswith(suffix)]
    return sorted(names, key=lambda name: (name.count("/"), name))


def find_table(
    tree: RawTree,
    request: RawRequest,
    stem: str,
    columns: Sequence[str],
    *,
    only_named: bool = False,
) -> str:
    """Return the locator of the table with these columns.

    A table is recognized by its columns, because browsers and archives may change the file
    names.

    Args:
        tree: All files of the download.
        request: The request. Its method ``error`` makes the errors.
        stem: Beginning of the usual name. Tables with such a name are read first.
        columns: Columns that the table must have.
        only_named: True to read only tables with such a name. Set it if other tables of the
            download also have these columns.

    Raises:
        IncompleteDownloadError: No table has the columns.
        DataError: Several different tables have the columns.
    """
    needed = set(map(column_key, columns))
    named = []
    unnamed = []
    for name in tree:
        path = PurePosixPath(name)
        if path.suffix.lower() not in TABLE_EXTENSIONS or name.count("/") > MAX_TABLE_DEPTH:
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
    """Check that several tables are copies of one table.

    Raises:
        DataError: Two tables differ.
    """
    first_rows = read_table_rows(locators[0], request).rows
    for locator in locators[1:]:
        if read_table_rows(locator, request).rows != first_rows:
            listed = ", ".join(map(request.hashed, locators[:5]))
            raise request.error(
                f"{len(locators)} different tables have the columns of {stem}: {listed}",
                hint="Keep the correct table in the download, and move the others elsewhere",
            )
