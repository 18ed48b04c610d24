"""Commands about data: the datasets of the table, and measuring your own images."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from rich.markup import escape

from orchestrator.cli.options import (
    CLUSTER,
    NAMED,
    SEVERAL,
    Address,
    File,
    OwnOptions,
    Place,
    Positive,
    ReadingOptions,
    Work,
    ending,
    real,
    whole,
)
from orchestrator.cli.printing import cell, emit, grid, line, stderr, stdout, written
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.running.cluster import Cluster
    from tasks.measures.records import MeasureResult, MeasureSettings

METHOD = Group("Method", sort_key=1)


def datasets(name: str | None = None, /, *, place: Place = Place()) -> None:
    """Print what each dataset is, needs, and whether it is prepared.

    Args:
        name: Only this dataset.
    """
    from orchestrator.commands import dataset_rows

    rows = dataset_rows(place.root, name)

    def show() -> None:
        for row in rows:
            title = escape(f"{row['title']} ({row['domain']}, {row['modality']})")
            stdout.print(f"[bold]{row['name']}[/]  {title}", soft_wrap=True)
            line(f"  {row['description']}", f"  terms: {row['terms']}", f"  files: {row['raw_layout']}")
            line(f"  groups: {row['groups']}; {', '.join(row['prepared']) or 'not prepared'}")

    emit(place, rows, show)


def prepare(
    name: str,
    /,
    *,
    raw: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    montage: Annotated[Path | None, ending(".png")] = None,
    sweep: Annotated[str, Parameter(name="--sweep", metavar="SWEEP")] = "paper",
    own: OwnOptions = OwnOptions(),
    work: Work = Work(),
) -> None:
    """Prepare one dataset from its raw download, and print its record.

    Args:
        name: A dataset of the table, see isweep datasets, or own data of the sweep that --sweep names.
        raw: Folder of the raw download.
        montage: Draw examples of each label into this file (shows images).
        sweep: Take image size, channels and data mode from this sweep (default paper).
    """
    from orchestrator.commands import prepare_one
    from orchestrator.running.progress import Progress

    if montage is not None and (montage.is_dir() or not montage.absolute().parent.is_dir()):
        raise ConfigError("--montage must be a file that can be written", f"{montage}", "e.g. montage.png")
    record = prepare_one(
        name,
        preset=sweep,
        run_options=work.options({name: raw} if raw else {}),
        progress=Progress(console=None if work.quiet else stderr),
        montage=montage,
        said=own.said(),
    )
    emit(work, record, lambda: _show_taken(record))


@Parameter(name="*", group=METHOD)
@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """How to measure.

    Attributes:
        num_neighbors: k of the maximum-likelihood estimate (default 20).
        estimators: Of d_data, by name (default: all that docs/measures.md calls default).
        sharpness_sample: Images per sample for K_F (default 1000; 0 for all).
        pixel_range: Lowest and highest value that pixels of float arrays can have.
        dtype: Type of the matrix products (default float32).
        device: cpu, or a torch device for the matrix products (default cpu).
        calibrate: Correct the dimension's bias by simulation.
        seed: Seed of every random choice (default 0).
    """

    num_neighbors: Annotated[int, whole(3), Parameter(metavar="K")] = 20
    estimators: Annotated[tuple[str, ...], Parameter(consume_multiple=SEVERAL, metavar="NAME...")] = ()
    sharpness_sample: Annotated[int, whole(0), Parameter(metavar="N")] = 1000
    pixel_range: Annotated[tuple[float, float] | None, real(), Parameter(metavar="LOW HIGH")] = None
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    calibrate: bool = False
    seed: Annotated[int, whole(0)] = 0

    def settings(self) -> MeasureSettings:
        """Return them as the measures take them."""
        from search_spaces.specs import DEFAULT_ESTIMATORS
        from tasks.measures.records import MeasureSettings

        if self.sharpness_sample == 1:
            raise ConfigError("--sharpness-sample must be at least 2, or 0 for all images", "1")
        given = vars(self) | {"sharpness_sample": self.sharpness_sample or None}
        return MeasureSettings(**given | {"estimators": self.estimators or DEFAULT_ESTIMATORS})


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images to measure, and as what.

    Attributes:
        labels: Labels for a .npy: a .npy, or text with one per image.
        raw: Raw download, for a dataset's name.
        class_pair: Only these two classes, by name.
        train_sizes: Nested sizes to measure beside all images.
        image_size: Resize to this side (image files: 224).
        channels: 1 (default) or 3.
    """

    labels: File = None
    raw: Annotated[Path | None, Parameter(metavar="DIR")] = None
    class_pair: Annotated[tuple[str, str] | None, Parameter(metavar="A B")] = None
    train_sizes: Annotated[
        tuple[int, ...], whole(1), Parameter(consume_multiple=SEVERAL, metavar="N...")
    ] = ()
    image_size: Annotated[int | None, whole(4, 1025, "from 4 to 1024 pixels"), Parameter(metavar="SIDE")] = (
        None
    )
    channels: Literal[1, 3] = 1


