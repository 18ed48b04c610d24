"""Fingerprints: hashes of the content of values, computed from canonical JSON.

Two values have equal fingerprints if and only if their canonical JSON is equal. JSON cannot
represent functions, sets, NaN, numpy scalars and some other values. Such a value raises an
error instead of being converted to a string.

The JSON of a spec leaves out fields that have their default. So a new field with a default
changes no id. If you change a default, also increase the ``schema_version`` of this kind of
spec. Otherwise old ids would stand for other content. The JSON always contains the
``schema_version``. See ``docs/decisions/0006-identity-that-lasts.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Generic, TypeVar

from pydantic import BaseModel

ID_HEX_DIGITS = 12
"""Number of hex digits of the hash in an id. Among a million ids, the probability that two are
equal is 0.2 %."""
VERSION_FIELD = "schema_version"
"""Name of the field that the JSON of a spec always contains."""
SpecT = TypeVar("SpecT", bound=BaseModel)
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def canonical_json(value: object) -> str:
    """Return the canonical JSON of a value: sorted keys, no spaces, shortest exact floats.

    ``1``, ``1.0`` and ``True`` have different JSON. A tuple and a list with equal items have
    the same JSON.

    Raises:
        TypeError: JSON cannot represent a part of the value. The message names this part.

    Example:
        >>> canonical_json({"b": 1.0, "a": (1, True, None)})
        '{"a":[1,true,null],"b":1.0}'
    """
    return _encode(_json_value(value, "value"))


def fingerprint(value: object) -> str:
    """Return the SHA-256 of the canonical JSON of ``value``: 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def readable_id(slug_parts: list[str], value: object) -> str:
    """Return a readable name that ends with 12 hex digits of the value's fingerprint.

    Example:
        >>> readable_id(["resnet18", "MNIST 3/8", "n500"], {"x": 1})
        'resnet18-mnist-3-8-n500-5041bf1f713d'
    """
    if isinstance(value, BaseModel):
        # The hash is cached, because the id of a spec is needed many times.
        digest = _hash_of_model(IdentityKey(value))
    else:
        digest = fingerprint(value)
    slugs = [slug for slug in map(_slug, slug_parts) if slug]
    return "-".join([*slugs, digest[:ID_HEX_DIGITS]])


@lru_cache(maxsize=4096)
def _slug(part: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", part.lower()).strip("-")


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends only on ``parts`` and their order.

    This function makes all seeds of a trial, so the result of the trial does not depend on
    other trials.
    """
    return int(fingerprint(list(parts))[:16], 16) >> 1


def _json_value(value: object, place: str) -> object:
    """Convert ``value`` to JSON values. Error messages call the value ``place``."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, BaseModel):
        return _json_object(IdentityKey(value), place)
    if type(value) is float:
        if not math.isfinite(value):
            raise TypeError(f"{place} is {value!r}. Choose a finite number")
        return value
    if isinstance(value, (list, tuple)):
        return [_json_value(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        if not all(type(key) is str for key in value):
            raise TypeError(f"{place} has a key that is not a string. Convert its keys to strings")
        return {key: _json_value(item, f"{place}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{place} is of type {type(value).__name__}, which JSON cannot represent. "
        "Use numbers, strings, lists, mappings or a spec"
    )


class IdentityKey(Generic[SpecT]):
    """A cache key that compares specs by identity (``is``), not by value.

    Equal specs may have different JSON, because 1, 1.0 and True are equal in Python. Specs are
    frozen, so the JSON of one object never changes. The key keeps its spec alive, so no other
    spec gets the same ``id()``.
    """

    def __init__(self, spec: SpecT) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdentityKey) and self.spec is other.spec


@lru_cache(maxsize=4096)
def _json_object(key: IdentityKey[BaseModel], place: str) -> dict[str, object]:
    """Return a spec as JSON values.

    Results are cached: thousands of trials share a subset, a recipe and a model.
    """
    plain: dict[str, object] = {}
    kind: type[BaseModel] = type(key.spec)
    defaults = _defaults(kind)
    for name in kind.model_fields:
        value = _json_value(getattr(key.spec, name), f"{place}.{name}")
        # The JSON texts are compared, because 1, 1.0 and True are equal in Python.
        if name not in defaults or _encode(value) != defaults[name]:
            plain[name] = value
    return plain


@lru_cache(maxsize=4096)
def _hash_of_model(key: IdentityKey[BaseModel]) -> str:
    return fingerprint(key.spec)


@cache
def _defaults(kind: type[BaseModel]) -> dict[str, str]:
    """Return the default of each field of a spec as JSON text.

    Results are cached: a large sweep calls this function 100,000 times.
    """
    defaults: dict[str, str] = {}
    for name, field in kind.model_fields.items():
        if name != VERSION_FIELD and not field.is_required():
            default = field.get_default(call_default_factory=True)
            defaults[name] = _encode(_json_value(default, name))
    return defaults
