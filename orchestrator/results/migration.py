"""Records of older schema versions in today's form.

Version 1 kept results as loose JSON: metrics by column name, estimates with their details beside the other
keys, no split between a network and what is measured on it. Ids and seeds of its trials and measures came
from another hash, so their specs become version 0 of their kinds: they are read, shown and kept, and never
taken for a cell of today's plans.
"""

from __future__ import annotations

from typing import Any

OLD_KIND = 0

_DIMENSION = (
    "estimator",
    "value",
    "std_error",
    "num_points",
    "num_neighbors",
    "convention",
    "num_dropped",
    "reason",
)
_CONVENTION = ("pixel_range", "side", "channels", "sample")


def is_version(data: object, version: int) -> bool:
    """Tell whether ``data`` is a record of ``version``."""
    return isinstance(data, dict) and data.get("schema_version") == version


def trial(old: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's record of version 1 as one of version 2."""
    kept = (
        "trial_id",
        "sweep",
        "domain",
        "data_fingerprint",
        "attempt",
        "started_at",
        "finished_at",
        "provenance",
    )
    return {
        "schema_version": 2,
        **{name: old[name] for name in kept},
        "spec": _trial_spec(old["spec"]),
        "shared_group_share": old.get("shared_group_share", 0.0),
        "gpu_share": old.get("gpu_share", 0.0),
        "result": _trial_result(old),
    }


def measure(old: dict[str, Any]) -> dict[str, Any]:
    """Return a measure's record of version 1 as one of version 2."""
    kept = ("measure_id", "domain", "data_fingerprint", "started_at", "finished_at", "provenance")
    measures = old["measures"]
    return {
        "schema_version": 2,
        **{name: old[name] for name in kept},
        "spec": {**old["spec"], "schema_version": OLD_KIND},
        "result": {
            "sizes": [_size(entry) for entry in measures["by_train_size"]],
            **{
                name: measures[name]
                for name in ("conflict_pairs", "settings", "precision", "notes", "calibration")
            },
        },
    }


def failure(old: dict[str, Any]) -> dict[str, Any]:
    """Return a failed attempt's record of version 1 as one of version 2."""
    return {
        "schema_version": 2,
        "trial_id": old["trial_id"],
        "spec": _trial_spec(old["spec"]),
        "attempt": old["attempt"],
        "failure": {name: old[name] for name in ("kind", "message", "traceback")},
    }


def _trial_spec(old: dict[str, Any]) -> dict[str, Any]:
    network = {name: old[name] for name in ("model", "subset", "train_size", "recipe", "seed")}
    return {
        "network": {"schema_version": OLD_KIND, **network},
        "attacks": old["attacks"],
        "representation": {"estimators": ["mle", "twonn"], "num_neighbors": old["num_neighbors"]},
    }


def _trial_result(old: dict[str, Any]) -> dict[str, Any]:
    kept = ("status", "reason", "seed", "device", "num_threads", "history", "timings", "peak_memory_bytes")
    metrics, records = old["metrics"], old["records"]
    names = ("num_parameters", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    d_repr = {name: _dimension(estimate) for name, estimate in records["d_repr"].items()}
    for name, reason in records["absent"].items():
        # The features were not finite, so that no estimator ran and left a record.
        estimator = name.removeprefix("d_repr_")
        if estimator != name and estimator not in d_repr:
            d_repr[estimator] = _not_estimated(estimator, reason, old["spec"])
    return {
        **{name: old[name] for name in kept},
        "scores": {name: metrics[name] for name in names} if metrics else None,
        "d_repr": d_repr,
        "attacks": records["attacks"],
    }


def _not_estimated(estimator: str, reason: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "estimator": estimator,
        "value": None,
        "std_error": None,
        "num_points": spec["train_size"],
        "num_neighbors": spec["num_neighbors"],
        "convention": "not estimated",
        "reason": reason,
    }


def _size(old: dict[str, Any]) -> dict[str, Any]:
    return {
        "train_size": old["train_size"],
        "num_duplicates": old["duplicates"],
        "num_conflicts": old["conflicts"],
        "d_data": {name: _dimension(estimate) for name, estimate in old["d_data"].items()},
        "label_sharpness": None if old["label_sharpness"] is None else _sharpness(old["label_sharpness"]),
    }


def _dimension(old: dict[str, Any]) -> dict[str, Any]:
    details = {name: value for name, value in old.items() if name not in _DIMENSION}
    return {**{name: old[name] for name in _DIMENSION if name in old}, "details": details}


def _sharpness(old: dict[str, Any]) -> dict[str, Any]:
    # "interval" follows from the sample values.
    kept = {name: value for name, value in old.items() if name not in (*_CONVENTION, "interval")}
    return {**kept, "convention": {name: old[name] for name in _CONVENTION}}
