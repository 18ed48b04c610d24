"""Records of a measure: what to measure and how, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.measures.records import MeasureResult, MeasureSettings

Images = npt.NDArray[Any]
Codes = npt.NDArray[np.int64]
Names = tuple[str, ...]


@dataclass(frozen=True)
class MeasureRequest:
    """A request to measure one set of images.

    Attributes:
        source: A path, or a dataset's name.
        labels: File of labels for a ``.npy`` (``.npy``, or text with one per line). Without labels
            only the dimension is measured.
        raw: Raw download, for a dataset's name.
        said: Options of your own data: ``label_map`` (label as written -> class),
            ``label_columns``, ``layout``.
        class_pair: Only these two classes, by name. A number that is no name is an index in their
            order.
        max_skipped_share: Largest share of image files that may be unusable.
        train_sizes: Nested, stratified subsets to measure besides all images.
        image_size: Side to resize to, pixels. None keeps arrays as they are, and takes
            :data:`orchestrator.measuring.sources.DEFAULT_SIDE` for image files.
        channels: 1 or 3, of image files.
        settings: Settings of the measures.
    """

    source: str
    labels: Path | None = None
    raw: Path | None = None
    said: dict[str, Any] = field(default_factory=dict)
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
        labels: ``(num_images,)`` class indices; None without labels.
        label_names: Names of the classes, by index; empty without labels.
    """

    images: Images
    labels: Codes | None = None
    label_names: Names = ()


@dataclass(frozen=True)
class Measured:
    """A measured source.

    Attributes:
        record: The numbers.
        pair_images: The two differently labelled images that are closest.
        pair_labels: Their classes.
        label_names: The classes that were measured, in their order; empty without labels.
        preparation: Record of what was read and skipped; None for arrays.
        taken: Lines that tell what was read of arrays: classes, what was left out, what is
            doubtful.
    """

    record: MeasureResult
    pair_images: tuple[Images, Images] | None = None
    pair_labels: tuple[str, str] | None = None
    label_names: Names = ()
    preparation: dict[str, Any] | None = None
    taken: Names = ()
