"""Find the wrapper and the splits, which are the folders above the top folders.

The wrapper is found first. Then the names of the folders directly below it decide whether
these folders are splits:

==============================  ==============================================================
folders below the wrapper       result
==============================  ==============================================================
``cats``, ``dogs``              They are top folders.
``train``, ``test``             They are splits.
``train``, ``test``, ``extra``  Error: ``extra`` is probably a split too, or does not belong
                                here. If ``label_map`` names ``train`` and ``test``, they are
                                top folders, unless ``extra`` has the same subfolders.
``train``, ``extra``            The first of these rules that applies:

                                1. Both have two or more subfolders with the same names.
                                   Error: ``extra`` is probably a split too.
                                2. ``train`` has two or more subfolders, and ``label_map`` does
                                   not name it. Error: it may be a split or a class.
                                3. They are top folders.
==============================  ==============================================================
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tasks.sources.base import RawRequest, first_of
from tasks.sources.class_folders.paths import NOT_GROUP_FOLDERS, UpperFolders
from tasks.sources.own.splits import GivenSplit, is_split_word, parse_splits

TRAIN_AND_TEST = frozenset({GivenSplit.TRAIN, GivenSplit.TEST})
"""The splits whose images are used."""


def find_upper_folders(image_names: Sequence[str], request: RawRequest) -> UpperFolders:
    """Find the wrapper and the splits.

    Raises:
        DataError: It is unclear whether the folders below the wrapper are splits.
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

    In a plain folder, a single outer folder may be a class. So it is a wrapper only if train
    and test are directly below it. For example, ``data`` is a wrapper in
    ``<raw>/data/train/...``.
    """
    wrapper = ""
    # For each image: its folders below the wrapper, and its file name.
    paths = [name.split("/") for name in image_names]
    while _begin_with_wrapper(paths):
        wrapper += f"{paths[0][0]}/"
        paths = [path[1:] for path in paths]
    if is_archive or _has_train_and_test(path[0] for path in paths):
        return wrapper
    return ""


def _begin_with_wrapper(paths: Sequence[list[str]]) -> bool:
    """Return whether all paths begin with one folder that can be a wrapper.

    A wrapper is not a split. Below it, every path has at least a class folder and a file name.
    """
    first_parts = {path[0] for path in paths}
    if len(first_parts) != 1 or any(map(is_split_word, first_parts)):
        return False
    return min(map(len, paths)) >= 3  # parts of a path: wrapper, class, image


def _has_train_and_test(names: Iterable[str]) -> bool:
    """Return whether the names contain both a training split and a test split."""
    return parse_splits(names).issuperset(TRAIN_AND_TEST)


def _has_splits(image_names: Iterable[str], wrapper: str, request: RawRequest) -> bool:
    """Return whether the folders below ``wrapper`` are splits. Files beside them are ignored.

    Raises:
        DataError: It is unclear whether these folders are splits.
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
    _check_folders_beside_splits(splits, others, subfolders_by_folder, request)
    return False


def _check_folders_beside_splits(
    splits: set[str],
    others: set[str],
    subfolders_by_folder: Mapping[str, set[str]],
    request: RawRequest,
) -> None:
    """Check that folders with the names of splits can be top folders, like the folders beside
    them.

    Args:
        splits: Folders with the names of splits.
        others: All other folders beside them.
        subfolders_by_folder: Names of the subfolders of each of these folders.
        request: The dataset.

    Raises:
        DataError: The other folders are probably splits with unusual names. Or it is unclear
            whether a folder such as ``train`` is a split or a class.
    """
    subfolders_of_splits = set().union(*(subfolders_by_folder[folder] for folder in splits))
    subfolders_of_others = set().union(*(subfolders_by_folder[folder] for folder in others))
    # A single equal name may be a coincidence.
    have_same_classes = len(subfolders_of_splits & subfolders_of_others) > 1
    class_labels = dict(request.dataset.label_map)
    are_classes = splits.issubset(class_labels)
    if have_same_classes or (_has_train_and_test(splits) and not are_classes):
        raise request.error(
            f"some top folders are splits ({', '.join(sorted(splits))}), and others are not "
            f"({first_of(sorted(others))})",
            hint="Move the other folders elsewhere, or use the path of one split",
        )
    for folder in sorted(splits.difference(class_labels)):
        if len(subfolders_by_folder[folder] - NOT_GROUP_FOLDERS) > 1:
            raise request.error(
                f"it is unclear whether the folder {folder} is a split or a class. It has "
                "several subfolders, like a split. But the folder "
                f"{first_of(sorted(others))} beside it is not a split",
                hint="If it is a split, move the other folders elsewhere. If it is a class, "
                f"add it to label_map (for isweep measure: --label-map {folder}={folder})",
            )
