"""A sheet of example images of a prepared dataset, made only when asked for: pictures of patients are
private.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.prepared.dataset import PreparedDataset

MAX_SIDE = 128


def save_montage(prepared: PreparedDataset, path: Path, *, per_label: int = 8, seed: int = 0) -> Path:
    """Write a PNG with one row per label of up to ``per_label`` seeded examples, and return its path.

    Args:
        prepared: The dataset.
        path: Where the PNG goes.
        per_label: Images per row.
        seed: Of the choice.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    side = prepared.image_shape[1]
    step = max(1, side // MAX_SIDE)
    rows = []
    for label in range(len(prepared.label_names)):
        members = np.flatnonzero(prepared.labels == label)
        chosen = rng.permutation(members)[:per_label]
        shown = prepared.read_rows(chosen)[:, :, ::step, ::step].astype(np.uint8)
        strip = np.zeros((per_label, *shown.shape[1:]), np.uint8)
        strip[: len(shown)] = shown
        rows.append(np.concatenate(list(strip), axis=2))
    sheet = np.concatenate(rows, axis=1).transpose(1, 2, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet).save(path, format="PNG")
    return path
