"""What measuring was asked to do, with checks of what a user hands in, and what it found, as plain
data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import field_validator

from search_spaces.errors import ConfigError, DataError
from search_spaces.specs import DEFAULT_ESTIMATORS
from tasks.finding import Finding
from tasks.measures.calibration import CalibratedDimension
from tasks.measures.distances import BlockSource, as_source
from tasks.measures.estimators import IntrinsicDimension, table_width
from tasks.measures.neighbors import BLOCK_ROWS
from tasks.measures.sharpness import LabelSharpness


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """How a dataset is measured; everything here can change a number, or its last digits.

    Attributes:
        num_neighbors: k of the MLE, 20 as in Konz & Mazurowski.
        estimators: Of intrinsic dimension, by name.
        discard_fraction: Of TwoNN, 0.1 as in Facco et al.; 0 as in the code of Konz & Mazurowski.
        sharpness_sample: Images per sample in which the largest label sharpness is taken, 1000 as
            in Konz & Mazurowski; None for all images.
        sharpness_seeds: One sample per seed, for sizes above ``sharpness_sample``.
        pixel_range: Black and white; None for the range of an integer dtype. Recorded; readers
            apply it.
        dtype: ``"float32"`` or ``"float64"``, of the products that find neighbours.
        device: ``"cpu"``, or a torch device for the products.
        block_rows: Rows per block; memory per worker grows with its square.
        calibrate: Also correct the MLE's bias by simulation, at the largest size; takes a minute or
            so.
        seed: Of bootstraps and simulations.
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
    calibrate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that measure nothing, or are of the wrong type."""
        seeds, names = _as_tuple(self.sharpness_seeds), _as_tuple(self.estimators)
        sample = self.sharpness_sample
        limits = (0, 1) if self.pixel_range is None else _as_tuple(self.pixel_range)
        is_range = len(limits) == 2 and all(isinstance(limit, Real) for limit in limits)
        are_names = not isinstance(self.estimators, str) and all(
            isinstance(name, str) for name in names
        )
        share = self.discard_fraction
        rules = {
            "num_neighbors must be a whole number, 3 or more": _whole(self.num_neighbors, 3),
            "block_rows must be a whole number, 1 or more": _whole(self.block_rows, 1),
            "sharpness_sample must be a whole number, 2 or more, or None for all": sample is None
            or _whole(sample, 2),
            "seed must be a whole number, not negative": _whole(self.seed, 0),
            "sharpness_seeds must be whole numbers, not negative": bool(seeds)
            and all(_whole(seed, 0) for seed in seeds),
            "pixel_range must be (black, white), two numbers": is_range,
            (
                "pixel_range must rise: black is the lower number, and inverting changes no measure"
            ): not is_range or limits[0] < limits[1],
            "dtype must be float32 or float64": self.dtype in ("float32", "float64"),
            "discard_fraction must be a number in [0, 1)": isinstance(share, Real)
            and 0 <= share < 1,
            "estimators must be names, each once, e.g. ('mle', 'twonn')": are_names
            and len({*names}) == len(names) > 0,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError(rule, repr(getattr(self, rule.partition(" ")[0])))
        table_width(self.estimators, self.num_neighbors)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            k: list(value) if isinstance(value, tuple) else value
            for k, value in asdict(self).items()
        }


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _as_tuple(values: Any) -> tuple[Any, ...]:
    return (
        tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)
    )


@dataclass(frozen=True)
class SizeRecord:
    """The measures of one train size, duplicates included, which are left out of the measures:
    estimator name to intrinsic dimension, and label sharpness where labels were given. Conflicts
    are duplicates of another label.
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
            "label_sharpness": None
            if self.label_sharpness is None
            else self.label_sharpness.to_json(),
        }


class MeasureResult(Finding):
    """The measures of a dataset by train size, ascending; the last one is the dataset's own.

    Attributes:
        conflict_pairs: First pairs of identical images with different labels.
        precision: ``"exact integer"`` when all rows are bytes and no distance is rounded; else the
            dtype of the products, ``"float64"`` when the data were too close together for float32
            anywhere.
        notes: What a reader should know, in words.
        calibration: Bias-corrected dimension at the largest size, when it was asked for.
    """

    sizes: tuple[SizeRecord, ...]
    conflict_pairs: tuple[tuple[int, int], ...]
    settings: MeasureSettings
    precision: str
    notes: tuple[str, ...] = ()
    calibration: CalibratedDimension | None = None

    @field_validator("sizes")
    @classmethod
    def _some_size(cls, sizes: tuple[SizeRecord, ...]) -> tuple[SizeRecord, ...]:
        if not sizes:
            raise ValueError("a measure must have at least one train size")
        return sizes

    @property
    def d_data(self) -> dict[str, IntrinsicDimension]:
        """Intrinsic dimension at the largest size."""
        return self.sizes[-1].d_data

    @property
    def label_sharpness(self) -> LabelSharpness | None:
        """Label sharpness at the largest size."""
        return self.sizes[-1].label_sharpness

    def to_json(self) -> dict[str, Any]:
        """Plain JSON without NaN or infinity; an undefined estimate is a null value with its
        reason.
        """
        largest = self.sizes[-1].to_json()
        return {
            "num_images": largest.pop("train_size"),
            **largest,
            "conflict_pairs": [list(pair) for pair in self.conflict_pairs],
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "by_train_size": [size.to_json() for size in self.sizes],
            "precision": self.precision,
            "notes": list(self.notes),
            "settings": self.settings.to_json(),
        }

    def renumbered(self, order: npt.NDArray[np.int64]) -> MeasureResult:
        """Express pairs in the row numbers from which ``order`` picked the rows measured."""

        def original(pair: tuple[int, int]) -> tuple[int, int]:
            first, second = sorted(int(order[row]) for row in pair)
            return first, second

        sizes = []
        for size in self.sizes:
            sharpness = size.label_sharpness
            if sharpness is not None and sharpness.pair is not None:
                sharpness = replace(sharpness, pair=original(sharpness.pair))
            sizes.append(replace(size, label_sharpness=sharpness))
        pairs = tuple(original(pair) for pair in self.conflict_pairs)
        return self.model_copy(update={"sizes": tuple(sizes), "conflict_pairs": pairs})


