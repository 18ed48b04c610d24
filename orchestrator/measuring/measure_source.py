"""Your own images, read from wherever they are and measured; what cannot be raises a SweepError."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from orchestrator.planning.paths import RootPaths
from search_spaces.datasets import DATASETS, dataset_spec, own_dataset_spec
from search_spaces.errors import ConfigError, DataError, SetupError, invalid, nearest_path
from search_spaces.published import read_published
from search_spaces.specs import DatasetSpec, PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.measures.measure import measure_array, measure_nested
from tasks.measures.products import check_device
from tasks.measures.records import MeasureResult, MeasureSettings
from tasks.measures.sharpness import SharpnessConvention, conversion
from tasks.prepared.record import set_lines
from tasks.prepared.store import MARKER, PreparedDataset
from tasks.remote import Executor
from tasks.sources import check_raw_folder, own_kinds_text, source_for
from tasks.sources.array_files import ARRAY_FILES
from tasks.sources.base import RawRequest, format_counts
from tasks.sources.detect import detect_own_kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_SIDE = 224
"""Of image files, where none is asked for: the study's."""
MAX_HELD_BYTES = 2 << 30
PREPARED_RANGE = (0.0, 255.0)
NOTHING_SAID = OwnSourceSpec(kind="npz", path="own", domain=None)

Images = npt.NDArray[Any]
Codes = npt.NDArray[np.int64]
Names = tuple[str, ...]


@dataclass(frozen=True)
class MeasureRequest:
    """What to measure and how.

    Attributes:
        source: A path, or a dataset's name.
        labels: File of labels for ``.npy`` (``.npy`` or one per line); None measures dimension
            only.
        raw: Raw download, for a dataset's name.
        said: Fields of own data: ``label_map`` (label as written -> class), ``label_columns``,
            ``layout``.
        class_pair: Only these two classes, by name; a number that is no name is the place in their
            order.
        max_skipped_share: Largest share of image files that may be unusable.
        train_sizes: Nested, stratified subsets to measure beside all images.
        image_size: Side to resize to; None keeps arrays as they are and takes 224 for image files.
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
        pair_images: The two differently labelled images that are closest.
        pair_labels: Their classes.
        label_names: The classes that were measured, in their order; empty without labels.
        preparation: Record of what was read and skipped; None for arrays.
        taken: What people should see of arrays: classes, what was left out, what is doubtful.
    """

    record: MeasureResult
    pair_images: tuple[Images, Images] | None = None
    pair_labels: tuple[str, str] | None = None
    label_names: Names = ()
    preparation: dict[str, Any] | None = None
    taken: Names = ()


def measure_source(request: MeasureRequest, executor: Executor, paths: RootPaths) -> Measured:
    """Read a source and measure it.

    Image files are prepared in the root and removed afterwards; the key of hashed file names stays.
    """
    try:
        check_device(request.settings.device)
    except SetupError as error:
        rule = "--device must be a torch device of this machine"
        raise ConfigError(rule, error.value, "e.g. cpu or cuda:0") from None
    if request.settings.pixel_range is not None:
        request = replace(
            request, said=request.said | {"pixel_range": request.settings.pixel_range}
        )
    path = Path(request.source)
    of_table = request.source in DATASETS and not path.exists()
    if request.said and (of_table or (path / MARKER).exists()):
        rule = f"{_options(request.said)} is for own data that are not prepared yet"
        raise ConfigError(
            rule, path.name, "classes of prepared data and of the table's datasets are fixed"
        )
    if of_table:
        return _measure_prepared(
            request, dataset_spec(request.source), request.raw, executor, paths
        )
    if not path.exists():
        near = f"{nearest_path(path)}; known datasets: {', '.join(sorted(DATASETS))}".lstrip("; ")
        if "://" in request.source:
            near = "download it, then name the folder or file here"
        rule = "The source must be a folder, a file or the name of a dataset"
        raise ConfigError(rule, request.source, near)
    of_npy = path.is_file() and path.suffix.lower() == ".npy"
    as_stored = (
        path.is_file() and (of_npy or path.suffix.lower() in ARRAY_FILES) and not request.image_size
    )
    for option, is_unused, what in (
        ("--labels", request.labels and not of_npy, "a .npy; others hold theirs"),
        ("--raw", request.raw, "the name of a dataset"),
        (
            "--channels",
            as_stored and request.channels != 1,
            "images that are resized, by --image-size",
        ),
    ):
        if is_unused:
            raise ConfigError(f"{option} is for {what}", path.name, "leave it out")
    if (path / MARKER).exists():
        return _measure_dataset(request, PreparedDataset.open(path), executor)
    if as_stored:
        return _measure_file(request, path, executor)
    if of_npy:
        raise ConfigError("--image-size resizes images with labels", path.name, "save them as .npz")
    own = _own_source(known_kind(path), path, request)
    return _measure_prepared(request, own_dataset_spec("own", own), path, executor, paths)


