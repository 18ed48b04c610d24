"""Groups (patients) of own data: none missing among others, and none on both sides of a given split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest, Split
from tasks.sources.label_tables import first_hashed
from tasks.sources.labels import is_missing


def check_group_sides(pairs: Iterable[tuple[str, Split]], request: RawRequest) -> None:
    """Check pairs of group and split, one per image; the empty group is that of an image alone.

    Raises:
        DataError: when a group is in training and test: results would be of patients already seen.
    """
    sides: defaultdict[str, set[Split]] = defaultdict(set)
    for group, split in pairs:
        sides[group].add(split)
    both = [group for group, splits in sides.items() if group and {"train", "test"} <= splits]
    if both:
        rule = f"{request.dataset.name}: no group may be in train and test"
        raise DataError(rule, first_hashed(request, both), "split by patient, not by image")


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
