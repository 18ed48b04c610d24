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
from ruamel.yaml.error import MarkedYAMLError, YAMLError
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
        meaning: What is wrong, in a user's words.
        at_start: True to name where the faulty part begins, False for where it was noticed.
    """

    words: str
    meaning: str
    at_start: bool = False


PARSER_ERRORS = (
    _ParserError("character '\\t'", "a tab; indent with blanks"),
    _ParserError(
        "cannot start any token",
        "a sign that no value can begin with; put the text in quotes",
    ),
    _ParserError(
        "alphabetic or numeric character",
        "* or & at the beginning of a value; put the text in quotes",
    ),
    _ParserError(
        "mapping values are not allowed",
        "a colon that cannot be here; write key: value, one a line, indented like the others, "
        "and text with a colon in quotes",
    ),
    _ParserError(
        "could not find expected ':'",
        "no key: value; a blank must stand behind the colon",
        at_start=True,
    ),
    _ParserError(
        "parsing a flow",
        "a bracket that is not closed, or no comma between its values",
        at_start=True,
    ),
    _ParserError("found unexpected end of stream", "a quote that is not closed", at_start=True),
    _ParserError(
        "escape", "a backslash in double quotes; write / in a path, or take single quotes"
    ),
    _ParserError(
        "expected <block end>",
        "a line that is not indented like those above it, or a sign too many",
    ),
    _ParserError("expected the node content", "a sign that cannot be here"),
    _ParserError("found another document", "a second document; take --- out"),
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
        if not stat.S_ISREG(status.st_mode):
            description = "no regular file"
            if path.is_dir():
                description = "a folder; isweep init writes a file for one"
            raise ConfigError(f"A {kind} must be a file", f"{path} is {description}")
        if status.st_size > max_bytes:
            rule = f"A {kind} may have at most {max_bytes:,} bytes"
            raise ConfigError(rule, f"{path} has {status.st_size:,}", "Split it")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        hint = "Save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        rule = f"The {kind} must be readable UTF-8 text"
        raise ConfigError(rule, f"{path}: {error}", hint) from None


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
        raise ConfigError(f"{origin} must be valid YAML", _located(error)) from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{origin} must be valid YAML", " ".join(str(error).split())) from None


def _located(error: MarkedYAMLError) -> str:
    """Return where a parser's error is, and what is wrong there."""
    message = ", ".join(filter(None, (error.context, error.problem)))
    meaning = message
    mark = error.problem_mark or error.context_mark
    for error_row in PARSER_ERRORS:
        if error_row.words in message:
            meaning = error_row.meaning
            if error_row.at_start and error.context_mark:
                mark = error.context_mark
            break
    if isinstance(error, DuplicateKeyError):
        problem = str(error.problem).partition(" with value")[0]
        meaning = f"{problem.removeprefix('found duplicate ')} stands twice"
    return f"line {mark.line + 1}, column {mark.column + 1}: {meaning}"


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
            refusal = _Refusal(f"more than {MAX_VALUES:,} values", "split it")
        elif depth > MAX_NESTING:
            refusal = _Refusal(f"more than {MAX_NESTING} levels of nesting", "write it flatter")
        if refusal is not None:
            mark = event.start_mark
            place = f"line {mark.line + 1}, column {mark.column + 1}: {refusal.description}"
            raise ConfigError(f"{origin} must hold plain values only", place, refusal.hint)


def _refusal_of(reader: YAML, event: Event) -> _Refusal | None:
    """Return why a part of a document is refused, or None."""
    if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
        return _Refusal("an anchor or alias", "write it out")
    if getattr(event, "version", None) is not None:
        return _Refusal("a %YAML line", "take it out: the file is read as YAML 1.2")
    tag = getattr(event, "tag", None)
    if tag is not None:
        return _Refusal(f"the tag {str(tag)[:MAX_SHOWN]}", "take it out")
    if isinstance(event, ScalarEvent) and event.implicit[0]:
        resolved = reader.resolver.resolve(ScalarNode, event.value, event.implicit)
        if str(resolved).endswith(UNWANTED_TYPES):
            return _Refusal(repr(event.value[:MAX_SHOWN]), "put text in quotes")
    return None
