"""The rules for names of classes: one spelling each, no measurement, no word for unknown."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal
from shlex import quote

from search_spaces.errors import plural
from tasks.sources.base import RawRequest, first_of
from tasks.sources.own.words import UNKNOWN

SYNONYMS = {
    "true": "1",
    "yes": "1",
    "false": "0",
    "no": "0",
    "pos": "positive",
    "neg": "negative",
}
"""Word -> the word that stands for it when two names of classes are compared."""
INITIALS = {
    "y": "yes",
    "n": "no",
    "t": "true",
    "f": "false",
    "p": "positive",
    "+": "positive",
}
"""Letter -> the word that it abbreviates. It is expanded only if the full word is also a class.
Otherwise the letter stays the name of a class."""
QUOTES = "'\"`\u2018\u2019\u201c\u201d"
SEPARATOR = re.compile(r"[|;,&+/]")
"""Characters between the classes of a cell that lists several."""
MISSING_CODES = (99, 255, 999, 9999, 65535)
"""Numbers that mean "unknown" if they lie far above the other classes; 255 is -1 in a byte."""
MAX_LABEL_LENGTH = 200
"""Characters of a class name."""
LABEL_MAP_HINT = "say what they mean with --label-map or label_map"


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Sort distinct labels as numbers if all are whole numbers, else as text."""
    distinct = set(labels)
    if all(label.isascii() and label.isdigit() for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def check_class_names(names: Iterable[str], request: RawRequest) -> None:
    """Check that every class has one spelling, and a name that can be printed.

    Names that differ only in these are the same class, so they are refused as two spellings:

    - letter case, quotes, and Unicode forms (NFKC);
    - blanks, hyphens and underscores between words;
    - how a number, a truth value, positive or negative is written.

    A list of other classes and a word for "unknown" are refused too, unless ``label_map`` names
    them.

    Raises:
        DataError: A rule is broken. The message shows the names, which are not confidential.
    """
    classes = set(names)
    unmapped = classes.difference(dict(request.dataset.label_map).values())
    _check_printable(classes, request)
    _check_numbers(classes, request)
    _check_no_unknown_word(unmapped, request)
    _check_no_list(classes, unmapped, request)
    _check_one_spelling(classes, request)


def _check_printable(classes: set[str], request: RawRequest) -> None:
    """Check that names can be printed: control characters could change a user's terminal."""
    odd = []
    for name in sorted(classes):
        if not name.strip() or not name.isprintable() or len(name) > MAX_LABEL_LENGTH:
            odd.append(name)
    if odd:
        names = plural(len(odd), "class name")
        raise request.error(
            f"{names} cannot be used, since blank, not "
            f"printable, or longer than {MAX_LABEL_LENGTH} characters; the first "
            f"is {odd[0][:MAX_LABEL_LENGTH]!a}",
            hint=f"Rename them, or {LABEL_MAP_HINT}",
        )


def _check_numbers(classes: set[str], request: RawRequest) -> None:
    """Check that labels, if all are numbers, are not measurements and hold no code for unknown."""
    numerals = set()
    for name in classes:
        # Word processors write the minus sign U+2212; many languages have a decimal comma.
        numeral = name.strip().replace("\u2212", "-").replace(",", ".")
        if not re.fullmatch(r"[-+]?\d+([.]\d+)?", numeral, re.ASCII):
            return
        numerals.add(numeral)
    numbers = sorted(map(Decimal, numerals))
    fractions = [number for number in numbers if number % 1]
    if fractions:
        raise request.error(
            f"the labels are {len(numbers)} different numbers, such as {fractions[0]:.6g}: "
            "measurements, not classes",
            hint="Say which class each number is with --label-map or label_map",
        )
    if len(numbers) < 3:
        return  # -1 and 1, or 0 and 255, are common names of two classes
    if numbers[0] < 0:
        rule = "a label is negative, though there are three or more classes"
        code = numbers[0]
    elif numbers[-1] in MISSING_CODES and 2 * numbers[-2] < numbers[-1]:
        rule = "a label seems to be a code"
        code = numbers[-1]
    else:
        return
    raise request.error(
        f"{rule}: {code} often means unknown",
        hint=f"Take those images out, or name the class with --label-map={code}=NAME or label_map",
    )


def _check_no_unknown_word(unmapped: set[str], request: RawRequest) -> None:
    """Check that no class is a word for unknown, unless ``label_map`` names it."""
    unknown = sorted(name for name in unmapped if name.strip().casefold() in UNKNOWN)
    if unknown:
        option = quote(f"{unknown[0]}={unknown[0]}")
        raise request.error(
            f"the class {', '.join(map(repr, unknown))} is a word for unknown",
            hint=f"Take those images out, or keep the class with --label-map {option} or label_map",
        )


def _check_no_list(classes: set[str], unmapped: set[str], request: RawRequest) -> None:
    """Check that no name lists other classes, as ``Mass|Nodule`` with ``Mass`` and ``Nodule``."""
    lists = []
    for name in sorted(unmapped):
        parts = [part.strip(" '\"") for part in SEPARATOR.split(name.strip("[]() "))]
        if len(parts) > 1 and classes.issuperset(parts):
            lists.append(name)
    if lists:
        labels = plural(len(lists), "label")
        raise request.error(
            f"several classes stand in {labels}: {first_of(map(repr, lists))}",
            hint=f"Take those images out, or {LABEL_MAP_HINT}",
        )


def _check_one_spelling(classes: set[str], request: RawRequest) -> None:
    """Check that no two names are spellings of the same class."""
    words = {name.strip().casefold() for name in classes}
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    for name in classes:
        word = INITIALS.get(name.strip().casefold(), "")
        spellings[_spelling_key(word if word in words else name)].add(name)
    doubtful = []
    for alike in spellings.values():
        if len(alike) > 1:
            doubtful.append(" / ".join(map(repr, sorted(alike))))
    if doubtful:
        raise request.error(
            f"a class has several spellings: {first_of(doubtful)}",
            hint=f"Write each class in one way, or {LABEL_MAP_HINT}",
        )


def _spelling_key(name: str) -> str:
    """Return a key that is equal for all spellings of one class."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", text)
    text = " ".join(text.split())
    text = text.strip(QUOTES) or text
    text = SYNONYMS.get(text, text)
    try:
        return f"number {Decimal(text).normalize() + 0}"  # adding 0 makes -0 equal 0
    except ArithmeticError:
        return text
