"""Find the images of inner archives that repeat images beside the archive.

If ``raw.zip`` contains ``a/1.png`` and ``a/copy.zip``, and ``copy.zip`` contains only ``1.png``,
the image in ``copy.zip`` is left out. If ``copy.zip`` contains only ``2.png``, this image is read.
An inner archive at the top of ``raw.zip`` is always read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from tasks.sources.base import RawRequest
from tasks.sources.raw import MARK, RawTree, split_locator


@dataclass(frozen=True)
class NestedArchive:
    """The archive ``<raw>``, or an archive inside it.

    Attributes:
        members: The inner archives that lead to the archive, from the outermost one to the archive
            itself. They are ``("a/copy.zip",)`` for ``raw.zip!/a/copy.zip``. For ``<raw>``, the
            tuple is empty.
    """

    members: tuple[str, ...]

    @property
    def parent(self) -> NestedArchive:
        """The archive that contains this inner archive."""
        return NestedArchive(self.members[:-1])

    @property
    def folder(self) -> str:
        """The folder of :attr:`parent` in which this inner archive lies; empty at its top."""
        return self.members[-1].rpartition("/")[0]

    @property
    def is_at_top(self) -> bool:
        """Whether the archive would lie at the top of ``<raw>`` if all archives were unpacked."""
        return not any("/" in member for member in self.members)


def find_repeated(tree: RawTree, image_names: Sequence[str], request: RawRequest) -> set[str]:
    """Return the names of images in inner archives that repeat the images beside the archive.

    Raises:
        DataError: Only some images of an inner archive have the file name of an image beside it.
    """
    if not request.root().is_file():  # archives in a folder are not opened
        return set()
    # Archive and folder in it -> file names of the images directly in this folder.
    file_names: defaultdict[tuple[NestedArchive, str], set[str]] = defaultdict(set)
    # Inner archive -> names of the images in it and in all archives inside it.
    images_by_archive: defaultdict[NestedArchive, list[str]] = defaultdict(list)
    for name in image_names:
        _, *archives, image = split_locator(tree.locator(name))
        folder, _, file_name = image.rpartition("/")
        file_names[NestedArchive(tuple(archives)), folder].add(file_name)
        for depth in range(1, len(archives) + 1):
            images_by_archive[NestedArchive(tuple(archives[:depth]))].append(name)
    repeated: set[str] = set()
    for archive, names in images_by_archive.items():
        if archive.is_at_top:
            continue
        names_beside = file_names.get((archive.parent, archive.folder), set())
        repeats = {name for name in names if PurePath(tree.locator(name)).name in names_beside}
        if 0 < len(repeats) < len(names):
            hashed_path = request.hashed(MARK.join(archive.members))
            raise request.error(
                f"{len(repeats)} of the {len(names)} images in the inner archive {hashed_path} "
                "have the file name of an image beside it, so it is unclear "
                "whether this archive repeats those images",
                hint="Remove the inner archive, or unpack the other images beside it and then "
                "remove it",
            )
        repeated |= repeats
    return repeated
