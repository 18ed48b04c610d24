"""What a class may be called: one spelling each, and never a word for "missing"; and when two ids are one."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal
from shlex import quote

from tasks.sources.base import RawRequest

MISSING = frozenset({"", "nan", "-nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nat", "nil", ".", "?"})
MISSING |= {"inf", "-inf", "+inf"}
MISSING |= {"#value!", "#ref!", "#name?", "#div/0!", "#null!", "#num!"}
"""What spreadsheets, pandas, R, SAS and ARFF write where there is nothing, in lower case."""
UNKNOWN = frozenset({"-", "--", "unknown", "unk", "missing", "unlabeled", "unlabelled", "unspecified"})
UNKNOWN |= {"not available", "not known", "tbd", "todo", "uncertain", "unsure", "undetermined", "undefined"}
UNKNOWN |= {"ignore", "ignored", "not applicable", "n.a.", "no label"}
"""Words that may name a class, and mostly say that there is none, in lower case."""
NOBODY = MISSING | UNKNOWN | {"anon", "anonymous", "anonymized", "anonymised"}
"""What is no patient's id."""
PLACEHOLDERS = NOBODY - {"."} | {"0", "x"}
"""Patient ids that many patients share."""
SAME = {"true": "1", "yes": "1", "false": "0", "no": "0", "pos": "positive", "neg": "negative"}
INITIALS = {"y": "yes", "n": "no", "t": "true", "f": "false", "p": "positive", "+": "positive"}
"""One class with the whole word where that is there; else letters are classes of their own."""
QUOTES = "'\"`\u2018\u2019\u201c\u201d"
SEPARATOR = re.compile(r"[|;,&+/]")
MISSING_CODES = (99, 255, 999, 9999, 65535)
"""Numbers that stand for "unknown" where they lie far above the classes; 255 is -1 in a byte."""
MAX_SHOWN = 5
MAX_LENGTH = 200
MEANT = "say what they mean with --label-map or label_map"


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

    Letter case, blanks, hyphens and underscores between words, quotes, Unicode forms (NFKC) and ways to write
    a number, a truth value, positive or negative make no other class. A list of other classes is none. A word
    for "unknown" is asked about. What ``label_map`` says is meant so. What cannot be printed could not be
    told apart, and could drive a terminal. Each is a DataError with the spellings; class names may be shown.
    """
    found = set(names)
    odd = sorted(one for one in found if not one.strip() or not one.isprintable() or len(one) > MAX_LENGTH)
    if odd:
        rule = f"class names must be printable, not blank, {MAX_LENGTH} letters at most"
        shown = f"{len(odd)}, first {odd[0][:MAX_LENGTH]!a}"
        raise request.error(rule, shown, f"rename them, or {MEANT}")
    _check_numbers(found, request)
    own = found - {label for _, label in request.dataset.label_map}
    if unknown := sorted(one for one in own if one.strip().casefold() in UNKNOWN):
        raise request.error(
            "a word for unknown must be a class on purpose",
            ", ".join(map(repr, unknown)),
            f"take those images out, or keep it with --label-map {quote(f'{unknown[0]}={unknown[0]}')} "
            "or label_map",
        )
    # Mass|Nodule beside Mass and Nodule.
    parts = {one: SEPARATOR.split(one.strip("[]() ")) for one in own}
    parts = {one: [part.strip(" '\"") for part in several] for one, several in parts.items()}
    if lists := sorted(one for one, several in parts.items() if len(several) > 1 and found >= {*several}):
        rule = "a label must be one class, not a list of them"
        found_lists = f"{len(lists)}: {_shown(map(repr, lists))}"
        raise request.error(rule, found_lists, f"take those images out, or {MEANT}")
    words = {one.strip().casefold() for one in found}
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    for one in found:
        whole = INITIALS.get(one.strip().casefold())
        spellings[_key(whole if whole and whole in words else one)].add(one)
    doubtful = [" / ".join(map(repr, sorted(group))) for group in spellings.values() if len(group) > 1]
    if doubtful:
        rule = "every class must be spelt one way"
        raise request.error(rule, _shown(doubtful), f"spell them alike, or {MEANT}")


def _check_numbers(found: set[str], request: RawRequest) -> None:
    """Check that labels which are all numbers are class numbers: no measurements, no codes for unknown."""
    plain = {one.strip().replace("\u2212", "-").replace(",", ".") for one in found}  # as Word writes minus
    if not plain or not all(re.fullmatch(r"[-+]?\d+([.]\d+)?", one, re.ASCII) for one in plain):
        return
    numbers = sorted(map(Decimal, plain))
    if parts := [number for number in numbers if number % 1]:
        shown = f"{len(numbers)} numbers, such as {parts[0]:.6g}"
        raise request.error("labels must be classes, not measurements", shown, MEANT)
    if len(numbers) < 3:
        return
    if numbers[0] < 0:
        rule, code = "labels must not be negative beside others", numbers[0]
    elif numbers[-1] in MISSING_CODES and 2 * numbers[-2] < numbers[-1]:
        rule, code = "labels must not hold a code for unknown", numbers[-1]
    else:
        return
    way_out = f"take those images out, or say what they mean with --label-map={code}=NAME or label_map"
    raise request.error(rule, f"{code}, which often means unknown", way_out)


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:MAX_SHOWN]) + (", ..." if len(listed) > MAX_SHOWN else "")


def _key(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name).casefold()
    plain = " ".join(re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", plain).split())
    plain = plain.strip(QUOTES) or plain
    plain = SAME.get(plain, plain)
    try:
        return f"number {Decimal(plain).normalize() + 0}"  # -0 is 0
    except ArithmeticError:
        return plain


def plain_id(group: str) -> str:
    """Spell an id without case, blanks, Unicode forms, leading zeros and a ``.0``."""
    plain = " ".join(unicodedata.normalize("NFKC", group).casefold().split())
    number = re.fullmatch(r"0*(\d+)(?:\.0*)?", plain)
    return number[1] if number else plain
