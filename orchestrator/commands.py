"""The steps that command line and notebook share: they return what is to be shown, and print nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.datasets import DATASETS, dataset_spec
from search_spaces.errors import ConfigError, CorruptStoreError, DataError, SetupError
from search_spaces.published import read_published
from search_spaces.sweeps import DatasetChoice

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from orchestrator.analysis import Prediction
    from orchestrator.analysis.prediction import Growth
    from orchestrator.analysis.prediction_inputs import Pilot
    from orchestrator.planning.plan import Workspace
    from orchestrator.results.state import State
    from orchestrator.running.cluster import RunOptions
    from orchestrator.running.measuring import Measured
    from orchestrator.running.progress import Progress
    from search_spaces.sweeps import SweepSpec
    from tasks.measures.records import MeasureResult


@dataclass(frozen=True)
class Planned:
    """A sweep that can run: its grid, what of it is done, what the rest will cost.

    Attributes:
        rows: One per trial, with its status.
        cost: Of what is left; ``cost["text"]`` says it in words.
        measures: One per measured subset, with its status.
        not_prepared: Datasets that a run prepares, or that must be brought; of own data, the path and how
            many files were listed there and not opened.
        beside: What the sweep does beside training, in words.
    """

    rows: list[dict[str, str | int]]
    cost: dict[str, Any]
    measures: list[dict[str, Any]]
    not_prepared: list[dict[str, Any]]
    beside: str


def planned(workspace: Workspace, *, card: str | None = None, num_cards: int | None = None) -> Planned:
    """Plan a sweep.

    Args:
        workspace: The sweep.
        card: Model of GPU to plan for; None for those that are here, if any.
        num_cards: How many of them; None for those that are here, or as many as a trial asks for.

    Raises:
        SweepError: For a sweep that cannot run.
    """
    from orchestrator.planning.checks import check_feasible
    from orchestrator.planning.estimate import card_to_plan, estimate, extras, extras_text
    from orchestrator.planning.plan import CellStatus, plan_rows
    from orchestrator.results.state import read_state
    from orchestrator.running.gpus import gpu_check_folders, gpu_to_plan_for
    from orchestrator.running.progress import running_trials

    here, num_here = gpu_to_plan_for(gpu_check_folders(workspace.paths.root))
    kind = card_to_plan(card, workspace.paths.prices, here)
    if num_cards is None and card is None and num_here:
        num_cards = num_here
    unopened = check_feasible(workspace)
    state = read_state(workspace, running_trials(workspace), look=True)
    trials = workspace.plan.trials_by_id
    left = [trial for name, trial in trials.items() if name not in state.results]
    share = workspace.plan.sweep.resources.num_gpus
    cost = estimate(left, state.measured_trials(), card=kind, num_cards=num_cards, share=share)
    beside = extras(workspace.plan, state.incomplete)
    rows = plan_rows(workspace.plan, {name: state.status(name) for name in trials})
    measures = [
        {
            "measure_id": measure.measure_id,
            "dataset": measure.subset.prepared.dataset,
            "train_sizes": list(measure.train_sizes),
            "status": CellStatus.DONE if measure.measure_id in state.measures else CellStatus.PENDING,
        }
        for measure in workspace.plan.measures
    ]
    own = {choice.name: choice.own.path for choice in workspace.plan.sweep.datasets if choice.own}
    missing = [
        {
            "dataset": spec.dataset,
            "prepared_id": spec.prepared_id,
            "own": own.get(spec.dataset),
            "unopened": unopened.get(spec.prepared_id),
        }
        for spec in workspace.plan.prepared
        if spec.prepared_id not in workspace.prepared
    ]
    return Planned(rows, cost | beside, measures, missing, extras_text(beside))


PLAN_TABLES = 40
"""Drawn for the line of a plan: shares are good to 8 points; isweep power draws more."""


def settled_by(workspace: Workspace) -> tuple[dict[str, object] | None, list[str]]:
    """Return what the planned sweep could settle if the law holds, as data and in lines; or why nothing."""
    from orchestrator.analysis.power import planned_power

    try:
        found = planned_power(workspace.plan, num_tables=PLAN_TABLES)
    except ConfigError as error:
        return None, [f"settles no question of the study: {error}"]
    return found.to_json(), found.lines()


def progress_of(workspace: Workspace) -> dict[str, Any]:
    """Return where a sweep stands: counts, what runs, failures, costs."""
    from orchestrator.planning.estimate import read_prices
    from orchestrator.planning.plan import CellStatus
    from orchestrator.results.state import cost_of, read_state
    from orchestrator.running.progress import read_run
    from orchestrator.tuning.cells import search_standing
    from tasks.trials.records import TrialStatus

    # First what runs, then what is done: a trial that ends in between counts once, as done.
    run = read_run(workspace)
    trials = {} if run is None else {name: trial.model_dump() for name, trial in run.running.items()}
    state = read_state(workspace, trials, look=True)
    counts = Counter(state.status(trial_id) for trial_id in workspace.plan.trials_by_id)
    return {
        "planned": counts.total(),
        **{str(one): counts[one] for one in (CellStatus.DONE, CellStatus.FAILED, CellStatus.RUNNING)},
        "pending": counts[CellStatus.PENDING] + counts[CellStatus.STALE],
        "stale": counts[CellStatus.STALE],
        "diverged": sum(one.status == TrialStatus.DIVERGED for one in state.results.values()),
        "now": "" if run is None else run.now,
        "seconds_left": None if run is None else run.seconds_left,
        "running_trials": {name: trial for name, trial in trials.items() if name not in state.results},
        "failures": state.failure_rows(),
        "unreadable": [vars(item) for item in state.unreadable],
        "foreign": sorted(state.foreign),
        "cost": cost_of(state, read_prices(workspace.paths.prices)),
        "search": search_standing(workspace),
    }


def reconciled(workspace: Workspace, mlflow_uri: str | None, say: Callable[[str], None]) -> dict[str, int]:
    """Replay the result store to MLflow and close ghosts; returns counts of what was done."""
    from orchestrator.analysis.report import log_report
    from orchestrator.results.state import StoredResults, judge
    from orchestrator.results.tracking import make_tracker
    from orchestrator.running.locks import locked

    workspace.paths.make()
    with locked(workspace, "isweep reconcile"):
        stored = StoredResults.read(workspace.results_url)
        state = judge(workspace, stored)
        tracker = make_tracker(workspace, stored.store, mlflow_uri, say=say)
        try:
            log_report(tracker, workspace, state)
            counts = tracker.reconcile(state.flat_runs(), state.failures.values())
            tracker.keep_pages(workspace.sweep_paths.run_pages)
        finally:
            tracker.close("KILLED" if len(state.results) < len(workspace.plan.trials) else "FINISHED")
    return counts


@dataclass(frozen=True)
class Mirror:
    """MLflow beside the result store.

    Attributes:
        uri: Its store; None for the default one.
        reconcile: What to type where it shows something else.
    """

    uri: str | None
    reconcile: str


def results_of(
    workspace: Workspace, mirror: Mirror | None, run: str, say: Callable[[str], None]
) -> pd.DataFrame:
    """Return the tidy table of a sweep from its result store, compared with MLflow.

    Where the store cannot be reached and MLflow can, the table is MLflow's, and that is said.

    Args:
        workspace: The sweep.
        mirror: MLflow; None leaves it alone.
        run: What to type for the trials that are left.
        say: Told what a reader of the table must know.

    Raises:
        SetupError: when neither can be reached.
    """
    from orchestrator.analysis.report import results_table
    from orchestrator.results.state import read_state
    from orchestrator.results.tracking import tracked_rows

    try:
        state = read_state(workspace)
    except SetupError as error:
        if mirror is None:
            raise
        table = results_table(workspace, tracked_rows(workspace, mirror.uri, None))
        if table.empty:
            raise
        why = f"nothing vouches for them: the result store cannot be read ({error})"
        say(f"These numbers are MLflow's, and {why}")
        return table
    say_what_is_absent(workspace, state, run, say)
    table = results_table(workspace, state=state)
    if mirror is not None and not table.empty:
        compare_with_mlflow(workspace, state, mirror, say)
    return table


def say_what_is_absent(workspace: Workspace, state: State, run: str, say: Callable[[str], None]) -> None:
    """Say what no row shows: results that are not believed, and how many trials have none."""
    for item in state.unreadable:
        say(f"not believed: {item.path}: {item.reason}")
    planned, done = len(workspace.plan.trials), len(state.results)
    if done < planned and (done or state.partial):
        say(f"{done} of {planned} trials are done; {planned - done} are left: {run}")


def compare_with_mlflow(
    workspace: Workspace, state: State, mirror: Mirror, say: Callable[[str], None]
) -> None:
    """Say where MLflow shows something else than the store; the store's numbers are used either way."""
    from orchestrator.results.store import ResultStore
    from orchestrator.results.tracking import differences, tracked_rows

    try:
        storage = ResultStore(workspace.results_url).identity()
        tracked = tracked_rows(workspace, mirror.uri, storage)
    except (SetupError, CorruptStoreError) as error:
        say(f"Not compared with MLflow: {error} The numbers are the result store's.")
        return
    for sentence in differences(state.rows(), tracked, mirror.reconcile):
        say(sentence)


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
    growth: Callable[[str, str | None], Growth],
    pilot: Callable[[], Pilot | None] | None = None,
) -> tuple[Prediction, Pilot | None]:
    """Answer from a sweep's fits.

    Args:
        question: What is asked; its numbers go before measured ones, and these before a pilot's.
        record: What was measured, as ``isweep measure --json`` writes it; empty for nothing.
        growth: Fits how the sweep's losses of a model and a domain grow, when it is known that there is
            something to ask.
        pilot: Reads or trains small trainings on the dataset itself, when it is known that they can help.

    Returns:
        The answer, whose warning says what was left out of the pilot, and the pilot.

    Raises:
        SweepError: When the numbers, or the fits, do not allow a prediction.
    """
    from orchestrator.analysis import predict
    from orchestrator.analysis.prediction_inputs import check_scale, values_of

    found = values_of(record)
    asked = {"d_data": question.d_data, "label_sharpness": question.label_sharpness}
    numbers = found | {name: value for name, value in asked.items() if value is not None}
    if pilot is None or record:
        _complete(numbers)
    known = growth(question.model, question.domain)  # first: no pilot makes up for a sweep
    if question.label_sharpness is None:
        check_scale(record, known.scale)
    trained = None if pilot is None else pilot()
    if trained is not None:
        own = {name: getattr(trained, name) for name in asked}
        numbers = {name: value for name, value in own.items() if value is not None} | numbers
    _complete(numbers)
    prediction = predict(
        known,
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
            "give the numbers, a measurement with labels (--measured), or a pilot (--pilot)",
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
    import numpy as np

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
    from tasks.measures.sharpness import SharpnessConvention, conversion

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
    from orchestrator.running.preparation import check_raw, prepare_missing, prepare_own
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
        raise ConfigError(
            f"{options} is for own data", f"{name}, whose classes are the table's", "leave it out"
        )
    return DatasetChoice(name=name)