def measure_arrays(
    images: Images,
    labels: Codes | None,
    label_names: Names,
    request: MeasureRequest,
    executor: Executor,
) -> Measured:
    """Measure images in memory as ``request`` says, whose source is not looked at."""
    if request.class_pair is not None:
        if labels is None:
            raise ConfigError("A class pair needs labels", "none", "give labels (--labels FILE)")
        rows = _rows_of_pair(labels, label_names, request.class_pair)
        images, labels = images[rows], labels[rows]
    sizes = request.train_sizes or None
    record = measure_array(
        images, labels, train_sizes=sizes, executor=executor, settings=request.settings
    )
    return _measured(record, images.__getitem__, labels, label_names)


def measure_on_scale(
    images: Images,
    labels: Codes | None,
    label_names: Names,
    request: MeasureRequest,
    executor: Executor,
) -> Measured:
    """Measure arrays in memory on the scale of their pixels, which lines say.

    Floating-point images, and any whose black and white are told, are brought to [0, 255], as
    preparing does. Whole numbers, and points of ``(num_points, num_features)``, stay as they are.
    """
    from tasks.sources.arrays import CUT, pixel_scale, to_scale

    given, kind = request.settings.pixel_range, images.dtype.kind
    shape, values = "x".join(map(str, images.shape[1:])), str(images.dtype)
    if images.dtype != np.uint8 and kind in "uif" and images.size:
        values += f" in [{images.min():g}, {images.max():g}]"
    is_open = kind == "f" and images.ndim > 2 if given is None else kind in "uif"
    if (
        not is_open or not images.size or not all(np.isfinite(row).all() for row in images)
    ):  # refused later
        said = [f"  as they are, {shape}, {values}, not scaled"]
    else:
        limits, rule = pixel_scale("images", [images], given)
        pixels, num_cut = np.empty(images.shape, np.float32), 0
        for row, image in enumerate(images):
            pixels[row], is_cut = to_scale(image, limits)
            num_cut += bool(is_cut.any())
        said = [
            f"  {shape}, {values}: {rule}",
            *([f"  doubtful: {CUT}, {num_cut:,}"] if num_cut else []),
        ]
        settings = replace(request.settings, pixel_range=PREPARED_RANGE)
        images, request = pixels, replace(request, settings=settings)
    return replace(
        measure_arrays(images, labels, label_names, request, executor), taken=tuple(said)
    )


def _options(said: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in said)


def known_kind(path: Path) -> str:
    """Return the kind of own data that a file or folder is; ConfigError for any other."""
    kind = detect_own_kind(path)
    if kind is not None:
        return kind
    raise ConfigError(
        "Your images must be a .npy file or of a known kind",
        path.suffix or "no ending",
        own_kinds_text(),
    )


def _own_source(kind: str, path: Path, request: MeasureRequest) -> OwnSourceSpec:
    known = {"kind": kind, "path": str(path), "domain": None, "channels": request.channels}
    try:
        return OwnSourceSpec.model_validate(known | request.said)
    except ValidationError as error:
        raise invalid(error) from None


