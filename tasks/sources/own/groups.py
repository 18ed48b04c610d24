"""The rules for group ids, so that no patient is in training and test."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from search_spaces.errors import plural
from tasks.sources.base import RawRequest
from tasks.sources.own.rows import Rows
from tasks.sources.own.splits import GivenSplit
from tasks.sources.own.words import NO_IDS, PLACEHOLDERS
from tasks.sources.tables import SEVERAL


def check_groups(rows: Rows, request: RawRequest) -> None:
    """Refuse group ids that are blank, a word for "unknown", or one placeholder for most rows.

    A word for "unknown" must not be an id: all rows with it would be images of one patient.
    """
    groups = rows.cells.get("group", ())
    if not groups:
        return
    no_ids = NO_IDS | {SEVERAL}
    blank = [row for row, group in enumerate(groups) if group.strip().casefold() in no_ids]
    if blank:
        raise request.error(
            "the group is blank, NaN, None, a word for unknown, or several values for "
            f"{rows.describe(blank)}",
            hint="Give each row a group id, or drop these rows or the column. A patient who "
            "really has this name needs another id",
        )
    counts = Counter(groups)
    commonest, count = counts.most_common(1)[0]
    # One patient may have the id 0. If more than half of all rows have it, it is a placeholder.
    is_placeholder = commonest.casefold() in PLACEHOLDERS and 2 * count > len(groups)
    if len(counts) < 2 or is_placeholder:
        raise request.error(
            f"{count} of {len(groups)} rows have one and the same group id",
            hint="Give each patient an id, or drop the column",
        )


def check_id_spellings(rows: Rows, kept_rows: Sequence[int], request: RawRequest) -> None:
    """Check that every group id has one spelling."""
    first_rows: dict[str, int] = {}
    for row in kept_rows:
        first_rows.setdefault(rows.group(row), row)
    first_rows.pop("", None)  # a blank is no id: these images are groups of their own
    rows_by_id: defaultdict[str, list[int]] = defaultdict(list)
    for group, row in first_rows.items():
        rows_by_id[plain_id(group)].append(row)
    doubtful: list[int] = []
    for rows_of_spellings in rows_by_id.values():
        if len(rows_of_spellings) > 1:
            doubtful += rows_of_spellings
    if doubtful:
        raise request.error(
            "a group id has several spellings, such as p0 and P0, or 7, 07 and 7.0, for "
            f"{rows.describe(doubtful)}",
            hint="Write the id of a patient in one way",
        )


def check_no_leak(
    rows: Rows, kept_rows: Sequence[int], splits: Sequence[GivenSplit], request: RawRequest
) -> None:
    """Check that no group is in training and test."""
    first_rows: defaultdict[str, dict[GivenSplit, int]] = defaultdict(dict)
    for row in kept_rows:
        group = rows.group(row)
        if group:
            first_rows[group].setdefault(splits[row], row)
    train_and_test = {GivenSplit.TRAIN, GivenSplit.TEST}
    leaking = [by_split for by_split in first_rows.values() if train_and_test <= by_split.keys()]
    if leaking:
        train_row = leaking[0][GivenSplit.TRAIN]
        test_row = leaking[0][GivenSplit.TEST]
        pair = f"{rows.name(train_row)} and {rows.name(test_row)}"
        groups_text = plural(len(leaking), "group")
        raise request.error(
            f"training and test share {groups_text}; the first images of one are "
            f"{pair}{rows.describe_numbering([train_row])}",
            hint="Split by patient, not by image",
        )


def plain_id(group: str) -> str:
    """Return a key that is equal for all spellings of one patient's id.

    It is in lower case and NFKC, without extra blanks, leading zeros and a final ``.0``.
    """
    text = " ".join(unicodedata.normalize("NFKC", group).casefold().split())
    number = re.fullmatch(r"0*(\d+)(?:\.0*)?", text)
    return number[1] if number else text
