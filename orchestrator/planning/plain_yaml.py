"""YAML 1.2 of plain data: no anchors, tags or dates, and a limit on size.

In YAML 1.2 ``1e-3`` is a number, ``no`` a word, and ``12:30`` not a number of minutes. What a sweep
file has no use for is refused, so that no value is guessed and a hostile file costs nothing.
"""

from __future__ import annotations

import io
import stat
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, StreamMark, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    Event,
    ScalarEvent,
)
from ruamel.yaml.nodes import ScalarNode

from search_spaces.errors import ConfigError

MAX_NESTING = 20
"""Levels of nesting; a sweep has fewer than ten."""
MAX_VALUES = 20_000
"""Values of a document. Reading goes at about 50,000 values a second, and a sweep of 100,000
trials needs a few hundred."""
LINE_WIDTH = 100
"""Columns of written YAML."""
MAX_SHOWN = 60
"""Characters of a value that a message shows."""
UNWANTED_TYPES = (":timestamp", ":merge", ":value")
"""Ends of the names of YAML's types that text without quotes may turn into."""


@dataclass(frozen=True)
class _ParserError:
    """The meaning of a message of the YAML parser.

    Attributes:
        words: Part of the parser's message.
        meaning: What is wrong, in a user's words, behind the line and column.
        hint: What to do.
        at_start: True to name where the faulty part begins, False for where it was noticed.
    """

    words: str
    meaning: str
    hint: str
    at_start: bool = False


PARSER_ERRORS = (
    _ParserError("character '\\t'", "has a tab", "Indent with spaces"),
    _ParserError(
        "cannot start any token",
        "has a character that no value can begin with",
        "Put the text in quotes",
    ),
    _ParserError(
        "alphabetic or numeric character",
        "has * or & at the beginning of a value",
        "Put the text in quotes",
    ),
    _ParserError(
        "mapping values are not allowed",
        "has a colon that cannot be there",
        "Write one `key: value` a line with the same indent, and put text with a colon in quotes",
    ),
    _ParserError(
        "could not find expected ':'",
        "has no `key: value`",
        "Write a colon and a space after the key",
        at_start=True,
    ),
    _ParserError(
        "parsing a flow",
        "has a bracket that is not closed, or values without a comma between them",
        "Close the bracket, or add the comma",
        at_start=True,
    ),
    _ParserError(
        "found unexpected end of stream",
        "has a quote that is not closed",
        "Close the quote",
        at_start=True,
    ),
    _ParserError(
        "escape",
        "has a backslash in double quotes",
        "Write / in a path, or use single quotes",
    ),
    _ParserError(
        "expected <block end>",
        "is not indented like the lines above, or has a character too many",
        "Correct the indent, or remove the character",
    ),
    _ParserError(
        "expected the node content",
        "has a character that cannot be there",
        "Remove the character, or put the text in quotes",
    ),
    _ParserError("found another document", "begins a second document", "Remove the line with ---"),
)
"""Messages of the parser, the first that fits first."""


def read_text(path: Path, kind: str, max_bytes: int) -> str:
    """Return the text of a file that a user wrote; a named pipe is not waited for.

    Args:
        path: The file.
        kind: What messages call the file.
        max_bytes: Largest size.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: It is no regular file, too large, or not UTF-8.
    """
    try:
        status = path.stat()
        if path.is_dir():
            raise ConfigError(
                f"{path} is a folder, not a {kind}",
                hint="Name a file; `isweep init FOLDER` writes a sweep file for a folder of images",
            )
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a regular file", hint=f"Name a {kind}")
        if status.st_size > max_bytes:
            raise ConfigError(
                f"{path} has {status.st_size:,} bytes, more than the {max_bytes:,} that a {kind} "
                "may have",
                hint="Split the file",
            )
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text: {error}", hint="Save the file as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a path that no file can have
        raise ConfigError(f"{str(path)!r} cannot be the path of a file: {error}") from None


