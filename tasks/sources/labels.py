"""What a class may be called: one spelling each, and never a word for "missing"."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest

MISSING = frozenset({"", "nan", "-nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nat", "nil", "."})
"""What spreadsheets, pandas, R and SAS write where there is nothing, in lower case."""

PLACEHOLDERS = frozenset(
    {"anon", "anonymous", "anonymized", "anonymised", "unknown", "0", "-", "x"} | MISSING - {"."}
)
"""Patient ids that many patients share."""

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

    Letter case, blanks, Unicode forms (NFKC) and ways to write a number make no other class. What cannot be
    printed could not be told apart, and could drive a terminal.

    Raises:
        DataError: with the spellings; class names may be shown.
    """
    found = set(names)
    _check_printable(found, request)
    if "-1" in found and len(found) > 2 and all(name.lstrip("-").isdigit() for name in found):
        raise DataError(
            f"{request.dataset.name}: labels must not be negative beside others",
            "-1, which often means unknown",
            "take those images out, or say what it means with --label-map or label_map",
        )
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    for name in found:
        spellings[_key(name)].add(name)
    doubtful = [" / ".join(map(repr, sorted(group))) for group in spellings.values() if len(group) > 1]
    if doubtful:
        more = ", ..." if len(doubtful) > MAX_SHOWN else ""
        raise DataError(
            f"{request.dataset.name}: every class must be spelt one way",
            ", ".join(doubtful[:MAX_SHOWN]) + more,
            "spell them alike, or say what they mean with --label-map or label_map",
        )


def _check_printable(names: Iterable[str], request: RawRequest) -> None:
    odd = sum(not name.strip() or not name.isprintable() or len(name) > MAX_LENGTH for name in names)
    if odd:
        raise DataError(
            f"{request.dataset.name}: class names must be printable, not blank, {MAX_LENGTH} letters at most",
            f"{odd} others",
            "rename them, or say what they mean with --label-map or label_map",
        )


def _key(name: str) -> str:
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    try:
        return f"number {float(plain) + 0.0:.12g}"  # -0 is 0
    except ValueError:
        return plain


def mapped_label(cell: str, request: RawRequest) -> str:
    """Return the class that a label stands for: that of ``label_map`` where it has one, else itself."""
    return dict(request.dataset.label_map).get(cell.strip(), cell)
