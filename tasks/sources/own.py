"""Groups (patients) of own data: none missing among others, one spelling each, and none on both sides of a
given split.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest, Split
from tasks.sources.labels import is_missing
from tasks.sources.tables import first_hashed


def check_group_sides(pairs: Iterable[tuple[str, Split]], request: RawRequest) -> None:
    """Check pairs of group and split, one per image; the empty group is that of an image alone.

    Raises:
        DataError: when a group is in training and test: results would be of patients already seen; and when
            two groups are spelt alike, since they may be one patient.
    """
    sides: defaultdict[str, set[Split]] = defaultdict(set)
    for group, split in pairs:
        sides[group].add(split)
    _check_spellings(sides, request)
    both = [group for group, splits in sides.items() if group and {"train", "test"} <= splits]
    if both:
        rule = f"{request.dataset.name}: no group may be in train and test"
        raise DataError(rule, first_hashed(request, both), "split by patient, not by image")


def _check_spellings(groups: Iterable[str], request: RawRequest) -> None:
    """Check that no two ids differ only in case, blanks, Unicode forms, leading zeros or a ``.0``."""
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for group in groups:
        spellings[plain_id(group)].append(group)
    doubtful = [group for alike in spellings.values() if len(alike) > 1 for group in alike]
    if doubtful:
        rule = f"{request.dataset.name}: every group id must be spelt one way, as p0 or P0, 7, 07 or 7.0"
        raise DataError(rule, first_hashed(request, doubtful), "spell one patient's ids alike")


def plain_id(group: str) -> str:
    """Spell an id without case, blanks, Unicode forms, leading zeros and a ``.0``."""
    plain = " ".join(unicodedata.normalize("NFKC", group).casefold().split())
    number = re.fullmatch(r"0*(\d+)(?:\.0*)?", plain)
    return number[1] if number else plain


def check_whole_groups(groups: Iterable[str], request: RawRequest) -> None:
    """Check that all images have a group when any has: a shared "nan" is no patient.

    Raises:
        DataError: with how many have none.
    """
    found = list(groups)
    absent = sum(map(is_missing, found))
    if absent and any(found):
        rule = f"{request.dataset.name}: every image needs a group when there are any"
        raise DataError(rule, f"{absent} blank, NaN or None", "give them a patient or take them out")


# What the parts of a split are called, the same for every kind of own data.

NAMES: dict[str, Split | None] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "val": None,
    "valid": None,
    "validation": None,
}
VALIDATION_LEFT_OUT = "validation split"
"""Reason to count: training has its own fixed test set, and a validation split is drawn when tuning."""


def split_of(name: str) -> Split | None:
    """Return the split that a name means: ``train``, ``test``, None for validation, empty for no split.

    Hugging Face's hub calls the folder of a large split's first files ``partial-train``.
    """
    return NAMES.get(name.strip().casefold().removeprefix("partial-"), "")


def split_of_file(name: str, request: RawRequest) -> Split | None:
    """Return the split that a word of a file's name, or else a folder above it, means.

    ``train-00000-of-00002.parquet``, ``skin_test_01.tar`` and ``val/0000.tar`` all say it.

    Raises:
        DataError: when the words of one name mean several.
    """
    parts = name.split("/")
    for words in (re.split(r"[\W_]+", parts[-1]), *([part] for part in parts[-2::-1])):
        meant = {split_of(word) for word in words} - {""}
        if len(meant) > 1:
            rule = f"{request.dataset.name}: a file's name must say one split"
            raise DataError(rule, request.hashed(name), "rename it: train-..., test-... or val-...")
        if meant:
            return meant.pop()
    return ""
