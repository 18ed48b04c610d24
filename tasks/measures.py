"""Both measures of a dataset, for all its train sizes, with everything needed to judge them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError
from tasks.distances import BlockSource, FloatArray, Precision, as_source, direct_squared_distances, flatten
from tasks.duplicates import RowProfile, profile_rows
from tasks.intrinsic_dimension import IntrinsicDimension, estimate, table_width
from tasks.label_sharpness import LabelSharpness, SharpnessConvention, stratified_subsets, summarise
from tasks.neighbors import BLOCK_ROWS, NeighborSearch, nested_neighbors
from tasks.remote import Executor, InlineExecutor

DEFAULT_ESTIMATORS = ("mle", "mle_k_minus_1", "twonn", "gride", "mst")
MAX_LISTED_CONFLICTS = 10
# Distances from the product are good to 1e-5, so the closest pair is among those within twice that of it.
_NEAR_MINIMUM = 1 + 4e-5


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """How a dataset is measured; everything here can change a number, or its last digits.

    Attributes:
        num_neighbors: k of the MLE, 20 as in Konz & Mazurowski.
        estimators: Of intrinsic dimension, by name.
        discard_fraction: Of TwoNN, 0.1 as in Facco et al.; 0 as in the code of Konz & Mazurowski.
        sharpness_sample: Images per sample in which the largest label sharpness is taken, 1000 as in Konz
            & Mazurowski; None for all images.
        sharpness_seeds: One sample per seed, for sizes above ``sharpness_sample``.
        pixel_range: Black and white; None for the range of an integer dtype. Recorded, never applied.
        dtype: ``"float32"`` or ``"float64"``, of the products that find neighbours.
        device: ``"cpu"``, or a torch device for the products.
        block_rows: Rows per block; memory per worker grows with its square.
        seed: Of bootstraps and thinnings.
    """

    num_neighbors: int = 20
    estimators: tuple[str, ...] = DEFAULT_ESTIMATORS
    discard_fraction: float = 0.1
    sharpness_sample: int | None = 1000
    sharpness_seeds: tuple[int, ...] = tuple(range(10))
    pixel_range: tuple[float, float] | None = None
    dtype: str = "float32"
    device: str = "cpu"
    block_rows: int = BLOCK_ROWS
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that measure nothing."""
        rules = [
            (self.num_neighbors >= 3, "num_neighbors must be at least 3", self.num_neighbors),
            (self.dtype in ("float32", "float64"), "dtype must be float32 or float64", self.dtype),
            (self.block_rows >= 1, "block_rows must be at least 1", self.block_rows),
            (bool(self.sharpness_seeds), "sharpness_seeds must hold at least one seed", ""),
            (
                self.sharpness_sample is None or self.sharpness_sample >= 2,
                "sharpness_sample must be at least 2, or None for all images",
                self.sharpness_sample,
            ),
            (
                self.pixel_range is None or self.pixel_range[0] < self.pixel_range[1],
                "pixel_range must be (black, white) with black below white",
                self.pixel_range,
            ),
        ]
        for holds, rule, value in rules:
            if not holds:
                raise DataError(rule, str(value))
        table_width(self.estimators, self.num_neighbors)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class SizeRecord:
    """The measures of one train size.

    Attributes:
        train_size: Images of this prefix, duplicates included.
        num_duplicates: Of them, left out because an earlier one is the same.
        num_conflicts: Of those, the ones whose label differs from that earlier image's.
        d_data: Estimator name to intrinsic dimension.
        label_sharpness: None when no labels were given.
    """

    train_size: int
    num_duplicates: int
    num_conflicts: int
    d_data: dict[str, IntrinsicDimension]
    label_sharpness: LabelSharpness | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "train_size": self.train_size,
            "duplicates": self.num_duplicates,
            "conflicts": self.num_conflicts,
            "d_data": {name: value.to_json() for name, value in self.d_data.items()},
            "label_sharpness": None if self.label_sharpness is None else self.label_sharpness.to_json(),
        }


