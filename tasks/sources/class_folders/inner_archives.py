"""Find images in inner archives whose copies lie beside the archive.

Example: ``raw.zip`` contains ``a/1.png`` and ``a/copy.zip``. If ``copy.zip`` contains only
``1.png``, the image in ``copy.zip`` is left out. If ``copy.zip`` contains only ``2.png``, this
image is read. An inner archive at the top of ``raw.zip`` is always read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.sources.base import RawRequest
from tasks.sources.raw import MARK, RawTree, split_locator


@dataclass(frozen=True)
class ArchivePath:
    """The path of an image or inner archive, split at each archive that contains it.

    Attributes:
        parts: The archives, from ``<raw>`` to the innermost archive, then the path of the file
            in the innermost archive. They are ``("raw.zip", "a/copy.zip", "1.png")`` for an
            image in ``copy.zip``, and ``("raw.zip", "a/copy.zip")`` for ``copy.zip`` itself.
    """

    parts: tuple[str, ...]

    @property
    def folder(self) -> tuple[str, ...]:
        """The folder that contains the file, such as ``("raw.zip", "a")`` for ``copy.zip``."""
        return *self.parts[:-1], self.parts[-1].rpartition("/")[0]

    @property
    def file_name(self) -> str:
        """The name of the file in its folder."""
        return self.parts[-1].rpartition("/")[2]

    @property
    def inner_archives(self) -> list[ArchivePath]:
        """The inner archives that contain the file, from the outermost one."""
        return [ArchivePath(self.parts[:length]) for length in range(2, len(self.parts))]

    @property
    def is_at_top(self) -> bool:
        """True if the file would lie directly in ``<raw>`` after all archives are unpacked."""
        return not any("/" in part for part in self.parts[1:])


def find_repeated(tree: RawTree, image_names: Sequence[str], request: RawRequest) -> set[str]:
    """Return the names of images in inner archives whose copies lie beside the archive.

    Raises:
        DataError: By the file names, only some images of an inner archive have a copy beside
            it.
    """
    if not request.root().is_file():  # archives in a folder are not opened
        return set()
    path_by_name = {}
    for name in image_names:
        path_by_name[name] = ArchivePath(tuple(split_locator(tree.locator(name))))
    # Folder -> file names of the images directly in it.
    file_names: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    # Inner archive -> names of the images in it and in all archives inside it.
    images_by_archive: defaultdict[ArchivePath, list[str]] = defaultdict(list)
    for name, path in path_by_name.items():
        file_names[path.folder].add(path.file_name)
        for archive in path.inner_archives:
            images_by_archive[archive].append(name)
    repeated: set[str] = set()
    for archive, names in images_by_archive.items():
        if archive.is_at_top:
            continue
        names_beside = file_names[archive.folder]
        repeats = {name for name in names if path_by_name[name].file_name in names_beside}
        # If several images in the archive have the same file name, at most one of them is a
        # copy of the image beside the archive.
        num_repeats = len({path_by_name[name].file_name for name in repeats})
        if 0 < num_repeats < len(names):
            hashed_path = request.hashed(MARK.join(archive.parts[1:]))
            raise request.error(
                f"the inner archive {hashed_path} has {len(names)} images. By file name, only "
                f"{num_repeats} of them can be copies of images beside the archive",
                hint="If you want to use the images that are missing beside the archive, unpack "
                "them. Then remove the archive",
            )
        repeated |= repeats
    return repeated
