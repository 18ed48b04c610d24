"""Meaning of MLflow's errors: which ones are final, and how a person reads them.

Importing this module does not import ``mlflow``.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from orchestrator.planning.redaction import without_secrets
from search_spaces.errors import ConfigError, SetupError, SweepError

FINAL_CODES = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
}
"""MLflow's error codes that another attempt does not change."""
MISSING_CODE = "RESOURCE_DOES_NOT_EXIST"
"""MLflow's error code for a run that is gone, as after its server was restored from a backup."""
FINAL_WORDS = re.compile(
    r"error code 40[0134]|password authentication failed|Access denied"
    r"|(database|role) \S+ does not exist"
)
"""Words of final errors that have no code: those of databases, which MLflow passes on as texts."""
MAX_SEARCHED = 600
"""Characters of an error's text in which these words are looked for."""
MAX_LENGTH = 300
"""Characters of an error's text that a message quotes."""


class Refused(SetupError):
    """MLflow answered, and will give the same answer again."""


def error_code(error: Exception) -> str:
    """Return MLflow's code of an error; empty if it has none."""
    return str(getattr(error, "error_code", ""))


def is_final(error: Exception) -> bool:
    """Return whether an error stays the same however often the call is repeated."""
    if isinstance(error, SweepError):
        return isinstance(error, Refused | ConfigError)
    if isinstance(error, ModuleNotFoundError):
        return True  # The driver of a database is not installed.
    if error_code(error) in FINAL_CODES:
        return True
    return bool(FINAL_WORDS.search(str(error)[:MAX_SEARCHED]))


def no_answer_error(error: Exception) -> SetupError:
    """Return the error for a user whose MLflow does not answer."""
    if isinstance(error, SetupError):
        return error
    return SetupError(
        f"MLflow does not answer: {first_line(error)}",
        hint="Run `isweep reconcile SWEEP` later. The result store has every result",
    )


def first_line(error: Exception, uri: str = "") -> str:
    """Return an error as one line without secrets.

    Args:
        error: of MLflow, a database or the network.
        uri: of the MLflow store, whose password is removed. A driver may quote the password as it
            is, decoded, or in part as the name of a host.
    """
    if isinstance(error, SweepError):
        return error.problem
    text = type(error).__name__
    for line in str(error).splitlines():
        # SQLAlchemy first says in which circumstances it met the database's error.
        if line.strip() and not line.startswith("(raised as"):
            text = line
            break
    for secret in _secrets(uri):
        text = text.replace(secret, "…")
    return without_secrets(text)[:MAX_LENGTH]


def _secrets(uri: str) -> list[str]:
    """Return the texts under which a driver may quote the password of a URI."""
    match = re.search(r"://[^:\s]*:(\S*)@", uri)
    if not match:
        return []
    secrets = []
    for password in (match[1], unquote(match[1])):
        # A parser that takes a sign in the password for the end of it reads the rest as a host.
        ends = [f"{password[index + 1 :]}@" for index, sign in enumerate(password) if sign in "@:/"]
        secrets += [secret for secret in (password, *ends) if len(secret) > 1]
    return secrets
