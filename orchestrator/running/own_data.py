"""``isweep measure``: reading your own images from wherever they are, and measuring them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from orchestrator.planning.paths import RootPaths
from orchestrator.running.own_arrays import DEFAULT_SIDE, load_arrays
from search_spaces.datasets import DATASETS, dataset_spec, own_dataset_spec
from search_spaces.errors import ConfigError, invalid, unknown_name
from search_spaces.specs import DatasetSpec, PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.measures.measure import MeasureResult, MeasureSettings, measure_array, measure_nested
from tasks.prepared.dataset import MARKER, PreparedDataset
from tasks.remote import Executor
from tasks.sources import OWN_KINDS, own_kind_of

MAX_HELD_BYTES = 2 << 30
PREPARED_RANGE = (0.0, 255.0)
SAID = ("label_map", "label_columns", "layout", "pixel_range")
"""What may be said of own data that are measured."""


@dataclass(frozen=True)
class MeasureRequest:
    """What to measure and how.

    Attributes:
        source: Folder with a subfolder per class, CSV of paths and labels, ``.npz`` or ``.npy``, a prepared
            dataset's folder, or a dataset's name.
        labels: File of labels for ``.npy`` (``.npy`` or one per line); None measures dimension only.
        raw: Raw download, for a dataset's name.
        said: Fields of own data: ``label_map`` (label as written -> class), ``label_columns``, ``layout``;
            ``pixel_range`` is that of the settings.
        class_pair: Only these two classes, by name; a number that is no name is the place in their order.
        max_skipped_share: Largest share of image files that may be unusable.
        train_sizes: Nested, stratified subsets to measure beside all images.
        image_size: Side to resize to; None keeps arrays as they are and takes 224 for image files.
        channels: 1 or 3.
        settings: How to measure.
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
class Measured:
    """A measured source.

    Attributes:
        record: The numbers.
        pair_images: The two differently labelled images that are closest, or None.
        pair_labels: What their labels mean, in words.
        label_names: The classes that were measured, in their order; empty without labels.
        preparation: Record of what was read and skipped, or None for arrays.
        taken: What people should see of arrays: classes, what was left out, what is doubtful.
    """

    record: MeasureResult
    pair_images: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None
    pair_labels: tuple[str, str] | None
    label_names: tuple[str, ...]
    preparation: dict[str, Any] | None = None
    taken: tuple[str, ...] = ()


def measure_source(request: MeasureRequest, executor: Executor, paths: RootPaths) -> Measured:
    """Read a source and measure it.

    Args:
        request: What and how.
        executor: Runs reading and block tasks.
        paths: The root, made only for image files: a prepared dataset in it is used as it is; image files
            are prepared in it and their arrays removed afterwards, only the key of hashed file names stays.

    Raises:
        SweepError: for a source that cannot be read or measured.
    """
    _check_device(request.settings.device)
    if request.settings.pixel_range is not None:
        request = replace(request, said=request.said | {"pixel_range": request.settings.pixel_range})
    path = Path(request.source)
    if request.said and ((request.source in DATASETS and not path.exists()) or (path / MARKER).exists()):
        rule = f"{_options(request.said)} is for own data that are not prepared yet"
        raise ConfigError(rule, path.name, "classes of prepared data and of the table's datasets are fixed")
    if request.source in DATASETS and not path.exists():
        return _measure_prepared(request, dataset_spec(request.source), request.raw, executor, paths)
    if not path.exists():
        raise ConfigError(
            "The source must be a folder, a file or the name of a dataset",
            request.source,
            f"known datasets: {', '.join(sorted(DATASETS))}",
        )
    if (path / MARKER).exists():
        return _measure_dataset(request, PreparedDataset.open(path), executor)
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy") and path.is_file() and request.image_size is None:
        if suffix == ".npz" and path.stat().st_size > MAX_HELD_BYTES:
            rule = "An .npz beyond 2 GiB is read in blocks, which needs a side to bring the images to"
            raise ConfigError(
                rule, f"{path.stat().st_size:,} bytes", "give --image-size, e.g. that of the arrays"
            )
        return _measure_file(request, path, executor)
    if suffix == ".npy":
        raise ConfigError("--image-size resizes images with labels", path.name, "save them as .npz")
    kind = own_kind_of(path)
    if kind is None:
        if not path.is_file():
            rule = "The source must be a folder or a plain file"
            raise ConfigError(rule, "a FIFO, socket or device", "save it as a file first")
        what = "; ".join(f"{kind}: {what}" for kind, what in OWN_KINDS.items())
        raise ConfigError(
            "The source must be a .npy file or of a known kind", path.suffix or "no ending", what
        )
    own = _own_source(kind, path, request)
    return _measure_prepared(request, own_dataset_spec("own", own), path, executor, paths)


def _own_source(kind: str, path: Path, request: MeasureRequest) -> OwnSourceSpec:
    known = {"kind": kind, "path": str(path), "domain": None, "channels": request.channels}
    unknown = sorted(set(request.said) - set(SAID))
    if unknown:
        raise unknown_name("field of own data", unknown[0], SAID)
    try:
        return OwnSourceSpec.model_validate(known | request.said)
    except ValidationError as error:
        first = error.errors()[0]
        rule = f"{first['loc'][0]} of own data must be as in a sweep file"
        raise ConfigError(rule, first["msg"], "see docs/datasets.md, your own data") from None


