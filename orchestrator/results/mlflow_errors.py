"""What MLflow's errors mean: which of them are final, and how a person reads them."""

from __future__ import annotations

import re
from urllib.parse import unquote

from orchestrator.planning.redaction import without_secrets
from search_spaces.errors import ConfigError, SetupError, SweepError

# What MLflow says when it does not do as asked.

FINAL_CODES = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
}

FINAL_WORDS = re.compile(
    r"error code 40[0134]|password authentication failed|Access denied|(database|role) \S+ "
    r"does "
    r"not exist"
)


class Refused(SetupError):
    """The server answered, and will answer the same again."""


def is_final(error: Exception) -> bool:
    """Tell whether an error will be the same however often one tries; a driver that is not
    installed, too.
    """
    if isinstance(error, SweepError):
        return isinstance(error, Refused | ConfigError)
    if isinstance(error, ModuleNotFoundError) or getattr(error, "error_code", "") in FINAL_CODES:
        return True
    # A database's own errors too: MLflow passes some on, and its tables are looked at before it is
    # asked.
    return bool(FINAL_WORDS.search(str(error)[:600]))


def no_answer(error: Exception) -> SetupError:
    """Return what a person reads when MLflow does not answer."""
    if isinstance(error, SetupError):
        return error
    hint = "the result store has everything: isweep reconcile, later"
    return SetupError("MLflow must answer", first_line(error), hint)


def first_line(error: Exception, uri: str = "") -> str:
    """Return what an error says in one line, without secrets.

    A driver may quote the password of ``uri`` whole, decoded, or taken for a part of the host.
    """
    if isinstance(error, SweepError):
        return error.value
    # SQLAlchemy says first under which circumstances it met the database's error.
    lines = [
        line
        for line in str(error).splitlines()
        if line.strip() and not line.startswith("(raised as")
    ]
    text = (lines or [type(error).__name__])[0]
    found = re.search(r"://[^:\s]*:(\S*)@", uri)
    for password in [found[1], unquote(found[1])] if found else []:
        ends = [f"{password[place + 1 :]}@" for place, sign in enumerate(password) if sign in "@:/"]
        for secret in filter(lambda spelling: len(spelling) > 1, [password, *ends]):
            text = text.replace(secret, "…")
    return without_secrets(text)[:300]
