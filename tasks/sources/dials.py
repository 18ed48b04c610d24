"""The dials that every kind of made data has: exchanged labels and the scale of the pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.fingerprint import derive_seed
from search_spaces.interventions import DIALS
from tasks.sources.base import RawRequest


def dial(request: RawRequest, name: str) -> float:
    """Return where a dial of the request's dataset stands."""
    known = {str(kind): dials for kind, dials in DIALS.items()}
    return dict(request.dataset.dials).get(name, known[request.dataset.source][name].default)


def flipped(labels: NDArray[np.int64], request: RawRequest) -> NDArray[np.int64]:
    """Exchange the labels (0 and 1) of a seeded choice of images; a larger share contains a smaller one."""
    num = round(dial(request, "flip_share") * len(labels)) + int(dial(request, "flipped"))
    chosen = np.random.default_rng(derive_seed("flipped labels", len(labels))).permutation(len(labels))[:num]
    result = labels.copy()
    result[chosen] = 1 - result[chosen]
    return result


def scaled(images: NDArray[np.generic], request: RawRequest) -> NDArray[np.generic]:
    """Multiply pixels by the dial ``pixel_scale``; float32 then, else as they are."""
    factor = dial(request, "pixel_scale")
    return images if factor == 1 else images.astype(np.float32) * np.float32(factor)