def _measure_prepared(
    request: MeasureRequest,
    dataset: DatasetSpec,
    raw: Path | None,
    executor: Executor,
    paths: RootPaths,
) -> Measured:
    from tasks.prepared.prepare import prepare_dataset  # imports scipy, which arrays do without

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
    check_raw_folder(RawRequest(dataset, spec, raw))
    if raw is None and (paths.prepared(spec) / MARKER).exists():
        return _measure_dataset(request, PreparedDataset.open(paths.prepared(spec)), executor)
    paths.make()
    # Beside the prepared datasets, where the key lies by which a hashed file name can be found
    # again.
    destination = paths.prepared(spec).parent / f".measure-{os.getpid()}"
    limits: dict[str, Any] = {"max_skipped_share": request.max_skipped_share, "for_training": False}
    try:
        prepare_dataset(
            spec, dataset, raw=raw, destination=destination, executor=executor, **limits
        )
        return _measure_dataset(request, PreparedDataset.open(destination), executor)
    finally:
        for folder in destination.parent.glob(f".*measure-{os.getpid()}*"):
            shutil.rmtree(folder, ignore_errors=True)


def _measure_dataset(
    request: MeasureRequest, data: PreparedDataset, executor: Executor
) -> Measured:
    settings, names = replace(request.settings, pixel_range=PREPARED_RANGE), data.label_names
    if request.class_pair is None and not request.train_sizes:
        # Streams from the store, so the images need not fit into memory.
        record = measure_nested(
            data, data.labels, [data.num_images], executor=executor, settings=settings
        )
        found = _measured(record, data.read_rows, data.labels, names)
    else:
        pair = request.class_pair
        rows = (
            np.arange(data.num_images) if pair is None else _rows_of_pair(data.labels, names, pair)
        )
        asked = replace(request, class_pair=None, settings=settings)
        found = measure_arrays(data.read_rows(rows), data.labels[rows], names, asked, executor)
    return replace(found, preparation=data.record.model_dump(mode="json"))


def _measure_file(request: MeasureRequest, path: Path, executor: Executor) -> Measured:
    kind = detect_own_kind(path)
    if kind is not None and path.stat().st_size > MAX_HELD_BYTES:
        rule = (
            "A file of arrays beyond 2 GiB is read in blocks, which needs a side to bring the "
            "images to"
        )
        found = f"{path.stat().st_size:,} bytes"
        raise ConfigError(rule, found, "give --image-size, e.g. that of the arrays")
    others = set(request.said) - {"label_map", "pixel_range"}
    if others:
        rule = f"{_options(sorted(others))} is for other kinds of own data"
        raise ConfigError(rule, path.name, "leave it out")
    own = _own_source(kind or "npz", path, request)
    if kind is not None:
        from tasks.sources.arrays import load_images

        # The source checks declared sizes, labels and types before anything large is read.
        listing = source_for(kind).list_items(_raw(own))
        file = ARRAY_FILES[path.suffix.lower()](_raw(own))
        images, names = load_images(file, listing), tuple(listing.label_names)
        labels = np.array([item.label for item in listing.items], np.int64)
        groups: Sequence[object] = [item.group or f"\0{item.locator}" for item in listing.items]
        notes = format_counts(left_out=listing.excluded, doubtful=listing.flags)
    else:
        images, notes = _load_npy(path), []
        if request.labels is None:
            return measure_on_scale(images, None, (), request, executor)
        if not request.labels.exists():
            found, near = str(request.labels), nearest_path(request.labels)
            raise ConfigError("--labels must be a file that is there", found, near)
        names, labels = _classes(request.labels, own)
        groups = range(len(labels))
        if len(labels) != len(images):
            found = f"{len(labels)} labels, {len(images)} images"
            raise DataError("There must be one label per image", found, "check --labels")
    taken = _taken(images, labels, names, groups)
    measured = measure_on_scale(images, labels, names, request, executor)
    return replace(measured, taken=(*taken, *measured.taken, *notes))


def _raw(own: OwnSourceSpec) -> RawRequest:
    spec = PreparedSpec(dataset="own", image_size=DEFAULT_SIDE, channels=1)
    return RawRequest(own_dataset_spec("own", own), spec, Path(own.path))


