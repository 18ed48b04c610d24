"""The steps about sweeps that command line and notebook share: they return what is shown, print
nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.machine.gpus import check_driver, gpu_check_folders, gpu_models_here
from orchestrator.machine.locks import exclusive, locked
from orchestrator.planning.checks import check_feasible
from orchestrator.planning.estimate import estimate, extras, extras_text
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import CellStatus, Workspace, plan_rows
from orchestrator.planning.predict import gpu_model
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.results.state import State, StoredResults, judge, read_state
from orchestrator.results.store import Event, ResultStore
from orchestrator.results.tracking import log_sweep, make_tracker
from orchestrator.running.progress import Progress, read_run, running_trials
from orchestrator.tuning.cells import search_standing
from search_spaces.datasets import DATASETS
from search_spaces.errors import (
    ConfigError,
    CorruptStoreError,
    DataError,
    SetupError,
    plural,
    unknown_name,
)
from search_spaces.models import model_spec
from search_spaces.specs import Domain
from search_spaces.sweeps import SweepSpec
from tasks.atomic import remove_folder
from tasks.trials.records import TrialStatus

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.analysis.prediction import Growth, Prediction
    from orchestrator.analysis.prediction_inputs import Pilot
    from orchestrator.machine.cluster import RunOptions


@dataclass(frozen=True)
class Planned:
    """A sweep that can run: a row per trial and per measure with its status, and what the rest will
    cost.

    ``not_prepared`` are datasets that a run prepares, or that must be brought; of own data, the
    path, how many files were listed there and not opened, and what was left out or is doubtful, by
    reason. ``cost["text"]``, and ``beside`` training, are in words.
    """

    rows: list[dict[str, str | int]]
    cost: dict[str, Any]
    measures: list[dict[str, Any]]
    not_prepared: list[dict[str, Any]]
    beside: str


def planned(
    workspace: Workspace, *, gpu: str | None = None, num_gpus: int | None = None
) -> Planned:
    """Plan a sweep for ``num_gpus`` of a model of ``gpu``; SweepError for one that cannot run.

    None is the GPUs that are here, if any, or as many as a trial asks for.
    """
    gpu_here, num_here = gpu_models_here(gpu_check_folders(workspace.paths.root))
    if gpu is None and not num_here:
        check_driver()
    kind = gpu_here if gpu is None else gpu_model(gpu)
    if num_gpus is None and gpu is None and num_here:
        num_gpus = num_here
    unopened = check_feasible(workspace)
    state = read_state(workspace, running_trials(workspace), look=True)
    trials = workspace.plan.trials_by_id
    left = [trial for name, trial in trials.items() if name not in state.results]
    share = workspace.plan.sweep.resources.num_gpus
    here = len(os.sched_getaffinity(0))
    cost = estimate(
        left, state.measured_trials(), gpu=kind, num_gpus=num_gpus, share=share, num_cpus=here
    )
    beside = extras(workspace.plan, [one.has_weights for one in state.partial.values()])
    rows = plan_rows(workspace.plan, {name: state.status(name) for name in trials})
    measures = [
        {
            "measure_id": measure.measure_id,
            "dataset": measure.subset.dataset,
            "train_sizes": list(measure.train_sizes),
            "status": CellStatus.DONE
            if measure.measure_id in state.measures
            else CellStatus.PENDING,
        }
        for measure in workspace.plan.measures
    ]
    own = {choice.name: choice.own.path for choice in workspace.plan.sweep.datasets if choice.own}
    missing = [
        {
            "dataset": spec.dataset,
            "prepared_id": spec.prepared_id,
            "own": own.get(spec.dataset),
            "unopened": len(listing.items) if (listing := unopened.get(spec.prepared_id)) else None,
            "left_out": listing.excluded if listing else {},
            "doubtful": listing.flags if listing else {},
        }
        for spec in workspace.plan.prepared
        if spec.prepared_id not in workspace.prepared
    ]
    return Planned(rows, cost | beside, measures, missing, extras_text(beside))


def settled_by(workspace: Workspace) -> tuple[dict[str, object] | None, list[str]]:
    """Return what the planned sweep could settle if the law holds, as data and in lines; or why
    nothing.
    """
    from orchestrator.analysis.power import planned_power

    try:  # with 40 tables shares are good to 8 points; isweep power draws more
        found = planned_power(workspace.plan, num_tables=40)
    except ConfigError as error:
        return None, [f"settles no question of the study: {error}"]
    return asdict(found), found.lines()


def progress_of(workspace: Workspace) -> dict[str, Any]:
    """Return where a sweep stands: counts, what runs, failures, costs."""
    # First what runs, then what is done: a trial that ends in between counts once, as done.
    run = read_run(workspace)
    trials = (
        {} if run is None else {name: trial.model_dump() for name, trial in run.running.items()}
    )
    state = read_state(workspace, trials, look=True)
    counts = Counter(state.status(trial_id) for trial_id in workspace.plan.trials_by_id)
    return {
        "planned": counts.total(),
        **{
            str(one): counts[one]
            for one in (CellStatus.DONE, CellStatus.FAILED, CellStatus.RUNNING)
        },
        "pending": counts[CellStatus.PENDING] + counts[CellStatus.STALE],
        "stale": counts[CellStatus.STALE],
        "diverged": sum(one.status == TrialStatus.DIVERGED for one in state.results.values()),
        "now": "" if run is None else run.now,
        "seconds_left": None if run is None else run.seconds_left,
        "running_trials": {
            name: trial for name, trial in trials.items() if name not in state.results
        },
        "failures": state.failure_rows(),
        "unreadable": [vars(item) for item in state.unreadable],
        "foreign": sorted(state.foreign),
        "cost": state.cost(),
        "search": search_standing(workspace),
    }


def story_of(workspace: Workspace, trial_id: str) -> tuple[dict[str, Any], str]:
    """Return what happened to a cell (attempts, nodes, failures, logs) and what its last attempt
    logged.
    """
    state = read_state(workspace, running_trials(workspace), look=True)
    store, story, problem = ResultStore(workspace.results_url), list[Event](), ""
    try:
        story = store.story(trial_id)
    except CorruptStoreError as error:
        problem = str(error)
    numbers = sorted({event.attempt for event in story})
    said = {number: text for number in numbers if (text := store.log(trial_id, number)) is not None}
    failure = state.failures.get(trial_id)
    document = {
        "trial_id": trial_id,
        "status": str(state.status(trial_id)),
        "events": [event.plain() for event in story],
        "logs": {str(number): store.log_path(trial_id, number) for number in said},
        "failure": None
        if failure is None
        else failure.row() | {"traceback": failure.failure.traceback},
        "unreadable": problem,
    }
    return document, said[max(said)] if said else ""


def reconciled(
    workspace: Workspace, mlflow_uri: str | None, say: Callable[[str], None]
) -> dict[str, int]:
    """Replay the result store to MLflow and close ghosts; returns counts of what was done."""
    workspace.paths.make()
    with locked(workspace, "isweep reconcile"):
        stored = StoredResults.read(workspace.results_url)
        state = judge(workspace, stored)
        tracker = make_tracker(workspace, stored.store, mlflow_uri, say=say)
        try:
            log_sweep(tracker, workspace, state)
            counts = tracker.reconcile(state.flat_runs(), state.failures.values())
            tracker.keep_pages(workspace.sweep_paths.run_pages)
        finally:
            tracker.close(
                "KILLED" if len(state.results) < len(workspace.plan.trials) else "FINISHED"
            )
    return counts


def rows_with(table: pd.DataFrame, wanted: Mapping[str, object]) -> pd.DataFrame:
    """Return the rows of a tidy table that have these values, by column; ConfigError where no row
    has one.
    """

    def spelled(value: object) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    for name, value in wanted.items():
        values, asked = table[name].map(spelled), spelled(value)
        if asked not in set(values):
            known = table[name].dropna().unique().tolist()
            raise unknown_name(f"{name.replace('_', ' ')} of these results", asked, known)
        table = table[values == asked]
    return table


def mean_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell of a sweep: means over its seeds, and how many there are
    (``num_seeds``).
    """
    from pandas.api.types import is_float_dtype

    known = ("model", "recipe", "dataset", "domain", "class_pair", "train_size")
    cells = [name for name in known if name in table]
    numbers = [name for name in table if is_float_dtype(table[name]) and name not in cells]
    groups = table.groupby(cells, sort=False, dropna=False)
    return groups[numbers].mean().assign(num_seeds=groups.size()).reset_index()


