"""Settings and results of measuring, and the checks of images and labels that a user passes in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import field_validator

from search_spaces.errors import ConfigError, DataError
from search_spaces.specs import DEFAULT_ESTIMATORS
from tasks.finding import Finding
from tasks.measures.arrays import AnyArray, IntArray
from tasks.measures.calibration import CalibratedDimension
from tasks.measures.distances import BlockSource, as_source
from tasks.measures.estimators import IntrinsicDimension, table_width
from tasks.measures.neighbors import BLOCK_ROWS
from tasks.measures.plain_json import plain_json
from tasks.measures.sharpness import LabelSharpness


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """Settings of a measure. Each of them can change a number, or its last digits.

    Attributes:
        num_neighbors: k of the MLE, 20 as in Konz & Mazurowski.
        estimators: Names of estimators of intrinsic dimension.
        discard_fraction: Parameter of TwoNN: 0.1 as in Facco et al., 0 as in the code of Konz &
            Mazurowski.
        sharpness_sample: Images per sample in which the largest label sharpness is taken, 1000 as
            in Konz & Mazurowski. None takes all images.
        sharpness_seeds: One sample per seed, for train sizes above ``sharpness_sample``.
        pixel_range: Pixel values of black and white, for the record. None takes the range of an
            integer dtype.
        dtype: ``"float32"`` or ``"float64"``, for the products that find neighbors.
        device: ``"cpu"``, or a torch device for the products.
        block_rows: Rows per block. Memory per worker grows with its square.
        calibrate: Also correct the MLE's bias by simulation, at the largest size. Takes about a
            minute.
        seed: Seed of bootstraps and simulations.
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
        """Check all settings.

        Raises:
            ConfigError: If a setting has the wrong type or measures nothing.
        """
        self._check_whole("num_neighbors", 3)
        self._check_whole("block_rows", 1)
        sample = self.sharpness_sample
        has_sample = sample is None or _is_whole(sample, 2)
        self._check("sharpness_sample", has_sample, "a whole number, 2 or more, or None for all")
        self._check("seed", _is_whole(self.seed, 0), "a whole number, not negative")
        seeds = _as_tuple(self.sharpness_seeds)
        are_seeds = len(seeds) > 0 and all(_is_whole(seed, 0) for seed in seeds)
        self._check("sharpness_seeds", are_seeds, "whole numbers, not negative")
        self._check_pixel_range()
        self._check("dtype", self.dtype in ("float32", "float64"), "float32 or float64")
        fraction = self.discard_fraction
        is_fraction = isinstance(fraction, Real) and 0 <= fraction < 1
        self._check("discard_fraction", is_fraction, "a number in [0, 1)")
        self._check_estimators()

    def _check(
        self,
        name: str,
        is_valid: bool,
        rule: str,
    ) -> None:
        if not is_valid:
            raise ConfigError(f"{name} must be {rule}, not {getattr(self, name)!r}")

    def _check_whole(self, name: str, least: int) -> None:
        is_valid = _is_whole(getattr(self, name), least)
        self._check(name, is_valid, f"a whole number, {least} or more")

    def _check_pixel_range(self) -> None:
        """Check that black and white are two rising numbers."""
        if self.pixel_range is None:
            return
        limits = _as_tuple(self.pixel_range)
        are_numbers = len(limits) == 2 and all(isinstance(limit, Real) for limit in limits)
        self._check("pixel_range", are_numbers, "(black, white), two numbers")
        if not limits[0] < limits[1]:
            raise ConfigError(
                f"pixel_range is {self.pixel_range!r}, but black must be the lower number",
                hint="Give the lower number first. Inverting images changes no measure",
            )

    def _check_estimators(self) -> None:
        """Check that estimators are known names, each once."""
        names = _as_tuple(self.estimators)
        are_names = not isinstance(self.estimators, str) and all(
            isinstance(name, str) for name in names
        )
        are_once = len({*names}) == len(names) > 0
        rule = "names, each once, e.g. ('mle', 'twonn')"
        self._check("estimators", are_names and are_once, rule)
        table_width(self.estimators, self.num_neighbors)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return plain_json(vars(self))


