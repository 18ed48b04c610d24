"""Remove secrets from text: passwords in URLs, and values of secret environment variables."""

from __future__ import annotations

import os
import re

SECRET_NAME = re.compile(
    "(?i)TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE_KEY"
)
"""Pattern of names of environment variables. If a name matches, its value is secret."""
PASSWORD = re.compile(r"://[^/\s@]*:[^/\s]*@|[?&]password=")
"""Pattern of the parts of a URL that may contain a password: the part before the host, and the
parameters."""
SHORTEST_SECRET = 6
"""Smallest number of characters of a secret. A shorter value is not removed, because it may be
a word such as `true`, which messages need."""


def without_secrets(text: str) -> str:
    """Return text without secrets.

    In URLs, remove the part before the host and the part after the question mark. Remove the
    values of environment variables with secret names, except for paths of existing files.
    """
    text = re.sub(r"://[^/\s]*@", "://…@", text)
    text = re.sub(r"\?[^\s'\"]*=[^\s'\"]*", "?…", text)
    for name, value in os.environ.items():
        if value not in text or len(value) < SHORTEST_SECRET or not SECRET_NAME.search(name):
            continue
        is_path = os.path.isabs(value) and os.path.exists(value)
        if not is_path:
            text = text.replace(value, "…")
    return text
