"""Commands for sweep files and images: write, list, prepare, measure and locate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from rich.text import Text

from orchestrator.cli.file_names import has_key, with_file_names
from orchestrator.cli.options import (
    CLUSTER,
    NAMED,
    Address,
    File,
    Names,
    OwnOptions,
    Place,
    Png,
    Positive,
    ReadingOptions,
    Sizes,
    Work,
    ending,
    real,
    whole,
    writable,
)
from orchestrator.cli.printing import (
    Shown,
    cell,
    emit,
    grid,
    print_message,
    progress,
    stdout,
    write_file,
)
from search_spaces.errors import ConfigError, missing_path_hint

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.machine.cluster import Cluster
    from orchestrator.measuring.request import Measured
    from tasks.measures.records import MeasureResult, MeasureSettings
    from tasks.measures.sharpness import LabelSharpness
    from tasks.remote import Executor

Side = whole(4, 1025)
DRAFT = Group("Sweep file", sort_key=1)
METHOD = Group("Method", sort_key=1)
SWEEP_SUFFIXES = (".yaml", ".yml")
"""Endings of the names of sweep files."""
LEAST_PER_NEIGHBOR = 3
"""Number of images for each nearest neighbor that d_data needs at least. If there are fewer
images, the neighbors of an image are a large part of all images. Their distances then say
little about the surroundings of the image."""


def init(
    source: Path | None = None,
    /,
    *,
    out: Annotated[Path | None, ending(".yaml", ".yml"), Parameter(group=DRAFT)] = None,
    domain: Annotated[Literal["natural", "medical"] | None, Parameter(group=DRAFT)] = None,
    device: Annotated[Literal["auto", "cpu", "gpu"], Parameter(group=DRAFT)] = "auto",
    own: OwnOptions = OwnOptions(),
    place: Place = Place(),
) -> None:
    """Write a sweep file that you can run with your images, and print the path of the file.

    Args:
        source: Your images: a folder, a table or a file of arrays (default: an example with
            images of digits).
        out: File to write (default: the name of SOURCE with .yaml, in the current folder).
        domain: Kind of images (default: isweep guesses the kind from the images).
        device: Choose train sizes for a CPU or a GPU. With auto (default), choose them for this
            machine.
        own: Options for labels and folders.
    """
    from orchestrator.planning.draft import draft_sweep

    if source is not None and source.suffix.lower() in SWEEP_SUFFIXES:
        raise ConfigError(
            f"{source} is a sweep file, but `isweep init` needs images",
            hint="Give a folder of images, a table of their paths or a file of arrays. To run "
            "the sweep, use `isweep run`",
        )
    sweep_file = out
    if sweep_file is None:
        sweep_file = writable(Path(f"{_stem(source)}.yaml"))
    if sweep_file.exists():
        raise ConfigError(
            f"{sweep_file} already exists",
            hint=f"Choose another file with --out, or remove {sweep_file}",
        )
    has_gpu = device == "gpu" or (device == "auto" and any(Path("/dev").glob("nvidia[0-9]*")))
    text = draft_sweep(
        source,
        sweep_file,
        domain=domain,
        gpu=has_gpu,
        own_options=own.by_key(),
        root=place.paths.root,
    )
    sweep_file.write_text(text, encoding="utf-8")
    # Without a slash, isweep would take the name for a sweep of the root.
    path = str(sweep_file)
    if "/" not in path:
        path = f"./{path}"
    hints = [place.hint("plan", path), place.hint("run", path)]
    if not place.json:
        print_message(f"{text}\nShow the plan:  {hints[0]}\nRun the sweep:  {hints[1]}")
        if source is None:
            print_message(
                "The sweep is an example with images of handwritten digits. For your own images, "
                "type `isweep init ./my-images`."
            )
    emit(place, {"sweep_file": str(sweep_file), "text": text, "next": hints}, str(sweep_file))


def _stem(source: Path | None) -> str:
    """Return the name of a sweep file for these images, without the ending."""
    if source is None:
        return "first"
    return source.absolute().name.split(".")[0]


def models(*, place: Place = Place()) -> None:
    """List the networks that you can use in a sweep file."""
    from search_spaces.models import ABOUT, MODELS

    rows = [
        {
            "model": row.name,
            "library": row.library,
            "architecture": row.architecture,
            "about": ABOUT[row.name],
        }
        for row in MODELS.values()
    ]
    more = (
        "You can also write `torchvision:NAME`, `timm:NAME` or the name of your own function. See "
        "docs/trials.md."
    )
    emit(place, rows, _listed(rows, ("model", "about"), more))


def recipes(*, place: Place = Place()) -> None:
    """List the training recipes for sweep files, including recipes that `isweep tune` wrote."""
    from search_spaces.recipes import RECIPES, recipe_spec

    names = ("recipe", "epochs", "rate", "batch", "pixels", "about")
    rows: list[dict[str, Any]] = []
    for name, recipe in RECIPES.items():
        usual = recipe_spec(name, "", "")
        rows.append(
            {
                "recipe": name,
                "epochs": usual.epochs,
                "rate": f"{usual.learning_rate:g}",
                "batch": usual.batch_size,
                "pixels": f"0 to {255 * usual.input_scale:.4g}",
                "about": recipe.about,
            }
        )
    for path in sorted(place.paths.recipes.glob("tuned-*.yaml")):
        about = f"written by `isweep tune`: {path}"
        rows.append(dict.fromkeys(names, "") | {"recipe": path.stem, "about": about})
    more = (
        "To change a recipe, write, for example, `recipe: {from: demo, epochs: 40}` into the "
        "sweep file. See docs/trials.md."
    )
    emit(place, rows, _listed(rows, names, more))


def presets(*, place: Place = Place()) -> None:
    """List the presets, which are sweeps that isweep contains."""
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
    emit(
        place,
        rows,
        _listed(rows, ("preset", "trials", "about"), "Run a preset with `isweep run NAME`."),
    )


def _listed(rows: Sequence[Mapping[str, Any]], names: Sequence[str], more: str) -> Iterator[Shown]:
    """Yield a table with these columns, and a line below the table."""
    table = grid(*names)
    for row in rows:
        table.add_row(*(cell(row[name]) for name in names))
    yield table
    yield more


def datasets(name: str | None = None, /, *, place: Place = Place()) -> None:
    """Print the task, terms of use and files of each dataset, and whether the dataset is prepared.

    Args:
        name: Print only this dataset.
    """
    from orchestrator.planning.dataset_rows import list_datasets

    rows = list_datasets(place.root, name)
    entries = []
    for row in rows:
        prepared = ", ".join(row["prepared"]) or "not prepared"
        lines = [
            f"  {row['title']} ({row['domain']}, {row['modality']})",
            f"  {row['description']}",
            f"  terms: {row['terms']}",
            f"  files: {row['raw_layout']}",
            f"  groups: {row['groups']}; {prepared}",
        ]
        entries.append(Text.assemble((row["name"], "bold"), "\n".join(lines)))
    emit(place, rows, entries)


def prepare(
    name: str,
    /,
    *,
    raw: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    montage: Png = None,
    sweep: Annotated[str, Parameter(name="--sweep", metavar="SWEEP")] = "paper",
    own: OwnOptions = OwnOptions(),
    work: Work = Work(),
) -> None:
    """Prepare one dataset from its raw download, and print its record.

    Args:
        name: Name of a dataset that `isweep datasets` lists, or name of one of your own datasets
            in the sweep of --sweep.
        raw: Folder of the raw download.
        montage: Draw example images of each label into this file.
        sweep: Use the image size, channels and data mode of this sweep (default: paper).
    """
    from orchestrator.running.prepare_one import prepare_one
    from tasks.prepared.record import PreparedRecord, preparation_lines

    raw_folders = {}
    if raw is not None:
        raw_folders[name] = raw
    record = prepare_one(
        name,
        preset=sweep,
        run_options=work.options(raw_folders),
        progress=progress(work),
        montage=montage,
        own_options=own.by_key(),
    )
    emit(work, record, preparation_lines(PreparedRecord.model_validate(record)))


@Parameter(name="*", group=METHOD)
@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options of the measures.

    Attributes:
        num_neighbors: Number of neighbors for the estimator mle (default 20). The estimator gride
            uses the largest power of two up to this number, by default 16. The estimator twonn
            always uses 2 neighbors.
        estimators: Estimators of the intrinsic dimension d_data, e.g. mle twonn (default: mle
            twonn gride). docs/measures.md explains the estimators.
        sharpness_sample: Number of images per sample for the column `K_F of samples` (default
            1000). With 0, isweep uses all images and draws no samples.
        pixel_range: Values of black and white in an array of images, e.g. 0 1.
        dtype: Floating-point type of matrix products (default float32).
        device: torch device for matrix products, e.g. cuda (default cpu).
        calibrate: Correct the bias of d_data by simulation.
        seed: Seed of the bootstraps, the simulations and the choice of subsets (default 0).
            The samples of K_F do not depend on this seed.
    """

    num_neighbors: Annotated[int, whole(3), Parameter(metavar="K")] = 20
    estimators: Names = ()
    sharpness_sample: Annotated[int, whole(0), Parameter(metavar="N")] = 1000
    pixel_range: Annotated[tuple[float, float] | None, real(), Parameter(metavar="LOW HIGH")] = None
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    calibrate: bool = False
    seed: Annotated[int, whole(0)] = 0

    def settings(self) -> MeasureSettings:
        """Return the settings of the measures."""
        from search_spaces.specs import DEFAULT_ESTIMATORS
        from tasks.measures.records import MeasureSettings

        if self.sharpness_sample == 1:
            raise ConfigError(
                "--sharpness-sample is 1, but label sharpness compares pairs of images",
                hint="Set --sharpness-sample to at least 2. To use all images, set "
                "--sharpness-sample to 0",
            )
        values = {
            **vars(self),
            "sharpness_sample": self.sharpness_sample or None,
            "estimators": self.estimators or DEFAULT_ESTIMATORS,
        }
        return MeasureSettings(**values)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options that choose the images to measure.

    Attributes:
        labels: File with the labels of the images in a .npy file. The labels are in another .npy
            file, or in a text file with one label per line.
        raw: Folder of the raw download, if SOURCE is the name of a dataset.
        class_pair: Names of two classes. isweep measures only images of these classes.
        train_sizes: Also measure subsets with these numbers of images. Each subset contains
            the smaller subsets.
        image_size: Resize images to this side in pixels (default for image files: 224).
        channels: Number of channels: 1 (default) or 3.
    """

    labels: File = None
    raw: Annotated[Path | None, Parameter(metavar="DIR")] = None
    class_pair: Annotated[tuple[str, str] | None, Parameter(metavar="A B")] = None
    train_sizes: Sizes = ()
    image_size: Annotated[int | None, Side, Parameter(metavar="SIDE")] = None
    channels: Literal[1, 3] = 1


def measure(
    source: Annotated[str, NAMED],
    /,
    *,
    images: ImageOptions = ImageOptions(),
    own: OwnOptions = OwnOptions(),
    method: MethodOptions = MethodOptions(),
    show_pair: Png = None,
    reading: ReadingOptions = ReadingOptions(),
    address: Address = None,
    num_cpus: Annotated[Positive, Parameter(group=CLUSTER, metavar="N")] = 1,
    place: Place = Place(),
) -> None:
    """Measure the intrinsic dimension (d_data) and the label sharpness (K_F) of your images.

    Args:
        source: Your images: a folder with one subfolder per class, a table of paths, a file of
            arrays, shards, a folder of prepared images, or the name of a dataset.
            docs/reference/data-formats.md describes the formats of images. `isweep datasets`
            lists the names of datasets.
        show_pair: Draw the two images that determine K_F into this file.
        address: Address of a running Ray cluster.
        num_cpus: Number of CPUs to use (default 1). With more than 1 CPU, isweep starts Ray.
    """
    from orchestrator.measuring.pair_figure import draw_pair
    from orchestrator.measuring.published import describe, measured_document
    from orchestrator.measuring.request import MeasureRequest
    from orchestrator.measuring.sources import measure_source
    from tasks.remote import InlineExecutor, RayExecutor

    request = MeasureRequest(
        source=source,
        own_options=own.by_key(),
        settings=method.settings(),
        **vars(images),
        **vars(reading),
    )
    connected: AbstractContextManager[Cluster | None] = nullcontext()
    if address is not None or num_cpus > 1:
        from orchestrator.machine.cluster import connect

        connected = connect(address, num_cpus=num_cpus, dashboard=False)
    with connected as cluster:
        executor: Executor = InlineExecutor()
        if cluster is not None:
            # Only this node can read the source and the prepared images, so all Ray tasks run
            # on this node.
            executor = RayExecutor(driver_node_only=not cluster.is_private)
        measured = measure_source(request, executor, place.paths)
    if show_pair:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.4), layout="constrained")
        draw_pair(figure, measured)
        write_file(show_pair, lambda path: figure.savefig(path, format="png"))
    lines = [*_measured_lines(measured), *describe(measured)]
    if stdout.is_terminal:
        lines = [_with_names(line, source, place) for line in lines]
    emit(place, measured_document(measured), lines)


def _with_names(part: Shown, source: str, place: Place) -> Shown:
    """Add the name of the file after each hash in a line. Return any other output unchanged."""
    if isinstance(part, str):
        return with_file_names(part, [source], place)
    return part


def _measured_lines(measured: Measured) -> Iterator[Shown]:
    """Yield lines about read, excluded and doubtful images, and then the table of measures.

    The lines come first, because they show the user whether the labels are wrong.
    """
    from tasks.prepared.record import PreparedRecord, preparation_lines

    if measured.preparation is not None:
        yield from preparation_lines(PreparedRecord.model_validate(measured.preparation))
    yield from measured.image_lines
    record = measured.record
    yield _measures_table(record)
    num_neighbors = max(estimate.num_neighbors for estimate in record.d_data.values())
    num_images = record.sizes[-1].train_size
    if num_images < LEAST_PER_NEIGHBOR * num_neighbors:
        yield (
            f"Estimates from only {num_images} images are not reliable. Measure at least "
            f"{LEAST_PER_NEIGHBOR * num_neighbors} images."
        )
    sharpness = record.label_sharpness
    if sharpness is None:
        yield (
            "Label sharpness is not measured, because the images have no labels. To measure "
            "label sharpness, add a file of labels, for example `--labels labels.txt`."
        )
    elif _sampled_sizes(record):
        yield _samples_line(*_sampled_sizes(record)[-1])


def _measures_table(record: MeasureResult) -> Table:
    """Return the table of measures, with one row for each train size and estimator.

    The column K_F contains the maximum over all pairs of images. If samples of the images were
    measured, another column contains the mean of the samples' maxima. A sweep stores this mean
    as K_F.
    """
    columns = ["images", "estimator", "neighbors", "d_data", "std error", "K_F"]
    has_samples = bool(_sampled_sizes(record))
    if has_samples:
        columns.append("K_F of samples")
    table = grid(*columns, "duplicates")
    for size in record.sizes:
        all_pairs, samples = _sharpness_cells(size.label_sharpness)
        of_size = [all_pairs, samples] if has_samples else [all_pairs]
        of_size.append(str(size.num_duplicates))
        num_images = str(size.train_size)
        for name, estimate in size.d_data.items():
            table.add_row(
                num_images,
                name,
                str(estimate.num_neighbors),
                _value_or_reason(estimate.value, estimate.reason),
                cell(estimate.reported_std_error),
                *of_size,
            )
            # Only the first row of a train size shows the number of images and K_F.
            num_images = ""
            of_size = [""] * len(of_size)
    calibration = record.calibration
    if calibration is not None:
        interval = ""
        if calibration.interval:
            interval = "{:.3g} to {:.3g}".format(*calibration.interval)
        d_data = _value_or_reason(calibration.value, calibration.reason)
        num_neighbors = str(calibration.num_neighbors)
        table.add_row("", "calibrated", num_neighbors, d_data, interval)
    return table


def _sharpness_cells(sharpness: LabelSharpness | None) -> tuple[str, str]:
    """Return K_F of all pairs and K_F of samples, as text. Without labels, both are empty."""
    if sharpness is None:
        return "", ""
    all_pairs = _value_or_reason(sharpness.pair_value, sharpness.reason)
    return all_pairs, _value_or_reason(sharpness.value, sharpness.reason)


def _sampled_sizes(record: MeasureResult) -> list[tuple[int, LabelSharpness]]:
    """Return the records of label sharpness that was measured in samples, by train size."""
    sizes = []
    for size in record.sizes:
        sharpness = size.label_sharpness
        if sharpness is None:
            continue
        is_undefined_in_samples = sharpness.value is None and sharpness.pair_value is not None
        if sharpness.sample_range is not None or is_undefined_in_samples:
            sizes.append((size.train_size, sharpness))
    return sizes


def _samples_line(num_images: int, sharpness: LabelSharpness) -> str:
    """Return the definitions of the columns `K_F` and `K_F of samples`."""
    maxima = sharpness.sample_values
    sample_size = f"{sharpness.num_images:,} images"
    definition = (
        "The column K_F contains the maximum of 1/distance over all pairs of images with "
        "different labels. The column K_F of samples contains the mean of the maxima in samples "
        f"of {sample_size}. The study and sweeps use K_F of samples. For at most {sample_size}, "
        "both columns are equal."
    )
    if not maxima:
        return definition
    return (
        f"{definition} For {num_images:,} images, the maxima of the {len(maxima)} samples are "
        f"between {min(maxima):.4g} and {max(maxima):.4g}."
    )


def _value_or_reason(value: float | None, reason: str | None) -> str:
    """Return a measure as text. If it is undefined, return the reason."""
    return cell(value) or f"undefined: {reason}"


def locate(
    message: Annotated[str, Parameter(name="WHAT")],
    /,
    *,
    raw: Annotated[Path, Parameter(metavar="DIR")],
    place: Place = Place(),
) -> None:
    """Print the name of the file that a message identifies by a hash or a row.

    Args:
        message: The message, or only the hash (16 hex digits) or the row ('row 12') from the
            message.
        raw: Folder or file that contains the images.
    """
    from tasks.sources.base import HASH_PATTERN, KEY_FILE
    from tasks.sources.locate import locate as locate_file

    if not raw.exists():
        raise ConfigError(f"--raw {raw} does not exist", hint=missing_path_hint(raw))
    key_folder = place.paths.root / "prepared"
    if HASH_PATTERN.search(message) and not has_key(place):
        raise ConfigError(
            f"The key file {key_folder / KEY_FILE} does not exist, but isweep needs the key to "
            "find the file that belongs to a hash",
            hint="Set --root or ISWEEP_ROOT to the root of the command that printed the hash",
        )
    name = locate_file(raw, key_folder, message)
    if name is None:
        raise ConfigError(
            f"No row or file of {raw} matches {message!r}",
            hint="Give the row ('row 12') or the hash (16 hex digits) from the message. Use the "
            "same --raw and --root as the command that printed the message",
        )
    emit(place, {"file": name}, name)