def written_report(workspace: Workspace, state: State, figures: Sequence[str] = ()) -> Path | None:
    """Write a sweep's report and return its page, None without a result; SetupError where it may
    not.
    """
    from orchestrator.analysis.report import report_sweep

    try:
        return report_sweep(workspace, state, figures)
    except OSError as error:
        rule, found = (
            "The report must be written below the root",
            f"{error.filename}: {error.strerror}",
        )
        hint = "copy the root, or ask for the results and the fits alone, which write nothing"
        raise SetupError(rule, found, hint) from None


def predicted(
    record: Mapping[str, Any],
    growth: Callable[[], Growth],
    pilot: Callable[[], Pilot | None] | None = None,
    *,
    d_data: float | None,
    label_sharpness: float | None,
    train_size: float | None,
    target_loss: float | None,
) -> tuple[Prediction, Pilot | None]:
    """Answer from a sweep's fits, or raise a SweepError; the warning says what was left out of the
    pilot.

    What will the loss be at ``train_size``, or how many images are needed for ``target_loss``?
    Given d_data and K_F (on the scale of the sweep) go before measured ones (``record`` as ``isweep
    measure --json`` writes it, or empty), and these before the pilot's. ``growth`` fits how losses
    grow, and ``pilot`` reads or trains small trainings on the dataset itself: each is asked once it
    is known to help.
    """
    from orchestrator.analysis.prediction import predict
    from orchestrator.analysis.prediction_inputs import check_scale, values_of

    def complete(numbers: Mapping[str, float]) -> None:
        if missing := [name for name in asked if name not in numbers]:
            way_out = (
                "give the numbers, a measurement with labels (--measured), or a pilot that has both"
            )
            found = f"no {' and no '.join(missing)}"
            raise ConfigError("A prediction needs d_data and label_sharpness", found, way_out)

    asked = {"d_data": d_data, "label_sharpness": label_sharpness}
    numbers = values_of(record) | {
        name: value for name, value in asked.items() if value is not None
    }
    if pilot is None or record:
        complete(numbers)
    known = growth()  # first: no pilot makes up for a sweep
    if label_sharpness is None:
        check_scale(record, known.scale)
    trained = None if pilot is None else pilot()
    if trained is not None:
        own = {name: getattr(trained, name) for name in asked}
        numbers = {name: value for name, value in own.items() if value is not None} | numbers
    complete(numbers)
    prediction = predict(
        known,
        d_data=float(numbers["d_data"]),
        label_sharpness=float(numbers["label_sharpness"]),
        train_size=train_size,
        target_loss=target_loss,
        pilot=() if trained is None else trained.points,
    )
    notes = () if trained is None else trained.notes
    return replace(
        prediction, warning="; ".join(filter(None, (*notes, prediction.warning)))
    ), trained


