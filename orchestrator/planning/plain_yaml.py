"""YAML 1.2 of plain data (mappings, lists, text, numbers, true, false, null), read by ruamel.yaml.

What a sweep file has no use for is refused, so that a hostile file costs nothing and no value is guessed:
tags, anchors and aliases, keys that are no text or stand twice, more nesting or values than any sweep has.
"""

from __future__ import annotations

import io
import json
import re
import stat
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, MaxDepthExceededError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from search_spaces.errors import ConfigError

MAX_NESTING = 20
MAX_VALUES = 20_000
"""Reading goes at about 50,000 values a second, and a sweep of 100,000 trials needs a few hundred."""

_NOT_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "merge", "value")}
_AMBIGUOUS_NUMBER = re.compile(r"[-+]?0[0-9]|.*_")


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
    loader.Composer, loader.Constructor, loader.Resolver = _Composer, _Constructor, _Resolver
    loader.max_depth = MAX_NESTING
    try:
        return loader.load(text)
    except _Refused as error:
        raise ConfigError(f"{origin} {error.problem}", _place(error), str(error.note)) from None
    except MaxDepthExceededError as error:
        raise ConfigError(f"{origin} may nest at most {MAX_NESTING} levels deep", _place(error)) from None
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


class _Refused(MarkedYAMLError):
    """YAML that is valid, but not plain; ``problem`` is the rule and ``note`` the way out."""


class _Composer(Composer):
    """Refuses what is not plain while the document is read, before anything is made of it."""

    num_values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        mark = event.start_mark
        if isinstance(event, AliasEvent) or event.anchor is not None:
            raise _Refused(
                problem="must not use YAML anchors or aliases", problem_mark=mark, note="write it out"
            )
        if event.tag is not None:
            found = f"could not determine a plain value of tag {str(event.tag)[:60]!r}"
            raise MarkedYAMLError(problem=found, problem_mark=mark)
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise _Refused(
                problem=f"may hold at most {MAX_VALUES:,} values", problem_mark=mark, note="split it"
            )
        return super().compose_node(parent, index)


class _Constructor(SafeConstructor):
    """Makes plain values; keys are text and stand once."""

    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
        if isinstance(key, str) and key not in mapping:
            return True
        problem = f"key {key!r} stands twice" if isinstance(key, str) else f"key {key!r} must be text"
        raise MarkedYAMLError(problem=problem[:200], problem_mark=key_node.start_mark)


class _Resolver(VersionedResolver):
    """Scalars of YAML 1.2 whatever a ``%YAML`` line asks for; dates and ambiguous numbers stay text.

    ``0123`` is octal to some readers and decimal to others, ``1_000`` a number to some and text to others.
    """

    @property
    def processing_version(self) -> tuple[int, int]:
        return (1, 2)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        number = str(tag).endswith((":int", ":float"))
        if str(tag) in _NOT_PLAIN or (number and _AMBIGUOUS_NUMBER.match(value)):
            return Tag(suffix="tag:yaml.org,2002:str")
        return tag


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
