"""Commands to begin with: what a sweep file can name, a first one, and measuring your own
images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from rich.text import Text

from orchestrator.cli import options as o
from orchestrator.cli.printing import Shown, cell, emit, grid, progress, tell, written
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.machine.cluster import Cluster
    from orchestrator.measuring.request import Measured
    from tasks.measures.records import MeasureSettings

Side = o.whole(4, 1025)
DRAFT, METHOD = Group("Sweep file", sort_key=1), Group("Method", sort_key=1)


def init(
    source: Path | None = None,
    /,
    *,
    out: Annotated[Path | None, o.ending(".yaml", ".yml"), Parameter(group=DRAFT)] = None,
    domain: Annotated[Literal["natural", "medical"] | None, Parameter(group=DRAFT)] = None,
    device: Annotated[Literal["auto", "cpu", "gpu"], Parameter(group=DRAFT)] = "auto",
    own: o.OwnOptions = o.OwnOptions(),
    place: o.Place = o.Place(),
) -> None:
    """Write a sweep file for your images that runs as it is; prints its path last.

    Args:
        source: Your images: a folder, a table or a file of arrays. Without it, an example on
            digits.
        out: File to write (default: the source's name with .yaml, here).
        domain: What the images are of (default: guessed).
        device: Sizes for trainings on a CPU or a GPU (default: what this machine has).
        own: What own data leave open.
    """
    from orchestrator.planning.draft import draft_sweep

    to = out or o.writable(
        Path(f"{source.absolute().name.split('.')[0] if source else 'first'}.yaml")
    )
    if to.exists():
        raise ConfigError(
            "No file is written over", f"{to} exists", "name another with --out, or remove it"
        )
    gpu = device == "gpu" or (device == "auto" and any(Path("/dev").glob("nvidia[0-9]*")))
    text = draft_sweep(source, to, domain=domain, gpu=gpu, said=own.said(), root=place.paths.root)
    to.write_text(text, encoding="utf-8")
    named = str(to) if "/" in str(to) else f"./{to}"
    hints = [place.hint("plan", named), place.hint("run", named)]
    if not place.json:
        tell(f"{text}\nWhat it will do: {hints[0]}\nDo it:           {hints[1]}")
    emit(place, {"sweep_file": str(to), "text": text, "next": hints}, str(to))


def models(*, place: o.Place = o.Place()) -> None:
    """List the networks that a sweep file can name."""
    from search_spaces.models import MODELS, about

    rows = [
        {
            "model": row.name,
            "library": row.library,
            "architecture": row.architecture,
            "about": about(row),
        }
        for row in MODELS.values()
    ]
    more = "Also: torchvision:NAME, timm:NAME, or a function of your own; see docs/trials.md."
    emit(place, rows, _listed(rows, ("model", "about"), more))


def recipes(*, place: o.Place = o.Place()) -> None:
    """List the training recipes that a sweep file can name, those that isweep tune wrote among
    them.
    """
    from search_spaces.recipes import RECIPES, recipe_spec

    names, rows = ("recipe", "epochs", "rate", "batch", "pixels", "about"), list[dict[str, Any]]()
    for name, recipe in RECIPES.items():
        usual = recipe_spec(name, "", "")
        pixels = f"0 to {255 * usual.input_scale:.4g}"
        values = (
            name,
            usual.epochs,
            f"{usual.learning_rate:g}",
            usual.batch_size,
            pixels,
            recipe.about,
        )
        rows.append(dict(zip(names, values, strict=True)))
    for path in sorted(place.paths.recipes.glob("tuned-*.yaml")):
        about = f"found by isweep tune: {path}"
        rows.append(dict.fromkeys(names, "") | {"recipe": path.stem, "about": about})
    more = (
        "Change a recipe in the sweep file: recipe: {from: demo, epochs: 40}; see docs/trials.md."
    )
    emit(place, rows, _listed(rows, names, more))


def presets(*, place: o.Place = o.Place()) -> None:
    """List the sweeps that ship with the package."""
    from orchestrator.planning.plan import plan_sweep
    from orchestrator.planning.sweep_file import load_sweep
    from orchestrator.planning.written_files import preset_names

    rows = []
    for name in preset_names():
        sweep = load_sweep(name)
        trials = len(plan_sweep(sweep).trials)
        rows.append(
            {"preset": name, "trials": trials, "about": " ".join(sweep.description.split())}
        )
    emit(place, rows, _listed(rows, ("preset", "trials", "about"), "Run one with: isweep run NAME"))


def _listed(rows: Sequence[Mapping[str, Any]], names: Sequence[str], more: str) -> Iterator[Shown]:
    table = grid(*names)
    for row in rows:
        table.add_row(*(cell(row[name]) for name in names))
    yield table
    yield more


def datasets(name: str | None = None, /, *, place: o.Place = o.Place()) -> None:
    """Print what each dataset is, needs, and whether it is prepared.

    Args:
        name: Only this dataset.
    """
    from orchestrator.planning.dataset_rows import list_datasets

    rows = list_datasets(place.root, name)
    said = []
    for row in rows:
        title = f"  {row['title']} ({row['domain']}, {row['modality']})\n  {row['description']}\n"
        prepared = f"  groups: {row['groups']}; {', '.join(row['prepared']) or 'not prepared'}"
        text = f"{title}  terms: {row['terms']}\n  files: {row['raw_layout']}\n{prepared}"
        said.append(Text.assemble((row["name"], "bold"), text))
    emit(place, rows, said)


def prepare(
    name: str,
    /,
    *,
    raw: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    montage: o.Png = None,
    sweep: Annotated[str, Parameter(name="--sweep", metavar="SWEEP")] = "paper",
    own: o.OwnOptions = o.OwnOptions(),
    work: o.Work = o.Work(),
) -> None:
    """Prepare one dataset from its raw download, and print its record.

    Args:
        name: A dataset of the table, see isweep datasets, or own data of the sweep that --sweep
            names.
        raw: Folder of the raw download.
        montage: Draw examples of each label into this file (shows images).
        sweep: Take image size, channels and data mode from this sweep (default paper).
    """
    from orchestrator.running.prepare_one import prepare_one
    from tasks.prepared.record import PreparedRecord, preparation_lines

    record = prepare_one(
        name,
        preset=sweep,
        run_options=work.options({name: raw} if raw else {}),
        progress=progress(work),
        montage=montage,
        said=own.said(),
    )
    emit(work, record, preparation_lines(PreparedRecord.model_validate(record)))


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

    num_neighbors: Annotated[int, o.whole(3), Parameter(metavar="K")] = 20
    estimators: o.Names = ()
    sharpness_sample: Annotated[int, o.whole(0), Parameter(metavar="N")] = 1000
    pixel_range: Annotated[tuple[float, float] | None, o.real(), Parameter(metavar="LOW HIGH")] = (
        None
    )
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    calibrate: bool = False
    seed: Annotated[int, o.whole(0)] = 0

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

    labels: o.File = None
    raw: Annotated[Path | None, Parameter(metavar="DIR")] = None
    class_pair: Annotated[tuple[str, str] | None, Parameter(metavar="A B")] = None
    train_sizes: o.Sizes = ()
    image_size: Annotated[int | None, Side, Parameter(metavar="SIDE")] = None
    channels: Literal[1, 3] = 1


def measure(
    source: Annotated[str, o.NAMED],
    /,
    *,
    images: ImageOptions = ImageOptions(),
    own: o.OwnOptions = o.OwnOptions(),
    method: MethodOptions = MethodOptions(),
    show_pair: o.Png = None,
    reading: o.ReadingOptions = o.ReadingOptions(),
    address: o.Address = None,
    num_cpus: Annotated[o.Positive, Parameter(group=o.CLUSTER, metavar="N")] = 1,
    place: o.Place = o.Place(),
) -> None:
    """Measure d_data and label sharpness of your own images.

    Args:
        source: Folder of class folders, table of paths, arrays, shards, prepared folder, or a
            dataset's name; docs/datasets.md lists all kinds.
        show_pair: Draw the pair that attains K_F into this file (shows your images).
        address: Running Ray cluster.
        num_cpus: CPUs to use; 1 (default) runs without Ray.
    """
    from orchestrator.measuring.pair_figure import draw_pair
    from orchestrator.measuring.published import describe, measured_document
    from orchestrator.measuring.request import MeasureRequest
    from orchestrator.measuring.sources import measure_source
    from tasks.remote import InlineExecutor, RayExecutor

    given = {**vars(images), **vars(reading), "said": own.said(), "settings": method.settings()}
    request = MeasureRequest(source=source, **given)

    connected: AbstractContextManager[Cluster | None] = nullcontext()
    if address is not None or num_cpus > 1:
        from orchestrator.machine.cluster import connect

        connected = connect(address, num_cpus=num_cpus, dashboard=False)
    with connected as cluster:
        # The source and the prepared images lie on this node.
        executor = (
            InlineExecutor() if cluster is None else RayExecutor(driver_node_only=not cluster.local)
        )
        measured = measure_source(request, executor, place.paths)
    if show_pair:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.4), layout="constrained")
        draw_pair(figure, measured)
        written(show_pair, lambda path: figure.savefig(path, format="png"))
    emit(place, measured_document(measured), _measured_lines(measured), describe(measured))


def _measured_lines(measured: Measured) -> Iterator[Shown]:
    """Yield what was taken, left out and doubtful (a wrong label shows there first), then the
    numbers.
    """
    from tasks.prepared.record import PreparedRecord, preparation_lines

    if measured.preparation is not None:
        yield from preparation_lines(PreparedRecord.model_validate(measured.preparation))
    yield from measured.taken
    record = measured.record
    table = grid("images", "estimator", "d_data", "std error", "K_F", "duplicates")
    for size in record.sizes:
        sharpness = size.label_sharpness
        k_f = "" if sharpness is None else _or_why(sharpness.value, sharpness.reason)
        images, duplicates = str(size.train_size), str(size.num_duplicates)
        for name, estimate in size.d_data.items():
            d_data = _or_why(estimate.value, estimate.reason)
            table.add_row(images, name, d_data, cell(estimate.reported_std_error), k_f, duplicates)
            images = k_f = duplicates = ""
    if (corrected := record.calibration) is not None:
        spread = "{:.3g} to {:.3g}".format(*corrected.interval) if corrected.interval else ""
        table.add_row("", "calibrated", _or_why(corrected.value, corrected.reason), spread, "", "")
    yield table
    if record.label_sharpness is None:
        yield "No label sharpness: there are no labels; --labels names a file of them."


def _or_why(value: float | None, reason: str | None) -> str:
    return cell(value) or f"undefined: {reason}"


def locate(
    said: Annotated[str, Parameter(name="WHAT")],
    /,
    *,
    raw: Annotated[Path, Parameter(metavar="DIR")],
    place: o.Place = o.Place(),
) -> None:
    """Find the file that a message tells of, for who holds the root's key.

    Args:
        said: What the message prints: 16 hex digits, 'row 12', or the line with these in it.
        raw: Folder or file that was read.
    """
    from tasks.sources.base import HASH_PATTERN, KEY_FILE, KEY_VARIABLE
    from tasks.sources.locate import locate as find

    if not raw.exists():
        raise ConfigError("--raw must be the folder or file that was read", str(raw))
    key_folder = place.paths.root / "prepared"
    if (
        HASH_PATTERN.search(said)
        and not (key_folder / KEY_FILE).exists()
        and not os.environ.get(KEY_VARIABLE)
    ):
        rule = "The root must hold the key by which the hash was made"
        raise ConfigError(
            rule, f"no {key_folder / KEY_FILE}", "name that root with --root or ISWEEP_ROOT"
        )
    name = find(raw, key_folder, said)
    if name is None:
        rule = (
            "WHAT must be a row of the table, or the hash of a file below --raw, made with this "
            "root's key"
        )
        raise ConfigError(rule, said)
    emit(place, {"file": name}, name)
