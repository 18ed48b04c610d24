"""Settings and results of a measure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from pydantic import field_validator

from search_spaces.errors import ConfigError
from search_spaces.specs import DEFAULT_ESTIMATORS
from tasks.array_types import IntArray
from tasks.json_record import JsonRecord
from tasks.measures.calibration import CalibratedDimension
from tasks.measures.estimators import IntrinsicDimension, table_width
from tasks.measures.neighbors import BLOCK_ROWS
from tasks.measures.plain_json import plain_json
from tasks.measures.sharpness import LabelSharpness


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """The settings of a measure. Every setting can change a result, at least in its last digits.

    Attributes:
        num_neighbors: Number of neighbors k of ``mle``, 20 as in Konz & Mazurowski. ``gride``
            uses the largest power of two up to k. ``twonn`` always uses 2 neighbors.
        estimators: Names of estimators of intrinsic dimension.
        discard_fraction: Parameter of TwoNN: 0.1 as in Facco et al., 0 as in the code of Konz
            & Mazurowski.
        sharpness_sample: Number of images in a sample for label sharpness, 1000 as in Konz &
            Mazurowski. None uses all images, without samples.
        sharpness_seeds: Seeds of the samples, for train sizes above ``sharpness_sample``.
            There is one sample per seed.
        pixel_range: Pixel values of black and white, for the record. None uses the range of an
            unsigned integer dtype.
        dtype: ``"float32"`` or ``"float64"``, for the matrix products.
        device: ``"cpu"``, or a torch device for the matrix products.
        block_rows: Number of rows in a block. Memory per worker grows with its square.
        calibrate: True to also correct the bias of the MLE by simulation, at the largest train
            size. The correction takes about a minute.
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
            ConfigError: If the value of a setting has a wrong type or is out of range.
        """
        self._check_whole("num_neighbors", 3)
        self._check_whole("block_rows", 1)
        self._check_whole("seed", 0)
        sample = self.sharpness_sample
        is_valid_sample = sample is None or _is_whole(sample, 2)
        self._check(
            "sharpness_sample", is_valid_sample, "a whole number, 2 or more, or None for all images"
        )
        seeds = _as_tuple(self.sharpness_seeds)
        are_valid_seeds = len(seeds) > 0 and all(_is_whole(seed, 0) for seed in seeds)
        self._check("sharpness_seeds", are_valid_seeds, "whole numbers, 0 or more")
        self._check_pixel_range()
        self._check("dtype", self.dtype in ("float32", "float64"), "float32 or float64")
        fraction = self.discard_fraction
        is_fraction = isinstance(fraction, Real) and 0 <= fraction < 1
        self._check("discard_fraction", is_fraction, "a number in [0, 1)")
        self._check_estimators()

    def _check(self, name: str, is_valid: bool, rule: str) -> None:
        """Raise a ConfigError with the rule of a setting if its value is not valid."""
        if not is_valid:
            raise ConfigError(
                f"The setting {name} is {getattr(self, name)!r}, which is not valid",
                hint=f"Choose {rule}",
            )

    def _check_whole(self, name: str, minimum: int) -> None:
        is_valid = _is_whole(getattr(self, name), minimum)
        self._check(name, is_valid, f"a whole number, {minimum} or more")

    def _check_pixel_range(self) -> None:
        """Check that the pixel range is two numbers, the lower one first."""
        if self.pixel_range is None:
            return
        limits = _as_tuple(self.pixel_range)
        are_numbers = len(limits) == 2 and all(isinstance(limit, Real) for limit in limits)
        self._check("pixel_range", are_numbers, "two numbers, (black, white)")
        if not limits[0] < limits[1]:
            raise ConfigError(
                f"pixel_range is {self.pixel_range!r}, but the first number must be lower "
                "than the second",
                hint="Write the lower number first, even if it is the value of white. No "
                "measure changes if black and white are exchanged",
            )

    def _check_estimators(self) -> None:
        """Check that the estimators are known names without repetition."""
        names = _as_tuple(self.estimators)
        are_texts = all(isinstance(name, str) for name in names)
        is_list = not isinstance(self.estimators, str) and len(names) > 0
        are_distinct = are_texts and len(set(names)) == len(names)
        rule = "a list of different names, for example ('mle', 'twonn')"
        self._check("estimators", is_list and are_distinct, rule)
        table_width(self.estimators, self.num_neighbors)  # raises an error for an unknown name

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return plain_json(vars(self))


def _is_whole(value: Any, minimum: int) -> bool:
    """Return whether a value is a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        return False
    return int(value) >= minimum


def _as_tuple(values: Any) -> tuple[Any, ...]:
    if isinstance(values, Iterable) and not isinstance(values, str):
        return tuple(values)
    return (values,)


@dataclass(frozen=True)
class SizeRecord:
    """The measures of one train size.

    Attributes:
        train_size: Number of images, including duplicates.
        num_duplicates: Number of images that equal an earlier image. All measures exclude
            them.
        num_conflicts: Number of duplicates whose label differs from the label of the earlier image.
        d_data: Intrinsic dimension by the name of the estimator.
        label_sharpness: Label sharpness; None if there are no labels.
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


class MeasureResult(JsonRecord):
    """The measures of a dataset at each train size.

    Attributes:
        sizes: One record per train size, ascending, at least one.
        conflict_pairs: Pairs ``(row, earlier row)`` of equal images with different labels.
            At most ten pairs are listed.
        settings: Settings of the measure.
        precision: The `NestedNeighbors.arithmetic` of the search. Stored records use the name
            ``precision``. It is ``"exact integer"`` if all values are bytes and no distance is
            rounded. Otherwise it is the widest dtype of the products. ``"float64"`` means that some
            images were too close together for float32, or that the settings request it.
        notes: Remarks for readers.
        calibration: Bias-corrected dimension at the largest size; None if it was not
            requested.
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
        num_images = largest.pop("train_size")
        return {
            "num_images": num_images,
            **largest,
            "conflict_pairs": [list(pair) for pair in self.conflict_pairs],
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "by_train_size": [size.to_json() for size in self.sizes],
            "precision": self.precision,
            "notes": list(self.notes),
            "settings": self.settings.to_json(),
        }

    def renumber(self, order: IntArray) -> MeasureResult:
        """Return the same result, with row numbers of the user's images in all pairs.

        Args:
            order: ``(num_images,)`` for each measured row, its row number in the user's images.
        """

        def original_pair(pair: tuple[int, int]) -> tuple[int, int]:
            first, second = sorted(int(order[row]) for row in pair)
            return first, second

        sizes = []
        for size in self.sizes:
            sharpness = size.label_sharpness
            if sharpness is not None and sharpness.pair is not None:
                sharpness = replace(sharpness, pair=original_pair(sharpness.pair))
            sizes.append(replace(size, label_sharpness=sharpness))
        pairs = tuple(original_pair(pair) for pair in self.conflict_pairs)
        return self.model_copy(update={"sizes": tuple(sizes), "conflict_pairs": pairs})
