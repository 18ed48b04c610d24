"""Check group ids, so that the training set and the test set share no patient."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from search_spaces.errors import plural
from tasks.sources.base import RawRequest, first_of
from tasks.sources.own.rows import Rows
from tasks.sources.own.splits import GivenSplit
from tasks.sources.own.words import NO_IDS, PLACEHOLDERS
from tasks.sources.tables import NOT_ONE_VALUE


def check_groups(rows: Rows, request: RawRequest) -> None:
    """Check that the group column contains real ids.

    A word that means "unknown" is not an id. Otherwise all rows with this word would count as
    one patient.

    Raises:
        DataError: An id is blank or means "unknown", all rows have the same id, or more than
            half of all rows have the same placeholder.
    """
    groups = rows.cells.get("group", ())
    if not groups:
        return
    no_ids = NO_IDS | {NOT_ONE_VALUE}
    blank = [row for row, group in enumerate(groups) if group.strip().casefold() in no_ids]
    if blank:
        raise request.error(
            "the group id is blank, NaN, None, a word that means unknown, or more than one "
            f"value, for {rows.describe(blank)}",
            hint="Write a group id in each of these rows, or remove the rows or the column. "
            "If a patient's real id is such a word, replace the id by another one",
        )
    counts = Counter(groups)
    commonest, count = counts.most_common(1)[0]
    # One patient may have the id 0. If more than half of all rows have the id 0, it is a
    # placeholder.
    is_placeholder = commonest.casefold() in PLACEHOLDERS and 2 * count > len(groups)
    if len(counts) < 2 or is_placeholder:
        raise request.error(
            f"{count} of {len(groups)} rows have the same group id",
            hint="Give each patient a different id, or remove the column of groups",
        )


def check_id_spellings(rows: Rows, item_rows: Sequence[int], request: RawRequest) -> None:
    """Check that every group id has only one spelling.

    Raises:
        DataError: Two ids differ only in spelling.
    """
    first_rows: dict[str, int] = {}
    for row in item_rows:
        first_rows.setdefault(rows.group(row), row)
    first_rows.pop("", None)  # each image without an id is a separate group
    rows_by_id: defaultdict[str, list[int]] = defaultdict(list)
    for group, row in first_rows.items():
        rows_by_id[plain_id(group)].append(row)
    doubtful: list[int] = []
    for rows_of_spellings in rows_by_id.values():
        if len(rows_of_spellings) > 1:
            doubtful += rows_of_spellings
    if doubtful:
        first_images = f"{first_of(map(rows.name, doubtful))}{rows.describe_numbering(doubtful)}"
        raise request.error(
            f"{len(doubtful)} group ids differ only in spelling (such as p0 and P0, or 7, 07 "
            f"and 7.0). The first images with these ids are {first_images}",
            hint="Spell each patient's id the same way everywhere",
        )


def check_no_group_in_both_splits(
    rows: Rows, item_rows: Sequence[int], splits: Sequence[GivenSplit], request: RawRequest
) -> None:
    """Check that no group has images in both the training split and the test split.

    Raises:
        DataError: A group has images in both splits.
    """
    first_rows: defaultdict[str, dict[GivenSplit, int]] = defaultdict(dict)
    for row in item_rows:
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
            f"training and test share {groups_text}, for example the group of {pair}"
            f"{rows.describe_numbering([train_row])}",
            hint="Put all images of a patient into the same split",
        )


def similar_id_flags(rows: Rows, item_rows: Sequence[int]) -> dict[str, int]:
    """Return a flag if group ids differ only in punctuation or zeros, such as p1-2 and p1_02.

    Such ids may be two spellings of one id. The value of the flag is the number of rows with
    such ids.
    """
    num_rows_by_group = Counter(map(rows.group, item_rows))
    counts_by_words: defaultdict[tuple[tuple[str, str], ...], list[int]] = defaultdict(list)
    for group, num_rows in num_rows_by_group.items():
        counts_by_words[_words_and_numbers(group)].append(num_rows)
    num_doubtful = 0
    for words, counts in counts_by_words.items():
        if words and len(counts) > 1:
            num_doubtful += sum(counts)
    if not num_doubtful:
        return {}
    return {
        "group ids differ only in blanks, punctuation or zeros, such as p1 and p-1; check that "
        "they are different patients": num_doubtful
    }


def plain_id(group: str) -> str:
    """Return a normalized patient id, which is the same text for all spellings of one id.

    The normalized id is in NFKC and lower case, without invisible characters and extra spaces.
    Its last number has no leading zeros and no final ``.0``.
    """
    visible = [char for char in group if unicodedata.category(char) != "Cf"]
    text = unicodedata.normalize("NFKC", "".join(visible)).casefold()
    text = " ".join(text.split())
    number = re.fullmatch(r"(.*[^\d.])?0*(\d+)(?:\.0*)?", text)
    return (number[1] or "") + number[2] if number else text


def _words_and_numbers(group: str) -> tuple[tuple[str, str], ...]:
    """Return the words and numbers of an id as pairs (number, word).

    One of the two texts of a pair is empty. Numbers have no leading zeros. For example, the
    result for the id p-07 is ``(("", "p"), ("7", ""))``.
    """
    return tuple(re.findall(r"0*(\d+)|([^\W\d_]+)", plain_id(group)))
