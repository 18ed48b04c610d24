"""What readers of official downloads share: the tree, the tables in it, DICOM frames as samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from search_spaces.errors import DataError
from tasks.sources.base import Listing, RawRequest, Sample
from tasks.sources.dicom import Dicom, frames_to_pixels
from tasks.sources.raw import RawTree
from tasks.sources.tables import column_key, first_hashed, header_of, read_lines

TABLE_ENDINGS = (".xlsx", ".csv", ".txt", ".tsv", ".sas7bdat")
MAX_TABLE_DEPTH = 6
FILE_MISSING = "file is missing"


class NotThereError(DataError):
    """A table or all images of a download are neither unpacked nor in an archive."""


def list_download(
    request: RawRequest,
    list_tree: Callable[[RawTree], Listing],
    wanted: Callable[[str], bool] = lambda _: True,
) -> Listing:
    """List what lies unpacked or, when a part of it is not there, what the archives hold, too.

    So a download half of which is unpacked is read whole, and archives left beside a whole one stay shut.

    Args:
        request: What is read.
        list_tree: Lists a tree; tells what is not there by :func:`not_there` or items skipped as
            ``FILE_MISSING``.
        wanted: Which archives to look into.
    """
    tree = RawTree(request)
    if not tree.archives or not request.root().is_dir():
        return list_tree(tree)
    try:
        found = list_tree(tree)
    except NotThereError:
        found = None
    if found is not None and all(reason != FILE_MISSING for _, reason in found.skipped):
        return found
    return list_tree(RawTree(request, archives=True, wanted=wanted))


def not_there(request: RawRequest, what: str, tree: RawTree) -> NotThereError:
    """Return the error for something that is neither unpacked nor in an archive."""
    found = f"it is not there, nor in {len(tree.archives)} archives" if tree.archives else "it is not there"
    rule = f"{request.dataset.name} needs {what}"
    return NotThereError(rule, found, f"expected: {request.dataset.raw_layout}")


def repeated_rows(name: str, labels: Iterable[tuple[str, int | None]], request: RawRequest) -> dict[str, int]:
    """Return how many rows of a table repeat another's image, as a reason to leave them out.

    Raises:
        DataError: when one image has two labels.
    """
    first: dict[str, int | None] = {}
    unlike, repeats = set[str](), 0
    for image, label in labels:
        repeats += image in first
        if first.setdefault(image, label) != label:
            unlike.add(image)
    if unlike:
        rule = f"{request.dataset.name}: {name} must give an image one label"
        raise DataError(rule, f"two: {first_hashed(request, sorted(unlike))}", "download the table again")
    return {"repeated row": repeats} if repeats else {}


def find_named(tree: RawTree, file: str) -> list[str]:
    """Return all names of the tree that end in ``file``, those nearest to the top first."""
    ending = file.casefold()
    names = [name for name in tree if name.casefold() == ending or name.casefold().endswith("/" + ending)]
    return sorted(names, key=lambda name: (name.count("/"), name))


def find_table(
    tree: RawTree, request: RawRequest, stem: str, columns: Sequence[str], *, only_named: bool = False
) -> str | None:
    """Return the locator of the table with these columns, whatever it is called; one called ``stem`` first.

    Browsers add `` (1)`` to a name and archives a date; columns are what makes a table the right one, unless
    other tables of the download have them, too (``only_named``).

    Raises:
        DataError: when several tables have the columns and differ.
    """
    wanted = {column_key(column) for column in columns}
    likely = _plain(stem)
    near: list[str] = []
    far: list[str] = []
    for name in tree:
        path = PurePosixPath(name)
        if path.suffix.lower() in TABLE_ENDINGS and name.count("/") <= MAX_TABLE_DEPTH:
            (near if _plain(path.stem).startswith(likely) else far).append(name)
    for names in (near,) if only_named else (near, far):
        found = [name for name in names if wanted <= set(header_of(tree.locator(name), request))]
        if found:
            _check_equal(found, tree, request, stem)
            return tree.locator(found[0])
    return None


def _check_equal(names: Sequence[str], tree: RawTree, request: RawRequest, stem: str) -> None:
    lines = [read_lines(tree.locator(name), request) for name in names] if len(names) > 1 else []
    if any(other != lines[0] for other in lines):
        rule = f"{request.dataset.name}: one table must have the columns of {stem}"
        listed = ", ".join(request.hashed(name) for name in names[:5])
        raise DataError(
            rule, f"{len(names)} that differ: {listed}", "keep the right one, move the others away"
        )


def _plain(stem: str) -> str:
    """Spell a file's stem without what downloads change in it."""
    return re.sub(r"[\s_-]+", " ", stem).strip().casefold()


def join(folder: str, name: str) -> str:
    """Join relative names; an empty folder is the raw root."""
    return f"{folder}/{name}" if folder else name


def dicom_samples(
    dicom: Dicom,
    *,
    frames: slice = slice(None),
    group: str = "",
    extra: Iterable[str] = (),
    flags: Iterable[str] = (),
) -> Iterator[Sample]:
    """Yield frames as samples."""
    chosen = Dicom(**{**dicom.__dict__, "values": dicom.values[frames]})
    for pixels, notes, found in frames_to_pixels(chosen):
        yield Sample(
            pixels, group=group, conversions=(*notes, *extra), flags=(*found, *flags), traits=dicom.traits
        )


def is_square(spacing: tuple[float, float] | None) -> bool:
    """Tell whether pixels are square; the study leaves others out."""
    return spacing is not None and abs(spacing[0] - spacing[1]) < 1e-6 * max(spacing)