def check_labels(labels: npt.ArrayLike, num_images: int) -> npt.NDArray[np.int64]:
    """Labels as int64, one whole number per image, or a DataError."""
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) != num_images:
        found = f"labels of shape {array.shape} for {num_images} images"
        raise DataError("There must be one label per image", found)
    found, rule = f"dtype {array.dtype}", "Labels must be whole numbers"
    if array.dtype.kind not in "biuf":
        raise DataError(rule, found, "number the classes 0, 1, ...")
    if array.dtype.kind == "f":
        whole = (array == np.rint(array)) & (np.abs(array) < 2.0**63)  # NaN and infinity are not
        if len(bad := np.flatnonzero(~whole)):
            raise DataError(rule, f"{array[bad[0]]} at row {bad[0]}", "number the classes")
    return array.astype(np.int64)


def as_sizes(train_sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes as given, of plain whole numbers, or a DataError."""
    if isinstance(train_sizes, str) or not isinstance(train_sizes, Iterable):
        raise DataError("train_sizes must be several sizes", repr(train_sizes), "e.g. [500, 1000]")
    if any(not isinstance(size, Real) or size % 1 for size in train_sizes):
        raise DataError("train_sizes must be whole numbers", str(list(train_sizes)), "round them")
    return tuple(int(size) for size in train_sizes)


def check_train_sizes(train_sizes: Sequence[int], num_images: int) -> list[int]:
    """Sizes ascending, once each and up to the number of images, or a DataError."""
    sizes = sorted(set(as_sizes(train_sizes)))
    if not sizes or sizes[0] < 1 or sizes[-1] > num_images:
        rule = f"train_sizes must be between 1 and the number of images, {num_images}"
        raise DataError(rule, str(list(train_sizes)), "choose smaller sizes or add images")
    return sizes


def one_array(what: str, given: Any) -> npt.NDArray[Any]:
    """Values as one array, none of them masked, or a DataError about ``what`` they are."""
    parts = given if isinstance(given, (list, tuple)) else [given]
    masks = [getattr(part, "mask", None) for part in parts]
    # numpy.ma takes long to import, to ask whether something is one of its own.
    if any(isinstance(mask, (np.ndarray, np.bool_)) and mask.any() for mask in masks):
        fill = "say what stands there: .filled(VALUE); or leave those images out"
        raise DataError(f"{what} must have a value everywhere", "a masked array", fill)
    try:
        array = np.asarray(given)
    except ValueError as error:  # numpy's word for ragged nested sequences
        raise DataError(
            f"{what} must make one array", str(error), "give all of them one shape"
        ) from None
    if array.ndim == 0:
        found = "nothing" if given is None else f"one value, {array}"
        raise DataError(f"{what} must make one array", found, "give an array or a list of them")
    return array


def as_array(images: npt.ArrayLike) -> npt.NDArray[Any]:
    """Images of one shape as one array without masked values, or a DataError."""
    array = one_array("Images", images)
    if array.dtype == object:
        shapes = sorted({np.shape(image) for image in array.ravel()[:1000]})
        if shapes == [()]:
            raise DataError("Images must be real numbers", "dtype object", "convert them")
        raise DataError("Images must make one array", f"shapes {shapes[:5]}", "resize them")
    return array


SHAPES = "give (num_images, height, width), or (num_images, num_features)"


def checked_source(images: BlockSource | npt.ArrayLike) -> BlockSource:
    """Images as a source of rows that have at least one axis and one pixel, or a DataError."""
    source = images if isinstance(images, BlockSource) else as_source(as_array(images))
    if len(source.row_shape) == 0:
        found = f"shape ({source.num_rows},)"
        raise DataError("Images must have at least one axis besides their number", found, SHAPES)
    if source.num_rows == 0 or 0 in source.row_shape:
        found = f"{source.num_rows} rows of shape {source.row_shape}"
        raise DataError("There must be at least one image, with at least one pixel", found, SHAPES)
    return source


def as_channels_first(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View ``(n, h, w)`` and ``(n, h, w, c)`` as ``(n, c, h, w)``; distances do not depend on
    it.
    """
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] not in (1, 3, 4) and array.shape[3] in (1, 3, 4):
        return np.ascontiguousarray(np.moveaxis(array, 3, 1))
    return array
