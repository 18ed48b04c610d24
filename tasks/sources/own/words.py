"""Words that say that a value is not known, in a user's own data or in a table."""

from __future__ import annotations

# Words that say that something is not known, in lower case. There are four sets, because a word may
# name a class and still be no patient's id:
# - MISSING: the cell is blank, or holds a program's word for that.
# - UNKNOWN: a word that people use as the name of a class.
# Both are refused as a label unless they are in ``label_map``; the messages differ. Neither is
# ever an id.
# - NO_IDS adds the words for a patient whose name was taken out.
# - PLACEHOLDERS adds ids that look real. One patient may have such an id, but not most of them.
MISSING = (
    frozenset({"", ".", "?", "na", "n/a"})  # R, SAS and ARFF
    | {"nan", "-nan", "<na>", "none", "nat", "inf", "-inf", "+inf"}  # numpy and pandas
    | {"null", "nil"}  # JSON and databases
    | {"#n/a", "#value!", "#ref!", "#name?", "#div/0!", "#null!", "#num!"}  # spreadsheets
)
"""Text that programs write for a missing value."""
UNKNOWN = (
    frozenset({"-", "--", "missing", "unspecified", "undefined"})
    | {"unknown", "unk", "not known", "not available", "uncertain", "unsure", "undetermined"}
    | {"unlabeled", "unlabelled", "no label", "tbd", "todo"}
    | {"ignore", "ignored", "not applicable", "n.a."}
)
"""Words that people write if they do not know the class; a class may have such a name."""
NO_IDS = MISSING | UNKNOWN | {"anon", "anonymous", "anonymized", "anonymised"}
"""Text that is not a patient's id."""
PLACEHOLDERS = NO_IDS | {"0", "x"}
"""Ids that programs for anonymization give to many patients."""


def is_missing(cell: str) -> bool:
    """Return whether a cell says that there is no value."""
    return cell.strip().casefold() in MISSING
