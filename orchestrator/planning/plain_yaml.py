"""YAML 1.2 of plain data: no anchors, tags or dates, and a limit on size."""

from __future__ import annotations

import io
import stat
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent
from ruamel.yaml.nodes import ScalarNode

from search_spaces.errors import (
    ConfigError,
)

MAX_FILE_BYTES, MAX_NESTING, MAX_VALUES, MAX_RECIPE_FILES = 1_000_000, 20, 20_000, 5
"""Reading goes at about 50,000 values a second, and a sweep of 100,000 trials needs a few
hundred."""


# YAML 1.2 of plain data.

YAML_WORDS = (
    ("character '\\t'", "a tab; indent with blanks", False),
    (
        "cannot start any token",
        ("a sign that no value can begin with; put the text in quotes"),
        False,
    ),
    (
        "alphabetic or numeric character",
        ("* or & at the beginning of a value; put the text in quotes"),
        False,
    ),
    (
        "mapping values are not allowed",
        "a colon that cannot be here; write key: value, one a line, "
        "indented "
        "like the others, and text with a colon in quotes",
        False,
    ),
    ("could not find expected ':'", "no key: value; a blank must stand behind the colon", True),
    ("parsing a flow", "a bracket that is not closed, or no comma between its values", True),
    ("found unexpected end of stream", "a quote that is not closed", True),
    ("escape", "a backslash in double quotes; write / in a path, or take single quotes", False),
    (
        "expected <block end>",
        ("a line that is not indented like those above it, or a sign too many"),
        False,
    ),
    ("expected the node content", "a sign that cannot be here", False),
    ("found another document", "a second document; take --- out", False),
)
"""Part of what the parser says, what is wrong in a user's words, and whether to name where it
begins."""


def read_text(path: Path, kind: str, max_bytes: int) -> str:
    """Return the text of a file that somebody wrote, which messages call ``kind``; no pipe is
    waited for.

    FileNotFoundError where there is none; ConfigError where it is no file, too long, or no UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            found = (
                "a folder; isweep init writes a file for one"
                if path.is_dir()
                else "no regular file"
            )
            raise ConfigError(f"A {kind} must be a file", f"{path} is {found}")
        if status.st_size > max_bytes:
            rule = f"A {kind} may have at most {max_bytes:,} bytes"
            raise ConfigError(rule, f"{path} has {status.st_size:,}", "split it")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        way_out = "save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise ConfigError(
            f"The {kind} must be readable UTF-8 text", f"{path}: {error}", way_out
        ) from None


def read_plain(text: str, origin: str) -> object:
    """Read one YAML document, which messages call ``origin``; a :class:`ConfigError` names a place
    in it.
    """
    try:
        _check_plain(text, origin)
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        told = ", ".join(filter(None, (error.context, error.problem)))
        found, opened = next((found for part, *found in YAML_WORDS if part in told), (told, False))
        mark = (opened and error.context_mark) or error.problem_mark or error.context_mark
        if isinstance(error, DuplicateKeyError):
            key = str(error.problem).partition(" with value")[0].removeprefix("found duplicate ")
            found = f"{key} stands twice"
        place = f"line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{origin} must be valid YAML", f"{place}: {found}") from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{origin} must be valid YAML", " ".join(str(error).split())) from None


def write_plain(document: object) -> str:
    """Write plain values so that :func:`read_plain` reads them back; short lists stand on one
    line.
    """
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = None
    writer.width = 100
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    buffer = io.StringIO()
    writer.dump(document, buffer)
    return buffer.getvalue()


def _check_plain(text: str, origin: str) -> None:
    """Refuse what a sweep file has no use for, before anything is made of it."""
    reader, depth = YAML(typ="safe", pure=True), 0
    for number, event in enumerate(reader.parse(text)):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        resolved = ""
        if isinstance(event, ScalarEvent) and event.implicit[0]:
            resolved = str(reader.resolver.resolve(ScalarNode, event.value, event.implicit))
        if number > 2 * MAX_VALUES:
            what, way_out = f"more than {MAX_VALUES:,} values", "split it"
        elif depth > MAX_NESTING:
            what, way_out = f"more than {MAX_NESTING} levels of nesting", "write it flatter"
        elif isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
            what, way_out = "an anchor or alias", "write it out"
        elif getattr(event, "version", None) is not None:
            what, way_out = "a %YAML line", "take it out: the file is read as YAML 1.2"
        elif (tag := getattr(event, "tag", None)) is not None:
            what, way_out = f"the tag {str(tag)[:60]}", "take it out"
        elif resolved.endswith((":timestamp", ":merge", ":value")):
            what, way_out = repr(event.value[:60]), "put text in quotes"
        else:
            continue
        place = f"line {event.start_mark.line + 1}, column {event.start_mark.column + 1}: {what}"
        raise ConfigError(f"{origin} must hold plain values only", place, way_out)
