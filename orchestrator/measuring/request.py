"""Request for a measure, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.measures.records import MeasureResult, MeasureSettings

Images = npt.NDArray[Any]
"""Images in memory, ``(num_images, ...)``, or one image."""
Codes = npt.NDArray[np.int64]
"""Class indices or row numbers."""
Names = tuple[str, ...]
"""Names of classes, or lines of text."""


@dataclass(frozen=True)
class MeasureRequest:
    """A request to measure one set of images.

    Attributes:
        source: A path, or the name of a known dataset.
        labels: File with the labels of a ``.npy`` file: another ``.npy`` file, or a text file
            with one label per line. If there are no labels, only the intrinsic dimension is
            measured.
        raw: Folder with the raw download of a known dataset.
        own_options: Options of your own data: ``label_map`` (label in the data -> class),
            ``label_columns``, ``layout``.
        class_pair: Names of the two classes to measure. If it is None, all classes are
            measured. A number that is not the name of a class is the index of a class.
        max_skipped_share: Largest share of image files that may be unusable.
        train_sizes: Sizes of nested, stratified subsets to measure in addition to all images.
        image_size: Side of the images after resizing, pixels. If it is None, arrays are not
            resized, and image files are resized to
            :data:`orchestrator.measuring.sources.DEFAULT_SIDE`.
        channels: Number of channels of image files, 1 or 3.
        settings: Settings of the measures.
    """

    source: str
    labels: Path | None = None
    raw: Path | None = None
    own_options: dict[str, Any] = field(default_factory=dict)
    class_pair: tuple[str, str] | None = None
    max_skipped_share: float = 0.001
    train_sizes: tuple[int, ...] = ()
    image_size: int | None = None
    channels: int = 1
    settings: MeasureSettings = field(default_factory=MeasureSettings)


@dataclass(frozen=True)
class LabeledImages:
    """Images in memory, with their labels.

    Attributes:
        images: ``(num_images, ...)``.
        labels: ``(num_images,)`` class indices. None for images without labels.
        label_names: Names of the classes, by index. Empty for images without labels.
    """

    images: Images
    labels: Codes | None = None
    label_names: Names = ()


@dataclass(frozen=True)
class Measured:
    """Result of measuring a source.

    Attributes:
        record: The measured numbers.
        pair_images: The closest pair of images with different labels.
        pair_labels: Classes of these two images.
        label_names: Names of the measured classes, in order. Empty for images without labels.
        preparation: Record of the read and skipped images. None for arrays.
        image_lines: Lines that describe the images of an array: classes, images that were left
            out, and doubtful images.
        doubts: Those sentences of ``image_lines`` that the printed measurement repeats.
    """

    record: MeasureResult
    pair_images: tuple[Images, Images] | None = None
    pair_labels: tuple[str, str] | None = None
    label_names: Names = ()
    preparation: dict[str, Any] | None = None
    image_lines: Names = ()
    doubts: Names = ()
