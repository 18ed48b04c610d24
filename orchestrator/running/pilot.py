"""A pilot: a few small trainings on a new dataset. A prediction is fitted to their losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.running.progress import Progress
from search_spaces.datasets import DATASETS
from search_spaces.errors import ConfigError, DataError, TooFewImagesError, unknown_name
from search_spaces.models import model_spec
from search_spaces.specs import Domain
from search_spaces.sweeps import ModelChoice, RecipeChoice, SweepSpec

if TYPE_CHECKING:
    from orchestrator.analysis.prediction_inputs import Pilot
    from orchestrator.machine.cluster import RunOptions

NOT_IN_A_PILOT = ("worlds", "arms", "robustness", "tune")
"""Keys of a sweep file that the sweep file of a pilot does not contain. ``worlds`` and
``arms`` list base datasets and conditions."""
NUM_SIZES = 3
"""Number of train sizes of a pilot if the user sets none. They are the sweep's smallest
sizes."""


def run_pilot(
    sweep: SweepSpec,
    source: str,
    model: str,
    options: RunOptions,
    progress: Progress | None = None,
    *,
    train_sizes: Sequence[int] = (),
    test_size: int | None = None,
    domain: Domain | None = None,
) -> Pilot:
    """Train the missing trials of a pilot, and return its losses and measures.

    Args:
        sweep: The sweep whose settings the pilot uses and whose fits predict the loss.
        source: Path of your own data, or name of a dataset.
        model: Name of the model to train.
        options: Options that decide where and how the trainings run.
        progress: Display of the progress.
        train_sizes: Train sizes. If this is empty, the pilot uses the smallest train sizes of
            the sweep.
        test_size: Size of the test set. None means the test size of the sweep.
        domain: Domain of your own data. None means natural images.

    Raises:
        SweepError: The pilot cannot be trained, or no training has finished.
    """
    # These modules are imported here, because the command line imports this module even
    # without a pilot.
    from orchestrator.analysis.prediction_inputs import pilot_of
    from orchestrator.analysis.report import results_table
    from orchestrator.running.run import run_sweep

    spec = pilot_sweep(
        sweep, source, model, train_sizes=train_sizes, test_size=test_size, domain=domain
    )
    try:
        summary = run_sweep(spec, options, progress=progress)
    except TooFewImagesError as error:
        raise DataError(error.problem, hint=_fewer_images(error)) from None
    table = results_table(Workspace.open(spec, options.root, options.storage))
    num_failed = len(summary.failures)
    if table.empty:
        problem = "No training of the pilot has finished"
        hint = (
            "Correct the cause, which is in `isweep.log` below the root. Then run the same command "
            "again"
        )
        if num_failed:
            problem = f"{problem}: {summary.failures[0]['message']}"
            hint = "Correct the cause, and run the same command again"
        raise DataError(problem, hint=hint)
    pilot = pilot_of(table, model, where=f"of sweep {spec.name}")
    if not num_failed:
        return pilot
    note = f"{num_failed} of {summary.planned} trainings of the pilot failed"
    return replace(pilot, notes=(*pilot.notes, note))


def _fewer_images(error: TooFewImagesError) -> str:
    """Return a hint for a pilot with too few images, with the options of ``isweep predict``."""
    if error.largest_train_size > 1:
        largest = error.largest_train_size
        return f"Lower `--pilot-sizes` to at most {largest}, or lower `--pilot-test-size`"
    return "Lower `--pilot-test-size`, or add images"


def pilot_sweep(
    sweep: SweepSpec,
    source: str,
    model: str,
    *,
    train_sizes: Sequence[int] = (),
    test_size: int | None = None,
    domain: Domain | None = None,
) -> SweepSpec:
    """Return the sweep of a pilot, with the settings of another sweep but without attacks.

    Pilots with the same data and model have the same name. A second pilot therefore trains
    only the trials that have no result yet.

    Args:
        sweep: The sweep with the recipe, image size, channels and split of the pilot.
        source: Path of your own data, or name of a dataset.
        model: Name of a model of the sweep.
        train_sizes: Train sizes. If this is empty, the pilot uses the smallest train sizes of
            the sweep.
        test_size: Size of the test set. None means the test size of the sweep.
        domain: Domain of your own data. None means natural images.

    Raises:
        ConfigError: The model, recipe or source cannot be used for a pilot.
    """
    models = {model_spec(choice).name: choice for choice in sweep.models}
    _check_model(model, models)
    if sweep.recipe.axes:
        raise ConfigError(
            f"The recipe of sweep {sweep.name} has several values of "
            f"{', '.join(sweep.recipe.axes)}, but a pilot is trained with one recipe",
            hint="Train the pilot yourself with one recipe. Then write the losses into a CSV "
            "file with the columns `train_size` and `test_loss`, and use `--pilot FILE.csv`",
        )
    as_written: dict[str, Any] = {"mode": "json", "exclude_unset": True, "by_alias": True}
    recipe = _recipe_of_model(sweep, model)
    path = Path(source).expanduser().absolute()
    document = sweep.model_dump(**as_written)
    for key in NOT_IN_A_PILOT:
        document.pop(key, None)
    document.update(
        name=f"{sweep.name}-pilot-{_short_hash(f'{path}|{model}')}",
        description=f"Pilot of sweep {sweep.name}: {model} on {source}.",
        models=[models[model].model_dump(**as_written)],
        datasets=[_dataset(source, path, domain, sweep.channels or 1)],
        train_sizes=list(train_sizes or sorted(sweep.train_sizes)[:NUM_SIZES]),
        test_size=test_size or sweep.test_size,
        recipe=recipe.model_dump(**as_written),
        attacks={"methods": [], "epsilons": []},
        keep_weights="none",
    )
    return load_sweep(document)


def _check_model(model: str, models: Mapping[str, ModelChoice]) -> None:
    """Raise a ConfigError unless ``model`` is one model of the sweep."""
    from orchestrator.analysis.results_tables.points import POOLED  # takes a second: pandas

    if model == POOLED:
        raise ConfigError(
            f"The model is {POOLED}, but a pilot is trained with one model",
            hint=f"Choose one model with `--model` ({' or '.join(models)}), or give a CSV file "
            "with the columns `train_size` and `test_loss`",
        )
    if model not in models:
        raise unknown_name("model", model, models, of="the sweep")


def _recipe_of_model(sweep: SweepSpec, model: str) -> RecipeChoice:
    """Return the sweep's recipe, without the overrides for datasets and without those for
    other models.
    """
    rows = []
    for row in sweep.recipe.overrides:
        if row.datasets or (row.models and model not in row.models):
            continue
        if row.models:
            row = row.model_copy(update={"models": (model,)})
        rows.append(row)
    return sweep.recipe.model_copy(update={"overrides": tuple(rows)})


def _dataset(source: str, path: Path, domain: Domain | None, channels: int) -> dict[str, Any]:
    """Return the dataset of a pilot as an entry of a sweep file."""
    from orchestrator.measuring.sources import data_kind

    if source in DATASETS and not path.exists():
        return {"name": source}
    if not path.exists():
        raise ConfigError(
            f"{source} is neither a path that exists nor the name of a dataset",
            hint="Use a folder or file of images, the name of a dataset, or a CSV file of results",
        )
    source_fields = {
        "kind": data_kind(path),
        "path": str(path),
        "domain": domain or "natural",
        "channels": channels,
    }
    # The name identifies prepared images in a root, so each folder needs its own.
    return {"name": f"pilot-{_short_hash(str(path))}", "own": source_fields}


def _short_hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]
