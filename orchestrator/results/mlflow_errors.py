"""Decide which errors of MLflow are refusals, and shorten the text of errors for messages.

Importing this module does not import ``mlflow``.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from orchestrator.planning.redaction import without_secrets
from search_spaces.errors import ConfigError, SetupError, SweepError

REFUSAL_CODES = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
}
"""MLflow's error codes for refusals. A repeated call would fail as well."""
MISSING_CODE = "RESOURCE_DOES_NOT_EXIST"
"""MLflow's error code for a run that does not exist, for example after a restored backup."""
REFUSAL_WORDS = re.compile(
    r"error code 40[0134]|password authentication failed|Access denied"
    r"|(database|role) \S+ does not exist"
)
"""Pattern for refusals without an error code. MLflow passes on an error of a database only as
text."""
MAX_SEARCHED = 600
"""Number of characters of an error's text that are searched for this pattern."""
MAX_LENGTH = 300
"""Largest number of characters of an error's text in a message."""


class Refused(SetupError):
    """MLflow refused a request, and would refuse it again."""


def error_code(error: Exception) -> str:
    """Return MLflow's code of an error, or an empty text if the error has no code."""
    return str(getattr(error, "error_code", ""))


def is_refusal(error: Exception) -> bool:
    """Return whether MLflow refused a call, so that a repeated call would fail as well."""
    if isinstance(error, SweepError):
        return isinstance(error, Refused | ConfigError)
    if isinstance(error, ModuleNotFoundError):
        return True  # the Python driver of a database is not installed
    if error_code(error) in REFUSAL_CODES:
        return True
    return bool(REFUSAL_WORDS.search(str(error)[:MAX_SEARCHED]))


def no_answer_error(error: Exception) -> SetupError:
    """Return the error for an MLflow store that does not answer."""
    if isinstance(error, SetupError):
        return error
    return SetupError(
        f"MLflow does not answer: {first_line(error)}",
        hint="Run `isweep reconcile SWEEP` later. All results are in the result store",
    )


def refused_error(error: Exception) -> SetupError:
    """Return the error for an MLflow store that refuses the connection."""
    if isinstance(error, SetupError):
        return error
    return Refused(
        f"MLflow refuses the connection: {first_line(error)}",
        hint="Correct the MLflow URI or the user's permissions, or add --no-tracking",
    )


def first_line(error: Exception, uri: str = "") -> str:
    """Return an error as one line without secrets.

    Args:
        error: The error of MLflow, a database or the connection.
        uri: URI of the MLflow store. Its password is removed from the text. The text may
            contain the password as it is in the URI or decoded. It may also contain a piece of
            the password as the name of a host.
    """
    if isinstance(error, SweepError):
        return error.problem
    text = type(error).__name__
    for line in str(error).splitlines():
        # SQLAlchemy's first line describes the circumstances, not the error of the database.
        if line.strip() and not line.startswith("(raised as"):
            text = line
            break
    if "Max retries exceeded" in text:
        # This is a long text of urllib3. It first names a broken proxy, and then the cause of
        # that error.
        cause = re.search(r"(?:ProxyError\('|\[Errno -?\d+\] )([\w ]+)", text)
        text = cause[1] if cause else text
    for secret in _secrets(uri):
        text = text.replace(secret, "…")
    return without_secrets(text)[:MAX_LENGTH]


def _secrets(uri: str) -> list[str]:
    """Return all forms in which the text of an error may contain the password of a URI."""
    match = re.search(r"://[^:\s]*:(\S*)@", uri)
    if not match:
        return []
    secrets = []
    for password in (match[1], unquote(match[1])):
        # A parser may take a special character in the password for the end of the password. It
        # then takes the remaining characters for the host.
        ends = [f"{password[index + 1 :]}@" for index, sign in enumerate(password) if sign in "@:/"]
        secrets += [secret for secret in (password, *ends) if len(secret) > 1]
    return secrets
