"""The steps about images that command line and notebook share: they return what is shown, print nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.planning.paths import RootPaths
from search_spaces.datasets import DATASETS, dataset_spec
from search_spaces.errors import ConfigError, CorruptStoreError, DataError
from search_spaces.published import read_published
from search_spaces.sweeps import DatasetChoice, SweepSpec
from tasks.measures.records import MeasureResult
from tasks.measures.sharpness import SharpnessConvention, conversion
from tasks.prepared.store import PreparedDataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.running.cluster import RunOptions
    from orchestrator.running.measuring import Measured
    from orchestrator.running.progress import Progress


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
    """Draw the two differently labelled images that are closest side by side, each stretched to its range.

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
    """Return the study's eleven datasets at the nearest train size, K_F in this record's convention.

    It was published as a maximum over some 2,000 sampled pairs of [0, 255] images of 224 x 224, natural ones
    on three channels.
    """
    size, own = record.sizes[-1].train_size, record.label_sharpness
    to = None if own is None or None in (own.convention.pixel_range, own.convention.side) else own.convention
    nearest: dict[str, dict[str, str]] = {}
    for row in read_published("d_data"):
        best = nearest.get(row["dataset"])
        if best is None or abs(int(row["train_size"]) - size) < abs(int(best["train_size"]) - size):
            nearest[row["dataset"]] = row
    sharpness = {row["dataset"]: float(row["label_sharpness"]) for row in read_published("label_sharpness")}

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
        return "low" if below / total < 1 / 3 else "high" if below / total > 2 / 3 else "in the middle"

    record, lines = measured.record, list[str]()
    rows = published_rows(record)
    estimate = record.d_data.get("mle")
    if estimate is not None and estimate.value is not None:
        below = sum(row["d_data"] < estimate.value for row in rows)
        lines.append(
            f"Intrinsic dimension {estimate.value:.1f} (mle, as in the study) is {level(below, len(rows))}: "
            f"higher than {below} of the {len(rows)} published datasets (at their train size nearest to "
            "yours). The law expects a higher dimension to need more images for the same loss."
        )
    sharpness = record.label_sharpness
    known = [row["label_sharpness"] for row in rows if row["label_sharpness"] is not None]
    if sharpness is not None and sharpness.value is not None and known:
        below = sum(value < sharpness.value for value in known)
        lines.append(
            f"Label sharpness {sharpness.value:.3g} is {level(below, len(known))}: higher than {below} of "
            f"the {len(known)} published values, rescaled to your pixel range, side and channels. The law "
            "expects sharper labels to give a higher loss and a model that is easier to fool. Published "
            "values come from a sample of pairs, so read this as an order of magnitude."
        )
    return lines + list(record.notes)


def dataset_rows(root: str | None, name: str | None = None) -> list[dict[str, Any]]:
    """Return one row per dataset of the table, or of ``name`` alone: what it is, needs, and where it stands.

    ConfigError for an unknown name.
    """
    prepared: dict[str, list[str]] = {}
    for path in sorted((RootPaths.at(root).root / "prepared").glob("[!.]*")):
        with suppress(CorruptStoreError):
            prepared.setdefault(PreparedDataset.open(path).record.dataset, []).append(path.name)
    return [
        {
            **json.loads(spec.model_dump_json()),
            "prepared": prepared.get(spec.name, []),
            "status": "prepared" if spec.name in prepared else "not prepared",
        }
        for spec in ([dataset_spec(name)] if name else DATASETS.values())
    ]


def prepare_one(
    name: str,
    *,
    preset: str,
    run_options: RunOptions,
    progress: Progress,
    montage: Path | None = None,
    said: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Prepare one dataset with the image size, channels and data mode of ``preset``; return its record.

    ``name`` is of the table, or own data of the sweep file, of which ``said`` are fields over the file's.
    ``montage`` is where to draw examples of each label; None draws nothing, for patients' sake.

    Raises:
        SweepError: for an unknown name, an unusable download, or a root in use.
    """
    # Measuring, which prepares nothing, does without these.
    from orchestrator.planning.plan import Workspace, plan_sweep
    from orchestrator.planning.sweep_file import load_sweep
    from orchestrator.running.cluster import connect
    from orchestrator.running.locks import exclusive
    from orchestrator.running.preparation import check_raw, prepare_missing, prepare_own
    from tasks.prepared.prepare import save_montage
    from tasks.remote import RayExecutor

    sweep = load_sweep(preset)
    # Overrides of the recipe may name the sweep's other datasets; preparing needs no recipe.
    recipe = sweep.recipe.model_copy(update={"overrides": ()})
    only = {"datasets": (_choice(name, sweep, said or {}),), "recipe": recipe}
    plan = plan_sweep(sweep.model_copy(update=only))
    check_raw(Workspace(plan, RootPaths.at(run_options.root)), run_options.raw)
    paths = RootPaths.create(run_options.root)
    workspace = Workspace(plan, paths)
    with exclusive(paths.lock, f"isweep prepare {name}"), progress.shown():
        prepare_own(workspace, run_options, progress)
        if plan.prepared[0].prepared_id not in workspace.prepared:
            with connect(run_options.address, num_cpus=run_options.num_cpus, dashboard=False) as cluster:
                executor = RayExecutor(driver_node_only=not cluster.local, note=progress.note)
                prepare_missing(workspace, list(plan.prepared), run_options, executor, progress)
    dataset = PreparedDataset.open(paths.prepared(plan.prepared[0]))
    if montage is not None:
        save_montage(dataset, montage)
    found: dict[str, Any] = dataset.record.model_dump(mode="json")
    return found


def _choice(name: str, sweep: SweepSpec, said: Mapping[str, Any]) -> DatasetChoice:
    """Return the sweep's own data of that name, or else the dataset of the table."""
    for choice in sweep.datasets:
        if choice.name == name and choice.own is not None:
            labels = {**choice.own.label_map, **said.get("label_map", {})}
            own = choice.own.model_copy(update={**said, "label_map": labels})
            return choice.model_copy(update={"own": own})
    dataset_spec(name)
    if said:
        options = ", ".join(f"--{field.replace('_', '-')}" for field in said)
        found = f"{name}, whose classes are the table's"
        raise ConfigError(f"{options} is for own data", found, "leave it out")
    return DatasetChoice(name=name)