@dataclass(frozen=True)
class MeasureRecord:
    """The measures of a dataset.

    Attributes:
        sizes: One record per train size, ascending; the last one is the dataset's own.
        conflict_pairs: First pairs of identical images with different labels.
        settings: How it was measured.
        precision: ``"float64"`` when the data were too close together for float32 products anywhere.
        notes: What a reader should know, in words.
    """

    sizes: tuple[SizeRecord, ...]
    conflict_pairs: tuple[tuple[int, int], ...]
    settings: MeasureSettings
    precision: str
    notes: tuple[str, ...] = field(default=())

    @property
    def d_data(self) -> dict[str, IntrinsicDimension]:
        """Intrinsic dimension at the largest size."""
        return self.sizes[-1].d_data

    @property
    def label_sharpness(self) -> LabelSharpness | None:
        """Label sharpness at the largest size."""
        return self.sizes[-1].label_sharpness

    def to_json(self) -> dict[str, Any]:
        """Plain JSON without NaN or infinity; an undefined estimate is a null value with its reason."""
        largest = self.sizes[-1].to_json()
        return {
            "num_images": largest.pop("train_size"),
            **largest,
            "conflict_pairs": [list(pair) for pair in self.conflict_pairs],
            "by_train_size": [size.to_json() for size in self.sizes],
            "precision": self.precision,
            "notes": list(self.notes),
            "settings": self.settings.to_json(),
        }


def measure_nested(
    images: BlockSource | npt.ArrayLike,
    labels: npt.ArrayLike | None,
    train_sizes: Sequence[int],
    *,
    executor: Executor | None = None,
    settings: MeasureSettings | None = None,
) -> MeasureRecord:
    """Measure prefixes of rows that are already in nested order.

    Args:
        images: ``(num_images, channels, height, width)`` or ``(num_images, ...)``, uint8 or any real dtype,
            in the pixel range that shall be measured; or a source that reads such blocks.
        labels: ``(num_images,)`` integers; None measures intrinsic dimension only.
        train_sizes: Prefix lengths, any order.
        executor: Where block tasks run; in this process when None.
        settings: How to measure.

    Returns:
        Record with one entry per size. Pairs in it are row numbers of ``images``.

    Raises:
        DataError: If images, labels or sizes cannot be used.
        CorruptStoreError: From the source, when a shard fails its checksum.
    """
    settings = settings or MeasureSettings()
    executor = executor or InlineExecutor()
    source = _checked_source(images)
    codes = None if labels is None else check_labels(labels, source.num_rows)
    sizes = check_train_sizes(train_sizes, source.num_rows)
    profile = profile_rows(source, codes, executor=executor)
    positions = np.searchsorted(profile.keep, sizes).tolist()  # distinct images below each size
    kept = None if codes is None else codes[profile.keep]
    samples, sample_slices = (np.zeros((0, positions[-1]), bool), [slice(0, 0)] * len(sizes))
    if kept is not None:
        samples, sample_slices = stratified_subsets(
            kept[: positions[-1]], positions, settings.sharpness_sample, settings.sharpness_seeds
        )
    search = nested_neighbors(
        source,
        codes,
        positions,
        max(1, min(table_width(settings.estimators, settings.num_neighbors), positions[-1] - 1)),
        executor=executor,
        precision=Precision(dtype=settings.dtype, device=settings.device),
        block_rows=settings.block_rows,
        keep=profile.keep,
        subsets=samples,
    )
    convention = _convention(source, settings)
    records = [
        SizeRecord(
            size,
            size - positions[number],
            sum(row < size for row, _ in profile.conflicts),
            estimate(
                search.tables[number],
                num_neighbors=settings.num_neighbors,
                estimators=settings.estimators,
                discard_fraction=settings.discard_fraction,
                seed=settings.seed,
            ),
            None
            if kept is None
            else _sharpness(
                source, profile, kept, search, number, samples, sample_slices[number], convention
            ),
        )
        for number, size in enumerate(sizes)
    ]
    return MeasureRecord(
        tuple(records),
        tuple(profile.conflicts[:MAX_LISTED_CONFLICTS]),
        settings,
        search.precision,
        _notes(records[-1], convention),
    )


