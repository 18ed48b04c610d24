"""Arrays of your own as ``isweep measure`` takes them: whole in memory, with labels checked as everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.analysis.placement import PUBLISHED_SIDE
from search_spaces.datasets import own_dataset_spec
from search_spaces.errors import ConfigError, DataError
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.sources.base import Listing

Arrays = tuple[npt.NDArray[Any], npt.NDArray[np.int64] | None, tuple[str, ...], tuple[str, ...]]
"""Images, labels (None without any), class names, and what was taken, as lines."""


def load_arrays(path: Path, labels: Path | None, label_map: Mapping[str, str]) -> Arrays:
    """Read images from ``.npz`` or ``.npy``, the second with its labels in another file.

    Args:
        path: Of the images.
        labels: Of the labels of a ``.npy``; ``.npy``, or text with one per image.
        label_map: Label as written -> class.

    Raises:
        SweepError: for files that are no such arrays, or labels that are no classes.
    """
    if path.suffix.lower() == ".npz":
        from tasks.sources import RawRequest, source_for
        from tasks.sources.array_sets import load_images
        from tasks.sources.npz import NpzFile

        own = OwnSourceSpec(kind="npz", path=str(path), domain=None, label_map=dict(label_map))
        dataset = own_dataset_spec("own", own)
        spec = PreparedSpec(dataset="own", image_size=PUBLISHED_SIDE[0], channels=1)
        # The source checks declared sizes, labels and types before anything large is read.
        listing = source_for("npz").list_items(RawRequest(dataset, spec, path))
        codes = np.array([item.label for item in listing.items], np.int64)
        images = load_images(NpzFile(RawRequest(dataset, spec, path)), listing)
        return images, codes, tuple(listing.label_names), _taken(listing, codes, images)
    images = _load_npy(path)
    if labels is None:
        return images, None, (), ()
    names, codes = _classes(labels, label_map)
    if len(codes) != len(images):
        raise DataError(
            "There must be one label per image",
            f"{len(codes)} labels, {len(images)} images",
            "check --labels",
        )
    return images, codes, names, ()


def _classes(path: Path, label_map: Mapping[str, str]) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the classes of a file of labels, in order, and each image's."""
    from tasks.sources import RawRequest
    from tasks.sources.labels import check_spellings, is_missing, sort_labels

    values = _load_npy(path) if path.suffix.lower() == ".npy" else _load_text(path)
    if values.ndim != 1 or values.dtype.kind not in "uibfUS":
        raise DataError(
            "There must be one label per image", f"{values.dtype} {values.shape}", "check --labels"
        )
    written = [
        cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell for cell in values.tolist()
    ]
    labels = [label_map.get(str(cell).strip(), str(cell)) for cell in written]
    absent = sum(map(is_missing, labels))
    if absent:
        rule, found = "Every image needs a label", f"{absent} blank, NaN or None"
        raise DataError(rule, found, "drop those images, or say what it means with --label-map")
    meant = OwnSourceSpec(kind="npz", path=str(path), domain=None, label_map=dict(label_map))
    own = own_dataset_spec("own", meant)
    spec = PreparedSpec(dataset="own", image_size=PUBLISHED_SIDE[0], channels=1)
    check_spellings(labels, RawRequest(own, spec, path))
    names = sort_labels(labels)
    places = {name: place for place, name in enumerate(names)}
    return names, np.array([places[label] for label in labels], np.int64)


def _taken(listing: Listing, codes: npt.NDArray[np.int64], images: npt.NDArray[Any]) -> tuple[str, ...]:
    """Return what was taken of arrays, left out and is doubtful, as lines."""
    groups = [item.group or f"\0{item.locator}" for item in listing.items]
    members = [
        {groups[row] for row in np.flatnonzero(codes == code)} for code in range(len(listing.label_names))
    ]
    counts = np.bincount(codes, minlength=len(members)).tolist()
    lines = [f"{len(codes):,} images, {len(members)} classes, {len(set(groups)):,} groups"]
    lines += [
        f"  class {name}: {n:,} images, {len(own):,} groups"
        for name, n, own in zip(listing.label_names, counts, members, strict=True)
    ]
    lines += [f"  as they are, {'x'.join(map(str, images.shape[1:]))}, {images.dtype}, not scaled"]
    lines += [f"  left out: {reason}, {n:,}" for reason, n in listing.excluded.items()]
    return (*lines, *(f"  doubtful: {reason}, {n:,}" for reason, n in listing.flags.items()))


def _load_text(path: Path) -> npt.NDArray[Any]:
    try:
        return np.array(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--labels must be a readable text or .npy file", f"{path}: {error}") from None


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
