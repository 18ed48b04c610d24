"""YAML 1.2 of plain data: mappings, lists, text, numbers, true, false, null."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent
from ruamel.yaml.nodes import ScalarNode

from search_spaces.errors import ConfigError

# YAML 1.2 of plain data (mappings, lists, text, numbers, true, false, null), read by ruamel.yaml.
#
# What a sweep file has no use for is refused, so that a hostile file costs nothing and no value is guessed:
# anchors, tags and dates, keys that stand twice, more nesting or values than any sweep has.

MAX_NESTING = 20
MAX_VALUES = 20_000
"""Reading goes at about 50,000 values a second, and a sweep of 100,000 trials needs a few hundred."""


def read_text(path: Path, kind: str, max_bytes: int) -> str:
    """Return the text of a file that somebody wrote; a pipe or device in its place is not waited for.

    Args:
        path: Which.
        kind: What to call it in messages.
        max_bytes: The longest that is read.

    Raises:
        FileNotFoundError: when there is none.
        ConfigError: when it is no file, too long, or no UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            found = "a folder" if path.is_dir() else "no regular file"
            raise ConfigError(f"A {kind} must be a file", f"{path} is {found}")
        if (size := status.st_size) > max_bytes:
            raise ConfigError(
                f"A {kind} may have at most {max_bytes:,} bytes", f"{path} has {size:,}", "split it"
            )
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"The {kind} must be readable UTF-8 text", f"{path}: {error}") from None


def read_plain(text: str, origin: str) -> object:
    """Read one YAML document.

    Args:
        text: The document.
        origin: What to call it in messages.

    Raises:
        ConfigError: naming the place of what cannot be read or is refused.
    """
    loader = YAML(typ="safe", pure=True)
    try:
        _check_plain(text, origin)
        return loader.load(text)
    except DuplicateKeyError as error:
        key = str(error.problem).partition(" with value")[0].removeprefix("found duplicate ")
        raise ConfigError(f"{origin} must be valid YAML", f"{_place(error)}: {key} stands twice") from None
    except MarkedYAMLError as error:
        found = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{origin} must be valid YAML", f"{_place(error)}: {found}") from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{origin} must be valid YAML", " ".join(str(error).split())) from None


def write_plain(document: object) -> str:
    """Write plain values so that :func:`read_plain` reads them back; short lists stand on one line."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = None
    writer.width = 100
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    buffer = io.StringIO()
    writer.dump(document, buffer)
    return buffer.getvalue()


def _check_plain(text: str, origin: str) -> None:
    """Refuse what a sweep file has no use for, before anything is made of it.

    Raises:
        ConfigError: for an anchor, a tag, a date, a ``%YAML`` line, too many values or levels.
    """
    reader, depth = YAML(typ="safe", pure=True), 0
    for number, event in enumerate(reader.parse(text)):
        found = _not_plain(event, reader.resolver)
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_NESTING:
            found = f"more than {MAX_NESTING} levels of nesting", "write it flatter"
        if number > 2 * MAX_VALUES:
            found = f"more than {MAX_VALUES:,} values", "split it"
        if found is not None:
            what, way_out = found
            place = f"line {event.start_mark.line + 1}, column {event.start_mark.column + 1}: {what}"
            raise ConfigError(f"{origin} must hold plain values only", place, way_out)


def _not_plain(event: Any, resolver: Any) -> tuple[str, str] | None:
    """Return what is no plain value, and the way out; None for what is."""
    if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
        return "an anchor or alias", "write it out"
    if getattr(event, "version", None) is not None:
        return "a %YAML line", "take it out: the file is read as YAML 1.2"
    if (tag := getattr(event, "tag", None)) is not None:
        return f"the tag {str(tag)[:60]}", "take it out"
    if isinstance(event, ScalarEvent) and event.implicit[0]:
        resolved = str(resolver.resolve(ScalarNode, event.value, event.implicit))
        if resolved.endswith((":timestamp", ":merge", ":value")):
            return repr(event.value[:60]), "put text in quotes"
    return None


def _place(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1}, column {mark.column + 1}"


def plain_json(document: object, origin: str) -> bytes:
    """Return a sweep's content as JSON; NumPy's numbers and arrays, which notebooks hold, as what is in them.

    Raises:
        ConfigError: for what is neither number, text, list nor mapping, and text that is no Unicode.
    """
    try:
        return json.dumps(document, ensure_ascii=False, default=_plain).encode()
    except TypeError as error:
        hint = "use numbers, text, lists and mappings"
        raise ConfigError(f"{origin} must hold plain values only", str(error), hint) from None
    except UnicodeEncodeError as error:
        raise ConfigError(f"{origin} must be Unicode text", ascii(error.object[error.start])) from None


def _plain(value: Any) -> object:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(repr(value)[:200])
