"""Identity by content: canonical JSON, hashed.

Two values have equal fingerprints exactly when their canonical JSON is equal. What has no stable
spelling (callables, sets, NaN, numpy scalars, arbitrary objects) is refused, not turned into a
string.

Of a spec only the fields that differ from their defaults are spelled, so that a new field with a
default changes no id. A default that changes would change what an id means: its kind's
``schema_version`` is counted up then, and that field is always spelled. See
``docs/decisions/0006-identity-that-lasts.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from enum import Enum
from functools import cache, lru_cache
from typing import Any

from pydantic import BaseModel

ID_HEX_DIGITS = 12
_text = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
VERSION_FIELD = "schema_version"
"""The one field of a spec that is spelled although it has its default."""


def canonical_json(value: object) -> str:
    """Return the one spelling of ``value``: sorted keys, no spaces, shortest round-trip floats.

    ``1``, ``1.0`` and ``True`` are three different values. Tuples and lists are the same sequence.

    Raises:
        TypeError: for anything without a stable spelling, naming where it stands.

    Example:
        >>> canonical_json({"b": 1.0, "a": (1, True, None)})
        '{"a":[1,true,null],"b":1.0}'
    """
    return _text(_plain(value, "value"))


def fingerprint(value: object) -> str:
    """Return the SHA-256 of the canonical JSON of ``value``, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def readable_id(slug_parts: list[str], value: object) -> str:
    """Return ``slug-parts-<12 hex digits>``: a name people can read that only equal content shares.

    Example:
        >>> readable_id(["resnet18", "MNIST 3/8", "n500"], {"x": 1})
        'resnet18-mnist-3-8-n500-5041bf1f713d'
    """
    is_frozen = isinstance(value, BaseModel) and value.model_config.get("frozen")
    digest = _hash_of_frozen(_Same(value)) if is_frozen else fingerprint(value)
    return "-".join([*filter(None, map(_slug, slug_parts)), digest[:ID_HEX_DIGITS]])


@lru_cache(maxsize=4096)
def _slug(part: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", part.lower()).strip("-")


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on ``parts`` and on nothing else (order matters).

    Every random choice of a cell is seeded this way, so a cell's result does not depend on what ran
    before or beside it.
    """
    return int(fingerprint(list(parts))[:16], 16) >> 1


def _plain(value: object, where: str) -> object:
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, BaseModel):
        frozen = value.model_config.get("frozen")
        return _plain_frozen(_Same(value), where) if frozen else _plain_model(value, where)
    if isinstance(value, Enum):
        return _plain(value.value, where)
    if type(value) is float:
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value!r}: only finite numbers have a fingerprint")
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        if not all(type(key) is str for key in value):
            raise TypeError(
                f"{where} has a key that is not a string: a fingerprint needs string keys"
            )
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{where} is of type {type(value).__name__}, which has no stable spelling; "
        "use numbers, strings, lists, mappings or a spec"
    )


def _plain_model(model: BaseModel, where: str) -> dict[str, object]:
    plain: dict[str, object] = {}
    defaults = _defaults(type(model))
    for name in type(model).model_fields:
        spelled = _plain(getattr(model, name), f"{where}.{name}")
        if (
            name not in defaults or _text(spelled) != defaults[name]
        ):  # 1, 1.0 and True are different values
            plain[name] = spelled
    return plain


@cache
def _defaults(kind: type[BaseModel]) -> dict[str, str]:
    """Return the defaults of a spec's fields as they are spelled; a sweep asks for them 100,000
    times.
    """
    return {
        name: _text(_plain(field.get_default(call_default_factory=True), name))
        for name, field in kind.model_fields.items()
        if name != VERSION_FIELD and not field.is_required()
    }


class _Same:
    """A key that only the very same object matches: equal specs may be spelled in two ways (1, 1.0,
    True).
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.model is other.model


# Thousands of cells share a subset, a recipe and a model: a frozen spec is spelled once while it is
# in use.
@lru_cache(maxsize=4096)
def _plain_frozen(same: _Same, where: str) -> dict[str, object]:
    return _plain_model(same.model, where)


@lru_cache(maxsize=4096)
def _hash_of_frozen(same: _Same) -> str:
    return fingerprint(same.model)
