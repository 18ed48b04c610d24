"""Measure images in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.measuring.request import (
    Codes,
    Images,
    LabeledImages,
    Measured,
    MeasureRequest,
    Names,
)
from search_spaces.errors import ConfigError
from tasks.measures.measure import measure_array
from tasks.measures.records import MeasureResult
from tasks.remote import Executor

PREPARED_RANGE = (0.0, 255.0)
"""Pixel values of black and white in all prepared images."""
MAX_DIVIDED_TWICE = 1.01
"""If the largest value of all images, in [0, 255], is at most this number, the images were
probably divided by 255 twice. The number is 1 gray level, plus a margin for rounding."""
MAX_NAMED = 20
"""Largest number of classes that a message lists."""


def measure_arrays(data: LabeledImages, request: MeasureRequest, executor: Executor) -> Measured:
    """Measure images in memory. This function does not use the source of the request.

    Raises:
        SweepError: The class pair, the train sizes or the images cannot be used.
    """
    if request.class_pair is not None:
        if data.labels is None:
            raise ConfigError(
                "A class pair needs labels, but the images have no labels",
                hint="Add labels, for example `--labels labels.txt`",
            )
        rows = rows_of_pair(data.labels, data.label_names, request.class_pair)
        data = replace(data, images=data.images[rows], labels=data.labels[rows])
    record = measure_array(
        data.images,
        data.labels,
        train_sizes=request.train_sizes or None,
        executor=executor,
        settings=request.settings,
    )
    return with_pair(record, data.images.__getitem__, data.labels, data.label_names)


@dataclass(frozen=True)
class _Rescaled:
    """Images with rescaled values, or unchanged images if they cannot be rescaled.

    Attributes:
        images: ``(num_images, ...)``, in [0, 255] if they were rescaled.
        lines: Lines for users that describe the type and the values of the images.
        is_rescaled: True if the values were rescaled to [0, 255].
        doubts: Those sentences of ``lines`` that a printed measurement repeats.
    """

    images: Images
    lines: list[str]
    is_rescaled: bool
    doubts: tuple[str, ...] = ()


def rescale_and_measure(
    data: LabeledImages, request: MeasureRequest, executor: Executor
) -> Measured:
    """Measure images in memory after rescaling them to [0, 255], as in a prepared dataset.

    Floating-point images are rescaled. Images of whole numbers, and points ``(num_points,
    num_features)``, are rescaled only if the request has the values of black and white. All
    other data are measured unchanged.
    """
    rescaled = _rescale(data.images, request.settings.pixel_range)
    if rescaled.is_rescaled:
        settings = replace(request.settings, pixel_range=PREPARED_RANGE)
        request = replace(request, settings=settings)
    data = replace(data, images=rescaled.images)
    measured = measure_arrays(data, request, executor)
    return replace(measured, image_lines=tuple(rescaled.lines), doubts=rescaled.doubts)


def _rescale(images: Images, limits: tuple[float, float] | None) -> _Rescaled:
    """Rescale images to [0, 255] if the values of black and white are known.

    Args:
        images: ``(num_images, ...)``.
        limits: Values of black and white. None if the user gave none.
    """
    # These modules import packages that points do not need.
    from tasks.sources.pixel_range import (
        CLIPPED,
        check_not_divided,
        choose_pixel_range,
        rescale_to_255,
    )

    kind = images.dtype.kind
    shape = "x".join(map(str, images.shape[1:]))
    values = str(images.dtype)
    if images.dtype != np.uint8 and kind in "uif" and images.size:
        values += f" in [{images.min():g}, {images.max():g}]"
    can_rescale = kind in "uif"
    if limits is None and images.dtype == np.uint8 and images.ndim > 2:
        check_not_divided("images", images)
    if limits is None:
        # For whole numbers, the values of black and white are unknown.
        can_rescale = kind == "f" and images.ndim > 2
    # The measure itself raises an error for NaN and infinite values.
    can_rescale = can_rescale and images.size > 0
    if not can_rescale or not all(np.isfinite(image).all() for image in images):
        return _Rescaled(images, [f"  {shape}, {values}: measured as stored"], is_rescaled=False)
    chosen_limits, rule = choose_pixel_range("images", [images], limits)
    pixels = np.empty(images.shape, np.float32)
    num_cut = 0
    for row, image in enumerate(images):
        pixels[row], is_cut = rescale_to_255(image, chosen_limits)
        num_cut += bool(is_cut.any())
    lines = [f"  {shape}, {values}: {rule}"]
    if num_cut:
        lines.append(f"  doubtful: {CLIPPED}, {num_cut:,}")
    doubts = _brightness_doubts(float(pixels.max()))
    lines += [f"  doubtful: {doubt}" for doubt in doubts]
    return _Rescaled(pixels, lines, is_rescaled=True, doubts=doubts)


def _brightness_doubts(brightest: float) -> tuple[str, ...]:
    """Return a sentence if images are so dark that they were probably divided by 255 twice.

    Args:
        brightest: The largest value of all images, rescaled to [0, 255].
    """
    if not 0 < brightest <= MAX_DIVIDED_TWICE:
        return ()
    share = brightest / PREPARED_RANGE[1]
    return (
        f"the brightest pixel has only {share:.2%} of the brightness of white. If the images were "
        "divided by 255 twice, divide them only once",
    )


def with_pair(
    record: MeasureResult,
    read_rows: Callable[[Codes], Images],
    labels: Codes | None,
    names: Names,
) -> Measured:
    """Add the closest pair of images with different labels to a measure.

    Args:
        record: The measure.
        read_rows: Function that returns the images in given rows.
        labels: ``(num_images,)`` class indices. None for images without labels.
        names: Names of the classes, by index.
    """
    if labels is None:
        return Measured(record)
    classes: dict[int, str] = {}
    for code in np.unique(labels).tolist():
        classes[code] = names[code] if code < len(names) else str(code)
    label_names = tuple(classes.values())
    pair = record.label_sharpness.pair if record.label_sharpness else None
    if pair is None:
        return Measured(record, label_names=label_names)
    first, second = read_rows(np.array(pair, np.int64))
    pair_labels = (classes[int(labels[pair[0]])], classes[int(labels[pair[1]])])
    return Measured(record, (first, second), pair_labels, label_names)


def rows_of_pair(labels: Codes, names: Names, pair: tuple[str, str]) -> Codes:
    """Return the rows of two classes.

    Args:
        labels: ``(num_images,)`` class indices.
        names: Names of the classes, by index.
        pair: The two classes. A text that is not the name of a class is the index of a class.
            For the labels 1, 2 and 3, the indices are 0, 1 and 2.

    Raises:
        ConfigError: A class does not exist, or both classes are the same.
    """
    index_of_name = {name: index for index, name in enumerate(names)}
    index_of_text = {str(index): index for index in np.unique(labels).tolist()}
    codes = []
    for name in pair:
        codes.append(index_of_name.get(name, index_of_text.get(name, -1)))
    if -1 in codes or codes[0] == codes[1]:
        known_classes = ", ".join(names[:MAX_NAMED] or tuple(index_of_text))
        missing = [name for name, code in zip(pair, codes, strict=True) if code == -1]
        problem = (
            f"The class pair {' '.join(pair)} cannot be used: no image of the data has the class "
            f"{' or '.join(missing)}"
        )
        if codes[0] == codes[1] != -1:
            problem = f"The class pair {' '.join(pair)} contains the same class twice"
        raise ConfigError(problem, hint=f"Choose two of these classes: {known_classes}")
    return np.flatnonzero(np.isin(labels, codes))
