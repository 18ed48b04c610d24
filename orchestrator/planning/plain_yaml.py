"""YAML 1.2 with plain values only: no anchors, tags or dates, and a limited size.

In YAML 1.2, ``1e-3`` is a number, and ``no`` and ``12:30`` are text. Any other part of YAML,
which a sweep file does not need, is an error. So isweep guesses no value, and a hostile file
cannot use up the memory.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
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
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.parser import Parser

from search_spaces.errors import ConfigError

MAX_NESTING = 20
"""Largest number of nested levels. A sweep file has fewer than ten levels."""
MAX_VALUES = 20_000
"""Largest number of values in a document. isweep reads about 50,000 values per second. The
file of a sweep with 100,000 trials needs a few hundred values."""
LINE_WIDTH = 100
"""Line length of written YAML, characters."""
MAX_SHOWN = 60
"""Largest number of characters of a value that a message quotes."""
SEPARATORS = {
    "\x85": "next line, U+0085",
    "\u2028": "line separator, U+2028",
    "\u2029": "paragraph separator, U+2029",
}
"""Invisible characters that YAML may read as the end of a line. Most editors do not show them
as one. They come from copied text."""
UNWANTED_TYPES = (":timestamp", ":value")
"""Endings of the names of YAML types. A text without quotes may become a value of one of these
types."""


@dataclass(frozen=True)
class _ParserError:
    """An error message of the YAML parser, and its translation for users.

    Attributes:
        words: Part of the parser's message.
        meaning: The error in simple words. In our message, it follows the line and column.
        hint: What the user should do.
        at_start: If True, our message gives the place where the faulty text begins. If False,
            it gives the place where the parser stopped.
    """

    words: str
    meaning: str
    hint: str
    at_start: bool = False


PARSER_ERRORS = (
    _ParserError("character '\\t'", "has a tab", "Replace the tab by spaces"),
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
        "has a colon in a wrong place",
        "Write one `key: value` per line, with equal indents. Put text with a colon in quotes",
    ),
    _ParserError(
        "could not find expected ':'",
        "has a key without a value",
        "Write a colon and a space after the key, then its value",
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
        "is not indented like the lines above, or has an extra character",
        "Correct the indent, or remove the character",
    ),
    _ParserError(
        "expected the node content",
        "has a character in a wrong place",
        "Remove the character, or put the text in quotes",
    ),
    _ParserError(
        "found another document", "begins a second YAML document", "Remove the line with `---`"
    ),
)
"""Error messages of the parser. If several rows match, isweep uses the first one."""


def read_text(path: Path, kind: str, max_bytes: int) -> str:
    """Return the text of a regular file that a user wrote.

    Args:
        path: The file.
        kind: Word for the file in messages.
        max_bytes: Size limit, bytes.

    Raises:
        FileNotFoundError: The file does not exist.
        ConfigError: The path is not a regular file, or the file is too large or not UTF-8.
    """
    try:
        status = path.stat()
        if path.is_dir():
            raise ConfigError(
                f"{path} is a folder, not a {kind}",
                hint=f"Give the path of a {kind}",
            )
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a regular file", hint=f"Give the path of a {kind}")
        if status.st_size > max_bytes:
            raise ConfigError(
                f"{path} has {status.st_size:,} bytes, but a {kind} can have at most {max_bytes:,}",
                hint="Split the file, or correct the path",
            )
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise ConfigError(
            f"{path}, line {line}, is not UTF-8 text", hint="Save the file as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error}",
            hint="Correct the path, or the permissions of the file",
        ) from None
    except ValueError as error:  # no file can have this path, for example with a NUL
        raise ConfigError(
            f"{str(path)!r} cannot be the path of a file: {error}", hint="Correct the path"
        ) from None


def read_plain(text: str, origin: str) -> object:
    """Return the content of one YAML document.

    Args:
        text: The document.
        origin: Name of the document in messages.

    Raises:
        ConfigError: The text is not YAML, or has a part that is not a plain value. The message
            has the line and column.
    """
    reader = YAML(typ="safe", pure=True)
    reader.Parser = partial(_PlainParser, origin=origin, text=text)
    try:
        return reader.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        separator = _last_separator(text, 0, mark.index + 1)
        if separator is not None:
            raise _separator_error(text, separator, origin) from None
        raise _located(error, origin) from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(
            f"{origin} is not YAML: {' '.join(str(error).split())}", hint="Correct the text"
        ) from None


def _located(error: MarkedYAMLError, origin: str) -> ConfigError:
    """Convert a parser's error to an error for users, with the place and the meaning."""
    message = ", ".join(filter(None, (error.context, error.problem)))
    mark = error.problem_mark or error.context_mark
    if isinstance(error, DuplicateKeyError):
        key = str(error.problem).partition(" with value")[0].removeprefix("found duplicate ")
        hint = "Remove one of the two lines"
        return ConfigError(f"{_place(origin, mark)} repeats the {key}", hint=hint)
    for row in PARSER_ERRORS:
        if row.words in message:
            if row.at_start and error.context_mark:
                mark = error.context_mark
            return ConfigError(f"{_place(origin, mark)} {row.meaning}", hint=row.hint)
    return ConfigError(f"{_place(origin, mark)} is not YAML: {message}", hint="Correct the line")


def _last_separator(text: str, start: int, stop: int) -> int | None:
    """Return the index of the last invisible separator in ``text[start:stop]``, or None."""
    index = max(text.rfind(separator, start, stop) for separator in SEPARATORS)
    return None if index < 0 else index