def read_plain(text: str, origin: str) -> object:
    """Return the content of one YAML document.

    Args:
        text: The document.
        origin: What messages call it.

    Raises:
        ConfigError: It is no YAML, or more than plain values; the message names the place.
    """
    try:
        _check_plain(text, origin)
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        raise _located(error, origin) from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{origin} is not YAML: {' '.join(str(error).split())}") from None


def _located(error: MarkedYAMLError, origin: str) -> ConfigError:
    """Return where a parser's error is, and what is wrong there."""
    message = ", ".join(filter(None, (error.context, error.problem)))
    mark = error.problem_mark or error.context_mark
    if isinstance(error, DuplicateKeyError):
        key = str(error.problem).partition(" with value")[0].removeprefix("found duplicate ")
        hint = "Remove one of the two lines"
        return ConfigError(f"{_place(origin, mark)} has {key} for the second time", hint=hint)
    for row in PARSER_ERRORS:
        if row.words in message:
            if row.at_start and error.context_mark:
                mark = error.context_mark
            return ConfigError(f"{_place(origin, mark)} {row.meaning}", hint=row.hint)
    return ConfigError(f"{_place(origin, mark)} is not YAML: {message}")


def _place(origin: str, mark: StreamMark) -> str:
    """Return a place in a document, in words."""
    return f"{origin}, line {mark.line + 1}, column {mark.column + 1}"


def not_a_mapping(origin: str, content: object, hint: str) -> ConfigError:
    """Return the error for a document that has no keys and values.

    Args:
        origin: What messages call the document.
        content: What it has instead.
        hint: What to do.
    """
    if content is None:
        return ConfigError(f"{origin} is empty", hint=hint)
    # The content itself is not shown: the file may be another one than the user meant.
    kind = "a list" if isinstance(content, list) else "a single value"
    return ConfigError(f"{origin} holds {kind}, not keys with values", hint=hint)


def write_plain(document: object) -> str:
    """Return plain values as YAML that :func:`read_plain` reads back; short lists take one line."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = None
    writer.width = LINE_WIDTH
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    buffer = io.StringIO()
    writer.dump(document, buffer)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Refusal:
    """A part of a file that is refused, and what to do instead."""

    description: str
    hint: str


def _check_plain(text: str, origin: str) -> None:
    """Refuse what a sweep file has no use for, before anything is built from it."""
    reader = YAML(typ="safe", pure=True)
    depth = 0
    for number, event in enumerate(reader.parse(text)):
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        refusal = _refusal_of(reader, event)
        if number > 2 * MAX_VALUES:  # a value has at most two events
            raise ConfigError(
                f"{origin} has more than {MAX_VALUES:,} values", hint="Split the file"
            )
        if depth > MAX_NESTING:
            refusal = _Refusal(
                f"more than {MAX_NESTING} levels of nesting", "Nest the values less deeply"
            )
        if refusal is not None:
            place = _place(origin, event.start_mark)
            raise ConfigError(f"{place} has {refusal.description}", hint=refusal.hint)


def _refusal_of(reader: YAML, event: Event) -> _Refusal | None:
    """Return why a part of a document is refused, or None."""
    if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
        return _Refusal("an anchor or alias", "Write the value out instead")
    if getattr(event, "version", None) is not None:
        return _Refusal("a %YAML line", "Remove the line; the file is read as YAML 1.2")
    tag = getattr(event, "tag", None)
    if tag is not None:
        return _Refusal(f"the tag {str(tag)[:MAX_SHOWN]}", "Remove the tag")
    if isinstance(event, ScalarEvent) and event.implicit[0]:
        resolved = reader.resolver.resolve(ScalarNode, event.value, event.implicit)
        if str(resolved).endswith(UNWANTED_TYPES):
            value = repr(event.value[:MAX_SHOWN])
            return _Refusal(f"{value} without quotes", "Put the text in quotes")
    return None
