"""The sweep that tests begin with: one small network on one made dataset."""

from __future__ import annotations


def small_sweep(name: str, **changes: object) -> dict[str, object]:
    """Return its document; what tests are about is in ``changes``."""
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
