"""Refuse splits that are inside the class folders, or that have unusual names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tasks.sources.base import RawRequest
from tasks.sources.class_folders.paths import ImagePath
from tasks.sources.own.splits import GivenSplit, is_split_word, parse_splits

LAYOUT_HINT = (
    "Use FOLDER/<class>/image.png, or FOLDER/train/<class>/image.png and "
    "FOLDER/test/<class>/image.png"
)
SPLIT_WORD_IN_NAME = re.compile(
    r"""
    (?<![A-Za-z])                                     # no letter before the word
    (?i:train(?:ing)?|trn|test(?:ing)?|tst|val(?:id|idation)?)
    (?=[A-Z]?(?![A-Za-z]))                            # at most one capital letter after it: trainA
    """,
    re.VERBOSE,
)
"""The word for a split in a longer name, such as ``seg_train``, ``test-set`` or ``trainA``."""


def check_splits_are_above_classes(
    image_paths: Sequence[ImagePath],
    request: RawRequest,
) -> None:
    """Check that the splits are above the class folders, and have usual names.

    Raises:
        DataError: All subfolders of the top folders are splits. Or at least half of the top
            folders seem to be splits with unusual names.
    """
    tops = sorted({image.top for image in image_paths})
    subfolders = {image.subfolders[0] for image in image_paths if image.subfolders}
    if len(tops) > 1 and subfolders and all(map(is_split_word, subfolders)):
        raise request.error(
            f"the splits {', '.join(sorted(subfolders)[:5])} are inside the class folders, "
            "but should be above them",
            hint=LAYOUT_HINT,
        )
    tops_with_split_word = []
    splits = set()
    for top in tops:
        top_splits = parse_splits(SPLIT_WORD_IN_NAME.findall(top))
        splits |= top_splits
        if top_splits:
            tops_with_split_word.append(top)
    # A class may be called "test strip". The top folders are treated as splits only if two
    # conditions hold: their names contain "train" and another split, and at least half of them
    # have such a name.
    is_majority = 2 * len(tops_with_split_word) >= len(tops)
    if GivenSplit.TRAIN in splits and len(splits) > 1 and is_majority:
        raise request.error(
            "the top folders are neither classes nor splits called train, test and val: "
            f"{', '.join(tops_with_split_word[:5])}",
            hint=f"Rename the splits, and put the class folders into them. {LAYOUT_HINT}",
        )
