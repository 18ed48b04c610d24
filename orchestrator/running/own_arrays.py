"""Arrays of your own as ``isweep measure`` takes them: whole in memory, with labels checked as everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.analysis.placement import PUBLISHED_SIDE
from search_spaces.datasets import own_dataset_spec
from search_spaces.errors import ConfigError, DataError
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.sources.base import RawRequest

NOTHING_SAID = OwnSourceSpec(kind="npz", path="own", domain=None)
Arrays = tuple[npt.NDArray[Any], npt.NDArray[np.int64] | None, tuple[str, ...], tuple[str, ...]]
"""Images, labels (None without any), class names, and what was taken, as lines."""


def load_arrays(path: Path, labels: Path | None, own: OwnSourceSpec) -> Arrays:
    """Read images from ``.npz`` or ``.npy``, the second with its labels in another file.

    Args:
        path: Of the images.
        labels: Of the labels of a ``.npy``; ``.npy``, or text with one per line.
        own: What is said of them: ``label_map`` (label as written -> class) and ``pixel_range``.

    Raises:
        SweepError: for files that are no such arrays, or labels that are no classes.
    """
    if path.suffix.lower() == ".npz":
        from tasks.sources import source_for
        from tasks.sources.arrays import NpzFile, load_images

        request = _request(own)
        # The source checks declared sizes, labels and types before anything large is read.
        listing = source_for("npz").list_items(request)
        codes = np.array([item.label for item in listing.items], np.int64)
        images = load_images(NpzFile(request), listing)
        groups = [item.group or f"\0{item.locator}" for item in listing.items]
        lines = _taken(images, codes, tuple(listing.label_names), groups)
        lines += [f"  left out: {reason}, {n:,}" for reason, n in listing.excluded.items()]
        lines += [f"  doubtful: {reason}, {n:,}" for reason, n in listing.flags.items()]
        return images, codes, tuple(listing.label_names), tuple(lines)
    images = _load_npy(path)
    if labels is None:
        return images, None, (), ()
    names, codes = _classes(labels, own)
    if len(codes) != len(images):
        raise DataError(
            "There must be one label per image",
            f"{len(codes)} labels, {len(images)} images",
            "check --labels",
        )
    return images, codes, names, tuple(_taken(images, codes, names, range(len(codes))))


def _request(own: OwnSourceSpec) -> RawRequest:
    spec = PreparedSpec(dataset="own", image_size=PUBLISHED_SIDE[0], channels=1)
    return RawRequest(own_dataset_spec("own", own), spec, Path(own.path))


def _classes(path: Path, own: OwnSourceSpec) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the classes of a file of labels, in order, and each image's."""
    values = _load_npy(path) if path.suffix.lower() == ".npy" else _load_text(path)
    if values.ndim != 1 or values.dtype.kind not in "uibfUS":
        raise DataError(
            "There must be one label per image", f"{values.dtype} {values.shape}", "check --labels"
        )
    return name_labels(values.tolist(), own)


def name_labels(
    cells: Sequence[object], own: OwnSourceSpec = NOTHING_SAID
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the classes of labels as given, in order, and each image's place in them.

    Args:
        cells: One per image: numbers, text or bytes.
        own: For its labels' map; none by default.

    Raises:
        DataError: for missing labels, and classes spelt in two ways.
    """
    from tasks.sources.labels import sort_labels
    from tasks.sources.own import Rows, class_labels
    from tasks.sources.record_tables import label_text

    written = [label_text(cell) for cell in cells]
    rows = Rows(labels=written, locator=str)
    labels = class_labels(written, _request(own), rows.named)
    names = sort_labels(labels)
    places = {name: place for place, name in enumerate(names)}
    return names, np.array([places[label] for label in labels], np.int64)


def _taken(
    images: npt.NDArray[Any], codes: npt.NDArray[np.int64], names: Sequence[str], groups: Sequence[object]
) -> list[str]:
    """Return what was taken of arrays, as lines; their values are measured as they are stored."""
    members = [{groups[row] for row in np.flatnonzero(codes == code).tolist()} for code in range(len(names))]
    counts = np.bincount(codes, minlength=len(members)).tolist()
    lines = [f"{len(codes):,} images, {len(members)} classes, {len(set(groups)):,} groups"]
    lines += [
        f"  class {name}: {n:,} images, {len(own):,} groups"
        for name, n, own in zip(names, counts, members, strict=True)
    ]
    shape = "x".join(map(str, images.shape[1:]))
    return [*lines, f"  as they are, {shape}, {_values(images)}, not scaled"]


def _values(images: npt.NDArray[Any]) -> str:
    if images.dtype == np.uint8 or images.dtype.kind not in "uif" or not images.size:
        return str(images.dtype)
    return f"{images.dtype} in [{images.min():g}, {images.max():g}]"


def _load_text(path: Path) -> npt.NDArray[Any]:
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--labels must be a readable text or .npy file", f"{path}: {error}") from None
    return np.array(lines[0].split() if len(lines) == 1 else lines, np.str_)


def _load_npy(path: Path) -> npt.NDArray[Any]:
    try:
        # Mapped, so that a header that declares more than the file holds is refused before memory is taken.
        loaded: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            "A .npy file must hold one plain numeric array",
            f"{path.name}: {str(error).splitlines()[0]}",
            "save it with numpy.save(PATH, array, allow_pickle=False)",
        ) from None
    return loaded
