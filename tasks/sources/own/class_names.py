"""Check class names.

Each class must have only one spelling. No class name may be a measurement or mean "unknown".
"""

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
"""Word -> its synonym. Two synonyms count as two spellings of one class name."""
INITIALS = {
    "y": "yes",
    "n": "no",
    "t": "true",
    "f": "false",
    "p": "positive",
    "+": "positive",
}
"""Abbreviation -> the full word. An abbreviation counts as a spelling of the full word only if
the full word is also a class."""
QUOTES = "'\"`\u2018\u2019\u201c\u201d"
SEPARATOR = re.compile(r"[|;,&+/]")
"""Characters that separate the classes in a label of several classes."""
MISSING_CODES = (99, 255, 999, 9999, 65535)
"""Numbers that often mean "unknown" if all other labels are far smaller. The list contains
255, because an unsigned byte stores -1 as 255."""
MAX_LABEL_LENGTH = 200
"""Largest number of characters of a class name."""
LABEL_MAP_HINT = "assign classes to these labels with --label-map (in a sweep file: label_map)"


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return the distinct labels in sorted order.

    If all labels are whole numbers, they are sorted as numbers. Otherwise they are sorted as
    text.
    """
    distinct = set(labels)
    if all(label.isascii() and label.isdigit() for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def check_class_names(names: Iterable[str], request: RawRequest) -> None:
    """Check that every class has only one spelling, and a plausible name that can be printed.

    Two names are spellings of the same class if they differ only in these points:

    - letter case, quotes, or Unicode form (NFKC);
    - spaces, hyphens and underscores between words;
    - the spelling of a number, of a truth value, or of the word positive or negative.

    A list of several classes is not accepted as a class name, unless ``label_map`` maps a
    label to it. The same is true for a word that means "unknown".

    Raises:
        DataError: A name breaks one of these rules. The message shows the name, because class
            names are not confidential.
    """
    classes = set(names)
    unmapped = classes.difference(dict(request.dataset.label_map).values())
    _check_printable(classes, request)
    _check_numbers(classes, request)
    _check_no_unknown_word(unmapped, request)
    _check_no_list(classes, unmapped, request)
    _check_unicode_forms(classes, request)
    _check_one_spelling(classes, request)


def _check_printable(classes: set[str], request: RawRequest) -> None:
    """Check that names can be printed, because control characters could change a user's terminal.

    Raises:
        DataError: A name is blank, not printable or too long.
    """
    odd = []
    for name in sorted(classes):
        if not name.strip() or not name.isprintable() or len(name) > MAX_LABEL_LENGTH:
            odd.append(name)
    if odd:
        names = plural(len(odd), "class name")
        raise request.error(
            f"{names} cannot be used, because a name is blank, not printable, or longer than "
            f"{MAX_LABEL_LENGTH} characters. An example is {odd[0][:MAX_LABEL_LENGTH]!a}",
            hint=f"Rename these classes, or {LABEL_MAP_HINT}",
        )


def _check_numbers(classes: set[str], request: RawRequest) -> None:
    """Check that class names are not measurements.

    If any name is not a number, all names are accepted.

    Raises:
        DataError: The names are measurements, or a name seems to be a code for "unknown".
    """
    numerals = set()
    for name in classes:
        # Word processors write the minus sign as U+2212. Many languages use a decimal comma.
        numeral = name.strip().replace("\u2212", "-").replace(",", ".")
        if not re.fullmatch(r"[-+]?\d+([.]\d+)?", numeral, re.ASCII):
            return
        numerals.add(numeral)
    numbers = sorted(map(Decimal, numerals))
    fractions = [number for number in numbers if number % 1]
    if fractions:
        raise request.error(
            f"the labels seem to be measurements, not classes. The labels are {len(numbers)} "
            f"different numbers, such as {fractions[0]:.6g}",
            hint="Assign a class to each number with --label-map (in a sweep file: label_map)",
        )
    if len(numbers) < 3:
        return  # -1 and 1, or 0 and 255, are common names of two classes
    if numbers[0] < 0:
        code = numbers[0]
    elif numbers[-1] in MISSING_CODES and 2 * numbers[-2] < numbers[-1]:
        code = numbers[-1]
    else:
        return
    raise request.error(
        f"one of the {len(numbers)} labels is {code}, which often means unknown",
        hint="Remove the images with this label. If the label is a class, add "
        f"--label-map={code}=NAME (in a sweep file: label_map)",
    )


def _check_no_unknown_word(unmapped: set[str], request: RawRequest) -> None:
    """Check that no class name means "unknown".

    Args:
        unmapped: The class names to which ``label_map`` maps no label.
        request: The request. Its method ``error`` makes the errors.

    Raises:
        DataError: A class name means "unknown".
    """
    unknown = sorted(name for name in unmapped if name.strip().casefold() in UNKNOWN)
    if unknown:
        option = quote(f"{unknown[0]}={unknown[0]}")
        raise request.error(
            f"the class name {', '.join(map(repr, unknown))} usually means that the class is "
            "unknown",
            hint=f"Remove these images. To use the word as a class, add --label-map {option} "
            "(in a sweep file: label_map)",
        )


def _check_no_list(classes: set[str], unmapped: set[str], request: RawRequest) -> None:
    """Check that no class name is a list of other classes, such as ``Mass|Nodule``.

    Args:
        classes: All class names.
        unmapped: The class names to which ``label_map`` maps no label. Only these are checked.
        request: The request. Its method ``error`` makes the errors.

    Raises:
        DataError: A class name is a list of classes.
    """
    lists = []
    for name in sorted(unmapped):
        parts = [part.strip(" '\"") for part in SEPARATOR.split(name.strip("[]() "))]
        if len(parts) > 1 and classes.issuperset(parts):
            lists.append(name)
    if lists:
        labels = plural(len(lists), "label")
        raise request.error(
            f"some labels list several classes ({labels}): {first_of(map(repr, lists))}",
            hint=f"Remove these images, or {LABEL_MAP_HINT}",
        )


def _check_unicode_forms(classes: set[str], request: RawRequest) -> None:
    """Check that no two names look the same but consist of different Unicode characters.

    Raises:
        DataError: Two names look the same.
    """
    by_form: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        by_form[unicodedata.normalize("NFC", name)].append(name)
    for same_form in by_form.values():
        if len(same_form) > 1:
            raise request.error(
                f"these class names look the same but differ in their Unicode characters: "
                f"{' / '.join(map(ascii, same_form))}",
                hint="Rename the folders or labels, so that each class has one spelling. A "
                "file system or program often stores an accent as a separate character",
            )


def _check_one_spelling(classes: set[str], request: RawRequest) -> None:
    """Check that no two names are spellings of the same class.

    Raises:
        DataError: A class has two spellings.
    """
    words = {name.strip().casefold() for name in classes}
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    for name in classes:
        full_word = INITIALS.get(name.strip().casefold(), "")
        spellings[_spelling_key(full_word if full_word in words else name)].add(name)
    repeated = []
    for alike in spellings.values():
        if len(alike) > 1:
            repeated.append(" / ".join(map(repr, sorted(alike))))
    if repeated:
        raise request.error(
            f"these class names differ only in spelling: {first_of(repeated)}",
            hint=f"Spell each class the same way everywhere, or {LABEL_MAP_HINT}",
        )


def _spelling_key(name: str) -> str:
    """Return a key that is equal for all spellings of one class."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", text)
    text = " ".join(text.split())
    text = text.strip(QUOTES) or text
    text = SYNONYMS.get(text, text)
    try:
        return f"number {Decimal(text).normalize() + 0}"  # adding 0 turns -0 into 0
    except ArithmeticError:
        return text
