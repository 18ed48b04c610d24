"""Identity by content: the hash of a value's canonical JSON.

Two values have equal fingerprints exactly if their canonical JSON is equal. A value that JSON does
not hold (a function, a set, NaN, a numpy scalar, any other object) is refused, not turned into a
string.

The JSON of a spec leaves out fields that are at their default, so a new field with a default
changes no id. If a default changes, the meaning of ids changes. Then the ``schema_version`` of the
spec's kind is increased, which the JSON always has. See
``docs/decisions/0006-identity-that-lasts.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import cache, lru_cache

from pydantic import BaseModel

ID_HEX_DIGITS = 12
"""Hex digits of a hash in an id. Among a million ids two are equal with a probability of 0.2 %."""
VERSION_FIELD = "schema_version"
"""The one field of a spec that is never left out."""
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def canonical_json(value: object) -> str:
    """Return the canonical JSON of a value: sorted keys, no spaces, shortest round-trip floats.

    ``1``, ``1.0`` and ``True`` are three different values. Tuples and lists are the same sequence.

    Raises:
        TypeError: JSON does not hold a part of the value, which the message names.

    Example:
        >>> canonical_json({"b": 1.0, "a": (1, True, None)})
        '{"a":[1,true,null],"b":1.0}'
    """
    return _encode(_plain(value, "value"))


def fingerprint(value: object) -> str:
    """Return the SHA-256 of the canonical JSON of ``value``, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def readable_id(slug_parts: list[str], value: object) -> str:
    """Return ``slug-parts-<12 hex digits>``, a readable name that only equal content shares.

    Example:
        >>> readable_id(["resnet18", "MNIST 3/8", "n500"], {"x": 1})
        'resnet18-mnist-3-8-n500-5041bf1f713d'
    """
    if isinstance(value, BaseModel):
        digest = _hash_of_model(_SameObject(value))
    else:
        digest = fingerprint(value)
    slugs = [slug for slug in map(_slug, slug_parts) if slug]
    return "-".join([*slugs, digest[:ID_HEX_DIGITS]])


@lru_cache(maxsize=4096)
def _slug(part: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", part.lower()).strip("-")


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on ``parts``, in this order, and on nothing else.

    Every random choice of a trial is seeded this way, so its result does not depend on other
    trials.
    """
    return int(fingerprint(list(parts))[:16], 16) >> 1


def _plain(value: object, place: str) -> object:
    """Return ``value`` as JSON values; messages call it ``place``."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, BaseModel):
        return _plain_model(_SameObject(value), place)
    if type(value) is float:
        if not math.isfinite(value):
            raise TypeError(f"{place} is {value!r}: only finite numbers have a fingerprint")
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        if not all(type(key) is str for key in value):
            raise TypeError(
                f"{place} has a key that is not a string: a fingerprint needs string keys"
            )
        return {key: _plain(item, f"{place}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{place} is of type {type(value).__name__}, which has no stable spelling; "
        "use numbers, strings, lists, mappings or a spec"
    )


class _SameObject:
    """A cache key that only the same spec matches. Specs are frozen, so their JSON never changes.

    Equal specs may have different JSON: 1, 1.0 and True are equal in Python.
    """

    def __init__(self, model: BaseModel) -> None:
        self.model = model

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SameObject) and self.model is other.model


@lru_cache(maxsize=4096)
def _plain_model(key: _SameObject, place: str) -> dict[str, object]:
    """Return a spec as JSON values; thousands of trials share a subset, a recipe and a model."""
    plain: dict[str, object] = {}
    kind: type[BaseModel] = type(key.model)
    defaults = _defaults(kind)
    for name in type(key.model).model_fields:
        value = _plain(getattr(key.model, name), f"{place}.{name}")
        # Compared as text: 1, 1.0 and True are different values.
        if name not in defaults or _encode(value) != defaults[name]:
            plain[name] = value
    return plain


@lru_cache(maxsize=4096)
def _hash_of_model(key: _SameObject) -> str:
    return fingerprint(key.model)


@cache
def _defaults(kind: type[BaseModel]) -> dict[str, str]:
    """Return the default of each field of a spec as JSON text.

    It is cached because a large sweep needs it 100,000 times.
    """
    defaults: dict[str, str] = {}
    for name, field in kind.model_fields.items():
        if name != VERSION_FIELD and not field.is_required():
            default = field.get_default(call_default_factory=True)
            defaults[name] = _encode(_plain(default, name))
    return defaults
