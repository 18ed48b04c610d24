"""Text without secrets: passwords in URLs, and values of secret environment variables."""

from __future__ import annotations

import os
import re

SECRET_NAME = re.compile(
    "(?i)TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE_KEY"
)
"""Names of environment variables whose values are secret."""
PASSWORD = re.compile(r"://[^/\s@]*:[^/\s]*@|[?&]password=")
"""A password in a URL, before its host or among its parameters."""
SHORTEST_SECRET = 6
"""Characters of the shortest secret that is left out. Shorter values are words such as `true`, and
leaving them out would spoil messages."""


def without_secrets(text: str) -> str:
    """Return text without what stands in URLs before the host and after the question mark.

    Values of environment variables that are secret by their name are left out as well, except for
    paths of files that exist.
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
