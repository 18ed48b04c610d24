"""What MLflow, its server or its database say when they do not do as asked, in one line without secrets."""

from __future__ import annotations

import re
from urllib.parse import unquote

from mlflow.exceptions import MlflowException

from orchestrator.planning.redaction import without_secrets
from search_spaces.errors import ConfigError, SetupError, SweepError

FINAL_CODES = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
)
FINAL_WORDS = re.compile(
    r"error code 40[0134]|password authentication failed|Access denied|(database|role) \S+ does not exist"
)


class Refused(SetupError):
    """The server answered, and will answer the same again."""


def is_final(error: Exception) -> bool:
    """Tell whether an error will be the same however often one tries."""
    if isinstance(error, SweepError):
        return isinstance(error, (Refused, ConfigError))
    if isinstance(error, ModuleNotFoundError):  # of the database's driver
        return True
    if isinstance(error, MlflowException) and error.error_code in FINAL_CODES:
        return True
    # A database's own errors too: MLflow passes some on, and its tables are looked at before it is asked.
    return bool(FINAL_WORDS.search(str(error)[:600]))


def first_line(error: Exception, uri: str = "") -> str:
    """Return what an error says in one line, without secrets, those of ``uri`` in any spelling among them."""
    if isinstance(error, SweepError):
        return error.value
    # SQLAlchemy says first under which circumstances it met the database's error.
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("(raised as")]
    text = (lines or [type(error).__name__])[0]
    for secret in _spellings(uri):
        text = text.replace(secret, "…")
    return without_secrets(text)[:300]


def _spellings(uri: str) -> list[str]:
    """Return a URI's password as a driver may quote it: whole, decoded, or taken for a part of the host."""
    found = re.search(r"://[^:\s]*:(\S*)@", uri)
    password = found[1] if found else ""
    wholes = [password, unquote(password)]
    ends = [f"{one[place + 1 :]}@" for one in wholes for place, sign in enumerate(one) if sign in "@:/"]
    return [spelling for spelling in (*wholes, *ends) if len(spelling) > 1]
