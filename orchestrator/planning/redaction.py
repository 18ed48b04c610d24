"""Text without secrets: passwords in URLs, and values of secret environment variables."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


# What must not be said: passwords in URLs, and the values of variables that hold secrets.

SECRET_NAME = re.compile(
    "(?i)TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE_KEY"
)
PASSWORD = re.compile(r"://[^/\s@]*:[^/\s]*@|[?&]password=")
"""Of a URL, before its host or among its parameters."""
SHORTEST_SECRET = 6
"""Shorter values are words such as `true`, and leaving them out would spoil messages."""


def without_secrets(text: str) -> str:
    """Leave out of URLs what stands before the host and after the question mark, and all that is
    secret here.

    Secret is the value of every environment variable whose name says so; paths to files are none.
    """
    text = re.sub(r"://[^/\s]*@", "://…@", text)
    text = re.sub(r"\?[^\s'\"]*=[^\s'\"]*", "?…", text)
    for name, value in os.environ.items():
        if value in text and len(value) >= SHORTEST_SECRET and SECRET_NAME.search(name):
            text = (
                text if os.path.isabs(value) and os.path.exists(value) else text.replace(value, "…")
            )
    return text
