"""Find the wrapper and the splits, and divide the path of an image into its folders."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from tasks.sources.base import RawRequest, first_of
from tasks.sources.own.splits import GivenSplit, is_split_word, parse_split, parse_splits

LAYOUT_HINT = (
    "Use FOLDER/<class>/image.png, or FOLDER/train/<class>/image.png and "
    "FOLDER/test/<class>/image.png"
)
SPLIT_WORD_IN_NAME = re.compile(
    r"""
    (?<![A-Za-z])                                     # no letter before the word
    (?i:train(?:ing)?|trn|test(?:ing)?|tst|val(?:id|idation)?)
    (?=[A-Z]?(?![A-Za-z]))                            # at most one capital letter after it
    """,
    re.VERBOSE,
)
"""The word for a split in a longer name, such as ``seg_train``, ``test-set`` or ``trainA``."""
NOT_GROUP_FOLDERS = frozenset({"image", "images", "img", "imgs"})
"""Names of subfolders that are not groups, in lower case."""
TRAIN_AND_TEST = frozenset({GivenSplit.TRAIN, GivenSplit.TEST})
"""The splits whose images are used."""


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
        is_subfolder_class: Whether the user calls the first subfolder a class.
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
    """The folders above the top folders.

    Attributes:
        wrapper: Path of the wrapper with a final slash; empty without a wrapper.
        has_splits: Whether the folders directly below the wrapper are splits.
        subfolder_classes: Names of subfolders of the top folders that the user calls classes.
    """

    wrapper: str
    has_splits: bool
    subfolder_classes: Collection[str]

    def divide(self, name: str) -> ImagePath | None:
        """Divide the path of a file into its folders; None if the file has no top folder."""
        *folders, _ = name.removeprefix(self.wrapper).split("/")
        num_splits = int(self.has_splits)
        if len(folders) <= num_splits:
            return None
        split = parse_split(folders[0]) if self.has_splits else GivenSplit.NONE
        all_subfolders = folders[num_splits + 1 :]
        is_subfolder_class = bool(all_subfolders) and all_subfolders[0] in self.subfolder_classes
        subfolders = all_subfolders[:1] if is_subfolder_class else []
        for folder in all_subfolders[len(subfolders) :]:
            if folder.casefold() not in NOT_GROUP_FOLDERS:
                subfolders.append(folder)
        top_path = self.wrapper + "/".join(folders[: num_splits + 1])
        return ImagePath(name, top_path, tuple(subfolders), split, is_subfolder_class)


def find_upper_folders(image_names: Sequence[str], request: RawRequest) -> UpperFolders:
    """Find the wrapper and the splits.

    Raises:
        DataError: Some folders are splits, and others are probably splits with unusual names.
    """
    wrapper = _find_wrapper(image_names, is_archive=request.root().is_file())
    has_splits = _has_splits(image_names, wrapper, request)
    subfolder_classes = set()
    if request.dataset.layout == "group/class":
        subfolder_classes = set(dict(request.dataset.label_map))
    return UpperFolders(wrapper, has_splits, subfolder_classes)


def _find_wrapper(image_names: Iterable[str], *, is_archive: bool) -> str:
    """Return the path of the wrapper with a final slash; empty without a wrapper.

    An archive often has a wrapper of one or more folders: ``<name>/<name>-v2/<class>/``.

    In a plain folder, a single outer folder may be a class. So it counts as a wrapper only if
    train and test are directly below it, for example ``data`` in ``<raw>/data/train/...``.
    """
    wrapper = ""
    # For each image: its folders below the wrapper, and its file name.
    paths = [name.split("/") for name in image_names]
    while _have_wrapper(paths):
        wrapper += f"{paths[0][0]}/"
        paths = [path[1:] for path in paths]
    if is_archive or _has_train_and_test(path[0] for path in paths):
        return wrapper
    return ""


def _have_wrapper(paths: Sequence[list[str]]) -> bool:
    """Return whether all paths begin with one folder that can be a wrapper.

    The folder is not a split. At least a class folder and an image are below it.
    """
    first_parts = {path[0] for path in paths}
    if len(first_parts) != 1 or any(map(is_split_word, first_parts)):
        return False
    return min(map(len, paths)) >= 3  # wrapper, class, image


def _has_train_and_test(names: Iterable[str]) -> bool:
    """Return whether some folders are the training split and the test split."""
    return parse_splits(names).issuperset(TRAIN_AND_TEST)


def _has_splits(image_names: Iterable[str], wrapper: str, request: RawRequest) -> bool:
    """Return whether the folders below ``wrapper`` are splits. Files beside them are ignored.

    Raises:
        DataError: Some folders are splits, and others are probably splits with unusual names.
            Or it is unclear whether a folder such as ``train`` is a split or a class.
    """
    subfolders_by_folder: defaultdict[str, set[str]] = defaultdict(set)
    for name in image_names:
        *folders, _ = name.removeprefix(wrapper).split("/")
        if folders:
            subfolders_by_folder[folders[0]].update(folders[1:2])
    splits = set(filter(is_split_word, subfolders_by_folder))
    others = set(subfolders_by_folder) - splits
    if not others:
        return bool(splits)
    # One equal name may be chance. If other folders have several of the same subfolders, they
    # are probably splits with unusual names.
    subfolders_of_splits = set().union(*(subfolders_by_folder[folder] for folder in splits))
    subfolders_of_others = set().union(*(subfolders_by_folder[folder] for folder in others))
    have_same_classes = len(subfolders_of_splits & subfolders_of_others) > 1
    if have_same_classes or _has_train_and_test(splits):
        raise request.error(
            f"some top folders are splits ({', '.join(sorted(splits))}), and others are not "
            f"({first_of(sorted(others))})",
            hint="Move the other folders elsewhere, or use the path of one split",
        )
    class_labels = dict(request.dataset.label_map)
    for folder in sorted(splits.difference(class_labels)):
        if len(subfolders_by_folder[folder] - NOT_GROUP_FOLDERS) > 1:
            raise request.error(
                f"it is unclear whether the folder {folder} is a split or a class: it has several "
                f"subfolders, and the folder {first_of(sorted(others))} beside it is not a split",
                hint="If it is a split, move the other folders elsewhere. If it is a class, add it "
                f"to label_map (for isweep measure: --label-map {folder}={folder})",
            )
    return False


def check_no_other_splits(image_paths: Sequence[ImagePath], request: RawRequest) -> None:
    """Check that the splits are above the class folders, and have usual names.

    Raises:
        DataError: All subfolders of the top folders are splits. Or at least half of the top
            folders seem to be splits with other names.
    """
    tops = sorted({image.top for image in image_paths})
    subfolders = {image.subfolders[0] for image in image_paths if image.subfolders}
    if len(tops) > 1 and subfolders and all(map(is_split_word, subfolders)):
        raise request.error(
            f"the splits {', '.join(sorted(subfolders)[:5])} are inside the class folders, but "
            "should be above them",
            hint=LAYOUT_HINT,
        )
    with_split_word = []
    splits = set()
    for top in tops:
        top_splits = parse_splits(SPLIT_WORD_IN_NAME.findall(top))
        splits |= top_splits
        if top_splits:
            with_split_word.append(top)
    # A class may be called "test strip". The top folders count as splits only if their names
    # contain "train" and another split, and if at least half of them have such a name.
    is_majority = 2 * len(with_split_word) >= len(tops)
    if GivenSplit.TRAIN in splits and len(splits) > 1 and is_majority:
        raise request.error(
            "the top folders are neither classes nor splits called train, test and val: "
            f"{', '.join(with_split_word[:5])}",
            hint=f"Rename the splits, and put the class folders into them. {LAYOUT_HINT}",
        )