def measure(
    source: Annotated[str, NAMED],
    /,
    *,
    images: ImageOptions = ImageOptions(),
    own: OwnOptions = OwnOptions(),
    method: MethodOptions = MethodOptions(),
    show_pair: Annotated[Path | None, ending(".png")] = None,
    reading: ReadingOptions = ReadingOptions(),
    address: Address = None,
    num_cpus: Annotated[Positive, Parameter(group=CLUSTER, metavar="N")] = 1,
    place: Place = Place(),
) -> None:
    """Measure d_data and label sharpness of your own images.

    Args:
        source: Folder of class folders, table of paths, arrays, shards, prepared folder, or a dataset's name;
            docs/datasets.md lists all kinds.
        show_pair: Draw the pair that attains K_F into this file (shows your images).
        address: Running Ray cluster.
        num_cpus: CPUs to use; 1 (default) runs without Ray.
    """
    from orchestrator.commands import describe, draw_pair, measured_document
    from orchestrator.running.measuring import MeasureRequest, measure_source
    from tasks.remote import InlineExecutor, RayExecutor

    given = {**vars(images), **vars(reading), "said": own.said(), "settings": method.settings()}
    request = MeasureRequest(source=source, **given)

    def connected() -> AbstractContextManager[Cluster]:
        from orchestrator.running.cluster import connect

        return connect(address, num_cpus=num_cpus, dashboard=False)

    with nullcontext() if address is None and num_cpus == 1 else connected() as cluster:
        # The source and the prepared images lie on this node.
        executor = InlineExecutor() if cluster is None else RayExecutor(driver_node_only=not cluster.local)
        measured = measure_source(request, executor, place.paths)
    if show_pair:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.4), layout="constrained")
        draw_pair(figure, measured)
        written(show_pair, lambda path: figure.savefig(path, format="png"))

    def show() -> None:
        if measured.preparation is not None:
            _show_taken(measured.preparation)
        line(*measured.taken)
        stdout.print(_measure_table(measured.record))
        if measured.record.label_sharpness is None:
            line("No label sharpness: there are no labels; --labels names a file of them.")
        line(*describe(measured))

    emit(place, measured_document(measured), show)


def locate(
    said: Annotated[str, Parameter(name="WHAT")],
    /,
    *,
    raw: Annotated[Path, Parameter(metavar="DIR")],
    place: Place = Place(),
) -> None:
    """Find the file that a message tells of, for who holds the root's key.

    Args:
        said: What the message prints: 16 hex digits, 'row 12', or the line with these in it.
        raw: Folder or file that was read.
    """
    from tasks.sources import HASH
    from tasks.sources import locate as find
    from tasks.sources.base import KEY_FILE, KEY_VARIABLE

    if not raw.exists():
        raise ConfigError("--raw must be the folder or file that was read", str(raw))
    key_folder = place.paths.root / "prepared"
    if HASH.search(said) and not (key_folder / KEY_FILE).exists() and not os.environ.get(KEY_VARIABLE):
        rule = "The root must hold the key by which the hash was made"
        raise ConfigError(rule, f"no {key_folder / KEY_FILE}", "name that root with --root or ISWEEP_ROOT")
    name = find(raw, key_folder, said)
    if name is None:
        rule = "WHAT must be a row of the table, or the hash of a file below --raw, made with this root's key"
        raise ConfigError(rule, said)
    emit(place, {"file": name}, lambda: line(name))


def _show_taken(record: dict[str, Any]) -> None:
    """Print what was taken, left out and doubtful: a wrong label shows here first."""
    from tasks.prepared.record import PreparedRecord, preparation_lines

    line(*preparation_lines(PreparedRecord.model_validate(record)))


def _measure_table(record: MeasureResult) -> Table:
    table = grid("images", "estimator", "d_data", "std error", "K_F", "duplicates")
    for size in record.sizes:
        sharpness = size.label_sharpness
        shown = "" if sharpness is None else cell(sharpness.value) or f"undefined: {sharpness.reason}"
        for index, (name, estimate) in enumerate(size.d_data.items()):
            value = cell(estimate.value) or f"undefined: {estimate.reason}"
            head = (str(size.train_size), shown, str(size.num_duplicates)) if index == 0 else ("", "", "")
            table.add_row(head[0], name, value, cell(estimate.error), head[1], head[2])
    if (corrected := record.calibration) is not None:
        spread = "{:.3g} to {:.3g}".format(*corrected.interval) if corrected.interval else ""
        table.add_row("", "calibrated", cell(corrected.value), spread, "", "")
    return table
