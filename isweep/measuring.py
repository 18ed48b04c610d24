"""Measure your images in arrays, folders or files."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from isweep.display import CellFigure, Displayed
from orchestrator.analysis.figures.style import styled
from orchestrator.measuring.arrays import rescale_and_measure
from orchestrator.measuring.labels import name_labels
from orchestrator.measuring.pair_figure import draw_pair
from orchestrator.measuring.request import LabeledImages, Measured, MeasureRequest
from orchestrator.measuring.sources import measure_source
from orchestrator.planning.paths import RootPaths
from search_spaces.errors import ConfigError, DataError, plural, unknown_name
from tasks.array_types import AnyArray
from tasks.measures.input_checks import (
    checked_array,
    checked_images,
    has_images_on_last_axis,
    whole_train_sizes,
)
from tasks.measures.records import MeasureResult, MeasureSettings
from tasks.remote import InlineExecutor

ARGUMENTS = ("train_sizes", "class_pair", "image_size", "channels", "own", "root")
"""Keyword arguments of :func:`measure` that are not settings of the measures."""


@dataclass(frozen=True, repr=False)
class Measurement(Measured, Displayed):
    """Intrinsic dimension and label sharpness of a set of images, with their record."""

    @property
    def num_images(self) -> int:
        """Number of measured images, including duplicates."""
        return self.record.sizes[-1].train_size

    @property
    def d_data(self) -> float | None:
        """Intrinsic dimension of all images, by maximum likelihood."""
        estimate = self.record.d_data.get("mle")
        if estimate is None:
            return None
        return estimate.value

    @property
    def label_sharpness(self) -> float | None:
        """K_F of all images, per unit of L2 pixel distance. None if there are no labels.

        If there are more than 1,000 images, it is the mean of K_F over ten samples of 1,000
        images, as in the study and in sweeps. ``record.label_sharpness.pair_value`` is the
        maximum over all pairs of images.
        """
        sharpness = self.record.label_sharpness
        if sharpness is None:
            return None
        return sharpness.value

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each train size and estimator of d_data. Each row contains K_F.

        The column ``label_sharpness`` contains K_F of samples of at most 1,000 images, as in
        sweeps. The column ``label_sharpness_all_pairs`` contains the maximum over all pairs of
        images.
        """
        rows = []
        for size in self.record.sizes:
            sharpness = None
            sharpness_all_pairs = None
            if size.label_sharpness is not None:
                sharpness = size.label_sharpness.value
                sharpness_all_pairs = size.label_sharpness.pair_value
            for name, estimate in size.d_data.items():
                rows.append(
                    {
                        "train_size": size.train_size,
                        "estimator": name,
                        "d_data": estimate.value,
                        "std_error": estimate.reported_std_error,
                        "label_sharpness": sharpness,
                        "label_sharpness_all_pairs": sharpness_all_pairs,
                        "num_duplicates": size.num_duplicates,
                    }
                )
        return pd.DataFrame(rows)

    displayed = to_frame

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON, as ``isweep measure --json`` prints it."""
        return self.record.to_json()

    def plot_pair(self) -> Figure:
        """Draw the two closest images with different labels, which determine K_F.

        The figure shows two of your images, so do not share it if your images are
        confidential.
        """
        with styled():
            figure = CellFigure(figsize=(5, 2.8), layout="constrained")
            draw_pair(figure, self)
        return figure

    def __repr__(self) -> str:
        parts = [plural(self.num_images, "image")]
        if self.label_names:
            parts.append(plural(len(self.label_names), "class"))
        parts += _numbers_in_words(self.record)
        largest = self.record.sizes[-1]
        if largest.num_duplicates:
            parts.append(f"{plural(largest.num_duplicates, 'duplicate')} left out")
        if largest.num_conflicts:
            conflicts = plural(largest.num_conflicts, "duplicate")
            parts.append(f"{conflicts} with another label than the equal image")
        summary = "Measurement: " + ", ".join(parts)
        return "\n".join((summary, *(f"Doubtful: {doubt}." for doubt in self.doubts)))

    def _repr_html_(self) -> str:
        notes = [*self.record.notes, *(f"Doubtful: {doubt}." for doubt in self.doubts)]
        listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
        return f"{super()._repr_html_()}<ul>{listed}</ul>"


def _numbers_in_words(record: MeasureResult) -> list[str]:
    """Return d_data with its standard error, and K_F, as text."""
    words = []
    estimate = record.d_data.get("mle")
    if estimate is not None:
        if estimate.value is None:
            words.append(f"d_data undefined ({estimate.reason})")
        elif estimate.reported_std_error is None:
            words.append(f"d_data {estimate.value:.3g}")
        else:
            words.append(f"d_data {estimate.value:.3g} ± {estimate.reported_std_error:.2g}")
    sharpness = record.label_sharpness
    if sharpness is not None:
        if sharpness.value is None:
            words.append(f"K_F undefined ({sharpness.reason})")
        else:
            words.append(f"K_F {sharpness.value:.3g}")
    return words


def measure(
    images: npt.ArrayLike | str | Path,
    labels: npt.ArrayLike | None = None,
    *,
    train_sizes: Sequence[int] = (),
    class_pair: tuple[str, str] | None = None,
    image_size: int | None = None,
    channels: int = 1,
    own: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    **settings: Any,
) -> Measurement:
    """Measure intrinsic dimension and label sharpness of images in this process.

    Args:
        images: An array, a path, or the name of a dataset, as for ``isweep measure``. The
            shape of an array is ``(num_images, channels, height, width)``,
            ``(num_images, height, width[, channels])`` or ``(num_images, num_features)``. If
            floats are neither in [0, 1] nor in [0, 255], set ``pixel_range``.
        labels: One number or text per image, ``(num_images,)``. If ``images`` is a ``.npy``
            file, give the path of a file of labels. If there are no labels, isweep measures
            only d_data.
        train_sizes: Numbers of images. For each number, isweep also measures a stratified
            subset with so many images. A larger subset contains the smaller subsets.
        class_pair: Names of two classes. isweep measures only images of these classes.
        image_size: Side in pixels to which image files are resized. None means 224.
        channels: 1 (gray) or 3 (color), for image files.
        own: Options for the labels and folders of your images, as in a sweep file:
            ``label_map``, ``label_columns``, ``layout``.
        root: Folder that contains prepared datasets, see :func:`isweep.run`.
        **settings: Fields of :class:`tasks.measures.records.MeasureSettings`, such as
            ``num_neighbors`` or ``seed``.

    Returns:
        The measurement. ``d_data`` is a number of directions. ``label_sharpness`` is 1 divided
        by an L2 distance between two images with pixels in [0, 255].

    Raises:
        SweepError: The images or labels cannot be read or measured, or a setting is unknown.

    Example:
        >>> import numpy as np, isweep
        >>> images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
        >>> record = isweep.measure(images, ["cat", "dog"] * 30, num_neighbors=10)
        >>> record.num_images, record.label_names
        (60, ('cat', 'dog'))
        >>> record.label_sharpness < 0.01
        True
    """
    known_settings = MeasureSettings.__dataclass_fields__
    for name in settings:
        if name not in known_settings:
            raise unknown_name("setting", name, [*known_settings, *ARGUMENTS])
    method = MeasureSettings(**settings)
    sizes = whole_train_sizes(train_sizes)
    pair = _two_names(class_pair)
    if isinstance(images, (str, Path)):
        request = MeasureRequest(
            source=str(images),
            labels=_label_file(images, labels),
            own_options=_source_options(own),
            class_pair=pair,
            train_sizes=sizes,
            image_size=image_size,
            channels=channels,
            settings=method,
        )
        measured = measure_source(request, InlineExecutor(), RootPaths.at(root_text(root)))
        return Measurement(**vars(measured))
    if _seem_exchanged(images, labels):
        raise DataError(
            "`images` is a flat list, but `labels` has several axes, so `images` and `labels` seem "
            "to be exchanged",
            hint="Pass the images first: isweep.measure(images, labels)",
        )
    image_array = checked_images(images)
    if own:
        raise ConfigError(
            f"`own={own!r}` is only for images in files, but `images` is an array",
            hint="Remove `own`, and convert the labels before you call isweep.measure",
        )
    if image_size is not None or channels != 1:
        raise ConfigError(
            f"`image_size={image_size}` and `channels={channels}` are only for images in files, "
            "but `images` is an array",
            hint="Remove `image_size` and `channels`, and resize the images in the array before "
            "you call isweep.measure",
        )
    request = MeasureRequest(source="", class_pair=pair, train_sizes=sizes, settings=method)
    return _measure_arrays(image_array, labels, request)


def _seem_exchanged(images: object, labels: object) -> bool:
    """Return whether ``images`` is a flat list of values and ``labels`` is an array of images."""
    is_flat = isinstance(images, (list, tuple)) and len(images) > 0 and np.ndim(images[0]) == 0
    is_flat = is_flat or getattr(images, "ndim", 0) == 1
    return is_flat and getattr(labels, "ndim", 0) > 1


def _measure_arrays(
    image_array: AnyArray, labels: npt.ArrayLike | None, request: MeasureRequest
) -> Measurement:
    """Measure an array of images, with an array that has one label for each image."""
    if labels is None:
        measured = rescale_and_measure(LabeledImages(image_array), request, InlineExecutor())
        return Measurement(**vars(measured))
    if isinstance(labels, (str, Path)):
        raise DataError(
            f"`labels` is the text or path {str(labels)!r}, but `images` is an array",
            hint="Pass a flat list with one label for each image, for example ['cat', 'dog', "
            "'cat']. If the labels are in a file, read the file first",
        )
    label_array = checked_array("Labels", labels)
    if has_images_on_last_axis(image_array.shape, label_array.shape):
        raise DataError(
            f"The array of images has the shape {image_array.shape}, and there are "
            f"{plural(len(label_array), 'label')}, so the last axis of the array seems to count "
            "the images",
            hint="Make the last axis the first axis: images = numpy.moveaxis(images, -1, 0)",
        )
    if label_array.shape != (len(image_array),):
        raise DataError(
            f"The labels have the shape {label_array.shape}, but there are "
            f"{plural(len(image_array), 'image')}",
            hint="Pass a flat list with one label for each image",
        )
    named = name_labels(label_array.tolist())
    data = LabeledImages(image_array, named.codes, named.names)
    measured = rescale_and_measure(data, request, InlineExecutor())
    return Measurement(**vars(measured))


def _label_file(images: str | Path, labels: object) -> Path | None:
    """Return the path of the file of labels, or None if no labels are given.

    Raises:
        ConfigError: The caller gave labels, but not as a path.
    """
    if labels is None:
        return None
    if isinstance(labels, (str, Path)):
        return Path(labels)
    if Path(images).expanduser().is_dir():
        raise ConfigError(
            f"`images` is the folder {images}, but you also passed `labels` of the type "
            f"{type(labels).__name__}",
            hint="Remove `labels`. isweep reads the labels of a folder from the folder, for "
            "example from the names of the subfolders",
        )
    raise ConfigError(
        f"`images` is the file or dataset {images}, but `labels` has the type "
        f"{type(labels).__name__}",
        hint="If `images` is a .npy file, pass the path of a file with the labels, for example "
        "labels='labels.txt'. Otherwise, remove `labels`",
    )


def _source_options(options: object) -> dict[str, Any]:
    """Return the options on the labels and folders of a user's images."""
    if options is None:
        return {}
    if isinstance(options, Mapping):
        return dict(options)
    raise ConfigError(
        f"`own` is {options!r}, but must be a dictionary",
        hint="Pass a dictionary, for example own={'label_map': {'CAT': 'cat'}}",
    )


def _two_names(class_pair: object) -> tuple[str, str] | None:
    """Return a class pair as two names. A number is converted to a name."""
    if class_pair is None:
        return None
    names: list[object] = []
    if isinstance(class_pair, (tuple, list)):
        names = list(class_pair)
    if len(names) != 2 or not all(isinstance(name, (str, Integral)) for name in names):
        raise ConfigError(
            f"`class_pair` is {class_pair!r}, but must contain the names of two classes",
            hint="Pass two names, for example class_pair=('cat', 'dog')",
        )
    return str(names[0]), str(names[1])


def root_text(root: object) -> str | None:
    """Return a root as text, or None for the default root.

    Raises:
        ConfigError: The root is empty, or is not a path.
    """
    if root is None:
        return None
    if not isinstance(root, (str, Path)) or not str(root).strip():
        raise ConfigError(
            f"`root` is {root!r}, but must be the path of a folder",
            hint="Pass a path, for example root='./isweep-root'",
        )
    return str(root)