def _is_whole(value: Any, least: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, Integral):
        return False
    return int(value) >= least


def _as_tuple(values: Any) -> tuple[Any, ...]:
    if isinstance(values, Iterable) and not isinstance(values, str):
        return tuple(values)
    return (values,)


@dataclass(frozen=True)
class SizeRecord:
    """The measures of one train size.

    Attributes:
        train_size: Images of this size, duplicates included.
        num_duplicates: Images that equal an earlier one. They are left out of all measures.
        num_conflicts: Duplicates with another label than the earlier image.
        d_data: Intrinsic dimension by name of the estimator.
        label_sharpness: None if no labels were given.
    """

    train_size: int
    num_duplicates: int
    num_conflicts: int
    d_data: dict[str, IntrinsicDimension]
    label_sharpness: LabelSharpness | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        sharpness = self.label_sharpness
        return {
            "train_size": self.train_size,
            "duplicates": self.num_duplicates,
            "conflicts": self.num_conflicts,
            "d_data": {name: value.to_json() for name, value in self.d_data.items()},
            "label_sharpness": None if sharpness is None else sharpness.to_json(),
        }


class MeasureResult(Finding):
    """The measures of a dataset by train size, ascending. The last one is the dataset's own.

    Attributes:
        sizes: One record per train size, at least one.
        conflict_pairs: First pairs ``(row, earlier row)`` of equal images with different labels.
        settings: How the dataset was measured.
        precision: ``"exact integer"`` if all rows are bytes and no distance is rounded, else the
            dtype of the products. It is ``"float64"`` if images anywhere were too close together
            for float32.
        notes: Remarks for readers.
        calibration: Bias-corrected dimension at the largest size, if it was requested.
    """

    sizes: tuple[SizeRecord, ...]
    conflict_pairs: tuple[tuple[int, int], ...]
    settings: MeasureSettings
    precision: str
    notes: tuple[str, ...] = ()
    calibration: CalibratedDimension | None = None

    @field_validator("sizes")
    @classmethod
    def _has_a_size(cls, sizes: tuple[SizeRecord, ...]) -> tuple[SizeRecord, ...]:
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
        """Return plain JSON without NaN or infinity.

        An undefined estimate is a null value with its reason.
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

    def renumbered(self, order: IntArray) -> MeasureResult:
        """Return the same result with pairs in the row numbers of the user's images.

        Args:
            order: ``(num_images,)`` row of the user's images behind each measured row.
        """

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


def check_labels(labels: npt.ArrayLike, num_images: int) -> IntArray:
    """Return labels as ``(num_images,)`` int64.

    Args:
        labels: ``(num_images,)`` or ``(num_images, 1)`` whole numbers of any real dtype.
        num_images: Expected number of labels.

    Raises:
        DataError: If the number of labels differs, or a label is not a whole number.
    """
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) != num_images:
        raise DataError(
            f"Labels have the shape {array.shape}, but there are {num_images} images",
            hint="Give one label per image",
        )
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"Labels are of dtype {array.dtype}, not whole numbers",
            hint="Number the classes 0, 1, 2 and so on",
        )
    if array.dtype.kind == "f":
        # NaN and infinity are not whole, and larger numbers do not fit int64.
        fits_int64 = np.abs(array) < 2.0**63
        is_whole = fits_int64 & (array == np.rint(array))
        if not is_whole.all():
            row = int(np.argmin(is_whole))
            raise DataError(
                f"The label of row {row} is {array[row]}, not a whole number",
                hint="Number the classes 0, 1, 2 and so on",
            )
    return array.astype(np.int64)


def as_sizes(train_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return train sizes as plain integers, in the given order.

    Raises:
        DataError: If they are not several whole numbers.
    """
    if isinstance(train_sizes, str) or not isinstance(train_sizes, Iterable):
        raise DataError(
            f"train_sizes is {train_sizes!r}, not a list",
            hint="Give several sizes, for example [500, 1000]",
        )
    if any(not isinstance(size, Real) or size % 1 for size in train_sizes):
        raise DataError(
            f"train_sizes has {list(train_sizes)}, which are not all whole numbers",
            hint="Round the sizes",
        )
    return tuple(int(size) for size in train_sizes)


