"""The small sweep of many tests: one small network on one generated dataset."""

from __future__ import annotations


def small_sweep(name: str, **changes: object) -> dict[str, object]:
    """Return the sweep's document with the changes that a test is about."""
    return {
        "name": name,
        "models": ["small_mlp"],
        "datasets": ["manifold_d4"],
        "train_sizes": [30],
        "test_size": 20,
        "image_size": 16,
        "recipe": "smoke",
        **changes,
    }
