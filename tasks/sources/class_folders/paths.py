"""The path of an image, divided into its folders, for data with one folder per class."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tasks.sources.own.splits import GivenSplit, parse_split

NOT_GROUP_FOLDERS = frozenset({"image", "images", "img", "imgs"})
"""Names of subfolders that are not groups, in lower case."""


@dataclass(frozen=True)
class ImagePath:
    """The path of an image, divided into its folders.

    Example: the image ``data/train/cats/p1/images/1.png`` has the wrapper ``data/``, the split
    ``TRAIN``, the top folder ``cats`` and one subfolder, ``p1``.

    Attributes:
        name: Name of the image: its path below the raw folder.
        top_path: Path of the top folder below the raw folder, such as ``data/train/cats``.
        subfolders: The folders between the top folder and the image, from the outermost one,
            without those in :data:`NOT_GROUP_FOLDERS`.
        split: The split in the name of the folder above the top folder.
        is_subfolder_class: True if the layout is ``group/class`` and ``label_map`` has the
            name of the first subfolder.
    """

    name: str
    top_path: str
    subfolders: tuple[str, ...]
    split: GivenSplit
    is_subfolder_class: bool

    @property
    def top(self) -> str:
        """The name of the top folder."""
        return self.top_path.rpartition("/")[2]

    @property
    def first_subfolder(self) -> str | None:
        """The subfolder of the top folder; None if the image lies directly in the top folder."""
        return self.subfolders[0] if self.subfolders else None


@dataclass(frozen=True)
class UpperFolders:
    """The folders between the root of the data and the folders of the classes.

    Attributes:
        wrapper: Path of the wrapper with a final slash; empty without a wrapper.
        has_splits: True if the folders directly below the wrapper are splits.
        subfolder_classes: Names in ``label_map`` if the layout is ``group/class``; else empty.
            Subfolders with these names are classes.
    """

    wrapper: str
    has_splits: bool
    subfolder_classes: Collection[str]

    def divide(self, name: str) -> ImagePath | None:
        """Divide the path of a file into its folders; None if the file has no top folder."""
        *folders, _ = name.removeprefix(self.wrapper).split("/")
        above_top = self.wrapper
        split = GivenSplit.NONE
        if self.has_splits and folders:
            split_folder = folders.pop(0)
            above_top += f"{split_folder}/"
            split = parse_split(split_folder)
        if not folders:
            return None
        top, *subfolders = folders
        is_subfolder_class = bool(subfolders) and subfolders[0] in self.subfolder_classes
        kept_subfolders = []
        for depth, folder in enumerate(subfolders):
            is_class = depth == 0 and is_subfolder_class
            if is_class or folder.casefold() not in NOT_GROUP_FOLDERS:
                kept_subfolders.append(folder)
        return ImagePath(
            name=name,
            top_path=above_top + top,
            subfolders=tuple(kept_subfolders),
            split=split,
            is_subfolder_class=is_subfolder_class,
        )

    def divide_folder(self, folder_path: str) -> ImagePath | None:
        """Divide the path of a folder in the same way as the path of a file in it."""
        return self.divide(f"{folder_path}/")