def measure_array(
    images: npt.ArrayLike,
    labels: npt.ArrayLike | None,
    *,
    train_sizes: Sequence[int] | None = None,
    num_neighbors: int = 20,
    seed: int = 0,
    executor: Executor | None = None,
    settings: MeasureSettings | None = None,
) -> MeasureRecord:
    """Measure your own images: intrinsic dimension and label sharpness, without training anything.

    Args:
        images: ``(num_images, channels, height, width)``, ``(num_images, height, width, channels)``,
            ``(num_images, height, width)`` or ``(num_images, num_features)``; uint8 or any real dtype.
        labels: ``(num_images,)`` integers; None measures intrinsic dimension only.
        train_sizes: Sizes of nested, stratified subsets to measure too; None for all images only.
        num_neighbors: k of the MLE.
        seed: Of the order that subsets are prefixes of, of bootstraps and thinnings.
        executor: Where block tasks run; in this process, without Ray, when None.
        settings: Further settings; ``num_neighbors`` and ``seed`` here take precedence over theirs.

    Returns:
        Record whose ``to_json()`` is what ``isweep measure --json`` prints. Pairs in it are row numbers of
        ``images`` as given.

    Raises:
        DataError: If images, labels or sizes cannot be used.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> record = measure_array(rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 2)
        >>> record.label_sharpness.num_pairs
        900
    """
    settings = replace(settings or MeasureSettings(), num_neighbors=num_neighbors, seed=seed)
    array = _as_channels_first(_as_array(images))
    codes = None if labels is None else check_labels(labels, len(array))
    if train_sizes is None:
        return measure_nested(array, codes, [len(array)], executor=executor, settings=settings)
    sizes = check_train_sizes(train_sizes, len(array))
    order = stratified_order(np.zeros(len(array), np.int64) if codes is None else codes, seed)[: sizes[-1]]
    record = measure_nested(
        array[order],
        None if codes is None else codes[order],
        sizes,
        executor=executor,
        settings=settings,
    )
    return _renumber(record, order)


def stratified_order(labels: npt.NDArray[Any], seed: int) -> npt.NDArray[np.int64]:
    """Random order whose every prefix holds each class in proportion, to within one image."""
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members] = (rng.permutation(len(members)) + 0.5) / len(members)
    return np.lexsort((rng.random(len(labels)), place)).astype(np.int64)


def check_labels(labels: npt.ArrayLike, num_images: int) -> npt.NDArray[np.int64]:
    """Labels as int64.

    Raises:
        DataError: If they are no whole numbers, or not one per image.
    """
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) != num_images:
        raise DataError(
            "There must be one label per image", f"labels of shape {array.shape} for {num_images} images"
        )
    if array.dtype.kind not in "biuf":
        raise DataError(
            "Labels must be whole numbers", f"dtype {array.dtype}", "number the classes 0, 1, ..."
        )
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        bad = np.flatnonzero(~(np.isfinite(array) & (array == np.rint(array))))
        raise DataError(
            "Labels must be whole numbers", f"{array[bad[0]]} at row {bad[0]}", "number the classes"
        )
    return array.astype(np.int64)


def check_train_sizes(train_sizes: Sequence[int], num_images: int) -> list[int]:
    """Sizes ascending and once each.

    Raises:
        DataError: If there are none, or one does not fit the number of images.
    """
    sizes = sorted({int(size) for size in train_sizes})
    if not sizes or sizes[0] < 1 or sizes[-1] > num_images:
        raise DataError(
            f"train_sizes must be between 1 and the number of images, {num_images}",
            str(list(train_sizes)),
            "choose smaller sizes or add images",
        )
    return sizes


def _as_array(images: npt.ArrayLike) -> npt.NDArray[Any]:
    """Images as one array; says what is wrong when they have several shapes."""
    try:
        array = np.asarray(images)
    except ValueError as error:  # numpy's word for ragged nested sequences
        raise DataError("All images must have one size and channel count", str(error)) from None
    if array.dtype == object:
        shapes = sorted({np.shape(image) for image in array.ravel()[:1000]})
        raise DataError(
            "All images must have one size and channel count", f"shapes {shapes[:5]}", "resize them"
        )
    return array


def _checked_source(images: BlockSource | npt.ArrayLike) -> BlockSource:
    source = images if isinstance(images, BlockSource) else as_source(_as_array(images))
    if len(source.row_shape) == 0:
        raise DataError(
            "Images must have at least one axis besides their number", f"shape ({source.num_rows},)"
        )
    return source


