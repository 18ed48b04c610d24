"""Semi-synthetic medical set: slices of one real T1 volume, half of them with a synthetic lesion.

The only real patient-like data are the ICBM152 2009a average T1 template that nilearn ships. Each
*variation* (the group) is a seeded small affine of the head, a gamma and a smooth shading; it gives four
axial slices, two with a lesion (a blurred ellipse of drawn place inside the brain, size and contrast) and
two without. It resembles a brain MRI task in look and in structure, not in difficulty; say so wherever it
appears.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import SetupError
from search_spaces.fingerprint import derive_seed
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample

NUM_VARIATIONS = 700
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
        items = []
        for variation in range(NUM_VARIATIONS):
            rng = np.random.default_rng(derive_seed("mri_lesion labels", variation))
            labels = rng.permutation([0, 1] * (SLICES_PER_VARIATION // 2))
            group = f"variation {variation}"
            items += [Item(f"{variation}/{index}", int(label), group) for index, label in enumerate(labels)]
        return Listing(
            items,
            request.dataset.label_names,
            block_size=700,
            intensity="template scaled to [0, 255], gamma and shading drawn per variation",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader that renders one slice."""
        volume, brain = _template("t1"), _brain_mask()

        def read(item: Item) -> tuple[Sample]:
            variation, index = map(int, item.locator.split("/"))
            return (Sample(render_slice(volume, brain, variation, index, lesion=item.label == 1)),)

        return read


@cache
def _template(kind: str) -> NDArray[np.float32]:
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
def _brain_mask() -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = _template("gm") + _template("wm") > 0.5
    return mask


def render_slice(
    volume: NDArray[np.float32], brain: NDArray[np.bool_], variation: int, index: int, *, lesion: bool
) -> NDArray[np.uint8]:
    """Render slice ``index`` of a variation: ``(height, width)`` uint8.

    Everything but the lesion is the same for ``lesion`` True and False, so only the lesion tells the label.
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
        plane = _with_lesion(plane, mask, here)

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
    plane: NDArray[np.float32], mask: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.float32]:
    places = np.argwhere(mask)
    center = places[rng.integers(len(places))]
    radii = rng.uniform(16, 32, 2)
    angle, contrast = rng.uniform(0, np.pi), rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)
    offsets = np.indices(plane.shape).reshape(2, -1).T - center
    turned = offsets @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    distance = np.sqrt(((turned / radii) ** 2).sum(1)).reshape(plane.shape)
    weight = mask / (1 + np.exp((distance - 1) * 6))
    blended: NDArray[np.float32] = np.clip(plane + contrast * weight, 0, 1).astype(np.float32)
    return blended