def check_train_sizes(train_sizes: Sequence[int], num_images: int) -> list[int]:
    """Return train sizes ascending, each once.

    Raises:
        DataError: If there are none, or one is not between 1 and ``num_images``.
    """
    sizes = sorted(set(as_sizes(train_sizes)))
    if not sizes or sizes[0] < 1 or sizes[-1] > num_images:
        raise DataError(
            f"train_sizes is {list(train_sizes)}, but there are {num_images} images",
            hint=f"Choose sizes from 1 to {num_images}, or add images",
        )
    return sizes


def one_array(name: str, values: Any) -> AnyArray:
    """Return values as one array.

    Args:
        name: Name of the values, as the first word of a message: "Images" or "Labels".
        values: An array, or a list of arrays or numbers.

    Raises:
        DataError: If a value is masked, shapes differ, or there is only one value.
    """
    _check_unmasked(name, values)
    try:
        array = np.asarray(values)
    except ValueError as error:  # nested sequences of different lengths
        raise DataError(
            f"{name} do not make one array: {error}", hint=f"Give all {name.lower()} one shape"
        ) from None
    if array.ndim == 0:
        value = "nothing" if values is None else f"one value, {array}"
        raise DataError(f"{name} are {value}", hint="Give an array, or a list of arrays")
    return array


def _check_unmasked(name: str, values: Any) -> None:
    if not isinstance(values, (list, tuple)):
        values = [values]
    for part in values:
        # Checked by attribute: importing numpy.ma for an isinstance takes long.
        mask = getattr(part, "mask", None)
        if isinstance(mask, (np.ndarray, np.bool_)) and mask.any():
            hint = "Fill them by .filled(VALUE), or leave those images out"
            raise DataError(f"{name} have masked values", hint=hint)


def as_array(images: npt.ArrayLike) -> AnyArray:
    """Return images as one array.

    Raises:
        DataError: If their shapes differ, a value is masked, or values are not numbers.
    """
    array = one_array("Images", images)
    if array.dtype == object:
        images_seen = array.ravel()[:1000]
        shapes = sorted({np.shape(image) for image in images_seen})
        if shapes == [()]:
            raise DataError(
                "Images are of dtype object, not real numbers", hint="Convert the images"
            )
        raise DataError(f"Images have different shapes: {shapes[:5]}", hint="Resize the images")
    return array


SHAPES = "Give (num_images, height, width), or (num_images, num_features)"


def checked_source(images: BlockSource | npt.ArrayLike) -> BlockSource:
    """Return images as a source of rows.

    Raises:
        DataError: If there is no image, no pixel, or no axis besides the number of images.
    """
    source = images if isinstance(images, BlockSource) else as_source(as_array(images))
    if len(source.row_shape) == 0:
        raise DataError(
            f"Images have the shape ({source.num_rows},), without an axis of pixels", hint=SHAPES
        )
    if source.num_rows == 0 or 0 in source.row_shape:
        raise DataError(
            f"{source.num_rows} images of shape {source.row_shape} have no pixel", hint=SHAPES
        )
    return source


CHANNELS = (1, 3, 4)
"""Lengths of an axis that is taken for channels: gray, RGB, RGB with transparency."""


def as_channels_first(array: AnyArray) -> AnyArray:
    """Return images as ``(n, c, h, w)`` if they are ``(n, h, w)`` or ``(n, h, w, c)``.

    The last axis is taken for channels if it has 1, 3 or 4 entries and the second has not.
    Distances do not depend on the order of axes.
    """
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4:
        _, second, _, last = array.shape
        if last in CHANNELS and second not in CHANNELS:
            return np.ascontiguousarray(np.moveaxis(array, 3, 1))
    return array