def _as_channels_first(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View ``(n, h, w)`` and ``(n, h, w, c)`` as ``(n, c, h, w)``; distances do not depend on it."""
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] not in (1, 3, 4) and array.shape[3] in (1, 3, 4):
        return np.ascontiguousarray(np.moveaxis(array, 3, 1))
    return array


def _convention(source: BlockSource, settings: MeasureSettings) -> SharpnessConvention:
    shape = source.row_shape
    side = (shape[-2], shape[-1]) if len(shape) == 3 else None
    channels = shape[0] if len(shape) == 3 else int(np.prod(shape))
    pixel_range = settings.pixel_range
    dtype = source.read(0, 1).dtype
    if pixel_range is None and dtype.kind in "bu":
        pixel_range = (0.0, 1.0 if dtype.kind == "b" else float(np.iinfo(dtype).max))
    return SharpnessConvention(pixel_range, side, channels, settings.sharpness_sample)


def _sharpness(
    source: BlockSource,
    profile: RowProfile,
    labels: npt.NDArray[Any],
    search: NeighborSearch,
    number: int,
    samples: npt.NDArray[np.bool_],
    part: slice,
    convention: SharpnessConvention,
) -> LabelSharpness:
    """Label sharpness of one size, the attaining pairs recomputed directly."""
    table = search.tables[number]
    size = table.num_points
    rows = profile.keep
    nearest = table.opposite_distances.copy()
    pair = _refine_minimum(source, rows, nearest, table.opposite_indices)
    inside = search.subset_opposites[part, :size].copy()
    for line, ids in zip(inside, search.subset_indices[part, :size], strict=True):
        _refine_minimum(source, rows, line, ids)
    closest = np.inf if pair is None else float(nearest[pair[0]])
    original = None if pair is None else (int(rows[pair[0]]), int(rows[pair[1]]))
    return summarise(labels[:size], nearest, original, closest, convention, inside, samples[part, :size])


def _refine_minimum(
    source: BlockSource, rows: npt.NDArray[Any], nearest: FloatArray, ids: npt.NDArray[Any]
) -> tuple[int, int] | None:
    """Recompute in place the distances that could be the smallest; returns the pair that is, ascending."""
    if not np.isfinite(nearest.min(initial=np.inf)):
        return None
    candidates = np.flatnonzero(nearest <= nearest.min() * _NEAR_MINIMUM)[:64]
    one = np.zeros(1, np.intp)
    for i in candidates.tolist():
        a, b = (flatten(source.read(int(rows[k]), int(rows[k]) + 1)) for k in (i, ids[i]))
        nearest[i] = np.sqrt(direct_squared_distances(a, b, one, one)[0])
    best = int(nearest.argmin())
    return min(best, int(ids[best])), max(best, int(ids[best]))


def _renumber(record: MeasureRecord, order: npt.NDArray[np.int64]) -> MeasureRecord:
    """Express pairs in the caller's row numbers."""

    def original(pair: tuple[int, int]) -> tuple[int, int]:
        return int(order[pair[0]]), int(order[pair[1]])

    sizes = []
    for size in record.sizes:
        sharpness = size.label_sharpness
        if sharpness is not None and sharpness.pair is not None:
            sharpness = replace(sharpness, pair=original(sharpness.pair))
        sizes.append(replace(size, label_sharpness=sharpness))
    pairs = tuple(original(pair) for pair in record.conflict_pairs)
    return replace(record, sizes=tuple(sizes), conflict_pairs=pairs)


def _notes(record: SizeRecord, convention: SharpnessConvention) -> tuple[str, ...]:
    """What a reader should know about the largest size."""
    notes = []
    if record.num_duplicates:
        notes.append(
            f"{record.num_duplicates} of {record.train_size} images equal an earlier one and were left out "
            "of all measures; neighbour distances of zero have no logarithm"
        )
    if record.num_conflicts:
        notes.append(
            f"{record.num_conflicts} of these carry another label than the earlier image: their label "
            "sharpness is infinite, and the values here hold for the other pairs; look at conflict_pairs"
        )
    if record.label_sharpness is not None and convention.pixel_range is None:
        notes.append(
            "the pixel range of floating-point images is not known; give it to compare label sharpness"
        )
    return tuple(notes)
