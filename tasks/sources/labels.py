"""What a class may be called: one spelling each, and never a word for "missing"."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest

MISSING = frozenset({"", "nan", "-nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nat", "nil", ".", "?"})
MISSING |= {"inf", "-inf", "+inf"}
MISSING |= {"#value!", "#ref!", "#name?", "#div/0!", "#null!", "#num!"}
"""What spreadsheets, pandas, R, SAS and ARFF write where there is nothing, in lower case."""

PLACEHOLDERS = frozenset(
    {"anon", "anonymous", "anonymized", "anonymised", "unknown", "0", "-", "x"} | MISSING - {"."}
)
"""Patient ids that many patients share."""

UNKNOWN = frozenset({"-", "--", "unknown", "unk", "missing", "unlabeled", "unlabelled", "unspecified"})
UNKNOWN |= {"not available", "not known", "tbd", "todo", "uncertain", "unsure", "undetermined", "undefined"}
UNKNOWN |= {"ignore", "ignored", "not applicable", "n.a.", "no label"}
"""Words that may name a class, and mostly say that there is none, in lower case."""

BOOLEANS = {"true": "1", "yes": "1", "false": "0", "no": "0"}
SHORT = {"pos": "positive", "neg": "negative"}
INITIALS = {"y": "yes", "n": "no", "t": "true", "f": "false", "p": "positive", "+": "positive"}
"""One class with the whole word where that is there; else letters are classes of their own."""
QUOTES = "'\"`\u2018\u2019\u201c\u201d"
LOOK_ALIKE = str.maketrans("αοερικντυχγ", "aoepikvtuxy")
"""Greek letters that pass for Latin ones."""
DOT_ABOVE = "\u0307"
"""What is left of a Turkish capital I in lower case."""
SEPARATOR = re.compile(r"[|;,&+/]")
MISSING_CODES = (99, 255, 999, 9999, 65535)
"""Numbers that stand for "unknown" where they lie far above the classes; 255 is -1 in a byte."""

MAX_SHOWN = 5
MAX_LENGTH = 200


def is_missing(cell: str) -> bool:
    """Tell whether a cell says that there is no value."""
    return cell.strip().casefold() in MISSING


def sort_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Sort as numbers when all are whole numbers, else as text."""
    found = set(names)
    if all(name.isascii() and name.isdigit() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def check_spellings(names: Iterable[str], request: RawRequest) -> None:
    """Check that every class has a name that can be shown, and that none is spelt in two ways.

    Letter case, blanks, hyphens and underscores between words, quotes, Unicode forms (NFKC), letters that
    look alike and ways to write a number, a truth value, positive or negative make no other class. A list of
    other classes is none. A word for "unknown" is asked about. What ``label_map`` says is meant so.
    What cannot be printed could not be told apart, and could drive a terminal.

    Raises:
        DataError: with the spellings; class names may be shown.
    """
    found = set(names)
    _check_printable(found, request)
    _check_numbers(found, request)
    _check_known(found, request)
    _check_single(found, request)
    words = {name.strip().casefold() for name in found}
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    for name in found:
        whole = INITIALS.get(name.strip().casefold())
        spellings[_key(whole if whole and whole in words else name)].add(name)
    doubtful = [" / ".join(map(repr, sorted(group))) for group in spellings.values() if len(group) > 1]
    if doubtful:
        more = ", ..." if len(doubtful) > MAX_SHOWN else ""
        raise DataError(
            f"{request.dataset.name}: every class must be spelt one way",
            ", ".join(doubtful[:MAX_SHOWN]) + more,
            "spell them alike, or say what they mean with --label-map or label_map",
        )


def _check_numbers(found: set[str], request: RawRequest) -> None:
    """Check that labels which are all numbers are class numbers: no measurements, no codes for unknown."""
    if not found or not all(re.fullmatch(r"[-+]?\d+([.,]\d+)?", name.strip(), re.ASCII) for name in found):
        return
    numbers = sorted(Decimal(name.strip().replace(",", ".")) for name in found)
    name, others = request.dataset.name, numbers[:-1]
    if any(number % 1 for number in numbers):
        shown = next(number for number in numbers if number % 1)
        raise DataError(
            f"{name}: labels must be classes, not measurements",
            f"{len(numbers)} numbers, such as {shown:.6g}",
            "say which class each number is with --label-map or label_map",
        )
    if len(numbers) < 3:
        return
    if numbers[0] < 0:
        rule, code = f"{name}: labels must not be negative beside others", numbers[0]
    elif numbers[-1] in MISSING_CODES and 2 * others[-1] < numbers[-1]:
        rule, code = f"{name}: labels must not hold a code for unknown", numbers[-1]
    else:
        return
    way_out = "take those images out, or say what it means with --label-map or label_map"
    raise DataError(rule, f"{code}, which often means unknown", way_out)


def _check_known(found: set[str], request: RawRequest) -> None:
    meant = {label for _, label in request.dataset.label_map}
    doubtful = sorted(name for name in found - meant if name.strip().casefold() in UNKNOWN)
    if doubtful:
        shown = doubtful[0]
        raise DataError(
            f"{request.dataset.name}: a word for unknown must be a class on purpose",
            ", ".join(map(repr, doubtful)),
            f"take those images out, or keep it with --label-map {shown}={shown} or label_map",
        )


def _check_single(found: set[str], request: RawRequest) -> None:
    """Check that no label lists several of the others: ``Mass|Nodule`` beside ``Mass`` and ``Nodule``."""
    meant = {label for _, label in request.dataset.label_map}
    lists = sorted(
        name
        for name in found - meant
        if len(parts := [part.strip(" '\"") for part in SEPARATOR.split(name.strip("[]() "))]) > 1
        and all(part in found for part in parts)
    )
    if lists:
        shown = ", ".join(map(repr, lists[:MAX_SHOWN])) + (", ..." if len(lists) > MAX_SHOWN else "")
        raise DataError(
            f"{request.dataset.name}: a label must be one class, not a list of them",
            f"{len(lists)}: {shown}",
            "take those images out, or say which class each is with --label-map or label_map",
        )


def _check_printable(names: Iterable[str], request: RawRequest) -> None:
    odd = sum(
        not name.strip() or not name.isprintable() or len(name) > MAX_LENGTH or _mixes_alphabets(name)
        for name in names
    )
    if odd:
        raise DataError(
            f"{request.dataset.name}: class names must be printable, not blank, "
            f"{MAX_LENGTH} letters at most, each word in one alphabet",
            f"{odd} others",
            "rename them, or say what they mean with --label-map or label_map",
        )


def _mixes_alphabets(name: str) -> bool:
    """Tell whether a word has Latin and Cyrillic letters, which look alike."""
    return any(
        {"LATIN", "CYRILLIC"} <= {unicodedata.name(letter, "").split(" ")[0] for letter in word}
        for word in name.split()
        if not word.isascii()
    )


def _key(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name).casefold().translate(LOOK_ALIKE).replace(DOT_ABOVE, "")
    plain = " ".join(re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", plain).split())
    plain = plain.strip(QUOTES) or plain
    plain = BOOLEANS.get(plain, SHORT.get(plain, plain))
    try:
        return f"number {Decimal(plain).normalize() + 0}"  # -0 is 0
    except ArithmeticError:
        return plain


def mapped_label(cell: str, request: RawRequest) -> str:
    """Return the class that a label stands for: that of ``label_map`` where it has one, else itself."""
    return dict(request.dataset.label_map).get(cell.strip(), cell)


def plain_id(group: str) -> str:
    """Spell an id without case, blanks, Unicode forms, leading zeros and a ``.0``."""
    plain = " ".join(unicodedata.normalize("NFKC", group).casefold().split())
    number = re.fullmatch(r"0*(\d+)(?:\.0*)?", plain)
    return number[1] if number else plain
