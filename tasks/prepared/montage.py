"""Save a picture with a few examples of each class of a prepared dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.prepared.store import PreparedDataset

MAX_SIDE = 128
"""Approximate largest side of an example in pixels. Of a larger image, the picture shows only
every n-th row and column."""
EXAMPLES_PER_LABEL = 8
"""Largest number of examples of one class."""


def save_montage(prepared: PreparedDataset, path: Path) -> None:
    """Write a PNG file. It has one row of random examples for each class.

    Call this function only if the user requests the file, because pictures of patients are
    private.

    Args:
        prepared: The prepared dataset.
        path: Path of the PNG file.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    step = max(1, prepared.row_shape[1] // MAX_SIDE)
    strips = []
    for label in range(len(prepared.label_names)):
        members = np.flatnonzero(prepared.classes == label)
        chosen = rng.permutation(members)[:EXAMPLES_PER_LABEL]
        images = prepared.read_rows(chosen)
        examples = images[:, :, ::step, ::step].astype(np.uint8)
        padded = np.zeros((EXAMPLES_PER_LABEL, *examples.shape[1:]), np.uint8)
        padded[: len(examples)] = examples
        strips.append(np.concatenate(list(padded), axis=2))
    sheet = np.concatenate(strips, axis=1).transpose(1, 2, 0)
    if sheet.shape[2] == 1:
        sheet = sheet[..., 0]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path, format="PNG")
