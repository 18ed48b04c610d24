"""The words for training, test and validation splits, in cells and in names of files and folders.

Every kind of own data reads these words in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum

from tasks.sources.base import RawRequest, Split


class GivenSplit(IntEnum):
    """The split that the data state for an image.

    The values are the codes in the array ``splits`` of a prepared dataset. This array contains
    no ``VALIDATION``, because images of a validation split are left out.
    """

    NONE = 0
    TRAIN = 1
    TEST = 2
    VALIDATION = 3


ITEM_SPLITS: dict[GivenSplit, Split] = {
    GivenSplit.NONE: "",
    GivenSplit.TRAIN: "train",
    GivenSplit.TEST: "test",
}
"""Split of a row -> split of its item."""
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), GivenSplit.TRAIN),
    **dict.fromkeys(("test", "testing", "tst"), GivenSplit.TEST),
    **dict.fromkeys(("val", "valid", "validation"), GivenSplit.VALIDATION),
}
"""Word in lower case -> split."""
VALIDATION_LEFT_OUT = "validation split"
"""Reason for leaving out a row. The study trains without validation images. A hyperparameter
search draws its validation images from the training images."""


def parse_split(word: str) -> GivenSplit:
    """Return the split that a word names, in any letter case; ``NONE`` if it names no split.

    The prefix ``partial-`` is ignored: the Hugging Face Hub stores the first files of a large
    split in a folder ``partial-train``.
    """
    return SPLIT_WORDS.get(word.strip().casefold().removeprefix("partial-"), GivenSplit.NONE)


def parse_splits(words: Iterable[str]) -> set[GivenSplit]:
    """Return the splits that words name. Other words are ignored."""
    return set(map(parse_split, words)) - {GivenSplit.NONE}


def is_split_word(word: str) -> bool:
    """Return whether a word names a split."""
    return parse_split(word) is not GivenSplit.NONE


def split_of_file(name: str, request: RawRequest) -> GivenSplit:
    """Return the split in a file's name, or else the split in the name of the nearest folder.

    Examples are ``train-00000-of-00002.parquet``, ``skin_test_01.tar`` and ``val/0000.tar``.
    If the raw data consist of this one file, its name is ignored.

    Raises:
        DataError: The name contains the words of two splits.
    """
    if request.root().is_file():
        return GivenSplit.NONE
    *folders, file_name = name.split("/")
    # The word may be a part of a file's name, but must be the whole name of a folder.
    words_by_part = [re.split(r"[\W_]+", file_name)]
    for folder in reversed(folders):
        words_by_part.append([folder])
    for words in words_by_part:
        splits = parse_splits(words)
        if len(splits) > 1:
            raise request.error(
                f"the name of the file {request.hashed(name)} contains the names of several splits",
                hint="Rename the file to train-..., test-... or val-...",
            )
        if splits:
            return splits.pop()
    return GivenSplit.NONE