def _separator_error(text: str, index: int, origin: str) -> ConfigError:
    """Return the error for an invisible separator.

    The parser counts a separator as the end of a line, but an editor does not. So the line is
    counted here.
    """
    line = text.count("\n", 0, index) + 1
    column = index - text.rfind("\n", 0, index)
    return ConfigError(
        f"{origin}, line {line}, column {column} has an invisible character "
        f"({SEPARATORS[text[index]]})",
        hint="Remove the character, or type the line again",
    )


def _place(origin: str, mark: StreamMark) -> str:
    """Return a place in a document as text."""
    return f"{origin}, line {mark.line + 1}, column {mark.column + 1}"


def line_of(text: str, keys: Sequence[int | str]) -> int | None:
    """Return the line of a value in a document, or None if the document has no such value.

    Args:
        text: A document that :func:`read_plain` can read.
        keys: Keys that lead to the value. For a list, a key is an index, or the ``name`` of a
            mapping in the list.
    """
    node: Node | None = YAML(typ="safe", pure=True).compose(text)
    line = None
    for key in keys:
        child = None
        if isinstance(node, MappingNode):
            child = _child_of(node, str(key))
        elif isinstance(node, SequenceNode):
            child = _item_of(node, key)
        if child is None:
            return None
        line, node = child
    return line


def _child_of(node: MappingNode, key: str) -> tuple[int, Node] | None:
    """Return the line of a key of a mapping, with the key's value; None if there is no such key."""
    for key_node, value_node in node.value:
        if key_node.value == key:
            return key_node.start_mark.line + 1, value_node
    return None


def _item_of(node: SequenceNode, key: int | str) -> tuple[int, Node] | None:
    """Return the line of an item of a list, with the item; None if there is no such item."""
    for index, item in enumerate(node.value):
        name = _child_of(item, "name") if isinstance(item, MappingNode) else None
        if index == key or (name is not None and name[1].value == key):
            return item.start_mark.line + 1, item
    return None


def not_a_mapping(origin: str, content: object, hint: str) -> ConfigError:
    """Return the error for a document that is not a mapping of keys to values.

    Args:
        origin: Name of the document in messages.
        content: Content of the document.
        hint: What the user should do.
    """
    if content is None:
        return ConfigError(f"{origin} is empty", hint=hint)
    # The message does not show the content, because the user may have chosen a wrong file with
    # private content.
    kind = "a list" if isinstance(content, list) else "a single value"
    return ConfigError(f"{origin} contains {kind}, but should contain keys with values", hint=hint)


def write_plain(document: object) -> str:
    """Return plain values as YAML that :func:`read_plain` can read.

    Each short list is on one line.
    """
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = None
    writer.width = LINE_WIDTH
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    buffer = io.StringIO()
    writer.dump(document, buffer)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Refusal:
    """A piece of YAML that is not allowed in a sweep file.

    Attributes:
        description: Description of the piece. In a message, it follows the word ``has``.
        hint: What the user should do.
    """

    description: str
    hint: str


class _PlainParser(Parser):
    """A YAML parser that raises an error at the first part that is not a plain value.

    The check happens during loading. A separate check before loading would take 1.5 times as
    long.

    Args:
        loader: The YAML reader that uses this parser.
        origin: Name of the document in messages.
        text: The document.
    """

    def __init__(self, loader: YAML, *, origin: str, text: str) -> None:
        super().__init__(loader)
        self._origin = origin
        self._text = text
        self._num_events = 0
        self._depth = 0

    def get_event(self) -> Event:
        """Return the parser's next event, which describes the next piece of the document.

        Raises:
            ConfigError: The piece is not allowed. The parser has not built a value from it
                yet.
        """
        event: Event = super().get_event()
        self._num_events += 1
        if isinstance(event, CollectionStartEvent):
            self._depth += 1
        elif isinstance(event, CollectionEndEvent):
            self._depth -= 1
        if self._num_events > 2 * MAX_VALUES:  # a value has at most two events
            raise ConfigError(
                f"{self._origin} has more than {MAX_VALUES:,} values",
                hint="Split the file, or correct the path",
            )
        if isinstance(event, ScalarEvent) and event.implicit[0]:
            separator = _last_separator(self._text, event.start_mark.index, event.end_mark.index)
            if separator is not None:
                raise _separator_error(self._text, separator, self._origin)
        refusal = _refusal_of(self.loader, event)
        if self._depth > MAX_NESTING:
            refusal = _Refusal(
                f"more than {MAX_NESTING} levels of nesting", "Nest the values less deeply"
            )
        if refusal is not None:
            place = _place(self._origin, event.start_mark)
            raise ConfigError(f"{place} has {refusal.description}", hint=refusal.hint)
        return event


def _refusal_of(reader: YAML, event: Event) -> _Refusal | None:
    """Return the refusal of a piece of a document, or None if the piece is allowed."""
    if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
        return _Refusal("an anchor (&) or an alias (*)", "Write the whole value in each place")
    if getattr(event, "version", None) is not None:
        return _Refusal("a %YAML line", "Remove the line. isweep always reads YAML 1.2")
    tag = getattr(event, "tag", None)
    if tag is not None:
        return _Refusal(f"the tag {str(tag)[:MAX_SHOWN]}", "Remove the tag")
    if isinstance(event, ScalarEvent) and event.implicit[0]:
        resolved = reader.resolver.resolve(ScalarNode, event.value, event.implicit)
        if str(resolved).endswith(":merge"):
            return _Refusal("the merge key <<", "Remove it, and write all keys in this place")
        if str(resolved).endswith(UNWANTED_TYPES):
            value = repr(event.value[:MAX_SHOWN])
            return _Refusal(f"{value} without quotes", "Put the text in quotes")
    return None