def _load_npy(path: Path) -> Images:
    try:
        # Mapped, so that a header that declares more than the file holds is refused before memory
        # is taken.
        return cast("Images", np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        found, hint = (
            f"{path.name}: {str(error).splitlines()[0]}",
            "save it with numpy.save(PATH, array)",
        )
        raise DataError("A .npy file must hold one plain numeric array", found, hint) from None


def _classes(path: Path, own: OwnSourceSpec) -> tuple[Names, Codes]:
    if of_array := path.suffix.lower() == ".npy":
        values = _load_npy(path)
    else:
        from orchestrator.planning.plain_yaml import read_text

        lines = read_text(path, "file of labels", MAX_HELD_BYTES).rstrip().splitlines()
        values = np.array(lines[0].split() if len(lines) == 1 else lines, np.str_)
    if values.ndim != 1 or values.dtype.kind not in "uibfUS":
        found = f"{values.dtype} {values.shape}"
        raise DataError("There must be one label per image", found, "check --labels")
    return name_labels(values.tolist(), own, first=0 if of_array else 1)


def name_labels(
    cells: Sequence[object], own: OwnSourceSpec | None = None, first: int = 0
) -> tuple[Names, Codes]:
    """Return the classes of labels as given (numbers, text, bytes), in order, and each image's
    class.

    ``own`` says what labels of a file mean; ``first`` is the number of its first row in messages.
    """
    from tasks.sources.own import Rows, classes_of_rows, sort_labels
    from tasks.sources.tables import label_text

    written = [label_text(cell) for cell in cells]
    rows = Rows(
        cells={"label": written},
        locator=str,
        name=lambda row: f"row {row + first}",
        numbering=lambda _: f"the first row is {first}",
    )
    try:
        labels = classes_of_rows(rows, _raw(own or NOTHING_SAID))
    except DataError as error:
        if own is None:  # arrays in memory have no label_map
            hint = "change those labels, or leave their images out, before measuring"
            raise DataError(error.rule, error.value, hint) from None
        raise
    names = sort_labels(labels)
    places = {name: place for place, name in enumerate(names)}
    return names, np.array([places[label] for label in labels], np.int64)


def _taken(images: Images, codes: Codes, names: Names, groups: Sequence[object]) -> list[str]:
    """Return what was taken of arrays, as lines."""
    rows_of = {name: np.flatnonzero(codes == code).tolist() for code, name in enumerate(names)}
    images_of = {name: len(rows) for name, rows in rows_of.items()}
    groups_of = (len({groups[row] for row in rows}) for rows in rows_of.values())
    lines = set_lines(images_of, groups_of, len(set(groups)))
    flat = images.reshape(len(images), -1)
    some = flat[:, :: flat.shape[1] // 64 or 1]  # most images have two values among them
    candidates = flat[(some == some[:, :1]).all(axis=1)]
    if blank := int((candidates == candidates[:, :1]).all(axis=1).sum()):
        lines.append(f"  doubtful: images of one value, {blank:,}")
    return lines


def _measured(
    record: MeasureResult, read_rows: Callable[[Codes], Images], labels: Codes | None, names: Names
) -> Measured:
    if labels is None:
        return Measured(record)
    classes = {
        code: names[code] if code < len(names) else str(code) for code in np.unique(labels).tolist()
    }
    pair = record.label_sharpness.pair if record.label_sharpness else None
    if pair is None:
        return Measured(record, label_names=tuple(classes.values()))
    first, second = read_rows(np.array(pair, np.int64))
    named = classes[int(labels[pair[0]])], classes[int(labels[pair[1]])]
    return Measured(record, (first, second), named, tuple(classes.values()))


def _rows_of_pair(labels: Codes, names: Names, pair: tuple[str, str]) -> Codes:
    """Return the rows of two classes, by name first: labels 1, 2, 3 have the places 0, 1, 2."""
    places = {name: place for place, name in enumerate(names)}
    by_place = {str(place): place for place in np.unique(labels).tolist()}
    codes = [places.get(name, by_place.get(name, -1)) for name in pair]
    if -1 in codes or codes[0] == codes[1]:
        known = ", ".join(names[:20] or tuple(by_place))
        rule = "The class pair must name two different classes of the data"
        raise ConfigError(rule, " ".join(pair), f"classes: {known}")
    return np.flatnonzero(np.isin(labels, codes))


def measured_document(measured: Measured) -> dict[str, Any]:
    """Return what ``isweep measure --json`` prints."""
    return {
        **measured.record.to_json(),
        "label_names": list(measured.label_names),
        "preparation": measured.preparation,
        "taken": list(measured.taken),
        "published": published_rows(measured.record),
    }


def draw_pair(figure: Figure, measured: Measured) -> None:
    """Draw the two differently labelled images that are closest side by side, each stretched to its
    range.

    DataError where there are none, or they are no images.
    """
    sharpness = measured.record.label_sharpness
    if not sharpness or not sharpness.pair or not measured.pair_images or not measured.pair_labels:
        raise DataError("A closest pair needs two images with different labels", "there are none")
    drawn = zip(sharpness.pair, measured.pair_images, measured.pair_labels, strict=True)
    for axes, (row, image, label) in zip(figure.subplots(1, 2), drawn, strict=True):
        pixels = np.asarray(image)
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
            pixels = pixels.transpose(1, 2, 0)
        pixels = pixels.squeeze()
        if pixels.ndim < 2:
            raise DataError("Only images can be drawn", f"rows of {pixels.size} numbers")
        low, high = float(pixels.min()), float(pixels.max())
        axes.imshow((pixels - low) / ((high - low) or 1.0), cmap="gray", interpolation="nearest")
        axes.set_title(f"image {row}: {label}")
        axes.set_axis_off()


def published_rows(record: MeasureResult) -> list[dict[str, Any]]:
    """Return the study's eleven datasets at the nearest train size, K_F in this record's
    convention.

    It was published as a maximum over some 2,000 sampled pairs of [0, 255] images of 224 x 224,
    natural ones on three channels.
    """
    size, own = record.sizes[-1].train_size, record.label_sharpness
    to = (
        None
        if own is None or None in (own.convention.pixel_range, own.convention.side)
        else own.convention
    )
    nearest: dict[str, dict[str, str]] = {}
    for row in read_published("d_data"):
        best = nearest.get(row["dataset"])
        if best is None or abs(int(row["train_size"]) - size) < abs(int(best["train_size"]) - size):
            nearest[row["dataset"]] = row
    sharpness = {
        row["dataset"]: float(row["label_sharpness"]) for row in read_published("label_sharpness")
    }

    def rescaled(name: str) -> float | None:
        channels = 3 if name in ("cifar10", "svhn", "imagenet") else 1
        if to is None:
            return None
        published = SharpnessConvention((0.0, 255.0), (224, 224), channels, to.sample)
        return sharpness[name] * conversion(published, to)

    return [
        {
            "dataset": name,
            "domain": DATASETS[name].domain,
            "train_size": int(row["train_size"]),
            "d_data": float(row["d_data"]),
            "label_sharpness": rescaled(name),
        }
        for name, row in nearest.items()
    ]


def describe(measured: Measured) -> list[str]:
    """Say in plain words how the two numbers compare with the study's datasets."""

    def level(below: int, total: int) -> str:
        return (
            "low" if below / total < 1 / 3 else "high" if below / total > 2 / 3 else "in the middle"
        )

    record, lines = measured.record, list[str]()
    rows = published_rows(record)
    estimate = record.d_data.get("mle")
    if estimate is not None and estimate.value is not None:
        below = sum(row["d_data"] < estimate.value for row in rows)
        lines.append(
            f"Intrinsic dimension {estimate.value:.1f} (mle, as in the study) is "
            f"{level(below, len(rows))}: "
            f"higher than {below} of the {len(rows)} published datasets (at their train size "
            "nearest to "
            "yours). The law expects a higher dimension to need more images for the same loss."
        )
    sharpness = record.label_sharpness
    known = [row["label_sharpness"] for row in rows if row["label_sharpness"] is not None]
    if sharpness is not None and sharpness.value is not None and known:
        below = sum(value < sharpness.value for value in known)
        lines.append(
            f"Label sharpness {sharpness.value:.3g} is {level(below, len(known))}: higher than "
            f"{below} of "
            f"the {len(known)} published values, rescaled to your pixel range, side and channels. "
            "The law "
            "expects sharper labels to give a higher loss and a model that is easier to fool. "
            "Published "
            "values come from a sample of pairs, so read this as an order of magnitude."
        )
    return lines + list(record.notes)
