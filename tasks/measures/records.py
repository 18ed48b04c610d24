"""The settings and results of a measure."""

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
    """The settings of a measure. Every setting can change results, at least their last digits.

    Attributes:
        num_neighbors: Number of neighbors k for ``mle``. The default is 20, as in Konz &
            Mazurowski. ``gride`` uses the largest power of two up to k. ``twonn`` always uses
            2 neighbors.
        estimators: Names of estimators of intrinsic dimension.
        discard_fraction: Share of the distance ratios that TwoNN discards. It discards the
            largest ratios. Facco et al. use 0.1, and the code of Konz & Mazurowski uses 0.
        sharpness_sample: Number of images in a sample for label sharpness. The default is
            1000, as in Konz & Mazurowski. With None, label sharpness is computed from all
            images, without samples.
        sharpness_seeds: Seeds of the samples. Each seed gives one sample. Samples are drawn
            only for train sizes above ``sharpness_sample``.
        pixel_range: Pixel values of black and of white, for the scale of label sharpness. With
            None, the dtype of the images determines them if it is an unsigned integer or bool.
        dtype: ``"float32"`` or ``"float64"``, for the matrix products.
        device: ``"cpu"``, or a torch device for the matrix products.
        block_rows: Number of rows in a block of the distance matrix. The memory of each worker
            grows with the square of this number.
        calibrate: True to correct the bias of the MLE at the largest train size by simulation.
            The result then also contains the corrected dimension. The correction takes about a
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
            ConfigError: The value of a setting has a wrong type or is out of range.
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
        """Raise a ConfigError if the value of a setting is not valid. ``rule`` describes valid
        values.
        """
        if not is_valid:
            raise ConfigError(
                f"The setting {name} is {getattr(self, name)!r}, which is not valid",
                hint=f"Choose {rule}",
            )

    def _check_whole(self, name: str, minimum: int) -> None:
        is_valid = _is_whole(getattr(self, name), minimum)
        self._check(name, is_valid, f"a whole number, {minimum} or more")

    def _check_pixel_range(self) -> None:
        """Check that the pixel range consists of two numbers, and that the first is the lower
        one.
        """
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
        """Check that all estimators are known, and that none occurs twice."""
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
        train_size: Number of images in the training set, including duplicates.
        num_duplicates: Number of images that equal an earlier image. All measures exclude
            them.
        num_conflicts: Number of duplicates whose label differs from the label of the earlier,
            equal image.
        d_data: Estimated intrinsic dimension. The keys are the names of the estimators.
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
        conflict_pairs: The first pairs ``(row, earlier row)`` of equal images with different
            labels, at most ten.
        settings: Settings of the measure.
        precision: The arithmetic of the search for neighbors. It is ``"exact integer"`` if all
            pixel values are bytes, so that no distance is rounded. Otherwise it is the widest
            dtype in which products were computed. ``"float64"`` means that some images were
            too close together for float32, or that the settings request float64.
        notes: Remarks for readers.
        calibration: Bias-corrected dimension at the largest train size; None if it was not
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
        """The intrinsic dimension at the largest train size, by the name of the estimator."""
        return self.sizes[-1].d_data

    @property
    def label_sharpness(self) -> LabelSharpness | None:
        """The label sharpness at the largest train size; None if there are no labels."""
        return self.sizes[-1].label_sharpness

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON without NaN or infinity.

        If an estimate is undefined, its value is null, and the JSON contains the reason.
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
        """Return a copy in which all pairs contain row numbers of the user's images.

        Args:
            order: ``(num_images,)`` row number of each measured image in the user's images.
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
