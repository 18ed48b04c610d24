"""A pilot: a few small trainings on a new dataset, from which a prediction can start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.running.progress import Progress
from search_spaces.datasets import DATASETS
from search_spaces.errors import (
    ConfigError,
    DataError,
    unknown_name,
)
from search_spaces.models import model_spec
from search_spaces.specs import Domain
from search_spaces.sweeps import SweepSpec

if TYPE_CHECKING:
    from orchestrator.analysis.prediction_inputs import Pilot
    from orchestrator.machine.cluster import RunOptions


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
        hint = error.hint.replace("train_sizes", "--pilot-sizes")
        hint = hint.replace("test_size", "--pilot-test-size")
        raise DataError(error.rule, error.value, hint) from None
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
    from orchestrator.analysis.table import POOLED
    from orchestrator.measuring.measure_source import known_kind

    models = {model_spec(choice).name: choice for choice in sweep.models}
    if model == POOLED:
        hint = (
            f"name one: --model {' or '.join(models)}; a CSV of results has train_size and "
            "test_loss"
        )
        raise ConfigError("A pilot is trained with one model", f"all of them ({POOLED})", hint)
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
