"""Generated images of known dimension in which label, gap and size can be turned one by one.

An image is ``127.5 + sum_j r (sin(a_j), cos(a_j) - 1) . (P_2j, P_2j+1)`` with orthonormal low-frequency
cosine patterns P (see :mod:`tasks.sources.manifold`) and angle ``a_j = p_j / r`` for the place ``p_j``
along coordinate j: lengths along a coordinate are lengths in pixels, whatever the number of coordinates, so
that more of them do not bring unlike images nearer.

Each of the first ``bits`` coordinates is cut into ``bands`` bands and each band into two halves. Halves of
a band lie ``fine_gap`` apart, bands ``gap * contrast``; no image lies between. The label is the parity of
the bands over these coordinates; at ``frequency`` 2 that of the halves, on the same images to the last bit.
Unlike images are thus never nearer than the gap between unlike places (chords are a little shorter than the
arcs given here).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from search_spaces.interventions import DIALS
from tasks.sources.base import Listing, RawRequest, Reader
from tasks.sources.dials import dial, flipped, scaled
from tasks.sources.in_memory import ROWS_PER_TASK, row_items, row_reader
from tasks.sources.manifold import low_frequency_patterns

LENGTH = 240.0
"""Of a coordinate without its gaps, and radius of its arc, in L2 of pixels 0..255 at 16x16."""
REFERENCE_SIDE = 16


class Generated:
    """``generated``: every dial is in :data:`search_spaces.interventions.DIALS`."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return the rows; labels come from the bands alone."""
        _, labels = places(_dials(request))
        return Listing(
            row_items(flipped(labels, request)),
            request.dataset.label_names,
            dtype="float32",
            block_size=ROWS_PER_TASK,
            intensity="generated in [0, 255], not rounded",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows, generated at the prepared side so that no resize bends the manifold."""
        found, _ = places(_dials(request))
        return row_reader(scaled(images_at(found, request.spec.image_size), request))


def _dials(request: RawRequest) -> tuple[tuple[str, float], ...]:
    geometry = ("dimension", "nuisance", "bits", "bands", "gap", "fine_gap", "contrast", "frequency")
    return tuple((name, dial(request, name)) for name in (*geometry, "num_images", "draw"))


@lru_cache(maxsize=4)
def places(dials: tuple[tuple[str, float], ...]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw places ``(num_images, coordinates)``, centred on 0, and labels ``(num_images,)``."""
    known = {name: entry.default for name, entry in DIALS["generated"].items()} | dict(dials)
    num, dimension, nuisance = (int(known[name]) for name in ("num_images", "dimension", "nuisance"))
    draw = int(known["draw"])
    # A stream of its own for nuisance, so that its dial leaves the other coordinates as they are.
    units = np.random.default_rng(derive_seed("generated", draw)).random((num, dimension))
    others = np.random.default_rng(derive_seed("generated nuisance", draw)).random((num, nuisance))
    found = (np.concatenate([units, others], axis=1) - 0.5) * LENGTH
    halves = 2 * int(known["bands"])
    parity: NDArray[np.int64] = np.zeros(num, dtype=np.int64)
    steps = np.where(np.arange(1, halves) % 2 == 1, known["fine_gap"], known["gap"] * known["contrast"])
    offsets = np.concatenate([[0.0], np.cumsum(steps)]) - steps.sum() / 2
    for bit in range(int(known["bits"])):
        half = np.minimum((units[:, bit] * halves).astype(np.int64), halves - 1)
        found[:, bit] += offsets[half]
        parity += half if known["frequency"] == 2 else half // 2
    return found, parity % 2


def images_at(found: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Map places ``(num_images, coordinates)`` to ``(num_images, side, side)`` float32 images in [0, 255].

    Raises:
        ConfigError: where the dials ask for more than pixels from 0 to 255 can hold, or for more patterns
            than there are pixels.
    """
    angles = found / LENGTH
    curve = np.stack([np.sin(angles), np.cos(angles) - 1], axis=2).reshape(len(found), -1)
    patterns = low_frequency_patterns(curve.shape[1], side)
    amplitude = LENGTH * side / REFERENCE_SIDE
    images: NDArray[np.float64] = 127.5 + amplitude * np.tensordot(curve, patterns, axes=1)
    if images.min() < 0 or images.max() > 255:
        raise ConfigError(
            "The dials of a generated dataset must keep pixels within 0 and 255",
            f"{images.min():.0f} to {images.max():.0f}",
            "fewer coordinates or bands, or smaller gaps",
        )
    return images.astype(np.float32)