def _options(said: Iterable[str]) -> str:
    return ", ".join(f"--{field.replace('_', '-')}" for field in said)


def _check_device(name: str) -> None:
    if name == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        rule = "--device must be a torch device of this machine"
        raise ConfigError(rule, f"{name}: {str(error).splitlines()[0]}", "e.g. cpu or cuda:0") from None


def _measure_prepared(
    request: MeasureRequest, dataset: DatasetSpec, raw: Path | None, executor: Executor, paths: RootPaths
) -> Measured:
    from tasks.preparation.prepare import prepare_dataset  # imports scipy, which arrays do without

    wanted = {
        "dataset": dataset.name,
        "task": dataset.task,
        "image_size": request.image_size or DEFAULT_SIDE,
        "channels": request.channels,
        "max_images_per_class": dataset.max_images_per_class,
    }
    try:
        spec = PreparedSpec.model_validate(wanted)
    except ValidationError as error:
        raise invalid(error) from None
    if raw is None and (paths.prepared(spec) / MARKER).exists():
        return _measure_dataset(request, PreparedDataset.open(paths.prepared(spec)), executor)
    paths.make()
    # Beside the prepared datasets, where the key lies by which a hashed file name can be found again.
    destination = paths.prepared(spec).parent / f".measure-{os.getpid()}"
    try:
        prepare_dataset(
            spec,
            dataset,
            raw=raw,
            destination=destination,
            executor=executor,
            max_skipped_share=request.max_skipped_share,
            for_training=False,
        )
        return _measure_dataset(request, PreparedDataset.open(destination), executor)
    finally:
        for folder in destination.parent.glob(f".*measure-{os.getpid()}*"):
            shutil.rmtree(folder, ignore_errors=True)


def _measure_dataset(request: MeasureRequest, data: PreparedDataset, executor: Executor) -> Measured:
    settings = replace(request.settings, pixel_range=PREPARED_RANGE)
    names, preparation = data.label_names, data.record.to_json()
    if request.class_pair is None and not request.train_sizes:
        # Streams from the store, so the images need not fit into memory.
        record = measure_nested(data, data.labels, [data.num_images], executor=executor, settings=settings)
        return _measured(record, data.read_rows, data.labels, names, preparation)
    rows = _rows_of_pair(data.labels, names, request.class_pair)
    asked = replace(request, class_pair=None, settings=settings)
    found = measure_arrays(data.read_rows(rows), data.labels[rows], names, asked, executor)
    return replace(found, preparation=preparation)


def _measured(
    record: MeasureResult,
    read_rows: Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]],
    labels: npt.NDArray[np.int64] | None,
    label_names: tuple[str, ...],
    preparation: dict[str, Any] | None = None,
) -> Measured:
    if labels is None:
        return Measured(record, None, None, (), preparation)
    classes = {code: _name(label_names, code) for code in np.unique(labels).tolist()}
    pair = record.label_sharpness.pair if record.label_sharpness else None
    if pair is None:
        return Measured(record, None, None, tuple(classes.values()), preparation)
    first, second = read_rows(np.array(pair, np.int64))
    named = classes[int(labels[pair[0]])], classes[int(labels[pair[1]])]
    return Measured(record, (first, second), named, tuple(classes.values()), preparation)


def _name(label_names: tuple[str, ...], code: int) -> str:
    return label_names[code] if code < len(label_names) else str(code)


def _measure_file(request: MeasureRequest, path: Path, executor: Executor) -> Measured:
    others = set(request.said) - {"label_map", "pixel_range"}
    if others:
        raise ConfigError(
            f"{_options(sorted(others))} is for other kinds of own data", path.name, "leave it out"
        )
    images, labels, names, taken = load_arrays(path, request.labels, _own_source("npz", path, request))
    return replace(measure_arrays(images, labels, names, request, executor), taken=taken)


def measure_arrays(
    images: npt.NDArray[Any],
    labels: npt.NDArray[np.int64] | None,
    label_names: tuple[str, ...],
    request: MeasureRequest,
    executor: Executor,
) -> Measured:
    """Measure images in memory as ``request`` says, whose source is not looked at.

    Raises:
        SweepError: for images, labels or a class pair that cannot be measured.
    """
    if request.class_pair is not None:
        if labels is None:
            raise ConfigError("A class pair needs labels", "none", "give labels (--labels FILE)")
        rows = _rows_of_pair(labels, label_names, request.class_pair)
        images, labels = images[rows], labels[rows]
    sizes = request.train_sizes or None
    record = measure_array(images, labels, train_sizes=sizes, executor=executor, settings=request.settings)
    return _measured(record, images.__getitem__, labels, label_names)


def _rows_of_pair(
    labels: npt.NDArray[np.int64], names: tuple[str, ...], pair: tuple[str, str] | None
) -> npt.NDArray[np.int64]:
    """Return the rows of two classes, by name first: labels 1, 2, 3 have the places 0, 1, 2."""
    if pair is None:
        return np.arange(len(labels))
    places = {name: place for place, name in enumerate(names)}
    by_place = {str(place): place for place in np.unique(labels).tolist()}
    codes = [places.get(name, by_place.get(name, -1)) for name in pair]
    if -1 in codes or codes[0] == codes[1]:
        known = ", ".join(names[:20] or tuple(by_place))
        rule = "The class pair must name two different classes of the data"
        raise ConfigError(rule, " ".join(pair), f"classes: {known}")
    return np.flatnonzero(np.isin(labels, codes))