# A pilot: a few small trainings on one's own data, as a sweep trains, from which predictions can
# start.

NUM_SIZES = 3


def run_pilot(
    sweep: SweepSpec,
    source: str,
    model: str,
    options: RunOptions,
    progress: Progress | None = None,
    **asked: Any,
) -> Pilot:
    """Train what is missing of a pilot, see :func:`pilot_sweep`, and return its losses and
    measures.
    """
    from orchestrator.analysis.prediction_inputs import pilot_of
    from orchestrator.analysis.report import results_table
    from orchestrator.running.run import run_sweep

    spec = pilot_sweep(sweep, source, model, **asked)
    try:
        summary = run_sweep(spec, options, progress=progress)
    except DataError as error:
        way_out = error.way_out.replace("train_sizes", "--pilot-sizes")
        way_out = way_out.replace("test_size", "--pilot-test-size")
        raise DataError(error.rule, error.value, way_out) from None
    table = results_table(Workspace.open(spec, options.root, options.storage))
    if table.empty:
        why = summary.failures[0]["message"] if summary.failures else "nothing was trained"
        raise DataError(
            "A pilot needs one finished training", why, "see the failure, then ask again"
        )
    found = pilot_of(table, model, where=f"of sweep {spec.name}")
    failed = f"{len(summary.failures)} of {summary.planned} trainings of the pilot failed"
    return replace(found, notes=(*found.notes, *[failed][: len(summary.failures)]))


def _mark(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]


