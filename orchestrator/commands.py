"""The steps that command line and notebook share: they return what is to be shown, and print nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.datasets import DATASETS, dataset_spec
from search_spaces.errors import ConfigError, CorruptStoreError, DataError
from search_spaces.published import read_published
from search_spaces.sweeps import DatasetChoice
from tasks.measures.sharpness import SharpnessConvention, conversion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.analysis import Prediction, ScalingFits
    from orchestrator.analysis.prediction_inputs import Pilot
    from orchestrator.planning.plan import PlanRow, Workspace
    from orchestrator.results.state import State
    from orchestrator.running.measuring import Measured
    from orchestrator.running.options import RunOptions
    from orchestrator.running.progress import Progress
    from search_spaces.sweeps import SweepSpec
    from tasks.measures.records import MeasureResult


@dataclass(frozen=True)
class Planned:
    """A sweep that can run: its grid, what of it is done, what the rest will cost.

    Attributes:
        rows: One per trial, with its status.
        state: What is done.
        cost: Of what is left; ``cost["text"]`` says it in words.
        beside: What the sweep does beside training, in words.
    """

    rows: list[PlanRow]
    state: State
    cost: dict[str, Any]
    beside: str


def planned(workspace: Workspace, *, card: str | None = None, num_cards: int | None = None) -> Planned:
    """Plan a sweep.

    Args:
        workspace: The sweep.
        card: Model of GPU to plan for; None for what the root's ``prices.yaml`` names, else for those that
            are here, if any.
        num_cards: How many of them; None for those that are here, or as many as a trial asks for.

    Raises:
        SweepError: For a sweep that cannot run.
    """
    from orchestrator.planning.checks import check_feasible
    from orchestrator.planning.estimate import card_to_plan, estimate, extras
    from orchestrator.planning.plan import plan_rows
    from orchestrator.results.state import look_at_state
    from orchestrator.running.gpus import gpu_check_folders, gpu_to_plan_for
    from orchestrator.running.run_state import running_trials

    here, num_here = gpu_to_plan_for(gpu_check_folders(workspace.paths.root))
    kind = card_to_plan(card, workspace.paths.prices, here)
    if num_cards is None and card is None and num_here:
        num_cards = num_here
    check_feasible(workspace)
    state = look_at_state(workspace, running_trials(workspace))
    trials = workspace.plan.trials_by_id
    left = [trial for name, trial in trials.items() if name not in state.results]
    share = workspace.plan.sweep.resources.num_gpus
    cost = estimate(left, state.measured_trials(), card=kind, num_cards=num_cards, share=share)
    beside = extras(workspace.plan, state.incomplete)
    rows = plan_rows(workspace.plan, {name: state.status(name) for name in trials})
    return Planned(rows, state, cost | vars(beside), beside.text)


@dataclass(frozen=True)
class Question:
    """What is asked of a sweep's fits; exactly one of ``train_size`` and ``target_loss`` is given.

    Attributes:
        model: A model of the sweep; ``pooled`` for all of them together.
        domain: ``natural`` or ``medical``; None for all datasets.
        d_data: Intrinsic dimension; None where it was measured.
        label_sharpness: K_F on the scale of the sweep; None where it was measured.
        train_size: Images to train on: what will the loss be?
        target_loss: Test loss to reach: how many images are needed?
    """

    model: str = "pooled"
    domain: str | None = None
    d_data: float | None = None
    label_sharpness: float | None = None
    train_size: float | None = None
    target_loss: float | None = None


def predicted(
    question: Question,
    record: Mapping[str, Any],
    fits: Callable[[], ScalingFits],
    pilot: Callable[[], Pilot | None] | None = None,
) -> tuple[Prediction, Pilot | None]:
    """Answer from a sweep's fits.

    Args:
        question: What is asked; its numbers go before measured ones, and these before a pilot's.
        record: What was measured, as ``isweep measure --json`` writes it; empty for nothing.
        fits: The sweep's, made when it is known that there is something to ask them.
        pilot: Reads or trains small trainings on the dataset itself, when it is known that they can help.

    Returns:
        The answer, whose warning says what was left out of the pilot, and the pilot.

    Raises:
        SweepError: When the numbers, or the fits, do not allow a prediction.
    """
    from orchestrator.analysis import predict
    from orchestrator.analysis.prediction import usable_growth
    from orchestrator.analysis.prediction_inputs import check_scale, values_of

    found = values_of(record)
    asked = {"d_data": question.d_data, "label_sharpness": question.label_sharpness}
    numbers = found | {name: value for name, value in asked.items() if value is not None}
    if pilot is None or record:
        _complete(numbers)
    known = fits()
    usable_growth(known, question.model, question.domain)  # first: no pilot makes up for a sweep
    if question.label_sharpness is None:
        check_scale(record, known.sharpness_scale)
    trained = None if pilot is None else pilot()
    if trained is not None:
        own = {name: getattr(trained, name) for name in asked}
        numbers = {name: value for name, value in own.items() if value is not None} | numbers
    _complete(numbers)
    prediction = predict(
        known,
        model=question.model,
        domain=question.domain,
        d_data=float(numbers["d_data"]),
        label_sharpness=float(numbers["label_sharpness"]),
        train_size=question.train_size,
        target_loss=question.target_loss,
        pilot=() if trained is None else trained.points,
    )
    notes = () if trained is None else trained.notes
    return replace(prediction, warning="; ".join(filter(None, (*notes, prediction.warning)))), trained


def _complete(numbers: Mapping[str, float]) -> None:
    missing = [name for name in ("d_data", "label_sharpness") if name not in numbers]
    if missing:
        raise ConfigError(
            "A prediction needs d_data and label_sharpness",
            f"no {' and no '.join(missing)}",
            "give the numbers, a measurement with labels, or a pilot",
        )


def measured_document(measured: Measured) -> dict[str, Any]:
    """Return what ``isweep measure --json`` prints."""
    return {
        **measured.record.to_json(),
        "label_names": list(measured.label_names),
        "preparation": measured.preparation,
        "published": published_rows(measured.record),
    }


def draw_pair(figure: Figure, measured: Measured) -> None:
    """Draw the two differently labelled images that are closest side by side, each stretched to its range.

    Raises:
        DataError: When there are none, or they are no images.
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

    Published K_F is a maximum over about 2,000 sampled pairs on [0, 255] images of 224 x 224, natural ones on
    three channels; it is rescaled by range, side and channels. None where this record's convention is not
    known.
    """
    size = record.sizes[-1].train_size
    nearest: dict[str, dict[str, str]] = {}
    for row in read_published("d_data"):
        best = nearest.get(row["dataset"])
        if best is None or abs(int(row["train_size"]) - size) < abs(int(best["train_size"]) - size):
            nearest[row["dataset"]] = row
    sharpness = {row["dataset"]: float(row["label_sharpness"]) for row in read_published("label_sharpness")}
    return [
        {
            "dataset": name,
            "domain": DATASETS[name].domain,
            "train_size": int(row["train_size"]),
            "d_data": float(row["d_data"]),
            "label_sharpness": _rescaled(sharpness[name], name, record),
        }
        for name, row in nearest.items()
    ]


def _rescaled(value: float, name: str, record: MeasureResult) -> float | None:
    own = record.label_sharpness
    if own is None or own.convention.pixel_range is None or own.convention.side is None:
        return None
    channels = 3 if name in ("cifar10", "svhn", "imagenet") else 1
    published = SharpnessConvention((0.0, 255.0), (224, 224), channels, own.convention.sample)
    return value * conversion(published, own.convention)


def describe(measured: Measured) -> list[str]:
    """Say in plain words how the two numbers compare with the study's datasets."""
    record = measured.record
    rows = published_rows(record)
    lines = []
    estimate = record.d_data.get("mle")
    if estimate is not None and estimate.value is not None:
        below = sum(row["d_data"] < estimate.value for row in rows)
        lines.append(
            f"Intrinsic dimension {estimate.value:.1f} (mle, as in the study) is {_level(below, len(rows))}: "
            f"higher than {below} of the {len(rows)} published datasets (at their train size nearest to "
            "yours). The law expects a higher dimension to need more images for the same loss."
        )
    sharpness = record.label_sharpness
    known = [row["label_sharpness"] for row in rows if row["label_sharpness"] is not None]
    if sharpness is not None and sharpness.value is not None and known:
        below = sum(value < sharpness.value for value in known)
        lines.append(
            f"Label sharpness {sharpness.value:.3g} is {_level(below, len(known))}: higher than {below} of "
            f"the {len(known)} published values, rescaled to your pixel range, side and channels. The law "
            "expects sharper labels to give a higher loss and a model that is easier to fool. Published "
            "values come from a sample of pairs, so read this as an order of magnitude."
        )
    return lines + list(record.notes)


