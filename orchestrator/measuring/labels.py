"""Convert the labels of arrays to classes. A label is a number or a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.measuring.request import Codes, Names
from search_spaces.datasets import user_dataset_spec
from search_spaces.errors import DataError
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import UserSourceSpec
from tasks.sources.base import RawRequest

DUMMY_SOURCE = UserSourceSpec(kind="npz", path="own", domain=None)
"""Path of the source if data are in memory. Some functions need a path, but they read no
file."""
UNUSED_SIDE = 224
"""Side of images in a request that reads no images. The value has no effect."""


@dataclass(frozen=True)
class Labels:
    """Labels of images.

    Attributes:
        names: Names of the classes, in order.
        codes: ``(num_images,)`` index of each image's class.
    """

    names: Names
    codes: Codes


def name_labels(
    raw_labels: Sequence[object], own_data: UserSourceSpec | None = None, first: int = 0
) -> Labels:
    """Return the classes of labels.

    Args:
        raw_labels: One label per image: a number, text or bytes.
        own_data: Description of the data with the label map. None for labels in memory.
        first: Number that messages use for the first row.

    Raises:
        DataError: A label is empty or ambiguous.
    """
    # imported here, because an array without labels does not need them
    from tasks.sources.own.class_names import sort_labels
    from tasks.sources.own.labels import find_classes
    from tasks.sources.own.rows import Rows
    from tasks.sources.tables import label_text

    rows = Rows(
        cells={"label": [label_text(label) for label in raw_labels]},
        locator=str,
        name=lambda row: f"row {row + first}",
        numbering=lambda _: f"the first row is {first}",
    )
    try:
        labels = find_classes(rows, raw_request(own_data or DUMMY_SOURCE))
    except DataError as error:
        if own_data is not None:
            raise
        problem = error.problem.removeprefix(f"{DUMMY_SOURCE.path}: ")
        hint = "Correct these labels, or remove the images with these labels"
        raise DataError(problem[0].upper() + problem[1:], hint=hint) from None
    names = tuple(sort_labels(labels))
    index_of_name = {name: index for index, name in enumerate(names)}
    return Labels(names, np.array([index_of_name[label] for label in labels], np.int64))


def raw_request(own_data: UserSourceSpec) -> RawRequest:
    """Return a request that lists your own data."""
    spec = PreparedSpec(dataset="own", image_size=UNUSED_SIDE, channels=1)
    return RawRequest(user_dataset_spec("own", own_data), spec, Path(own_data.path))
