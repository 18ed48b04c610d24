"""The words that name a training, test or validation split, in cells and in file names.

The words are the same for every kind of user data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum

from tasks.sources.base import RawRequest, Split


class GivenSplit(IntEnum):
    """The split of an image according to the data.

    The values are also the codes in the array ``splits`` of a prepared dataset. This array
    never contains ``VALIDATION``, because isweep leaves out images of a validation split.
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
"""Word in lower case -> split that this word names."""
VALIDATION_LEFT_OUT = "validation split"
"""Reason, in records and messages, for leaving out a row. The study trains without validation
images. A hyperparameter search draws its validation images from the training images."""


def parse_split(word: str) -> GivenSplit:
    """Return the split that a word names, or ``NONE`` if the word names no split.

    Letter case does not matter. The prefix ``partial-`` is ignored, because the Hugging Face
    Hub stores the first files of a large split in a folder such as ``partial-train``.
    """
    return SPLIT_WORDS.get(word.strip().casefold().removeprefix("partial-"), GivenSplit.NONE)


def parse_splits(words: Iterable[str]) -> set[GivenSplit]:
    """Return the set of splits that the words name. Words that name no split are ignored."""
    return set(map(parse_split, words)) - {GivenSplit.NONE}


def is_split_word(word: str) -> bool:
    """Return whether a word names a split."""
    return parse_split(word) is not GivenSplit.NONE


def split_of_file(name: str, request: RawRequest) -> GivenSplit:
    """Return the split that the path of a file names.

    The name of the file decides the split. If it names no split, the nearest folder with the
    name of a split decides. Examples of paths are ``train-00000-of-00002.parquet``,
    ``skin_test_01.tar`` and ``val/0000.tar``. If the raw data consist of only one file, its
    name is ignored.

    Raises:
        DataError: The file's name contains words for two splits.
    """
    if request.root().is_file():
        return GivenSplit.NONE
    *folders, file_name = name.split("/")
    # One word of a file's name may name the split. A folder counts only if its whole name
    # does.
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
