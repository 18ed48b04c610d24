"""What a network says of every test image, as a Parquet file, and back.

One row per test image: ``image`` (its row in the prepared dataset; its place in the test set where that is
not known), ``label`` and one float32 column ``logit_0``, ``logit_1``, … per output, bit by bit as the network
gave them.
"""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search_spaces.errors import CorruptStoreError


def to_parquet(
    logits: NDArray[np.float32], labels: NDArray[np.int64], rows: NDArray[np.int64] | None
) -> bytes:
    """Return predictions as a Parquet file.

    Args:
        logits: ``(num_images, num_outputs)``.
        labels: ``(num_images,)`` int64, the true classes.
        rows: ``(num_images,)`` rows of the prepared dataset; None where they are not known.
    """
    images = np.arange(len(labels)) if rows is None else rows
    table = pd.DataFrame({"image": images, "label": labels})
    outputs = pd.DataFrame(logits, columns=[f"logit_{place}" for place in range(logits.shape[1])])
    file = io.BytesIO()
    pd.concat([table, outputs], axis=1).to_parquet(file, index=False, compression="zstd")
    return file.getvalue()


def from_parquet(data: bytes) -> pd.DataFrame:
    """Return the table that :func:`to_parquet` wrote.

    Raises:
        CorruptStoreError: when it is none.
    """
    try:
        return pd.read_parquet(io.BytesIO(data))
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        first = str(error).splitlines()[0]
        raise CorruptStoreError("Kept predictions must be a Parquet file", first) from error
