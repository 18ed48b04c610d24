"""The words for training, test and validation split, in cells and in names of files and folders."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum

from tasks.sources.base import RawRequest, Split


class GivenSplit(IntEnum):
    """The split that the data assign to an image.

    The values are the codes in the array ``splits`` of a prepared dataset. No code there is
    ``VALIDATION``: images of a validation split are left out.
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
"""The split of an item. Rows of a validation split become no items."""
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), GivenSplit.TRAIN),
    **dict.fromkeys(("test", "testing", "tst"), GivenSplit.TEST),
    **dict.fromkeys(("val", "valid", "validation"), GivenSplit.VALIDATION),
}
"""Word, in lower case -> the split that it means."""
VALIDATION_LEFT_OUT = "validation split"
"""Reason for leaving out a row. The study trains without validation images, and tuning draws its
own from the training images."""


def parse_split(word: str) -> GivenSplit:
    """Return the split that a word means; case does not matter.

    The Hugging Face Hub stores the first files of a large split in a folder ``partial-train``.
    """
    return SPLIT_WORDS.get(word.strip().casefold().removeprefix("partial-"), GivenSplit.NONE)


def parse_splits(words: Iterable[str]) -> set[GivenSplit]:
    """Return the splits that words mean; words of no split are ignored."""
    return set(map(parse_split, words)) - {GivenSplit.NONE}


def is_split_word(word: str) -> bool:
    """Return whether a word means a split."""
    return parse_split(word) is not GivenSplit.NONE


def split_of_file(name: str, request: RawRequest) -> GivenSplit:
    """Return the split that a file's name means, or else that of the nearest folder with one.

    Examples are ``train-00000-of-00002.parquet``, ``skin_test_01.tar`` and ``val/0000.tar``. If the
    user gave the file itself as the raw data, its name means no split.

    Raises:
        DataError: The name has the words of two splits.
    """
    if request.root().is_file():
        return GivenSplit.NONE
    *folders, file_name = name.split("/")
    # The word may be a part of the file's name, but it must be the whole name of a folder.
    for words in (re.split(r"[\W_]+", file_name), *([folder] for folder in reversed(folders))):
        splits = parse_splits(words)
        if len(splits) > 1:
            raise request.error(
                f"the name of {request.hashed(name)} contains several splits",
                hint="Rename it: train-..., test-... or val-...",
            )
        if splits:
            return splits.pop()
    return GivenSplit.NONE