def _level(below: int, total: int) -> str:
    share = below / total
    return "low" if share < 1 / 3 else "high" if share > 2 / 3 else "in the middle"


def dataset_rows(root: str | None, name: str | None = None) -> list[dict[str, Any]]:
    """Return one row per dataset of the table, or of ``name`` alone: what it is, needs, and where it stands.

    Raises:
        ConfigError: for an unknown name.
    """
    from orchestrator.planning.paths import RootPaths
    from tasks.prepared.store import PreparedDataset

    paths = RootPaths.at(root)
    folder = paths.root / "prepared"
    prepared: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        try:
            record = PreparedDataset.open(path).record
        except CorruptStoreError:
            continue
        prepared.setdefault(record.dataset, []).append(path.name)
    specs = [dataset_spec(name)] if name else list(DATASETS.values())
    return [
        {
            **json.loads(spec.model_dump_json()),
            "prepared": prepared.get(spec.name, []),
            "status": "prepared" if spec.name in prepared else "not prepared",
        }
        for spec in specs
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

    Args:
        name: A dataset of the table, or own data of the sweep file.
        preset: Preset or sweep file that names image size, channels and data mode.
        run_options: Where and how; ``raw`` names the download.
        progress: Shows what happens.
        montage: Where to draw examples of each label; None draws nothing, for patients' sake.
        said: Fields of own data, such as ``label_map``, over what the sweep file says of them.

    Raises:
        SweepError: for an unknown name, an unusable download, or a root in use.
    """
    from orchestrator.planning.paths import RootPaths
    from orchestrator.planning.plan import Workspace, plan_sweep
    from orchestrator.planning.sweep_file import load_sweep
    from orchestrator.running.cluster import connect
    from orchestrator.running.locks import exclusive
    from orchestrator.running.preparation import check_raw, prepare_missing
    from tasks.prepared.prepare import save_montage
    from tasks.prepared.store import PreparedDataset
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
        if plan.prepared[0].prepared_id not in workspace.prepared:
            with connect(run_options.address, num_cpus=run_options.num_cpus, dashboard=False) as cluster:
                executor = RayExecutor(driver_node_only=not cluster.local, note=progress.note)
                prepare_missing(workspace, list(plan.prepared), run_options, executor, progress)
    dataset = PreparedDataset.open(paths.prepared(plan.prepared[0]))
    if montage is not None:
        save_montage(dataset, montage)
    return dataset.record.to_json()


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
        raise ConfigError(
            f"{options} is for own data", f"{name}, whose classes are the table's", "leave it out"
        )
    return DatasetChoice(name=name)
