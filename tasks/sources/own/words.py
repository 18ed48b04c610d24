"""Words that mean a missing or unknown value, in user data or in the table of a download."""

from __future__ import annotations

# All words are in lower case. There are four sets, because a word such as "anonymous" may be
# the name of a class, but cannot be the id of a patient:
# - MISSING: words that programs write for a missing value.
# - UNKNOWN: words that people write if they do not know a value.
#   A word of these two sets is a label only if label_map contains it. Such a word is never an id.
# - NO_IDS: the words of these two sets, and words for a patient whose name was removed.
# - PLACEHOLDERS: the words of NO_IDS, and ids such as 0. One patient may have the id 0. If most
#   patients have this id, it is a placeholder.
MISSING = (
    frozenset({"", ".", "?", "na", "n/a"})  # R, SAS and ARFF
    | {"nan", "-nan", "<na>", "none", "nat", "inf", "-inf", "+inf"}  # numpy and pandas
    | {"null", "nil"}  # JSON and databases
    | {"#n/a", "#value!", "#ref!", "#name?", "#div/0!", "#null!", "#num!"}  # spreadsheets
)
"""Texts that programs write for a missing value."""
UNKNOWN = (
    frozenset({"-", "--", "missing", "unspecified", "undefined"})
    | {"unknown", "unk", "not known", "not available", "uncertain", "unsure", "undetermined"}
    | {"unlabeled", "unlabelled", "no label", "tbd", "todo"}
    | {"ignore", "ignored", "not applicable", "n.a."}
)
"""Words that people write for an unknown class. A class may also have such a name."""
NO_IDS = MISSING | UNKNOWN | {"anon", "anonymous", "anonymized", "anonymised"}
"""Texts that are never the id of a patient."""
PLACEHOLDERS = NO_IDS | {"0", "x"}
"""Texts that anonymization programs write as the id of many patients."""


def is_missing(cell: str) -> bool:
    """Return whether a cell is blank or contains a word for a missing value."""
    return cell.strip().casefold() in MISSING