def pilot_sweep(
    sweep: SweepSpec,
    source: str,
    model: str,
    *,
    train_sizes: Sequence[int] = (),
    test_size: int | None = None,
    domain: Domain | None = None,
) -> SweepSpec:
    """Return the sweep that a pilot is, with another's recipe, side, channels and split, and no
    attacks.

    Its name is that of all pilots of these data and this model: asked again, it trains nothing.
    Sizes that are not given are the sweep's, the smallest three to train on. ``source`` is own data
    or a dataset's name.
    """
    from orchestrator.analysis.results_tables.points import POOLED
    from orchestrator.running.measuring import known_kind

    models = {model_spec(choice).name: choice for choice in sweep.models}
    if model == POOLED:
        way_out = (
            f"name one: --model {' or '.join(models)}; a CSV of results has train_size and "
            "test_loss"
        )
        raise ConfigError("A pilot is trained with one model", f"all of them ({POOLED})", way_out)
    if model not in models:
        raise unknown_name("model of the sweep to train a pilot with", model, models)
    if sweep.recipe.axes:
        varied = f"{sweep.name} varies {', '.join(sweep.recipe.axes)}"
        raise ConfigError("A pilot needs a sweep with one recipe", varied, "give its losses as CSV")
    # Without rows for the sweep's own datasets or for other models.
    rows = tuple(
        row.model_copy(update={"models": (model,)} if row.models else {})
        for row in sweep.recipe.overrides
        if not row.datasets and (not row.models or model in row.models)
    )
    as_said: dict[str, Any] = {"mode": "json", "exclude_unset": True, "by_alias": True}
    document = sweep.model_dump(**as_said)
    for key in ("worlds", "arms", "robustness", "tune"):
        document.pop(key, None)
    path = Path(source).expanduser().absolute()
    dataset: dict[str, Any] = {"name": source}
    if source not in DATASETS or path.exists():
        if not path.exists():
            rule = (
                "A pilot needs a folder or file of images, the name of a dataset, or a CSV file "
                "of results"
            )
            raise ConfigError(rule, source, "give a path that exists")
        own: dict[str, Any] = {"kind": known_kind(path), "path": str(path)}
        own |= {"domain": domain or "natural", "channels": sweep.channels or 1}
        # Prepared images of a root are found by this name: two folders need two.
        dataset = {"name": f"pilot-{_mark(str(path))}", "own": own}
    document |= {
        "name": f"{sweep.name}-pilot-{_mark(f'{path}|{model}')}",
        "description": f"Pilot of sweep {sweep.name}: {model} on {source}.",
        "models": [models[model].model_dump(**as_said)],
        "datasets": [dataset],
        "train_sizes": list(train_sizes or sorted(sweep.train_sizes)[:NUM_SIZES]),
        "test_size": test_size or sweep.test_size,
        "recipe": sweep.recipe.model_copy(update={"overrides": rows}).model_dump(**as_said),
        "attacks": {"methods": [], "epsilons": []},
        "keep_weights": "none",
    }
    return load_sweep(document)


# What lies in a root.


def contents(paths: RootPaths) -> list[dict[str, Any]]:
    """Return one row per sweep, prepared dataset, recipe and store of a root, with its size in
    bytes.

    The names of what :func:`removed` may remove, sweeps and prepared data, differ.
    """

    def size(path: Path) -> int:
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(file.lstat().st_size for file in files if file.is_file() or file.is_symlink())

    sweeps = [paths.sweep(name).folder for name in paths.sweep_names()]
    results = [len([*path.glob("trials/*/result.json")]) for path in sweeps]
    found = [
        ("sweep", path, plural(count, "result"))
        for path, count in zip(sweeps, results, strict=True)
    ]
    found += [
        ("prepared data", path, "") for path in sorted((paths.root / "prepared").glob("[!.]*/"))
    ]
    found += [("recipe", path, "") for path in sorted(paths.recipes.glob("*.yaml"))]
    stores = {"MLflow's store": paths.mlflow_database, "log": paths.log}
    found += [(what, path, "") for what, path in stores.items() if path.exists()]
    return [
        {
            "what": what,
            "name": path.stem if what == "recipe" else path.name,
            "path": str(path),
            "bytes": size(path),
            "about": about,
            "removable": what in ("sweep", "prepared data"),
        }
        for what, path, about in found
    ]


def removed(paths: RootPaths, folder: str) -> None:
    """Remove a sweep or prepared data of a root on which nobody works."""
    with exclusive(paths.lock, f"isweep rm {Path(folder).name}"):
        remove_folder(Path(folder))
