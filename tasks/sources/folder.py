"""Your own images: one folder per class.

``<raw>/<class>/image.png``; images in a subfolder of a class (``<raw>/<class>/<group>/image.png``) share a
group, and equal group names in different classes are the same group. ``<raw>/train/<class>/...`` and
``<raw>/test/<class>/...`` give the split; ``val`` beside them is left out and counted.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, Split
from tasks.sources.files import walk
from tasks.sources.image_files import is_image_name, read_image

SPLIT_FOLDERS: dict[str, Split | None] = {
    "train": "train",
    "test": "test",
    "val": None,
    "valid": None,
    "validation": None,
}


class Folder:
    """Class folders of image files."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return all images, classes in the order of their names.

        Raises:
            DataError: when there are no class folders, or fewer than two with images.
        """
        root = request.root()
        if not root.is_dir():
            raise DataError(f"{request.dataset.name}: the source must be a folder", "a file")
        names = list(walk(root, request))
        with_splits = {name.split("/")[0] for name in names} <= set(SPLIT_FOLDERS) and bool(names)
        excluded: Counter[str] = Counter()
        found: list[tuple[str, str, str, Split]] = []
        for name in names:
            parts = name.split("/")
            split = SPLIT_FOLDERS[parts.pop(0)] if with_splits else ""
            if not is_image_name(name):
                excluded["not an image by its ending"] += 1
            elif len(parts) < 2:
                excluded["outside the class folders"] += 1
            elif split is None:
                excluded["validation split"] += 1
            else:
                found.append((name, parts[0], "/".join(parts[1:-1]), split))
        return Listing(
            *_label(found, request),
            excluded=dict(excluded),
            intensity="8 bits as stored; more by own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of image files."""
        root = request.root()

        def read(item: Item) -> tuple[Sample]:
            return (read_image(Path(root, item.locator)),)

        return read


def _label(
    found: list[tuple[str, str, str, Split]], request: RawRequest
) -> tuple[list[Item], tuple[str, ...]]:
    classes = sorted({class_name for _, class_name, _, _ in found})
    if len(classes) < 2:
        raise DataError(
            f"{request.dataset.name}: the folder must hold one subfolder of images per class, two at least",
            f"{len(classes)} with images",
            "expected: FOLDER/<class>/image.png",
        )
    index = {class_name: label for label, class_name in enumerate(classes)}
    return [Item(name, index[kind], group, split) for name, kind, group, split in found], tuple(classes)
